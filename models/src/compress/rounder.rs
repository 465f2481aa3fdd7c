//! Rounds the planned linears: in row blocks as they stand in the file, or stage by stage with calibration text.

use std::sync::Arc;

use calora::Result;
use calora::arch;
use calora::device::{Model, Weights};
use calora::quant::Bits;
use calora::quant::pack::pack_row;
use calora::quant::round::{RoundedRow, round_row};
use calora::weights::{Matrix, ModelFolder, Tensor};
use rayon::prelude::*;

use super::gptq::{Feedback, check_tokens};
use super::plan::{self, Linear};
use super::writer::Writer;
use super::{CompressOptions, LinearReport, Method};
use crate::calibrate::{Calibration, Moment};

/// Rounds and writes linears, and remembers what that did.
pub(super) struct Rounder<'a> {
    options: &'a CompressOptions,
    writer: &'a mut Writer,
    /// Gets the source's bytes of each linear that is done.
    progress: &'a mut dyn FnMut(u64),
    done: Rounded,
}

/// What was done.
#[derive(Default)]
pub(super) struct Rounded {
    pub(super) reports: Vec<LinearReport>,
    /// The sum of squared errors.
    pub(super) error: f64,
    /// The sum of squared weights.
    pub(super) power: f64,
}

impl<'a> Rounder<'a> {
    pub(super) fn new(
        options: &'a CompressOptions,
        writer: &'a mut Writer,
        progress: &'a mut dyn FnMut(u64),
    ) -> Self {
        Self { options, writer, progress, done: Rounded::default() }
    }

    /// All linears, in the order of the plan or of the model's stages.
    pub(super) fn round(mut self, folder: &ModelFolder, linears: &[Linear]) -> Result<Rounded> {
        let seen = match self.options.calibration.is_empty() {
            true => Vec::new(),
            false => self.walk(folder, linears)?,
        };
        for linear in linears.iter().filter(|l| !seen.contains(&l.module)) {
            self.stream(linear)?;
        }
        Ok(self.done)
    }

    /// Stage by stage: looks at a stage's inputs, rounds its linears, goes on with what they became. The modules of the
    /// linears that were met come back; the head is not among them.
    fn walk(&mut self, folder: &ModelFolder, linears: &[Linear]) -> Result<Vec<String>> {
        let recipe = arch::recipe(folder.config(), folder.config_path())?;
        let weights = folder.weights(&recipe)?;
        let model = Model { recipe: Arc::new(recipe), weights: Arc::new(weights) };
        let (mut tokens, mut widest, mut seen) = (0, 0, Vec::new());
        if self.options.method == Method::Gptq {
            tokens = self.options.calibration.iter().map(Vec::len).sum();
            widest = linears.iter().filter(|l| l.module != HEAD).map(|l| l.cols).max().unwrap_or(0);
        }
        check_tokens(tokens, widest)?;
        let mut calibration = Calibration::new(&model, None, &self.options.calibration, None)?;
        while let Some(paths) = calibration.linears() {
            let here = |l: &&Linear| l.module != HEAD && paths.contains(&l.module);
            let here: Vec<&Linear> = linears.iter().filter(here).collect();
            let moments = calibration.peek(&|path| here.iter().any(|l| l.module == path))?;
            let moments = moments.unwrap_or_default();
            let mut matrices = model.weights.matrices.clone();
            let mut feedback: Option<(Arc<Moment>, Feedback)> = None;
            for linear in here {
                let (Some(moment), Some(id)) =
                    (moments.get(&linear.module), model.recipe.linear(&linear.module))
                else {
                    continue;
                };
                if self.options.method == Method::Gptq
                    && !feedback.as_ref().is_some_and(|(of, _)| Arc::ptr_eq(of, &moment))
                {
                    let made = Feedback::new(&linear.module, &moment, self.options.damping)?;
                    feedback = Some((moment.clone(), made));
                }
                let rounded = self.weigh(linear, &moment, feedback.as_ref().map(|(_, f)| f))?;
                let tensor = Tensor::from_f32(&linear.module, &[linear.rows, linear.cols], &rounded)?;
                matrices[model.recipe.linears[id.0].matrix.0] = Matrix::dense(tensor)?;
                seen.push(linear.module.clone());
            }
            let vectors = model.weights.vectors.clone();
            let weights = Arc::new(Weights { matrices, vectors });
            calibration.replace(Model { recipe: model.recipe.clone(), weights })?;
            calibration.advance()?;
        }
        Ok(seen)
    }

    /// Rounds one linear as a whole, under its moment; what its weights became comes back.
    fn weigh(&mut self, linear: &Linear, moment: &Moment, feedback: Option<&Feedback>) -> Result<Vec<f32>> {
        let mut weights = linear.weight.to_f32()?;
        let (power, output_power) = (square(&weights), moment.energy(&weights));
        let before = weights.clone();
        let rows = match feedback {
            Some(feedback) => feedback.round(linear.scheme, linear.scale_type, &mut weights),
            None => {
                let rows = Self::nearest(linear, &weights);
                weights = linear.read(&rows);
                rows
            }
        };
        let mut zeros = Vec::new();
        let error = self.write(linear, &rows, &mut zeros)?;
        let mut difference = before;
        difference.iter_mut().zip(&weights).for_each(|(d, w)| *d -= w);
        let output_error = moment.energy(&difference) / output_power.max(f64::MIN_POSITIVE);
        self.finish(linear, &zeros, error, power, Some(output_error))?;
        Ok(weights)
    }

    /// Rounds one linear in row blocks.
    fn stream(&mut self, linear: &Linear) -> Result<()> {
        let (mut error, mut power, mut zeros) = (0.0, 0.0, Vec::new());
        let block = (4_000_000 / linear.cols.max(1)).max(1);
        for start in (0..linear.rows).step_by(block) {
            let end = (start + block).min(linear.rows);
            let values = linear.weight.to_f32_range(start * linear.cols..end * linear.cols)?;
            power += square(&values);
            let rows = Self::nearest(linear, &values);
            error += self.write(linear, &rows, &mut zeros)?;
        }
        self.finish(linear, &zeros, error, power, None)
    }

    /// Some rows to their nearest levels.
    fn nearest(linear: &Linear, values: &[f32]) -> Vec<RoundedRow> {
        let (scheme, scale_type) = (linear.scheme, linear.scale_type);
        let round = |row: &[f32]| round_row(scheme, scale_type, row);
        values.par_chunks(linear.cols).map(round).collect()
    }

    /// Writes rows; zero points, which lie across rows in the file, are collected. The sum of squared errors comes back.
    fn write(&mut self, linear: &Linear, rows: &[RoundedRow], zeros: &mut Vec<u8>) -> Result<f64> {
        for row in rows {
            self.writer.append(linear.words, bytemuck::cast_slice(&row.words))?;
            self.writer.append(linear.scales, &plan::scale_bytes(linear.scale_type, &row.scales))?;
            zeros.extend_from_slice(&row.zero_points);
        }
        Ok(rows.iter().map(|row| row.squared_error).sum())
    }

    /// Writes what stands beside the rows, and reports.
    fn finish(
        &mut self,
        linear: &Linear,
        zeros: &[u8],
        error: f64,
        power: f64,
        output_error: Option<f64>,
    ) -> Result<()> {
        let shape = [linear.rows as i64, linear.cols as i64];
        self.writer.append(linear.shape, bytemuck::cast_slice(&shape))?;
        if let Some(output) = linear.zero_points {
            let words = pack_columns(linear.scheme.bits, zeros, linear.scheme.groups(linear.cols));
            self.writer.append(output, bytemuck::cast_slice(&words))?;
        }
        self.done.error += error;
        self.done.power += power;
        let outputs = [Some(linear.words), Some(linear.scales), Some(linear.shape), linear.zero_points];
        self.done.reports.push(LinearReport {
            path: linear.module.clone(),
            scheme: linear.scheme,
            weights: (linear.rows * linear.cols) as u64,
            bytes: outputs.into_iter().flatten().map(|output| self.writer.byte_len(output)).sum(),
            relative_error: error / power.max(f64::MIN_POSITIVE),
            output_error,
        });
        (self.progress)(linear.weight.bytes().len() as u64);
        Ok(())
    }
}

/// The head's module: calibration does not see it.
const HEAD: &str = "lm_head";

fn square(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum()
}

/// (R, groups) zero points to (ceil(R * bits / 32), groups) words, packed along the rows.
fn pack_columns(bits: Bits, zeros: &[u8], groups: usize) -> Vec<u32> {
    let rows = zeros.len() / groups.max(1);
    let words = bits.words(rows);
    let mut out = vec![0; words * groups];
    let mut column = Vec::with_capacity(words);
    for g in 0..groups {
        let values: Vec<u8> = zeros.iter().skip(g).step_by(groups).copied().collect();
        column.clear();
        pack_row(bits, &values, &mut column);
        for (r, word) in column.iter().enumerate() {
            out[r * groups + g] = *word;
        }
    }
    out
}
