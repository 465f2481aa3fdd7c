//! The safetensors file of a compressed folder, written tensor by tensor.
//!
//! All sizes are known before a weight is rounded, so the header comes first. The ids in it have a fixed length and are
//! filled in at the end, when every tensor has been hashed on its way to the file.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use calora::quant::Scheme;
use calora::quant::round::{ScaleType, round_row};
use calora::weights::id::{self, TensorDigest};
use calora::weights::{BaseIds, Matrix, ModelFolder};
use half::f16;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::{Action, Compressed, Plan};

/// Writes all tensors of a plan.
pub(super) fn tensors(
    folder: &ModelFolder,
    plan: &Plan,
    config: &Value,
    source_id: &str,
    path: &Path,
    tick: &impl Fn(u64, u64),
) -> Result<Compressed> {
    let entries = entries(folder, plan)?;
    let config_id = id::config_id(config);
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let mut out = Hashing { file: BufWriter::with_capacity(1 << 20, file), digests: Vec::new() };
    // Any text of an id's length will do until the id is known.
    let header_len = out.header(&entries, source_id, source_id, &config_id)?;
    let total = entries.iter().map(|e| e.source_bytes).sum();
    let mut done = 0;
    let mut at = entries.iter();
    for action in &plan.actions {
        match action {
            Action::Copy { name } => {
                let Some((_, _, bytes)) = folder.tensors().raw(name) else { bail!("tensor {name} is gone") };
                out.tensor(at.next(), bytes)?;
            }
            Action::Pack { matrix, scheme, scale_type, .. } => {
                let (words, scales, zeros) = round(matrix, *scheme, *scale_type)?;
                out.tensor(at.next(), bytemuck::cast_slice(&words))?;
                out.tensor(at.next(), &scales)?;
                let shape = [matrix.rows as i64, matrix.cols as i64];
                out.tensor(at.next(), bytemuck::cast_slice(&shape))?;
                if !scheme.symmetric {
                    out.tensor(at.next(), bytemuck::cast_slice(&zeros))?;
                }
            }
        }
        done += source_bytes(folder, action);
        tick(done, total);
    }
    let compressed_id = id::id(&config_id, &out.digests);
    out.file.seek(SeekFrom::Start(0))?;
    if out.header(&entries, source_id, &compressed_id, &config_id)? != header_len {
        bail!("{}: the header changed its length", path.display());
    }
    out.file.flush()?;
    out.file.get_ref().sync_all()?;
    let packed = plan.actions.iter().filter_map(|a| match a {
        Action::Pack { module, scheme, .. } => Some((module, scheme)),
        Action::Copy { .. } => None,
    });
    let wanted = packed.clone().map(|(_, s)| s.group).min_by_key(|g| *g == calora::quant::Group::Channel);
    Ok(Compressed {
        source_bytes: total,
        bytes: entries.iter().map(|e| e.len as u64).sum(),
        linears: packed.clone().count(),
        per_channel: packed.filter(|(_, s)| Some(s.group) != wanted).map(|(m, _)| m.clone()).collect(),
        ids: BaseIds { source: Some(source_id.to_owned()), compressed: Some(compressed_id) },
    })
}

/// One tensor of the result.
struct Entry {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    len: usize,
    source_bytes: u64,
}

fn source_bytes(folder: &ModelFolder, action: &Action) -> u64 {
    match action {
        Action::Copy { name } => folder.tensors().raw(name).map_or(0, |(_, _, bytes)| bytes.len() as u64),
        Action::Pack { matrix, .. } => matrix.byte_len() as u64,
    }
}

fn entries(folder: &ModelFolder, plan: &Plan) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for action in &plan.actions {
        let source_bytes = source_bytes(folder, action);
        match action {
            Action::Copy { name } => {
                let Some((dtype, shape, bytes)) = folder.tensors().raw(name) else {
                    bail!("tensor {name} is gone")
                };
                let (dtype, shape) = (dtype.to_owned(), shape.to_vec());
                entries.push(Entry { name: name.clone(), dtype, shape, len: bytes.len(), source_bytes });
            }
            Action::Pack { module, matrix, scheme, scale_type } => {
                let (rows, groups) = (matrix.rows, scheme.groups(matrix.cols));
                let (scale, scale_size) = match scale_type {
                    ScaleType::F16 => ("F16", 2),
                    ScaleType::F32 => ("F32", 4),
                };
                let mut add = |suffix: &str, dtype: &str, shape: Vec<usize>, size: usize, source_bytes| {
                    let len = shape.iter().product::<usize>() * size;
                    let name = format!("{module}.{suffix}");
                    entries.push(Entry { name, dtype: dtype.into(), shape, len, source_bytes });
                };
                add("weight_packed", "I32", vec![rows, scheme.words(matrix.cols)], 4, source_bytes);
                add("weight_scale", scale, vec![rows, groups], scale_size, 0);
                add("weight_shape", "I64", vec![2], 8, 0);
                if !scheme.symmetric {
                    add(
                        "weight_zero_point",
                        "I32",
                        vec![rows.div_ceil(scheme.bits.per_word()), groups],
                        4,
                        0,
                    );
                }
            }
        }
    }
    Ok(entries)
}

/// The file, and a hash of each tensor that went into it.
struct Hashing {
    file: BufWriter<File>,
    digests: Vec<TensorDigest>,
}

impl Hashing {
    /// Writes the length and the JSON of the header; returns their bytes.
    fn header(&mut self, entries: &[Entry], source: &str, compressed: &str, config: &str) -> Result<usize> {
        let mut map = Map::new();
        let mut metadata = Map::from_iter([("format".to_owned(), json!("pt"))]);
        for (key, value) in id::metadata(source, compressed, config) {
            metadata.insert(key.into(), value.into());
        }
        map.insert("__metadata__".into(), metadata.into());
        let mut at = 0;
        for e in entries {
            let range = [at, at + e.len];
            map.insert(e.name.clone(), json!({"dtype": e.dtype, "shape": e.shape, "data_offsets": range}));
            at += e.len;
        }
        let mut text = Value::Object(map).to_string();
        // Tensors begin at a multiple of 16, so that they can be read in place.
        text.extend(std::iter::repeat_n(' ', (24 - text.len() % 16) % 16));
        self.file.write_all(&(text.len() as u64).to_le_bytes())?;
        self.file.write_all(text.as_bytes())?;
        Ok(text.len() + 8)
    }

    fn tensor(&mut self, entry: Option<&Entry>, bytes: &[u8]) -> Result<()> {
        let Some(entry) = entry.filter(|e| e.len == bytes.len()) else {
            bail!("a tensor has another size than its place in the file");
        };
        self.digests.push(TensorDigest {
            name: entry.name.clone(),
            dtype: entry.dtype.clone(),
            shape: entry.shape.clone(),
            bytes: *blake3::hash(bytes).as_bytes(),
        });
        Ok(self.file.write_all(bytes)?)
    }
}

/// (words, scale bytes, zero-point words) of a matrix.
fn round(matrix: &Matrix, scheme: Scheme, scale_type: ScaleType) -> Result<(Vec<u32>, Vec<u8>, Vec<u32>)> {
    let rows: Vec<_> = (0..matrix.rows)
        .into_par_iter()
        .map(|row| {
            let values = matrix.tensor().to_f32_range(row * matrix.cols..(row + 1) * matrix.cols)?;
            Ok(round_row(scheme, scale_type, &values))
        })
        .collect::<Result<_>>()?;
    let words = rows.iter().flat_map(|r| r.words.iter().copied()).collect();
    let all_scales = rows.iter().flat_map(|r| r.scales.iter().copied());
    let scales = match scale_type {
        ScaleType::F16 => all_scales.flat_map(|s| f16::from_f32(s).to_le_bytes()).collect(),
        ScaleType::F32 => all_scales.flat_map(f32::to_le_bytes).collect(),
    };
    let groups = scheme.groups(matrix.cols);
    let mut zeros =
        vec![0u32; if scheme.symmetric { 0 } else { matrix.rows.div_ceil(scheme.bits.per_word()) * groups }];
    if !scheme.symmetric {
        // Zero points are packed along the rows.
        for (row, rounded) in rows.iter().enumerate() {
            for (g, zero) in rounded.zero_points.iter().enumerate() {
                let shift = row % scheme.bits.per_word() * scheme.bits.count();
                zeros[row / scheme.bits.per_word() * groups + g] |= u32::from(*zero) << shift;
            }
        }
    }
    Ok((words, scales, zeros))
}
