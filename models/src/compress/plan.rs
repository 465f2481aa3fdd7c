//! What becomes of each tensor of the source.

use anyhow::{Result, bail};
use calora::arch::Recipe;
use calora::quant::Scheme;
use calora::quant::{Group, round::ScaleRange, round::ScaleType};
use calora::weights::{Matrix, ModelFolder};
use rayon::prelude::*;

use super::CompressOptions;

/// What happens to one tensor.
#[derive(Clone, Debug)]
pub enum Action {
    /// Its bytes go over as they are.
    Copy {
        /// The tensor's name.
        name: String,
    },
    /// It becomes packed words, scales and a shape.
    Pack {
        /// The module's path, `model.layers.0.mlp.up_proj`.
        module: String,
        /// The source.
        matrix: Box<Matrix>,
        /// Bits and group.
        scheme: Scheme,
        /// The type of its scales.
        scale_type: ScaleType,
    },
}

/// Actions in the order of writing.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One for each tensor of the source.
    pub actions: Vec<Action>,
    /// Modules that are linear, not packed, and listed under `ignore`.
    pub kept: Vec<String>,
}

impl Plan {
    /// Decides for every tensor of the folder; reads each linear once for the range of its scales.
    pub fn new(folder: &ModelFolder, recipe: &Recipe, options: &CompressOptions) -> Result<Self> {
        let mut names: Vec<&str> = folder.tensors().names().collect();
        names.sort_unstable();
        let mut plan = Self { actions: Vec::new(), kept: Vec::new() };
        for name in names {
            let module = name.strip_suffix(".weight").unwrap_or_default();
            let linear = recipe.linears.iter().find(|l| l.path == module);
            let Some(linear) = linear else {
                plan.actions.push(Action::Copy { name: name.to_owned() });
                continue;
            };
            if options.ignore.iter().any(|i| i == module || module.ends_with(&format!(".{i}"))) {
                plan.kept.push(module.to_owned());
                plan.actions.push(Action::Copy { name: name.to_owned() });
                continue;
            }
            let matrix = folder.matrix(&recipe.matrices[linear.matrix.0])?;
            let scheme = match options.scheme.check(matrix.cols) {
                Ok(()) => options.scheme,
                // A group of no valid size is the caller's mistake; one that does not divide this width is not.
                Err(e) if options.scheme.check(128).is_err() => return Err(e.into()),
                Err(_) => Scheme { group: Group::Channel, ..options.scheme },
            };
            let scale_type = ScaleType::for_range(scheme, range(&matrix, scheme)?);
            plan.actions.push(Action::Pack {
                module: module.to_owned(),
                matrix: Box::new(matrix),
                scheme,
                scale_type,
            });
        }
        if !plan.actions.iter().any(|a| matches!(a, Action::Pack { .. })) {
            bail!("{}: nothing is left to compress", folder.path().display());
        }
        Ok(plan)
    }
}

/// The range of all groups of a matrix; refuses weights that are not finite.
fn range(matrix: &Matrix, scheme: Scheme) -> Result<ScaleRange> {
    let group = scheme.group_size(matrix.cols);
    let ranges = (0..matrix.rows).into_par_iter().map(|row| {
        let tensor = matrix.tensor();
        let values = tensor.to_f32_range(row * matrix.cols..(row + 1) * matrix.cols)?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            bail!(
                "{}: tensor {}: row {row} column {at} is {}",
                tensor.path().display(),
                tensor.name,
                values[at]
            );
        }
        Ok(ScaleRange::of_row(&values, group))
    });
    ranges.try_reduce(ScaleRange::default, |a, b| Ok(a.merge(b)))
}
