//! When kernels are tried: all that a model needs while it is loaded, and all that exist when a developer asks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::facts::Facts;
use super::forward::Batch;
use super::pipeline::Pipelines;
use super::record::Recording;
use super::tail::GpuTail;
use super::{GpuDevice, GpuOptions, select};
use crate::device::{CacheId, Device, DeviceFacts, Forward, Want};
use crate::error::{Error, Result};
use crate::kernels::project::Phase;
use crate::kernels::{Caps, Kernel};

/// A position at which attention is cut into spans.
const FAR: usize = 2048;

impl GpuDevice {
    /// Records a decoding and a prefill pass, and two that decode together, without running them: every kernel that they need
    /// is tried and compiled. With an adapter also it beside a pass without one.
    pub(super) fn rehearse(&mut self, tail: Option<&Arc<GpuTail>>) -> Result<()> {
        if !self.facts.rehearses(tail.map(|t| t.kind)) {
            return Ok(());
        }
        let cache = self.create_cache(1)?;
        let tried = self.rehearse_on(cache, tail);
        self.drop_cache(cache);
        tried
    }

    fn rehearse_on(&mut self, cache: CacheId, tail: Option<&Arc<GpuTail>>) -> Result<()> {
        let ids = vec![0; self.info.max_tokens];
        let pass = |tokens: usize| Forward {
            tokens: &ids[..tokens],
            position: FAR,
            cache,
            tail: None,
            scales: &[],
            want: Want::Argmax,
        };
        let (one, many, tail) = (pass(1), pass(ids.len()), tail.cloned());
        self.record(&Batch { passes: vec![&one], tails: vec![tail.clone()] })?;
        self.record(&Batch { passes: vec![&many], tails: vec![tail.clone()] })?;
        if ids.len() > 1 {
            self.record(&Batch { passes: vec![&one, &one], tails: vec![tail.clone(), tail.clone()] })?;
            if tail.is_some() {
                self.record(&Batch { passes: vec![&one, &one], tails: vec![tail, None] })?;
            }
        }
        Ok(())
    }

    fn record(&mut self, batch: &Batch<'_>) -> Result<()> {
        let recording = &mut Recording::rehearsal();
        self.record_body(recording, batch)?;
        let rows = batch.passes.len();
        self.record_logits(recording, batch, (Phase::Decode, 0..rows), 0)?;
        self.record_argmax(recording, 0)
    }

    /// Tries the kernels of a GPU without a model, and takes their times: those of usual models, or `every` one, until
    /// `limit` has passed. What fails is part of the report; an error means that the GPU cannot be opened, or goes
    /// over and over.
    pub fn self_test(options: &GpuOptions, every: bool, limit: Duration) -> Result<DeviceFacts> {
        let start = Instant::now();
        let mut options = options.clone();
        options.facts.self_test = true;
        let mut facts = Facts::new(&options.facts, true);
        loop {
            let opened = select::open(&options.choice, &options.facts)?;
            let caps = options.mask.apply(opened.caps);
            let mut pipelines = Pipelines::new(options.rewrite);
            facts.attach(&opened.context, &mut pipelines, &opened.info);
            let mut untested = 0;
            let mut tried = Ok(());
            for wanted in Kernel::wanted(&caps, every) {
                if start.elapsed() > limit {
                    untested += 1;
                } else if tried.is_ok() {
                    tried = facts.try_all(&opened.context, &mut pipelines, &caps, wanted);
                }
            }
            facts.save(&mut pipelines);
            match tried {
                Ok(()) => {
                    let detail = format!("{}; {caps:?}", opened.detail);
                    return Ok(DeviceFacts { untested, ..facts.report(&opened.name, &detail) });
                }
                Err(error) if !facts.another_try(&error) => return Err(error),
                Err(_) => {}
            }
        }
    }
}

impl Facts {
    /// Tries a kernel and all its variants, and chooses.
    fn try_all(
        &mut self,
        context: &super::context::Context,
        pipelines: &mut Pipelines,
        caps: &Caps,
        wanted: Kernel,
    ) -> Result<()> {
        for kernel in wanted.variants(caps) {
            if self.passes(context, pipelines, kernel)? && self.is_timed() {
                self.micros(context, pipelines, kernel)?;
            }
            pipelines.forget(kernel);
        }
        match self.chosen(context, pipelines, caps, wanted) {
            // Every variant failed, which the report shows.
            Err(Error::Gpu { .. }) => Ok(()),
            chosen => chosen.map(|_| ()),
        }
    }
}
