//! What becomes of every tensor: compressed in which scheme, or kept; and the configuration that says so.
//!
//! Invariant: a group never straddles the end of a row (compressed-tensors refuses that), and the configuration read
//! back gives every module the scheme that was planned for it.

use std::collections::HashSet;

use calora::quant::pack::unpack;
use calora::quant::round::{RoundedRow, ScaleRange, ScaleType};
use calora::quant::{Bits, Group, Scheme};
use calora::weights::{ModelFolder, ModuleTarget, QuantConfig, Tensor};
use calora::{Error, Result};
use half::f16;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::writer::Output;
use super::{CompressOptions, Head, option, raw};

/// The version of compressed-tensors whose layout is written.
const LAYOUT_VERSION: &str = "0.20.0";

/// What int3 and int2 are called in a configuration, so that other readers refuse them; see [`calora::quant`].
const MID_RISE_FORMAT: &str = "calora-mid-rise";

/// One linear to be compressed; the numbers index [`Plan::outputs`].
pub(super) struct Linear {
    pub(super) module: String,
    pub(super) weight: Tensor,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) scheme: Scheme,
    pub(super) scale_type: ScaleType,
    pub(super) words: usize,
    pub(super) scales: usize,
    pub(super) shape: usize,
    pub(super) zero_points: Option<usize>,
}

impl Linear {
    /// The weights that rounded rows stand for, (R, K).
    pub(super) fn read(&self, rows: &[RoundedRow]) -> Vec<f32> {
        let (bits, group) = (self.scheme.bits, self.scheme.group_size(self.cols));
        let mut values = vec![0.0; rows.len() * self.cols];
        for (row, values) in rows.iter().zip(values.chunks_exact_mut(self.cols.max(1))) {
            for (k, value) in values.iter_mut().enumerate() {
                let g = k / group;
                let zero = row.zero_points.get(g).map_or(bits.zero(), |zero| f32::from(*zero));
                *value = (f32::from(unpack(bits, &row.words, k)) - zero) * row.scales[g];
            }
        }
        values
    }
}

/// All of it.
pub(super) struct Plan {
    pub(super) outputs: Vec<Output>,
    pub(super) linears: Vec<Linear>,
    /// Linears that are not compressed.
    pub(super) kept_linears: Vec<String>,
    /// Index in `outputs` and name of every tensor that is copied.
    pub(super) kept: Vec<(usize, String)>,
    /// The new `config.json`.
    pub(super) config: Value,
}

impl Plan {
    /// Decides; reads the linears once for the range of their scales and refuses weights that are not finite.
    pub(super) fn make(
        folder: &ModelFolder,
        options: &CompressOptions,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self> {
        let recipe = calora::arch::recipe(folder.config(), folder.config_path())?;
        // Everything must be there and of the right shape before anything is written.
        folder.weights(&recipe)?;
        let paths: Vec<&str> = recipe.linears.iter().map(|l| l.path.as_str()).collect();
        let patterns = options
            .ignore
            .iter()
            .map(|text| module_pattern("ignore", text, &paths))
            .collect::<Result<Vec<_>>>()?;
        let ignore = patterns.iter().map(|text| target(text)).collect::<Result<Vec<_>>>()?;
        let main = options.scheme;
        // A group that is wrong for every width is the caller's mistake, not a reason to go per channel.
        main.check(match main.group {
            Group::Size(size) => size,
            Group::Channel => 32,
        })?;
        let mut plan = Self {
            outputs: Vec::new(),
            linears: Vec::new(),
            kept_linears: Vec::new(),
            kept: Vec::new(),
            config: folder.config().clone(),
        };
        let mut exceptions = Vec::new();
        for (text, bits) in &options.exceptions {
            exceptions.push((target(&module_pattern("scheme-for", text, &paths)?)?, *bits));
        }
        let mut compressed = HashSet::new();
        let mut read = 0;
        for linear in &recipe.linears {
            let Some(spec) = recipe.matrices.get(linear.matrix.0) else { continue };
            let ignored = ignore.iter().any(|target| target.matches(&linear.path, "Linear"));
            let head = linear.path == "lm_head";
            if ignored || (head && options.head == Head::Keep) {
                plan.kept_linears.push(linear.path.clone());
                continue;
            }
            let exception = exceptions.iter().find(|(target, _)| target.matches(&linear.path, "Linear"));
            let bits = match exception {
                Some((_, bits)) => *bits,
                None if head => Bits::Int8,
                None => main.bits,
            };
            let scheme = Scheme { bits, symmetric: main.symmetric || bits.is_mid_rise(), ..main };
            let scheme = if scheme.check(spec.cols).is_ok() {
                scheme
            } else {
                Scheme { group: Group::Channel, ..scheme }
            };
            let module = folder.stored_path(spec).to_owned();
            let weight = folder.tensors().require(&format!("{module}.weight"))?;
            compressed.insert(weight.name.to_string());
            let range = range(&weight, spec.cols, scheme)?;
            read += weight.bytes().len() as u64;
            progress(read);
            plan.add_linear(
                module,
                weight,
                (spec.rows, spec.cols),
                scheme,
                ScaleType::for_range(scheme, range),
            );
        }
        if plan.linears.is_empty() {
            return Err(option("ignore", options.ignore.join(" "), "leaves nothing to compress"));
        }
        for name in folder.tensors().names().filter(|name| !compressed.contains(*name)) {
            let (dtype, shape, bytes) = raw(folder, name)?;
            plan.kept.push((plan.outputs.len(), name.to_owned()));
            plan.outputs.push(Output::new(name.to_owned(), dtype, shape, bytes.len()));
        }
        plan.config["quantization_config"] = plan.quantization_config(main, options.head, &patterns);
        plan.check_config(folder)?;
        Ok(plan)
    }

    /// Linears with a scale a row although groups were asked for.
    pub(super) fn per_channel(&self, wanted: Group) -> Vec<String> {
        let odd = self.linears.iter().filter(|l| l.scheme.group != wanted);
        odd.map(|l| l.module.clone()).collect()
    }

    fn add_linear(
        &mut self,
        module: String,
        weight: Tensor,
        (rows, cols): (usize, usize),
        scheme: Scheme,
        scale_type: ScaleType,
    ) {
        let mut add = |kind: &str, dtype: &str, shape: &[usize], size: usize| {
            let len = shape.iter().product::<usize>() * size;
            self.outputs.push(Output::new(format!("{module}.{kind}"), dtype, shape, len));
            self.outputs.len() - 1
        };
        let groups = scheme.groups(cols);
        let words = add("weight_packed", "I32", &[rows, scheme.words(cols)], 4);
        let scales = match scale_type {
            ScaleType::F16 => add("weight_scale", "F16", &[rows, groups], 2),
            ScaleType::F32 => add("weight_scale", "F32", &[rows, groups], 4),
        };
        let shape = add("weight_shape", "I64", &[2], 8);
        let zero_points = (!scheme.symmetric)
            .then(|| add("weight_zero_point", "I32", &[scheme.bits.words(rows), groups], 4));
        let linear =
            Linear { module, weight, rows, cols, scheme, scale_type, words, scales, shape, zero_points };
        self.linears.push(linear);
    }

    /// The main scheme targets the class, every other its modules by path; paths take precedence over classes.
    fn quantization_config(&self, main: Scheme, head: Head, ignore: &[String]) -> Value {
        let mut others: Vec<(Scheme, Vec<String>)> = Vec::new();
        for linear in self.linears.iter().filter(|l| l.scheme != main || l.module.ends_with("embed_tokens")) {
            match others.iter_mut().find(|(scheme, _)| *scheme == linear.scheme) {
                Some((_, modules)) => modules.push(linear.module.clone()),
                None => others.push((linear.scheme, vec![linear.module.clone()])),
            }
        }
        // Last, because compressed-tensors warns of a path that stands after the class which it belongs to.
        others.push((main, vec!["Linear".to_owned()]));
        let groups = others.into_iter().enumerate();
        let groups: serde_json::Map<String, Value> = groups
            .map(|(i, (scheme, targets))| (format!("group_{i}"), group_config(scheme, &targets)))
            .collect();
        // Others must refuse what they would misread.
        let extended = self.linears.iter().any(|l| l.scheme.bits.is_mid_rise());
        let head = (head == Head::Keep).then_some("lm_head");
        let others = ignore.iter().map(String::as_str).filter(|name| *name != "lm_head");
        let ignore: Vec<&str> = head.into_iter().chain(others).collect();
        json!({
            "config_groups": groups,
            "format": if extended { MID_RISE_FORMAT } else { "pack-quantized" },
            "global_compression_ratio": null,
            "ignore": ignore,
            "kv_cache_scheme": null,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "sparsity_config": {},
            "transform_config": {},
            "version": LAYOUT_VERSION,
        })
    }

    /// Reads the new configuration back.
    fn check_config(&self, folder: &ModelFolder) -> Result<()> {
        let parsed = QuantConfig::parse(&self.config, folder.config_path())?;
        for linear in &self.linears {
            let class = if linear.module.ends_with("embed_tokens") { "Embedding" } else { "Linear" };
            let read = parsed.as_ref().and_then(|p| p.scheme(&linear.module, class));
            if read != Some(linear.scheme) {
                let value = Value::from(linear.module.as_str());
                return Err(Error::UnsupportedConfig {
                    path: folder.config_path().to_owned(),
                    field: "quantization_config".into(),
                    value: value.to_string(),
                    reason: format!("cannot express {} for this module", linear.scheme),
                });
            }
        }
        Ok(())
    }
}

fn group_config(scheme: Scheme, targets: &[String]) -> Value {
    let (strategy, size) = match scheme.group {
        Group::Size(size) => ("group", json!(size)),
        Group::Channel => ("channel", Value::Null),
    };
    let mut group = json!({
        "format": "pack-quantized",
        "input_activations": null,
        "output_activations": null,
        "targets": targets,
        "weights": {
            "dynamic": false,
            "group_size": size,
            "num_bits": scheme.bits.count(),
            "strategy": strategy,
            "symmetric": scheme.symmetric,
            "type": "int",
        },
    });
    if scheme.bits.is_mid_rise() {
        group["format"] = json!(MID_RISE_FORMAT);
        group["weights"]["levels"] = json!("mid-rise");
    }
    group
}

/// A module as compressed-tensors spells it; refuses what matches nothing, which is a misspelt name.
fn module_pattern(name: &str, text: &str, paths: &[&str]) -> Result<String> {
    let exact = target(text)?;
    if paths.iter().any(|path| exact.matches(path, "Linear")) {
        return Ok(text.to_owned());
    }
    if paths.iter().any(|path| path.strip_suffix(text).is_some_and(|front| front.ends_with('.'))) {
        return Ok(format!("re:.*\\.{}$", text.replace('.', "\\.")));
    }
    let some = paths.iter().take(7).copied().collect::<Vec<_>>().join(", ");
    Err(option(name, text, format!("matches no linear of this model, which has {some}, ...")))
}

fn target(text: &str) -> Result<ModuleTarget> {
    ModuleTarget::parse(text).map_err(|reason| option("ignore", text, reason))
}

/// The range of a matrix's groups; refuses NaN and infinities.
fn range(weight: &Tensor, cols: usize, scheme: Scheme) -> Result<ScaleRange> {
    let group = scheme.group_size(cols);
    let block = (1_000_000 / cols.max(1)).max(1) * cols;
    let starts: Vec<usize> = (0..weight.len()).step_by(block.max(1)).collect();
    starts
        .into_par_iter()
        .map(|start| {
            let values = weight.to_f32_range(start..(start + block).min(weight.len()))?;
            if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                return Err(Error::Tensor {
                    path: weight.path().to_owned(),
                    tensor: weight.name.to_string(),
                    reason: format!("element {} is {}", start + at, values[at]),
                });
            }
            let rows = values.chunks(cols).map(|row| ScaleRange::of_row(row, group));
            Ok(rows.fold(ScaleRange::default(), ScaleRange::merge))
        })
        .try_reduce(ScaleRange::default, |a, b| Ok(a.merge(b)))
}

/// Scales as they are stored.
pub(super) fn scale_bytes(scale_type: ScaleType, scales: &[f32]) -> Vec<u8> {
    match scale_type {
        ScaleType::F16 => scales.iter().flat_map(|s| f16::from_f32(*s).to_le_bytes()).collect(),
        ScaleType::F32 => scales.iter().flat_map(|s| s.to_le_bytes()).collect(),
    }
}
