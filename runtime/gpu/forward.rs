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
use crate::arch::{Slot, Step};
use crate::device::{Answer, Forward, Want};
use crate::error::Result;
use crate::kernels::project::{DECODE_ROWS, Phase};
use crate::memory::LOGIT_BYTES;

/// Checked passes, those with the same adapter side by side.
pub(super) struct Batch<'a> {
    pub(super) passes: Vec<&'a Forward<'a>>,
    /// Of each pass; none where all its scales are 0.
    pub(super) tails: Vec<Option<Arc<GpuTail>>>,
}

/// Rows of a pass.
#[derive(Clone)]
struct Part {
    rows: Range<usize>,
    pass: usize,
    phase: Phase,
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

    /// All rows, by pass.
    fn parts(&self) -> Vec<Part> {
        let part = |(pass, rows): (usize, Range<usize>)| Part { phase: Phase::of(rows.len()), rows, pass };
        self.rows().enumerate().map(part).collect()
    }

    /// Rows whose logits are wanted, by pass.
    fn wanted(&self) -> Vec<Part> {
        let mut parts = self.parts();
        for part in &mut parts {
            match self.passes[part.pass].want {
                Want::Nothing => part.rows.start = part.rows.end,
                Want::Argmax | Want::LastLogits => part.rows.start = part.rows.end - 1,
                Want::AllLogits => {}
            }
            part.phase = Phase::of(part.rows.len());
        }
        parts.retain(|part| !part.rows.is_empty());
        parts
    }

    /// Rows that one walk over a step's weights takes: of passes that decode, whatever their adapters, or with the same
    /// adapter. Prompts are bound by arithmetic, so that reading the weights for each costs little, and what
    /// [`Place::Expanded`] holds stays small.
    fn runs(&self, parts: &[Part]) -> Vec<(Phase, Range<usize>)> {
        let mut runs: Vec<(Phase, Range<usize>)> = Vec::new();
        let mut last: Option<&Part> = None;
        for part in parts {
            let adjoins = |last: &Part| last.phase == part.phase && last.rows.end == part.rows.start;
            let joins = |last: &Part, rows: &Range<usize>| match part.phase {
                Phase::Decode => part.rows.end - rows.start <= DECODE_ROWS,
                Phase::Prefill => self.same_adapter(last.pass, part.pass),
            };
            match (last.filter(|last| adjoins(last)), runs.last_mut()) {
                (Some(last), Some((_, rows))) if joins(last, rows) => rows.end = part.rows.end,
                _ => runs.push((part.phase, part.rows.clone())),
            }
            last = Some(part);
        }
        runs
    }

    /// Whether two passes have the same branches with the same scales.
    fn same_adapter(&self, a: usize, b: usize) -> bool {
        match (&self.tails[a], &self.tails[b]) {
            (Some(one), Some(other)) => {
                Arc::ptr_eq(one, other) && self.passes[a].scales == self.passes[b].scales
            }
            (one, other) => one.is_none() && other.is_none(),
        }
    }

    /// The branches of a step for the rows `first .. first + tokens`.
    fn branches(&self, step: usize, first: usize, tokens: usize) -> Vec<Branches<'_>> {
        let mut groups: Vec<Branches<'_>> = Vec::new();
        let mut last = None;
        for (pass, rows) in self.rows().enumerate() {
            let rows = rows.start.max(first)..rows.end.min(first + tokens);
            if rows.is_empty() {
                continue;
            }
            match groups.last_mut() {
                Some(group) if last.is_some_and(|last| self.same_adapter(last, pass)) => {
                    group.rows.end = rows.end - first;
                }
                _ => {
                    let tail = self.tails[pass].as_ref();
                    let tail = tail.and_then(|t| Some((t.steps.get(step)?.as_ref()?, t.kind)));
                    let rows = rows.start - first..rows.end - first;
                    groups.push(Branches { rows, tail, scales: self.passes[pass].scales });
                }
            }
            last = Some(pass);
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
        let runs = batch.runs(&batch.parts());
        for (step, kind) in recipe.steps.iter().enumerate() {
            match kind {
                Step::Embed { table } => self.record_embed(recording, *table, tokens)?,
                Step::Attend { layer } => {
                    for (pass, rows) in batch.passes.iter().zip(batch.rows()) {
                        self.record_attend(recording, (pass, rows.start), *layer)?;
                    }
                }
                Step::Project { output, .. } if output.is_logits() => {}
                Step::Project { norm, input, linears, output } => {
                    for (phase, rows) in &runs {
                        let (first, tokens, to) = (rows.start, rows.len(), rows.start);
                        let (norm, input, phase) = (*norm, *input, *phase);
                        let p = Projection { norm, input, linears, output, first, tokens, to, phase };
                        self.record_project(recording, &p, &batch.branches(step, first, tokens))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Records the logits of a run to the rows of their slot from `to` on.
    pub(super) fn record_logits(
        &mut self,
        recording: &mut Recording,
        batch: &Batch<'_>,
        (phase, rows): (Phase, Range<usize>),
        to: usize,
    ) -> Result<()> {
        let recipe = self.model.recipe.clone();
        let (first, tokens) = (rows.start, rows.len());
        for (step, kind) in recipe.steps.iter().enumerate() {
            if let Step::Project { norm, input, linears, output } = kind
                && output.is_logits()
            {
                let (norm, input) = (*norm, *input);
                let p = Projection { norm, input, linears, output, first, tokens, to, phase };
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
        let most = ((limit / row).max(1) as usize)
            .min(wanted.iter().map(|part| part.rows.len()).sum::<usize>().max(1));
        self.scratch.grow(&self.context, logits, most * vocab)?;
        // Values of each wanted row: its token, or its logits.
        let mut values: Vec<u8> = Vec::new();
        for wanted in in_chunks(wanted, most) {
            let mut to = 0;
            for run in batch.runs(&wanted) {
                let rows = run.1.len();
                self.record_logits(&mut recording, batch, run, to)?;
                to += rows;
            }
            let mut reads = Vec::with_capacity(to);
            let wants = wanted
                .iter()
                .flat_map(|part| std::iter::repeat_n(batch.passes[part.pass].want, part.rows.len()));
            for (at, want) in wants.enumerate() {
                if want == Want::Argmax {
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

/// Parts of at most so many rows together.
fn in_chunks(parts: Vec<Part>, most: usize) -> Vec<Vec<Part>> {
    let (mut chunks, mut room) = (Vec::<Vec<Part>>::new(), 0);
    for mut part in parts {
        while !part.rows.is_empty() {
            if room == 0 {
                chunks.push(Vec::new());
                room = most;
            }
            let end = part.rows.end.min(part.rows.start + room);
            room -= end - part.rows.start;
            let piece = Part { rows: part.rows.start..end, ..part.clone() };
            chunks.last_mut().into_iter().for_each(|chunk| chunk.push(piece.clone()));
            part.rows.start = end;
        }
    }
    chunks
}
