//! One forward pass: inputs written, steps recorded, one submit, one readback.

use super::GpuDevice;
use super::record::{Projection, Recording};
use super::scratch::Place;
use super::tail::GpuTail;
use crate::arch::{Output, Slot, Step};
use crate::device::{Answer, Forward, Want};
use crate::error::Result;

/// Resident adapters and how strongly each acts.
type Scaled<'a> = (&'a GpuTail, &'a [f32]);

impl GpuDevice {
    /// Writes what the pass reads: ids and the angles of its positions.
    fn write_inputs(&self, pass: &Forward<'_>) -> Result<()> {
        let write = |place: Place, bytes: &[u8]| match self.scratch.buffer(place) {
            Some(buffer) => self.context.write("the pass's inputs", buffer, 0, bytes),
            None => Ok(()),
        };
        write(Place::Tokens, bytemuck::cast_slice(pass.tokens))?;
        let frequencies = &self.model.recipe.rope.inverse_frequencies;
        let mut angles: Vec<[f32; 2]> = Vec::with_capacity(pass.tokens.len() * frequencies.len());
        for position in pass.position..pass.position + pass.tokens.len() {
            for frequency in frequencies {
                let (sine, cosine) = (position as f64 * frequency).sin_cos();
                angles.push([cosine as f32, sine as f32]);
            }
        }
        write(Place::Angles, bytemuck::cast_slice(&angles))
    }

    /// Records everything before the logits.
    fn record_body(
        &mut self,
        recording: &mut Recording,
        pass: &Forward<'_>,
        tail: Option<Scaled<'_>>,
    ) -> Result<()> {
        let recipe = self.model.recipe.clone();
        for (step, kind) in recipe.steps.iter().enumerate() {
            match kind {
                Step::Embed { table } => self.record_embed(recording, *table, pass.tokens.len())?,
                Step::Attend { layer } => self.record_attend(recording, pass, *layer)?,
                Step::Project { output, .. } if is_logits(output) => {}
                Step::Project { norm, input, linears, output } => {
                    let (first, tokens) = (0, pass.tokens.len());
                    let p = Projection { step, norm: *norm, input: *input, linears, output, first, tokens };
                    self.record_step(recording, &p, tail)?;
                }
            }
        }
        Ok(())
    }

    /// Records the logits of rows `first .. first + tokens` to the first rows of their slot.
    fn record_logits(
        &mut self,
        recording: &mut Recording,
        (first, tokens): (usize, usize),
        tail: Option<Scaled<'_>>,
    ) -> Result<()> {
        let recipe = self.model.recipe.clone();
        for (step, kind) in recipe.steps.iter().enumerate() {
            if let Step::Project { norm, input, linears, output } = kind
                && is_logits(output)
            {
                let p = Projection { step, norm: *norm, input: *input, linears, output, first, tokens };
                self.record_step(recording, &p, tail)?;
            }
        }
        Ok(())
    }

    fn record_step(
        &mut self,
        recording: &mut Recording,
        p: &Projection<'_>,
        tail: Option<Scaled<'_>>,
    ) -> Result<()> {
        let step_tail = tail.and_then(|(tail, scales)| Some((tail.steps.get(p.step)?.as_ref()?, scales)));
        self.record_project(recording, p, step_tail, tail.map(|(tail, _)| tail.kind))
    }

    /// Submits a recording and reads `bytes` back from a buffer.
    fn submit(&mut self, recording: &Recording, read: Option<(Place, u64)>) -> Result<Vec<u8>> {
        self.dispatches += recording.len();
        let Some(params) = self.scratch.buffer(Place::Params).cloned() else { return Ok(Vec::new()) };
        self.context.write("the pass's parameters", &params, 0, recording.params())?;
        let copy = match read {
            Some((place, bytes)) => {
                let target = self.scratch.readback(&self.context, bytes)?;
                self.scratch.buffer(place).cloned().map(|from| (from, target, bytes))
            }
            None => None,
        };
        self.context.guard("a forward pass", 0, || {
            let mut encoder = self.context.device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&Default::default());
            recording.encode(&mut pass);
            drop(pass);
            if let Some((from, target, bytes)) = &copy {
                encoder.copy_buffer_to_buffer(from, 0, target, 0, *bytes);
            }
            self.context.queue.submit([encoder.finish()]);
        })?;
        match copy {
            Some((_, target, bytes)) => self.context.read(&target, bytes),
            None => Ok(Vec::new()),
        }
    }

    /// Runs a checked pass.
    pub(super) fn run(&mut self, pass: &Forward<'_>, tail: Option<Scaled<'_>>) -> Result<Answer> {
        let (tokens, vocab) = (pass.tokens.len(), self.model.recipe.shape.vocab);
        self.dispatches = 0;
        self.write_inputs(pass)?;
        let mut recording = Recording::default();
        self.record_body(&mut recording, pass, tail)?;
        let last = (tokens - 1, 1);
        let logits = Place::Slot(Slot::Logits);
        let row = (vocab * 4) as u64;
        match pass.want {
            Want::Nothing => {
                self.submit(&recording, None)?;
                Ok(Answer::Nothing)
            }
            Want::Argmax => {
                self.record_logits(&mut recording, last, tail)?;
                self.record_argmax(&mut recording)?;
                let bytes = self.submit(&recording, Some((Place::Token, 4)))?;
                Ok(Answer::Token(bytemuck::pod_collect_to_vec(&bytes).first().copied().unwrap_or_default()))
            }
            Want::LastLogits => {
                self.record_logits(&mut recording, last, tail)?;
                let bytes = self.submit(&recording, Some((logits, row)))?;
                Ok(Answer::Logits(bytemuck::pod_collect_to_vec(&bytes)))
            }
            Want::AllLogits => {
                // As many rows at once as one buffer takes; the first of them in the submit of the layers.
                let limit = self.caps.max_binding.min(self.context.limits.max_buffer_size);
                let most = (limit / row).max(1) as usize;
                let most = most.min(tokens);
                self.scratch.grow_logits(&self.context, most, vocab)?;
                let mut all = Vec::with_capacity(tokens * vocab);
                for first in (0..tokens).step_by(most) {
                    let rows = most.min(tokens - first);
                    self.record_logits(&mut recording, (first, rows), tail)?;
                    let bytes = self.submit(&recording, Some((logits, rows as u64 * row)))?;
                    all.extend(bytemuck::pod_collect_to_vec::<u8, f32>(&bytes));
                    recording = Recording::default();
                }
                Ok(Answer::Logits(all))
            }
        }
    }
}

fn is_logits(output: &Output) -> bool {
    matches!(output, Output::Store(slots) if slots.contains(&Slot::Logits))
}
