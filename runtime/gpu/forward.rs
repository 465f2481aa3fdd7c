//! A batch of passes: inputs written, steps recorded, one submit, one readback.
//!
//! Rows of activations are those of the first pass, then of the next. Projections take all rows at once; each pass
//! attends over its own cache.

use std::ops::Range;
use std::sync::Arc;

use super::GpuDevice;
use super::record::{Branches, Projection, Recording};
use super::scratch::Place;
use super::tail::GpuTail;
use crate::arch::{Output, Slot, Step};
use crate::device::{Answer, Forward, Want};
use crate::error::Result;
use crate::memory::LOGIT_BYTES;

/// Checked passes, those with the same adapter side by side.
pub(super) struct Batch<'a> {
    pub(super) passes: Vec<&'a Forward<'a>>,
    /// Of each pass; none where all its scales are 0.
    pub(super) tails: Vec<Option<Arc<GpuTail>>>,
}

impl Batch<'_> {
    /// The rows of each pass.
    fn rows(&self) -> impl Iterator<Item = Range<usize>> {
        self.passes.iter().scan(0, |start, pass| {
            let rows = *start..*start + pass.tokens.len();
            *start = rows.end;
            Some(rows)
        })
    }

    fn tokens(&self) -> usize {
        self.passes.iter().map(|pass| pass.tokens.len()).sum()
    }

    /// Whose logits are wanted: rows of passes, each with its place among them.
    fn wanted(&self) -> Vec<(usize, &Forward<'_>)> {
        let mut wanted = Vec::new();
        for (rows, pass) in self.rows().zip(self.passes.iter().copied()) {
            let first = match pass.want {
                Want::Nothing => rows.end,
                Want::Argmax | Want::LastLogits => rows.end - 1,
                Want::AllLogits => rows.start,
            };
            wanted.extend((first..rows.end).map(|row| (row, pass)));
        }
        wanted
    }

    /// The branches of a step for the rows `first .. first + tokens`.
    fn branches(&self, step: usize, first: usize, tokens: usize) -> Vec<Branches<'_>> {
        let mut groups: Vec<Branches<'_>> = Vec::new();
        let mut last: Option<(&Option<Arc<GpuTail>>, &[f32])> = None;
        for ((rows, tail), pass) in self.rows().zip(&self.tails).zip(&self.passes) {
            let rows = rows.start.max(first)..rows.end.min(first + tokens);
            if rows.is_empty() {
                continue;
            }
            let same = |(last, scales): (&Option<Arc<GpuTail>>, &[f32])| match (last, tail) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b) && scales == pass.scales,
                (a, b) => a.is_none() && b.is_none(),
            };
            match groups.last_mut() {
                Some(group) if last.is_some_and(same) => group.rows.end = rows.end - first,
                _ => {
                    let tail = tail.as_ref().and_then(|t| Some((t.steps.get(step)?.as_ref()?, t.kind)));
                    let rows = rows.start - first..rows.end - first;
                    groups.push(Branches { rows, tail, scales: pass.scales });
                }
            }
            last = Some((tail, pass.scales));
        }
        groups
    }
}

impl GpuDevice {
    /// Writes what the passes read: ids and the angles of their positions.
    fn write_inputs(&self, batch: &Batch<'_>) -> Result<()> {
        let write = |place: Place, bytes: &[u8]| match self.scratch.buffer(place) {
            Some(buffer) => self.context.write("the pass's inputs", buffer, 0, bytes),
            None => Ok(()),
        };
        let ids: Vec<u32> = batch.passes.iter().flat_map(|pass| pass.tokens).copied().collect();
        write(Place::Tokens, bytemuck::cast_slice(&ids))?;
        let frequencies = &self.model.recipe.rope.inverse_frequencies;
        let mut angles: Vec<[f32; 2]> = Vec::with_capacity(ids.len() * frequencies.len());
        for position in batch.passes.iter().flat_map(|p| p.position..p.position + p.tokens.len()) {
            for frequency in frequencies {
                let (sine, cosine) = (position as f64 * frequency).sin_cos();
                angles.push([cosine as f32, sine as f32]);
            }
        }
        write(Place::Angles, bytemuck::cast_slice(&angles))
    }

    /// Records everything before the logits.
    pub(super) fn record_body(&mut self, recording: &mut Recording, batch: &Batch<'_>) -> Result<()> {
        let (recipe, tokens) = (self.model.recipe.clone(), batch.tokens());
        for (step, kind) in recipe.steps.iter().enumerate() {
            match kind {
                Step::Embed { table } => self.record_embed(recording, *table, tokens)?,
                Step::Attend { layer } => {
                    for (pass, rows) in batch.passes.iter().zip(batch.rows()) {
                        self.record_attend(recording, (pass, rows.start), *layer)?;
                    }
                }
                Step::Project { output, .. } if is_logits(output) => {}
                Step::Project { norm, input, linears, output } => {
                    let (first, to) = (0, 0);
                    let p = Projection { norm: *norm, input: *input, linears, output, first, tokens, to };
                    self.record_project(recording, &p, &batch.branches(step, first, tokens))?;
                }
            }
        }
        Ok(())
    }

    /// Records the logits of rows `first .. first + tokens` to the rows of their slot from `to` on.
    pub(super) fn record_logits(
        &mut self,
        recording: &mut Recording,
        batch: &Batch<'_>,
        (first, tokens, to): (usize, usize, usize),
    ) -> Result<()> {
        let recipe = self.model.recipe.clone();
        for (step, kind) in recipe.steps.iter().enumerate() {
            if let Step::Project { norm, input, linears, output } = kind
                && is_logits(output)
            {
                let p = Projection { norm: *norm, input: *input, linears, output, first, tokens, to };
                self.record_project(recording, &p, &batch.branches(step, first, tokens))?;
            }
        }
        Ok(())
    }

    /// Submits a recording and reads pieces of buffers back, one after the other: which, from where, how many bytes.
    pub(super) fn submit(&mut self, recording: &Recording, reads: &[(Place, u64, u64)]) -> Result<Vec<u8>> {
        self.dispatches += recording.len();
        let Some(params) = self.scratch.buffer(Place::Params).cloned() else { return Ok(Vec::new()) };
        self.context.write("the pass's parameters", &params, 0, recording.params())?;
        let total: u64 = reads.iter().map(|(_, _, bytes)| bytes).sum();
        let target = if total > 0 { Some(self.scratch.readback(&self.context, total)?) } else { None };
        self.context.guard("a forward pass", 0, || {
            let mut encoder = self.context.device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&Default::default());
            recording.encode(&mut pass);
            drop(pass);
            let mut at = 0;
            for (place, from, bytes) in reads {
                if let (Some(target), Some(buffer)) = (&target, self.scratch.buffer(*place)) {
                    encoder.copy_buffer_to_buffer(buffer, *from, target, at, *bytes);
                }
                at += bytes;
            }
            self.context.queue.submit([encoder.finish()]);
        })?;
        match target {
            Some(target) => self.context.read(&target, total),
            None => Ok(Vec::new()),
        }
    }

    /// Runs a checked batch; answers in the order of its passes.
    pub(super) fn run(&mut self, batch: &Batch<'_>) -> Result<Vec<Answer>> {
        let vocab = self.model.recipe.shape.vocab;
        self.dispatches = 0;
        self.write_inputs(batch)?;
        let mut recording = Recording::default();
        self.record_body(&mut recording, batch)?;
        let wanted = batch.wanted();
        if wanted.is_empty() {
            self.submit(&recording, &[])?;
        }
        let (logits, row) = (Place::Slot(Slot::Logits), (vocab * 4) as u64);
        // As many rows at once as one buffer takes; the first of them in the submit of the layers.
        let limit = self.caps.max_binding.min(self.context.limits.max_buffer_size).min(LOGIT_BYTES);
        let most = ((limit / row).max(1) as usize).min(wanted.len().max(1));
        self.scratch.grow(&self.context, logits, most * vocab)?;
        // Values of each wanted row: its token, or its logits.
        let mut values: Vec<u8> = Vec::new();
        for wanted in wanted.chunks(most) {
            let mut reads = Vec::with_capacity(wanted.len());
            let mut to = 0;
            for run in wanted.chunk_by(|a, b| a.0 + 1 == b.0) {
                self.record_logits(&mut recording, batch, (run[0].0, run.len(), to))?;
                to += run.len();
            }
            for (at, (_, pass)) in wanted.iter().enumerate() {
                if pass.want == Want::Argmax {
                    self.record_argmax(&mut recording, at)?;
                    reads.push((Place::Token, 4 * at as u64, 4));
                } else {
                    reads.push((logits, row * at as u64, row));
                }
            }
            let bytes = self.submit(&recording, &reads)?;
            if values.is_empty() {
                values = bytes;
            } else {
                values.extend(bytes);
            }
            recording = Recording::default();
        }
        let mut values = values.as_slice();
        let mut take = |bytes: usize| {
            let (own, rest) = values.split_at(bytes.min(values.len()));
            values = rest;
            own
        };
        let answer = |pass: &&Forward<'_>| match pass.want {
            Want::Nothing => Answer::Nothing,
            Want::Argmax => {
                let token: Vec<u32> = bytemuck::pod_collect_to_vec(take(4));
                Answer::Token(token.first().copied().unwrap_or_default())
            }
            Want::LastLogits => Answer::Logits(bytemuck::pod_collect_to_vec(take(vocab * 4))),
            Want::AllLogits => {
                Answer::Logits(bytemuck::pod_collect_to_vec(take(pass.tokens.len() * vocab * 4)))
            }
        };
        Ok(batch.passes.iter().map(answer).collect())
    }
}

fn is_logits(output: &Output) -> bool {
    matches!(output, Output::Store(slots) if slots.contains(&Slot::Logits))
}
