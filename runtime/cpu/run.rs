//! A batch of passes: one walk over the recipe's steps for the tokens of all of them.
//!
//! Rows of activations are those of the first pass, then of the next. Weights are read once for all rows, each pass attends
//! over its own cache, and an adapter meets the rows of its passes alone.

use std::ops::Range;

use super::attend::{Queries, attend};
use super::cache::Cache;
use super::dot::{Floats, Kernels};
use super::input::{Form, Input};
use super::math::silu;
use super::matmul::Projection;
use super::norm::rms_norm;
use super::observe::{Inputs, Observer};
use super::plan::Sizes;
use super::rope::Angles;
use super::tail::{ResidentBranch, ResidentTail};
use super::threads::Workers;
use crate::arch::{Activation, LinearId, Output, Recipe, Slot, Step, VectorId};
use crate::device::{Activations, Answer, Want, Weights};
use crate::error::{Error, Result};

/// Tokens whose logits are computed together when all are wanted: bounds the working memory.
pub(super) const LOGIT_TOKENS: usize = 16;

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
        let floats = floats.iter().map(|v| v.capacity()).sum::<usize>();
        4 * floats + self.input.byte_len() + self.angles.byte_len()
    }

    /// Makes room for all that a pass without branches needs, exactly; pages are the system's until they are written.
    pub(super) fn reserve(&mut self, sizes: &Sizes) -> Result<()> {
        for (floats, len) in [
            (&mut self.residual, sizes.residual),
            (&mut self.query, sizes.query),
            (&mut self.key, sizes.key),
            (&mut self.value, sizes.key),
            (&mut self.attended, sizes.query),
            (&mut self.gated, sizes.gated),
            (&mut self.logits, sizes.logits),
            (&mut self.staging, sizes.staging),
        ] {
            reserve(floats, len)?;
        }
        self.angles.reserve(sizes)?;
        self.input.reserve(sizes)
    }
}

/// Capacity for exactly `len` elements, or the error that there is no memory for them.
pub(super) fn reserve<T>(of: &mut Vec<T>, len: usize) -> Result<()> {
    of.try_reserve_exact(len.saturating_sub(of.len())).map_err(|e| Error::OutOfMemory {
        what: "the working memory of a pass".into(),
        bytes: len.saturating_mul(size_of::<T>()) as u64,
        reason: e.to_string(),
    })
}

/// Resident adapters and the scale of each.
type Scaled<'a> = (&'a ResidentTail, &'a [f32]);

/// One pass of a batch: what it reads, and the cache that it extends.
pub(super) struct Sequence<'a> {
    pub(super) tail: Option<Scaled<'a>>,
    pub(super) cache: &'a mut Cache,
    pub(super) tokens: &'a [u32],
    pub(super) position: usize,
    pub(super) want: Want,
}

/// What the passes of a batch share.
pub(super) struct Run<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) weights: &'a Weights,
    /// One for each of the recipe's matrices.
    pub(super) projections: &'a [Projection],
    pub(super) kernels: &'a Kernels,
    pub(super) workers: &'a Workers,
    pub(super) activations: Activations,
    /// Those with the same adapter side by side.
    pub(super) passes: Vec<Sequence<'a>>,
    /// The steps that are run.
    pub(super) steps: Range<usize>,
    pub(super) observer: Option<Observer<'a>>,
}

/// A row of activations.
#[derive(Clone, Copy)]
struct Row<'a> {
    at: usize,
    tail: Option<Scaled<'a>>,
}

/// A block of rows of one linear, or of the gate and the up projection together.
struct Job<'a> {
    rows: Range<usize>,
    /// The linear's place in the step, and its (rows, T).
    parts: Vec<(usize, &'a mut [f32])>,
}

/// One linear of a step, branches left out.
struct Part<'a> {
    projection: &'a Projection,
    form: Form,
    bias: Option<&'a [f32]>,
}

/// What a branch adds to one linear of a step.
struct Added<'a> {
    /// The linear's place in the step.
    part: usize,
    branch: &'a ResidentBranch,
    /// Its scaling times its adapter's scale.
    factor: f32,
    /// The step's tokens that it is added for.
    tokens: Range<usize>,
    /// Its inner values among the step's, (r, tokens).
    inner: Range<usize>,
}

impl<'a> Run<'a> {
    /// Runs the steps; what each pass was to answer comes back.
    pub(super) fn run(mut self, scratch: &mut Scratch) -> Vec<Answer> {
        scratch.logits.clear();
        let positions = self.passes.iter().flat_map(|p| p.position..p.position + p.tokens.len());
        scratch.angles.fill(&self.recipe.rope, positions);
        let (all, wanted) = self.tokens();
        let recipe = self.recipe;
        for step in &recipe.steps[self.steps.clone()] {
            match step {
                Step::Embed { table } => self.embed(&self.projections[table.0], scratch),
                Step::Attend { layer } => self.attend(*layer, scratch),
                Step::Project { norm, input, linears, output } => {
                    if !output.is_logits() {
                        self.project(*norm, *input, linears, output, &all, scratch);
                        continue;
                    }
                    for rows in wanted.chunks(LOGIT_TOKENS) {
                        self.project(*norm, *input, linears, output, rows, scratch);
                    }
                }
            }
        }
        self.answers(&mut scratch.logits)
    }

    /// Every row of the batch, and those whose logits are wanted.
    fn tokens(&self) -> (Vec<Row<'a>>, Vec<Row<'a>>) {
        let (mut all, mut wanted) = (Vec::new(), Vec::new());
        for pass in &self.passes {
            all.extend(pass.tokens.iter().zip(all.len()..).map(|(_, at)| Row { at, tail: pass.tail }));
            wanted.extend_from_slice(&all[all.len() - wanted_rows(pass)..]);
        }
        (all, wanted)
    }

    /// What each pass was to answer, from the logits of all rows that are wanted.
    fn answers(&self, logits: &mut Vec<f32>) -> Vec<Answer> {
        let vocab = self.recipe.shape.vocab;
        let mut end = logits.len();
        let mut answers: Vec<Answer> = Vec::with_capacity(self.passes.len());
        for pass in self.passes.iter().rev() {
            let start = end.saturating_sub(wanted_rows(pass) * vocab);
            answers.push(match pass.want {
                Want::Nothing => Answer::Nothing,
                Want::Argmax => Answer::Token(argmax(&logits[start..end])),
                // The last one to take any takes what is left without a copy.
                Want::LastLogits | Want::AllLogits if start == 0 => {
                    logits.truncate(end);
                    Answer::Logits(std::mem::take(logits))
                }
                Want::LastLogits | Want::AllLogits => Answer::Logits(logits[start..end].to_vec()),
            });
            end = start;
        }
        answers.reverse();
        answers
    }

    fn embed(&self, table: &Projection, scratch: &mut Scratch) {
        let ids = || self.passes.iter().flat_map(|pass| pass.tokens);
        scratch.residual.resize(ids().count() * table.cols, 0.0);
        for (id, row) in ids().zip(scratch.residual.chunks_exact_mut(table.cols.max(1))) {
            table.row(*id as usize, row);
        }
    }

    fn attend(&mut self, layer: usize, scratch: &mut Scratch) {
        let shape = &self.recipe.shape;
        let (width, kv) = (shape.width(Slot::Query), shape.width(Slot::Key));
        let Scratch { query: q, key: k, value: v, angles, attended, .. } = scratch;
        q.chunks_exact_mut(width).enumerate().for_each(|(t, row)| angles.rotate(t, row));
        attended.resize(q.len(), 0.0);
        let mut lines = k.chunks_exact_mut(kv).zip(v.chunks_exact(kv)).enumerate();
        let (mut query, mut attended) = (q.as_slice(), attended.as_mut_slice());
        let mut queries = Vec::with_capacity(self.passes.len());
        for pass in &mut self.passes {
            let (layer, count) = (&mut pass.cache.layers[layer], pass.tokens.len());
            for (position, (t, (key, value))) in (pass.position..).zip(lines.by_ref().take(count)) {
                angles.rotate(t, key);
                layer.write(position, key, value);
            }
            let (own, rest) = query.split_at(count * width);
            let (out, after) = attended.split_at_mut(own.len());
            (query, attended) = (rest, after);
            queries.push(Queries { layer, first: pass.position, query: own, attended: out });
        }
        attend(self.kernels, self.workers, shape, queries);
    }

    /// Projects rows of a slot.
    fn project(
        &self,
        norm: Option<VectorId>,
        input: Slot,
        linears: &[LinearId],
        output: &Output,
        tokens: &[Row<'_>],
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
        let (added, inner_len) = added(linears, tokens);
        let Some(first) = parts.first() else { return };

        let cols = first.projection.cols;
        let forms: Vec<Form> = parts.iter().map(|p| p.form).collect();
        let mut x = std::mem::take(&mut scratch.input);
        let rows = scratch.slot(input);
        x.fill(count, cols, &forms, |t, out| {
            let row = &rows[tokens[t].at * cols..][..cols];
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
        self.shrink(&added, &x, &mut inner);

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
                for Added { branch, tokens, inner: own, .. } in
                    added.iter().filter(|added| added.part == *part)
                {
                    branch.add(job.rows.clone(), &inner[own.clone()], tokens.clone(), count, out);
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
    fn shrink(&self, added: &[Added<'_>], x: &Input, inner: &mut [f32]) {
        let mut jobs = Vec::new();
        let mut rest = inner;
        for Added { branch, factor, tokens, inner, .. } in added {
            let (own, after) = rest.split_at_mut(inner.len());
            rest = after;
            let pieces = self.workers.pieces(branch.rank * branch.down.cols * tokens.len(), branch.rank);
            let per_job = branch.rank.div_ceil(pieces);
            for (i, out) in own.chunks_mut(per_job * tokens.len()).enumerate() {
                jobs.push((*branch, *factor, tokens, i * per_job, out));
            }
        }
        self.workers.each(jobs, |(branch, factor, tokens, first, out)| {
            let rows = first..first + out.len() / tokens.len();
            branch.down.project(self.kernels, (x, tokens.clone()), Form::Plain, rows, out);
            branch.activate(factor, out);
        });
    }

    /// Blocks of rows of all linears; of gate and up, the same rows in one job.
    fn jobs<'b>(
        &self,
        parts: &[Part<'_>],
        gated: bool,
        count: usize,
        staging: &'b mut [f32],
    ) -> Vec<Job<'b>> {
        let mut jobs: Vec<Job<'b>> = Vec::new();
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
        part.projection.project(self.kernels, (x, 0..count), part.form, rows.clone(), out);
        if let Some(bias) = part.bias {
            for (out, bias) in out.chunks_exact_mut(count).zip(&bias[rows]) {
                out.iter_mut().for_each(|out| *out += bias);
            }
        }
    }
}

/// How many rows of logits a pass wants, of its last rows.
fn wanted_rows(pass: &Sequence<'_>) -> usize {
    match pass.want {
        Want::Nothing => 0,
        Want::Argmax | Want::LastLogits => 1,
        Want::AllLogits => pass.tokens.len(),
    }
}

/// What branches add to a step over some rows, linear by linear, and how many inner values that takes.
fn added<'a>(linears: &[LinearId], tokens: &[Row<'a>]) -> (Vec<Added<'a>>, usize) {
    let same = |a: &Row<'_>, b: &Row<'_>| match (a.tail, b.tail) {
        (Some((a, scales)), Some((b, others))) => std::ptr::eq(a, b) && scales == others,
        (a, b) => a.is_none() && b.is_none(),
    };
    let (mut all, mut end) = (Vec::new(), 0);
    for (part, id) in linears.iter().enumerate() {
        let mut start = 0;
        for group in tokens.chunk_by(same) {
            let range = start..start + group.len();
            start = range.end;
            for (branch, factor) in group[0].tail.iter().flat_map(|(tail, scales)| tail.acting(*id, scales)) {
                let inner = end..end + branch.rank * group.len();
                end = inner.end;
                all.push(Added { part, branch, factor, tokens: range.clone(), inner });
            }
        }
    }
    (all, end)
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
