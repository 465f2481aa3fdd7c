//! One forward pass: walks the recipe's steps over the tokens.

use std::ops::Range;

use super::attend::attend;
use super::cache::Cache;
use super::dot::{Floats, Kernels};
use super::input::{Form, Input};
use super::math::silu;
use super::matmul::Projection;
use super::norm::rms_norm;
use super::observe::{Inputs, Observer};
use super::rope::Angles;
use super::tail::{ResidentBranch, ResidentTail};
use super::threads::Workers;
use crate::arch::{Activation, LinearId, Output, Recipe, Slot, Step, VectorId};
use crate::device::{Activations, Answer, Want, Weights};

/// Tokens whose logits are computed together when all are wanted: bounds the working memory.
const LOGIT_TOKENS: usize = 16;

/// Working memory, kept from pass to pass and as large as the largest pass needed.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) residual: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    attended: Vec<f32>,
    gated: Vec<f32>,
    logits: Vec<f32>,
    input: Input,
    angles: Angles,
    /// Projected rows, (R, T) for each linear of a step.
    staging: Vec<f32>,
    /// Inner values of the branches of a step, (r, T) each.
    inner: Vec<f32>,
}

impl Scratch {
    fn slot(&mut self, slot: Slot) -> &mut Vec<f32> {
        match slot {
            Slot::Residual => &mut self.residual,
            Slot::Query => &mut self.query,
            Slot::Key => &mut self.key,
            Slot::Value => &mut self.value,
            Slot::Attended => &mut self.attended,
            Slot::Gated => &mut self.gated,
            Slot::Logits => &mut self.logits,
        }
    }

    /// Bytes held.
    pub(super) fn byte_len(&self) -> usize {
        let floats = [
            &self.residual,
            &self.query,
            &self.key,
            &self.value,
            &self.attended,
            &self.gated,
            &self.logits,
            &self.staging,
            &self.inner,
        ];
        4 * floats.iter().map(|v| v.capacity()).sum::<usize>() + self.input.byte_len()
    }
}

/// What a pass reads, and the cache that it extends.
pub(super) struct Run<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) weights: &'a Weights,
    /// One for each of the recipe's matrices.
    pub(super) projections: &'a [Projection],
    pub(super) kernels: &'a Kernels,
    pub(super) workers: &'a Workers,
    pub(super) activations: Activations,
    /// With the scales of its adapters.
    pub(super) tail: Option<(&'a ResidentTail, &'a [f32])>,
    pub(super) cache: &'a mut Cache,
    pub(super) tokens: &'a [u32],
    pub(super) position: usize,
    pub(super) want: Want,
    /// The steps that are run.
    pub(super) steps: Range<usize>,
    pub(super) observer: Option<Observer<'a>>,
}

/// A block of rows of one linear, or of the gate and the up projection together.
struct Job<'a> {
    rows: Range<usize>,
    /// The linear's place in the step, and its (rows, T).
    parts: Vec<(usize, &'a mut [f32])>,
}

/// One linear of a step with what is added to it, branches left out.
struct Part<'a> {
    projection: &'a Projection,
    form: Form,
    bias: Option<&'a [f32]>,
}

/// A branch that acts in a step.
struct Attached<'a> {
    /// The linear's place in the step.
    part: usize,
    branch: &'a ResidentBranch,
    /// Its scaling times its adapter's scale.
    factor: f32,
    /// Of the step's inner values.
    inner: Range<usize>,
}

impl Run<'_> {
    /// Runs the steps; what the pass was to answer comes back.
    pub(super) fn run(mut self, scratch: &mut Scratch) -> Answer {
        scratch.logits.clear();
        scratch.angles.fill(&self.recipe.rope, self.position, self.tokens.len());
        let recipe = self.recipe;
        for step in &recipe.steps[self.steps.clone()] {
            match step {
                Step::Embed { table } => self.embed(&self.projections[table.0], scratch),
                Step::Attend { layer } => self.attend(*layer, scratch),
                Step::Project { norm, input, linears, output } => {
                    let all = 0..self.tokens.len();
                    if !matches!(output, Output::Store(slots) if slots.contains(&Slot::Logits)) {
                        self.project(*norm, *input, linears, output, all, scratch);
                        continue;
                    }
                    let wanted = match self.want {
                        Want::Nothing => all.end..all.end,
                        Want::Argmax | Want::LastLogits => all.end - 1..all.end,
                        Want::AllLogits => all,
                    };
                    for start in wanted.clone().step_by(LOGIT_TOKENS) {
                        let tokens = start..wanted.end.min(start + LOGIT_TOKENS);
                        self.project(*norm, *input, linears, output, tokens, scratch);
                    }
                }
            }
        }
        match self.want {
            Want::Nothing => Answer::Nothing,
            Want::Argmax => Answer::Token(argmax(&scratch.logits)),
            Want::LastLogits | Want::AllLogits => Answer::Logits(std::mem::take(&mut scratch.logits)),
        }
    }

    fn embed(&self, table: &Projection, scratch: &mut Scratch) {
        scratch.residual.resize(self.tokens.len() * table.cols, 0.0);
        for (id, row) in self.tokens.iter().zip(scratch.residual.chunks_exact_mut(table.cols.max(1))) {
            table.row(*id as usize, row);
        }
    }

    fn attend(&mut self, layer: usize, scratch: &mut Scratch) {
        let shape = &self.recipe.shape;
        let layer = &mut self.cache.layers[layer];
        let (query, kv) = (shape.width(Slot::Query), shape.width(Slot::Key));
        let Scratch { query: q, key: k, value: v, angles, attended, .. } = scratch;
        q.chunks_exact_mut(query).enumerate().for_each(|(t, row)| angles.rotate(t, row));
        for (t, (key, value)) in k.chunks_exact_mut(kv).zip(v.chunks_exact(kv)).enumerate() {
            angles.rotate(t, key);
            layer.write(self.position + t, key, value);
        }
        attended.resize(q.len(), 0.0);
        attend(self.kernels, self.workers, shape, layer, self.position, q, attended);
    }

    /// Projects the token rows `tokens` of a slot.
    fn project(
        &self,
        norm: Option<VectorId>,
        input: Slot,
        linears: &[LinearId],
        output: &Output,
        tokens: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let count = tokens.len();
        let parts: Vec<Part<'_>> = linears
            .iter()
            .map(|id| {
                let linear = &self.recipe.linears[id.0];
                let projection = &self.projections[linear.matrix.0];
                let bias = linear.bias.map(|b| self.weights.vectors[b.0].as_slice());
                Part { projection, form: projection.form(self.activations), bias }
            })
            .collect();
        let (mut branches, mut inner_len) = (Vec::new(), 0);
        for (part, id) in linears.iter().enumerate() {
            for (branch, factor) in self.tail.iter().flat_map(|(tail, scales)| tail.acting(*id, scales)) {
                let start = inner_len;
                inner_len += branch.rank * count;
                branches.push(Attached { part, branch, factor, inner: start..inner_len });
            }
        }
        let Some(first) = parts.first() else { return };

        let cols = first.projection.cols;
        let forms: Vec<Form> = parts.iter().map(|p| p.form).collect();
        let mut x = std::mem::take(&mut scratch.input);
        let rows = &scratch.slot(input)[tokens.start * cols..tokens.end * cols];
        x.fill(count, cols, &forms, |t, out| {
            let row = &rows[t * cols..(t + 1) * cols];
            match norm {
                Some(id) => rms_norm(row, &self.weights.vectors[id.0], self.recipe.norm_eps, out),
                None => out.copy_from_slice(row),
            }
        });
        if let Some(observer) = self.observer {
            let Floats { values, stride } = x.floats(false);
            observer(&Inputs { linears, values, cols, stride });
        }

        let mut inner = std::mem::take(&mut scratch.inner);
        inner.resize(inner_len, 0.0);
        self.shrink(&branches, &x, &mut inner);

        let mut staging = std::mem::take(&mut scratch.staging);
        let rows: usize = parts.iter().map(|p| p.projection.rows).sum();
        staging.resize(rows * count, 0.0);
        let gate = match output {
            Output::Gated(activation) => Some(*activation),
            Output::Store(_) | Output::AddToResidual => None,
        };
        let jobs = self.jobs(&parts, gate.is_some(), count, &mut staging);
        self.workers.each(jobs, |mut job| {
            for (part, out) in &mut job.parts {
                self.rows(&parts[*part], &x, job.rows.clone(), out);
                for b in branches.iter().filter(|b| b.part == *part) {
                    b.branch.add(job.rows.clone(), &inner[b.inner.clone()], count, out);
                }
            }
            if let (Some(Activation::Silu), [(_, gate), (_, up)]) = (gate, &mut job.parts[..]) {
                gate.iter_mut().zip(&**up).for_each(|(gate, up)| *gate = silu(*gate) * up);
            }
        });

        let mut projected = staging.as_slice();
        for (i, part) in parts.iter().enumerate() {
            let (own, rest) = projected.split_at(part.projection.rows * count);
            projected = rest;
            match output {
                Output::Store(slots) => {
                    let Some(slot) = slots.get(i) else { break };
                    let out = scratch.slot(*slot);
                    // Logits add up over calls; other slots hold one step's tokens.
                    let start = if *slot == Slot::Logits { out.len() } else { 0 };
                    out.resize(start + own.len(), 0.0);
                    transpose(own, count, &mut out[start..], |out, v| *out = v);
                }
                Output::AddToResidual => {
                    transpose(own, count, &mut scratch.residual, |out, v| *out += v);
                }
                Output::Gated(_) if i == 0 => {
                    scratch.gated.resize(own.len(), 0.0);
                    transpose(own, count, &mut scratch.gated, |out, v| *out = v);
                }
                Output::Gated(_) => {}
            }
        }
        (scratch.input, scratch.inner, scratch.staging) = (x, inner, staging);
    }

    /// The inner values of all branches of a step: one look at the input for all linears that share it.
    fn shrink(&self, branches: &[Attached<'_>], x: &Input, inner: &mut [f32]) {
        let count = x.tokens();
        let mut jobs = Vec::new();
        let mut rest = inner;
        for Attached { branch, factor, inner, .. } in branches {
            let (own, after) = rest.split_at_mut(inner.len());
            rest = after;
            let pieces = self.workers.pieces(branch.rank * branch.down.cols * count, branch.rank);
            let per_job = branch.rank.div_ceil(pieces);
            for (i, out) in own.chunks_mut(per_job * count).enumerate() {
                jobs.push((*branch, *factor, i * per_job, out));
            }
        }
        self.workers.each(jobs, |(branch, factor, first, out)| {
            branch.down.project(self.kernels, x, Form::Plain, first..first + out.len() / count, out);
            branch.activate(factor, out);
        });
    }

    /// Blocks of rows of all linears; of gate and up, the same rows in one job.
    fn jobs<'a>(
        &self,
        parts: &[Part<'_>],
        gated: bool,
        count: usize,
        staging: &'a mut [f32],
    ) -> Vec<Job<'a>> {
        let mut jobs: Vec<Job<'a>> = Vec::new();
        let mut rest = staging;
        for (i, part) in parts.iter().enumerate() {
            let Projection { rows, cols, .. } = *part.projection;
            let (own, after) = std::mem::take(&mut rest).split_at_mut(rows * count);
            rest = after;
            let pieces = self.workers.pieces(rows * cols * count, rows);
            let per_job = rows.div_ceil(pieces).max(1);
            for (j, out) in own.chunks_mut((per_job * count).max(1)).enumerate() {
                match jobs.get_mut(j) {
                    Some(job) if gated && i > 0 => job.parts.push((i, out)),
                    _ => {
                        let first = j * per_job;
                        jobs.push(Job { rows: first..first + out.len() / count, parts: vec![(i, out)] });
                    }
                }
            }
        }
        jobs
    }

    /// `out = W x + bias` for some rows of one linear.
    fn rows(&self, part: &Part<'_>, x: &Input, rows: Range<usize>, out: &mut [f32]) {
        let count = x.tokens();
        part.projection.project(self.kernels, x, part.form, rows.clone(), out);
        if let Some(bias) = part.bias {
            for (out, bias) in out.chunks_exact_mut(count).zip(&bias[rows]) {
                out.iter_mut().for_each(|out| *out += bias);
            }
        }
    }
}

/// Gives each value of (R, T) to its place in (T, R).
fn transpose(rows: &[f32], tokens: usize, out: &mut [f32], put: impl Fn(&mut f32, f32)) {
    /// Rows at a time, so that both sides stay in the first-level cache.
    const ROWS: usize = 16;
    let width = rows.len() / tokens.max(1);
    for (i, block) in rows.chunks(ROWS * tokens.max(1)).enumerate() {
        for (t, out) in out.chunks_exact_mut(width.max(1)).enumerate().take(tokens) {
            let values = block.iter().skip(t).step_by(tokens.max(1));
            out[i * ROWS..].iter_mut().zip(values).for_each(|(out, v)| put(out, *v));
        }
    }
}

/// The index of the largest value, the lowest among equals.
fn argmax(values: &[f32]) -> u32 {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[best] {
            best = i;
        }
    }
    best as u32
}
