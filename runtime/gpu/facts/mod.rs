//! What is known of this GPU and its driver: which kernels compute rightly on it, and which of equal ones is fastest.
//!
//! A kernel is tried before its first use, on the device itself, against a float64 twin. Where it fails, the next of
//! [`Kernel::variants`] runs in its place. Verdicts and times are kept by adapter, driver, shaders and version.
//!
//! Invariant: with the self-test on, no kernel that failed is ever chosen; off, the capabilities alone choose.

mod check;
mod store;
mod suite;
mod twin;
mod values;
mod verdict;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::context::Context;
use super::pipeline::Pipelines;
use crate::device::{DeviceFacts, KernelFact};
use crate::error::{Error, Result};
use crate::kernels::project::{ScaleKind, TailKind};
use crate::kernels::{Caps, Kernel, Variant};
use check::Outcome;
use store::Store;
use verdict::Verdict;

/// How much of the designed kernel's time another may take to replace it: noise never does.
const CLEARLY_FASTER: f64 = 0.9;

/// Whether times choose among kernels that pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timing {
    /// On hardware, where the result is kept in a folder.
    #[default]
    Auto,
    /// Always, also on software GPUs.
    Always,
    /// Never: the capabilities choose.
    Never,
}

/// Whether and how a GPU is examined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FactsOptions {
    /// Tries each kernel before its first use and drops what computes wrongly on this driver.
    pub self_test: bool,
    /// Where verdicts, times and compiled pipelines outlive the process; by default nowhere. Only the app may be able to
    /// write there: the driver takes its compiled pipelines from there.
    pub folder: Option<PathBuf>,
    /// Whether times choose.
    pub timing: Timing,
}

/// The state of the examination of one device.
#[derive(Default)]
pub(super) struct Facts {
    options: FactsOptions,
    /// A developer asked: times are worth their cost even if nothing keeps them.
    asked: bool,
    timed: bool,
    store: Option<Store>,
    verdicts: BTreeMap<String, Verdict>,
    /// What runs where a kernel is wanted.
    choices: HashMap<Kernel, Kernel>,
    /// The wanted kernel of which no variant passed.
    dead: Option<Kernel>,
    /// The device went while a kernel was tried.
    lost: bool,
    /// Scales are uploaded as float32, because kernels fail with f16 ones.
    wide_scales: bool,
    /// Forms of adapters that kernels fail with.
    avoided: Vec<TailKind>,
    /// Passes without an adapter, or with one of this form, whose kernels are known.
    rehearsed: Vec<Option<TailKind>>,
    /// Not yet in the file.
    changed: bool,
    kept: usize,
    compiled: u64,
    spent: Duration,
}

impl Facts {
    pub(super) fn new(options: &FactsOptions, asked: bool) -> Self {
        Self { options: options.clone(), asked, ..Self::default() }
    }

    pub(super) fn self_test(&self) -> bool {
        self.options.self_test
    }

    /// Whether the kernels of passes without an adapter, or with one of this form, are still to be tried.
    pub(super) fn rehearses(&mut self, kind: Option<TailKind>) -> bool {
        self.dead = None;
        let first = self.options.self_test && !self.rehearsed.contains(&kind);
        if first {
            self.rehearsed.push(kind);
        }
        first
    }

    /// Features that the examination uses, of those offered.
    pub(super) fn features(options: &FactsOptions) -> wgpu::Features {
        let mut features = wgpu::Features::empty();
        if options.self_test && options.timing != Timing::Never {
            features |= wgpu::Features::TIMESTAMP_QUERY;
        }
        if options.folder.is_some() {
            features |= wgpu::Features::PIPELINE_CACHE;
        }
        features
    }

    /// Learns which device it is, and reads what was kept of it.
    pub(super) fn attach(&mut self, context: &Context, pipelines: &mut Pipelines, info: &wgpu::AdapterInfo) {
        let software = info.device_type == wgpu::DeviceType::Cpu;
        self.timed = match self.options.timing {
            Timing::Auto => !software && (self.asked || self.options.folder.is_some()),
            Timing::Always => true,
            Timing::Never => false,
        };
        let Some(folder) = &self.options.folder else { return };
        if self.store.is_none() {
            let mut store = Store::new(folder, store::key(info));
            if self.options.self_test {
                self.verdicts.extend(store.read().unwrap_or_default());
                self.kept = self.verdicts.len();
                for name in store.given_up() {
                    let reason = "the process ended each time while this kernel was tried";
                    self.verdicts.insert(name.clone(), Verdict::failed(reason));
                    // At once: the next kernel may end this process too.
                    store.write(self.verdicts.iter());
                    store.end(&name);
                }
            }
            self.store = Some(store);
        }
        if let Some(store) = &self.store {
            let compiled = store.read_pipelines();
            self.compiled = compiled.as_ref().map_or(0, |bytes| bytes.len() as u64);
            pipelines.open_cache(context, compiled);
        }
    }

    /// What runs where a kernel is wanted.
    pub(super) fn choose<K: Variant>(
        &mut self,
        context: &Context,
        pipelines: &mut Pipelines,
        caps: &Caps,
        wanted: K,
    ) -> Result<K> {
        if !self.options.self_test {
            return Ok(wanted);
        }
        let chosen = self.chosen(context, pipelines, caps, wanted.into())?;
        Ok(K::of(chosen).unwrap_or(wanted))
    }

    pub(super) fn chosen(
        &mut self,
        context: &Context,
        pipelines: &mut Pipelines,
        caps: &Caps,
        wanted: Kernel,
    ) -> Result<Kernel> {
        if let Some(chosen) = self.choices.get(&wanted) {
            return Ok(*chosen);
        }
        let mut candidates = wanted.variants(caps);
        let leader = match wanted {
            Kernel::Project(k) => k.leader(),
            _ => None,
        };
        let leader = match leader {
            Some(leader) => Some(self.chosen(context, pipelines, caps, leader.into())?),
            None => None,
        };
        let follows = |kernel: Kernel| leader.is_some_and(|leader| follows(kernel, wanted, leader));
        candidates.sort_by_key(|kernel| !follows(*kernel));
        let mut best: Option<(Kernel, f64)> = None;
        for kernel in candidates {
            if best.is_some() && !same_load(kernel, wanted) || !self.passes(context, pipelines, kernel)? {
                continue;
            }
            let micros = match self.timed && !follows(kernel) {
                true => self.micros(context, pipelines, kernel)?,
                false => None,
            };
            match (micros, best) {
                (None, None) => {
                    best = Some((kernel, 0.0));
                    break;
                }
                (Some(micros), None) => best = Some((kernel, micros)),
                (Some(micros), Some((_, least))) if micros < least * CLEARLY_FASTER => {
                    best = Some((kernel, micros));
                }
                _ => {}
            }
        }
        let Some((chosen, _)) = best else {
            self.dead = Some(wanted);
            let reason = self.verdicts.get(&wanted.name()).and_then(|verdict| verdict.failure.clone());
            return Err(Error::Gpu {
                what: format!("the kernel {}", wanted.name()),
                reason: format!("no variant of it passes its self-test: {}", reason.unwrap_or_default()),
            });
        };
        if chosen != wanted {
            log::info!("{} runs in place of {}", chosen.name(), wanted.name());
        }
        self.choices.insert(wanted, chosen);
        Ok(chosen)
    }

    /// Whether a kernel computes rightly, tried where it is not known.
    pub(super) fn passes(
        &mut self,
        context: &Context,
        pipelines: &mut Pipelines,
        kernel: Kernel,
    ) -> Result<bool> {
        let name = kernel.name();
        if let Some(verdict) = self.verdicts.get(&name) {
            return Ok(verdict.failure.is_none());
        }
        let start = Instant::now();
        if let Some(store) = &mut self.store {
            store.begin(&name);
        }
        let outcome = check::check(context, pipelines, kernel);
        if let Some(store) = &mut self.store {
            store.end(&name);
        }
        self.spent += start.elapsed();
        let verdict = match &outcome {
            Ok(Outcome::Passed(error)) => Verdict { error: *error, ..Verdict::default() },
            Ok(Outcome::Failed(reason)) => Verdict::failed(reason),
            Err(Error::DeviceLost { reason }) => {
                self.lost = true;
                Verdict::failed(&format!("the device was lost: {reason}"))
            }
            Err(_) => return outcome.map(|_| false),
        };
        if let Some(reason) = &verdict.failure {
            log::warn!("{name} fails its self-test and is not used: {reason}");
            pipelines.forget(kernel);
        }
        let passed = verdict.failure.is_none();
        self.verdicts.insert(name, verdict);
        self.changed = true;
        outcome.map(|_| passed)
    }

    /// Whether times choose.
    pub(super) fn is_timed(&self) -> bool {
        self.timed
    }

    /// The time of a kernel that passed, taken where it is not known; none where it does not matter.
    pub(super) fn micros(
        &mut self,
        context: &Context,
        pipelines: &mut Pipelines,
        kernel: Kernel,
    ) -> Result<Option<f64>> {
        let name = kernel.name();
        if let Some(micros) = self.verdicts.get(&name).and_then(|verdict| verdict.micros) {
            return Ok(Some(micros));
        }
        let start = Instant::now();
        let Some(case) = suite::timing(kernel)? else { return Ok(None) };
        let micros = check::time(context, pipelines, kernel, &case);
        self.spent += start.elapsed();
        self.changed = true;
        match micros {
            Ok(micros) => {
                self.verdicts.entry(name).or_default().micros = Some(micros);
                Ok(Some(micros))
            }
            Err(error) => {
                if let Error::DeviceLost { reason } = &error {
                    self.lost = true;
                    self.verdicts.insert(name, Verdict::failed(&format!("the device was lost: {reason}")));
                }
                Err(error)
            }
        }
    }

    /// Whether another try on a device that is opened again can go better than one that ended so: a kernel that took the
    /// device with it is known now, or scales can be stored in a form that fewer kernels fail with.
    pub(super) fn another_try(&mut self, error: &Error) -> bool {
        let dead = self.dead.take();
        self.rehearsed.clear();
        if matches!(error, Error::DeviceLost { .. }) {
            return std::mem::take(&mut self.lost);
        }
        let half = match dead {
            Some(Kernel::Project(k)) => k.matrix.scales,
            Some(Kernel::Embed(k)) => k.matrix.scales,
            _ => return false,
        };
        let narrow = matches!(half, ScaleKind::Stored { half: true, .. }) && !self.wide_scales;
        self.wide_scales |= narrow;
        narrow
    }

    /// Whether another form of an adapter may go better than this one, of which a kernel failed.
    pub(super) fn avoid(&mut self, kind: TailKind) -> bool {
        let other = self.dead.take().is_some() && kind != TailKind::F32;
        if other {
            self.avoided.push(kind);
        }
        other
    }

    pub(super) fn avoided(&self) -> &[TailKind] {
        &self.avoided
    }

    pub(super) fn wide_scales(&self) -> bool {
        self.wide_scales
    }

    /// Keeps what is new, and the pipelines that were compiled since.
    pub(super) fn save(&mut self, pipelines: &mut Pipelines) {
        let Some(store) = &self.store else { return };
        if std::mem::take(&mut self.changed) {
            // Another process may have tried other kernels.
            for (name, verdict) in store.read().unwrap_or_default() {
                self.verdicts.entry(name).or_insert(verdict);
            }
            store.write(self.verdicts.iter());
        }
        if let Some(bytes) = pipelines.fresh_cache() {
            self.compiled = bytes.len() as u64;
            store.write_pipelines(&bytes);
        }
    }

    /// For prefixes that other kernels computed: which ones run in place of the designed ones.
    pub(super) fn replaced(&self) -> String {
        let changed = self.choices.iter().filter(|(wanted, chosen)| wanted != chosen);
        let mut names: Vec<String> = changed.map(|(a, b)| format!("{} {}", a.name(), b.name())).collect();
        names.sort();
        match names.len() {
            0 => String::new(),
            n => {
                format!("; {n} kernels replaced ({})", &blake3::hash(names.concat().as_bytes()).to_hex()[..8])
            }
        }
    }

    /// All of it.
    pub(super) fn report(&self, device: &str, detail: &str) -> DeviceFacts {
        let chosen: Vec<String> = self.choices.values().map(Kernel::name).collect();
        let kernels = self.verdicts.iter().map(|(name, verdict)| KernelFact {
            kernel: name.clone(),
            failure: verdict.failure.clone(),
            error: verdict.error,
            micros: verdict.micros,
            chosen: chosen.contains(name),
        });
        DeviceFacts {
            device: device.to_owned(),
            detail: detail.to_owned(),
            kernels: kernels.collect(),
            kept: self.kept,
            untested: 0,
            seconds: self.spent.as_secs_f64(),
            pipeline_bytes: self.compiled,
        }
    }
}

/// Whether a projection follows the choice of the one that leads the wanted one.
fn follows(kernel: Kernel, wanted: Kernel, leader: Kernel) -> bool {
    match (kernel, wanted, leader) {
        (Kernel::Project(k), Kernel::Project(wanted), Kernel::Project(leader)) => k.follows(wanted, leader),
        _ => false,
    }
}

/// Whether a kernel is made for as many tokens as the other.
fn same_load(a: Kernel, b: Kernel) -> bool {
    match (a, b) {
        (Kernel::Project(a), Kernel::Project(b)) => a.shape.load() == b.shape.load(),
        _ => true,
    }
}
