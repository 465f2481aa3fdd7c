//! Second moments of what goes into each linear, from text that runs through the model: what GPTQ and activation-weighted
//! residuals minimise their error under.
//!
//! Sequences advance together, stage by stage ([`calora::arch::Recipe::stages`]), on the CPU device in float32. Memory:
//! T * C floats of residuals for T tokens altogether, plus the moments of one stage (K * K floats for each distinct
//! input), however many layers there are. A caller that takes stage after stage ([`Calibration::next`]) needs no more;
//! [`collect`] keeps the moments of all linears that it was asked for.

mod moment;
mod sequences;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use calora::adapter::Tail;
use calora::arch::{LinearId, Recipe};
use calora::cpu::{CpuDevice, CpuOptions, Inputs, Stage};
use calora::device::{Activations, CacheId, Device, Model, TailId};
use calora::{Error, Result};

use moment::Sum;
pub use moment::{Moment, Moments};
pub use sequences::{sampled, sequences};

/// Sequences on their way through a model.
pub struct Calibration<'a> {
    model: Model,
    tail: Option<&'a Tail>,
    threads: Option<usize>,
    device: CpuDevice,
    cache: CacheId,
    resident: Option<TailId>,
    sequences: &'a [Vec<u32>],
    /// What each sequence's next stage starts from, (T, C).
    residuals: Vec<Vec<f32>>,
    stages: Vec<Range<usize>>,
    /// Index of the stage that comes next.
    next: usize,
}

impl<'a> Calibration<'a> {
    /// At the start of a model with an adapter; `threads` is one a core unless given. Refuses sequences that are empty,
    /// longer than the model's context, or hold unknown ids.
    pub fn new(
        model: &Model,
        tail: Option<&'a Tail>,
        sequences: &'a [Vec<u32>],
        threads: Option<usize>,
    ) -> Result<Self> {
        let (longest, context) =
            (sequences.iter().map(Vec::len).max().unwrap_or(0), model.recipe.shape.context);
        if longest == 0 {
            return Err(Error::EmptyPrompt);
        }
        if longest > context {
            return Err(Error::ContextFull { needed: longest, available: context });
        }
        let (device, cache, resident) = device(model, tail, longest, threads)?;
        let residuals = vec![Vec::new(); sequences.len()];
        let stages = model.recipe.stages();
        let model = model.clone();
        Ok(Self { model, tail, threads, device, cache, resident, sequences, residuals, stages, next: 0 })
    }

    /// How many stages there are.
    pub fn stages(&self) -> usize {
        self.stages.len()
    }

    /// The linears of the stage that comes next, by their paths; `None` behind the last stage.
    pub fn linears(&self) -> Option<Vec<String>> {
        let steps = self.model.recipe.steps.get(self.stages.get(self.next)?.clone())?;
        let ids = steps.iter().filter_map(|step| match step {
            calora::arch::Step::Project { linears, .. } => Some(linears),
            _ => None,
        });
        Some(ids.flatten().map(|id| self.model.recipe.linears[id.0].path.clone()).collect())
    }

    /// Runs the next stage; the moments of its linears that are `wanted` come back, `None` behind the last stage. The head
    /// is not observed.
    pub fn next(&mut self, wanted: &dyn Fn(&str) -> bool) -> Result<Option<Moments>> {
        self.run(Some(wanted), true)
    }

    /// The moments that [`Self::next`] would give, without going on.
    pub fn peek(&mut self, wanted: &dyn Fn(&str) -> bool) -> Result<Option<Moments>> {
        self.run(Some(wanted), false)
    }

    /// Runs the next stage unobserved.
    pub fn advance(&mut self) -> Result<()> {
        self.run(None, true).map(|_| ())
    }

    /// Goes on with other weights of the same recipe.
    pub fn replace(&mut self, model: Model) -> Result<()> {
        let longest = self.sequences.iter().map(Vec::len).max().unwrap_or(0);
        (self.device, self.cache, self.resident) = device(&model, self.tail, longest, self.threads)?;
        self.model = model;
        Ok(())
    }

    fn run(&mut self, wanted: Option<&dyn Fn(&str) -> bool>, go_on: bool) -> Result<Option<Moments>> {
        let Some(steps) = self.stages.get(self.next).cloned() else { return Ok(None) };
        let recipe = self.model.recipe.clone();
        let is_wanted: Vec<bool> =
            recipe.linears.iter().map(|l| wanted.is_some_and(|wanted| wanted(&l.path))).collect();
        let sums: Mutex<Vec<Sum>> = Mutex::default();
        let observe = |inputs: &Inputs<'_>| {
            let linears: Vec<LinearId> =
                inputs.linears.iter().copied().filter(|id| is_wanted[id.0]).collect();
            if linears.is_empty() {
                return;
            }
            let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
            let at = sums.iter().position(|sum| sum.linears == linears).unwrap_or_else(|| {
                sums.push(Sum::new(linears, inputs.cols));
                sums.len() - 1
            });
            sums[at].add(inputs);
        };
        let mut copy = Vec::new();
        for (tokens, residual) in self.sequences.iter().zip(&mut self.residuals) {
            let stage = Stage {
                steps: steps.clone(),
                tokens,
                cache: self.cache,
                tail: self.resident,
                observer: wanted.is_some().then_some(&observe),
            };
            if go_on {
                self.device.run_stage(&stage, residual)?;
            } else {
                copy.clone_from(residual);
                self.device.run_stage(&stage, &mut copy)?;
            }
        }
        self.next += usize::from(go_on);
        let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
        Moments::of(&recipe, sums).map(Some)
    }
}

/// A device that takes whole sequences, with a cache for one.
fn device(
    model: &Model,
    tail: Option<&Tail>,
    longest: usize,
    threads: Option<usize>,
) -> Result<(CpuDevice, CacheId, Option<TailId>)> {
    let options = CpuOptions { threads, activations: Activations::F32, max_tokens: longest, simd: None };
    let mut device = CpuDevice::new(model, options)?;
    let cache = device.create_cache(longest)?;
    let tail = tail.map(|tail| device.load_tail(tail)).transpose()?;
    Ok((device, cache, tail))
}

/// The moments of all linears that are `wanted`, of a model with an adapter; `progress` gets stages done and in all.
pub fn collect(
    model: &Model,
    tail: Option<&Tail>,
    sequences: &[Vec<u32>],
    wanted: &dyn Fn(&str) -> bool,
    mut progress: impl FnMut(usize, usize),
) -> Result<Moments> {
    let mut calibration = Calibration::new(model, tail, sequences, None)?;
    let last = last_stage(&model.recipe, wanted);
    let mut all = Moments::default();
    for done in 0..last {
        if let Some(moments) = calibration.next(wanted)? {
            all.merge(moments);
        }
        progress(done + 1, last);
    }
    Ok(all)
}

/// How many stages it takes to see every wanted linear.
fn last_stage(recipe: &Recipe, wanted: &dyn Fn(&str) -> bool) -> usize {
    let sees = |steps: &Range<usize>| {
        recipe.steps[steps.clone()].iter().any(|step| match step {
            calora::arch::Step::Project { linears, .. } => {
                linears.iter().any(|id| wanted(&recipe.linears[id.0].path))
            }
            _ => false,
        })
    };
    recipe.stages().iter().rposition(sees).map_or(0, |i| i + 1)
}
