//! One thread: draws operations, does them, and compares what comes back with what may.

use calora::engine::BoundAdapter;
use calora::session::{CachePolicy, ResponseStream, SessionOptions};
use calora::{Error, Result};

use crate::common::Random;
use crate::faulty::Fault;
use crate::reference::{Answer, options};
use crate::talk::{INSTRUCTIONS, PROMPTS, Talk, choices};
use crate::watch::Watch;
use crate::world::{CONTENTS, NAMES, PREFIX_BUDGET, Seen, World};

/// More sessions are not open at once, beside those in use.
const MOST_SESSIONS: usize = 8;

pub struct Worker<'w> {
    world: &'w World,
    watch: &'w Watch,
    rng: Random,
    seed: u64,
    thread: usize,
    number: u64,
    /// Calls of the device before the operation.
    calls: usize,
}

/// What it is called, what it does, how often it is drawn.
type Operation<W> = (&'static str, fn(&mut W), usize);

impl<'w> Worker<'w> {
    /// What is drawn, and how often.
    const OPERATIONS: [Operation<Self>; 18] = [
        ("open", Self::open, 6),
        ("close", Self::close, 3),
        ("swap", Self::swap, 20),
        ("generate", Self::generate, 30),
        ("cancel", Self::cancel, 6),
        ("cancel another", Self::cancel_another, 4),
        ("likelihood", Self::likelihood, 3),
        ("prewarm", Self::prewarm, 2),
        ("reset", Self::reset, 4),
        ("evict", Self::evict, 4),
        ("preload", Self::preload, 3),
        ("replace", Self::replace, 5),
        ("replace stale", Self::replace_stale, 2),
        ("overwrite", Self::overwrite, 4),
        ("remove", Self::remove, 2),
        ("lose", Self::lose, 3),
        ("trim", Self::trim, 3),
        ("look", Self::look, 3),
    ];

    pub fn new(world: &'w World, watch: &'w Watch, (seed, part): (u64, u64), thread: usize) -> Self {
        let rng = Random(seed.wrapping_mul(1_000_003).wrapping_add(1000 * part + thread as u64));
        Self { world, watch, rng, seed, thread, number: 0, calls: 0 }
    }

    pub fn run(&mut self, operations: u64) {
        for number in 0..operations {
            self.number = number;
            let (name, operation) = self.draw();
            if !self.watch.next(self.thread, format!("operation {number}: {name}")) {
                return;
            }
            self.calls = self.world.plan.lock().unwrap().calls;
            operation(self);
        }
    }

    fn draw(&mut self) -> (&'static str, fn(&mut Self)) {
        let total: usize = Self::OPERATIONS.iter().map(|(_, _, often)| often).sum();
        let mut drawn = self.rng.below(total);
        for (name, operation, often) in Self::OPERATIONS {
            match drawn.checked_sub(often) {
                Some(rest) => drawn = rest,
                None => return (name, operation),
            }
        }
        unreachable!("the numbers add up")
    }

    /// Ends the run unless something holds.
    fn demand(&self, holds: bool, talk: Option<&Talk>, complaint: impl FnOnce() -> String) {
        if !holds {
            let log = talk.map(|talk| format!("\nits session: {:#?}", talk.log)).unwrap_or_default();
            panic!(
                "CALORA_SOAK_SEED={}, thread {}, operation {}: {}{log}",
                self.seed,
                self.thread,
                self.number,
                complaint()
            );
        }
    }

    /// Whether the device's planned failures during this operation explain an error.
    fn excuse(&self, error: &Error, talk: Option<&Talk>) {
        let plan = self.world.plan.lock().unwrap();
        let met = |lost: bool| {
            let during = plan.faults.iter().filter(|(n, _)| **n > self.calls && **n <= plan.calls);
            during.filter(|(_, fault)| (**fault != Fault::OutOfMemory) == lost).count()
        };
        let excused = match error {
            Error::OutOfMemory { .. } => met(false) > 0,
            // A request goes on through two losses.
            Error::DeviceLost { .. } | Error::Gpu { .. } => met(true) >= 3,
            _ => false,
        };
        drop(plan);
        self.demand(excused, talk, || format!("failed with nothing to excuse it: {error:?}"));
        self.world.saw(Seen::Excused);
    }

    /// Takes a session that nobody uses; a new one if there is none.
    fn take(&mut self) -> Option<Talk> {
        {
            let mut pool = self.world.pool.lock().unwrap();
            if !pool.is_empty() {
                let index = self.rng.below(pool.len());
                return Some(pool.swap_remove(index));
            }
        }
        self.make()
    }

    fn give_back(&self, talk: Talk) {
        let list: Vec<_> = talk.session.adapters().map_or_else(Vec::new, |resident| {
            resident.adapters().iter().map(|(adapter, scale)| (content(adapter), *scale)).collect()
        });
        self.demand(list == talk.list, Some(&talk), || format!("{list:?} are attached, not {:?}", talk.list));
        let mut pool = self.world.pool.lock().unwrap();
        if pool.len() < MOST_SESSIONS {
            pool.push(talk);
        }
    }

    /// An adapter as the folder has it; `None` where there is none.
    fn get(&mut self) -> Option<BoundAdapter> {
        let name = NAMES[self.rng.below(NAMES.len())];
        let (world, began) = (self.world, self.world.history.now());
        let got = world.library.get(name);
        let found = match &got {
            Ok(adapter) => Some(content(adapter)),
            Err(error) => {
                self.demand(is_missing(error), None, || format!("{name}: {error:?}"));
                world.saw(Seen::Missing);
                None
            }
        };
        let allowed = world.history.allows(name, found, began, world.history.now());
        self.demand(allowed, None, || format!("{name} gave {found:?} of {}", world.history.tell(name)));
        got.ok()
    }

    /// Up to two adapters.
    fn draw_list(&mut self) -> Vec<(BoundAdapter, f32)> {
        let count = [0, 1, 1, 1, 1, 2][self.rng.below(6)];
        let mut list = Vec::new();
        for _ in 0..count {
            let scale = [1.0, 1.0, 0.5][self.rng.below(3)];
            list.extend(self.get().map(|adapter| (adapter, scale)));
        }
        list
    }

    fn make(&mut self) -> Option<Talk> {
        let (adapters, told) = (self.draw_list(), self.rng.below(2) == 0);
        let list = contents(&adapters);
        let instructions = told.then(|| INSTRUCTIONS.to_owned());
        let options = SessionOptions { adapters, instructions, ..SessionOptions::default() };
        match self.world.engine.session(options) {
            Ok(session) => {
                let mut talk = Talk::new(session, list, told);
                talk.note(format!("opened with {:?}", talk.list));
                Some(talk)
            }
            Err(error) => {
                self.excuse(&error, None);
                None
            }
        }
    }

    fn open(&mut self) {
        if let Some(talk) = self.make() {
            self.give_back(talk);
        }
    }

    fn close(&mut self) {
        drop(self.take());
    }

    fn swap(&mut self) {
        use CachePolicy::{Keep, KeepInstructions, Recompute, Restore};
        let Some(mut talk) = self.take() else { return };
        let adapters = self.draw_list();
        let policy = [Recompute, Recompute, Restore, Restore, Keep, KeepInstructions][self.rng.below(6)];
        talk.note(format!("{policy:?} to {:?}", contents(&adapters)));
        match talk.session.switch_with(&adapters, policy) {
            Ok(report) => {
                self.world.saw(Seen::Swaps);
                talk.list = contents(&adapters);
                talk.inexact = matches!(policy, Keep | KeepInstructions);
                let right =
                    report.cached_tokens <= report.transcript_tokens && (report.is_exact() || talk.inexact);
                self.demand(right, Some(&talk), || format!("{report:?}"));
            }
            Err(error) => self.excuse(&error, Some(&talk)),
        }
        self.give_back(talk);
    }

    fn generate(&mut self) {
        self.respond(None);
    }

    fn cancel(&mut self) {
        let after = self.rng.below(5);
        self.respond(Some(after));
    }

    /// One answer, cancelled after so many chunks if the number says so.
    fn respond(&mut self, cancel_after: Option<usize>) {
        let Some(mut talk) = self.take() else { return };
        if talk.session.messages().len() >= 4 {
            talk.session.reset();
            talk.note("reset".into());
        }
        let (prompt, by_handle) = (self.rng.below(PROMPTS.len()), self.rng.below(2) == 0);
        let said = talk.session.messages().to_vec();
        let expected = self.world.reference.answer(&talk.list, talk.told, &said, prompt);
        talk.note(format!("prompt {prompt} after {} messages, cancelled after {cancel_after:?}", said.len()));
        let mut given = Answer::default();
        let outcome = talk.session.respond(PROMPTS[prompt].0, &options(prompt)).and_then(|mut stream| {
            let cancel = stream.cancel_handle();
            *self.world.cancels[self.thread].lock().unwrap() = cancel.clone();
            for chunks in 0.. {
                if cancel_after == Some(chunks) {
                    match by_handle {
                        true => cancel.cancel(),
                        false => return Err(Error::Cancelled),
                    }
                }
                if let Some(inexact) = pull(&mut stream, &mut given)? {
                    return Ok(inexact);
                }
            }
            Err(Error::Cancelled)
        });
        let by_choice = cancel_after.is_some() && !by_handle;
        let asked = by_choice || self.world.cancels[self.thread].lock().unwrap().is_cancelled();
        let right = given == *expected;
        match outcome {
            Ok(usage) => {
                let exact = usage.0 == 0;
                self.world.saw(if exact { Seen::Answers } else { Seen::Inexact });
                if usage.1 > 0 {
                    self.world.saw(Seen::Reused);
                }
                self.demand(right || !exact, Some(&talk), || format!("gave {given:?}, not {expected:?}"));
                self.demand(exact || talk.inexact, Some(&talk), || "is inexact unasked".into());
                let said = said.len() + 2;
                self.demand(talk.session.messages().len() == said, Some(&talk), || "lost a message".into());
            }
            Err(error) => {
                match &error {
                    Error::Cancelled => {
                        self.world.saw(Seen::Cancelled);
                        self.demand(asked, Some(&talk), || "was cancelled by nobody".into());
                    }
                    other => self.excuse(other, Some(&talk)),
                }
                let begins =
                    expected.tokens.starts_with(&given.tokens) && expected.text.starts_with(&given.text);
                self.demand(begins || talk.inexact, Some(&talk), || format!("{given:?} before {expected:?}"));
                self.demand(talk.session.messages() == said, Some(&talk), || "a failure was kept".into());
            }
        }
        self.give_back(talk);
    }

    fn cancel_another(&mut self) {
        let other = self.rng.below(self.world.cancels.len());
        self.world.cancels[other].lock().unwrap().cancel();
    }

    fn likelihood(&mut self) {
        let Some(mut talk) = self.take() else { return };
        let prompt = self.rng.below(PROMPTS.len());
        talk.note(format!("likelihoods after prompt {prompt}"));
        let said = talk.session.messages().to_vec();
        match talk.session.likelihoods(PROMPTS[prompt].0, &choices()) {
            Ok(likely) if !talk.inexact => {
                let expected = self.world.reference.likelihoods(&talk.list, talk.told, &said, prompt);
                let near = likely.iter().zip(expected.iter()).all(|(a, b)| (a - b).abs() < 1e-3);
                self.demand(near, Some(&talk), || format!("{likely:?}, not {expected:?}"));
            }
            Ok(_) => {}
            Err(error) => self.excuse(&error, Some(&talk)),
        }
        self.demand(talk.session.messages() == said, Some(&talk), || "a likelihood was kept".into());
        self.give_back(talk);
    }

    fn prewarm(&mut self) {
        let Some(mut talk) = self.take() else { return };
        let prompt = PROMPTS[self.rng.below(PROMPTS.len())].0;
        talk.note(format!("prewarm for {prompt}"));
        if let Err(error) = talk.session.prewarm(prompt) {
            self.excuse(&error, Some(&talk));
        }
        self.give_back(talk);
    }

    fn reset(&mut self) {
        let Some(mut talk) = self.take() else { return };
        talk.note("reset".into());
        talk.session.reset();
        self.give_back(talk);
    }

    fn evict(&mut self) {
        match self.rng.below(3) {
            0 => drop(self.world.engine.evict_idle()),
            1 => {
                let name = NAMES[self.rng.below(NAMES.len())];
                let missing = self.world.library.evict(name).err();
                let right = missing.as_ref().is_none_or(is_missing);
                self.demand(right, None, || format!("{name}: {missing:?}"));
            }
            _ => {
                if let Some(adapter) = self.get() {
                    self.world.engine.evict(&adapter);
                }
            }
        }
    }

    fn preload(&mut self) {
        let name = NAMES[self.rng.below(NAMES.len())];
        let result = match self.rng.below(3) {
            0 => self.world.library.prefetch(name),
            1 => self.world.library.preload(&[name]),
            _ => {
                self.world.library.release();
                Ok(())
            }
        };
        if let Err(error) = result.or_else(|error| if is_missing(&error) { Ok(()) } else { Err(error) }) {
            self.excuse(&error, None);
        }
    }

    fn version(&self, name: &str) -> Option<calora::library::Version> {
        self.world.library.entries().into_iter().find(|entry| entry.name == name).map(|entry| entry.version)
    }

    /// Puts a file in the place of the version that is known; somebody else may be faster.
    fn replace(&mut self) {
        let (slot, content) = (self.rng.below(NAMES.len()), self.rng.below(CONTENTS));
        let (world, name, expected) = (self.world, NAMES[slot], self.version(NAMES[slot]));
        world.history.change(name, Some(content), || {
            match world.library.replace(name, expected.as_ref(), &world.sources[content]) {
                Ok(_) => {
                    world.saw(Seen::Replaced);
                    if let Some(version) = &expected {
                        let first = world.replaced.lock().unwrap().insert((slot, version.to_string()));
                        self.demand(first, None, || format!("{name}: {version} was replaced twice"));
                    }
                    true
                }
                Err(Error::VersionConflict { .. }) => {
                    world.saw(Seen::Conflicts);
                    false
                }
                Err(error) => {
                    self.demand(false, None, || format!("{name}: {error:?}"));
                    false
                }
            }
        });
    }

    /// A version that is no more is nobody's to replace.
    fn replace_stale(&mut self) {
        let (slot, world) = (self.rng.below(NAMES.len()), self.world);
        let stale = world.replaced.lock().unwrap().iter().find(|(of, _)| *of == slot).map(|(_, v)| v.clone());
        if let Some(stale) = stale {
            let result = world.library.replace(NAMES[slot], Some(&stale.clone().into()), &world.sources[0]);
            let refused = matches!(result, Err(Error::VersionConflict { .. }));
            self.demand(refused, None, || format!("{stale} of {}: {result:?}", NAMES[slot]));
        }
    }

    /// A file renamed into place by somebody who knows nothing of the library, which is then told to look.
    fn overwrite(&mut self) {
        let (name, content) = (NAMES[self.rng.below(NAMES.len())], self.rng.below(CONTENTS));
        let (world, beside) = (self.world, self.world.folder.join(format!(".{}.new", self.thread)));
        world.history.change(name, Some(content), || {
            std::fs::copy(&world.sources[content], &beside).unwrap();
            std::fs::rename(&beside, world.folder.join(format!("{name}.safetensors"))).unwrap();
            self.refresh();
            true
        });
    }

    fn refresh(&self) {
        let changes = self.world.library.refresh();
        self.demand(changes.is_ok(), None, || format!("{changes:?}"));
    }

    fn remove(&mut self) {
        let (world, name) = (self.world, NAMES[self.rng.below(NAMES.len())]);
        let Some(version) = self.version(name) else { return };
        world.history.change(name, None, || match world.library.remove(name, &version) {
            Ok(()) => true,
            Err(Error::VersionConflict { .. }) => false,
            Err(error) => {
                self.demand(false, None, || format!("{name}: {error:?}"));
                false
            }
        });
    }

    /// Now, or with a call that is to come.
    fn lose(&mut self) {
        self.world.saw(Seen::Losses);
        let fault =
            [None, Some(Fault::Lost), Some(Fault::Refused), Some(Fault::OutOfMemory)][self.rng.below(4)];
        match fault {
            None => self.world.engine.simulate_device_loss().unwrap(),
            Some(fault) => {
                let ahead = 1 + self.rng.below(40);
                let mut plan = self.world.plan.lock().unwrap();
                let number = plan.calls + ahead;
                plan.faults.insert(number, fault);
            }
        }
    }

    fn trim(&mut self) {
        let Some(mut talk) = self.take() else { return };
        talk.note("trimmed".into());
        self.world.engine.forget_prefixes();
        if self.rng.below(2) == 0 {
            self.world.engine.evict_idle();
            talk.session.release_cache();
            talk.inexact = false;
        }
        self.give_back(talk);
    }

    /// What may be asked at any time.
    fn look(&mut self) {
        let engine = &self.world.engine;
        let (report, prefixes, memory) = (engine.residency(), engine.prefix_bytes(), engine.memory());
        self.demand(report.used_bytes <= report.budget_bytes, None, || format!("{report:?}"));
        self.demand(prefixes <= PREFIX_BUDGET, None, || format!("{prefixes} bytes put aside"));
        self.demand(memory.weights > 0 || memory.caches == 0, None, || format!("{memory:?}"));
        let entries = self.world.library.entries();
        let known = entries.iter().all(|entry| NAMES.contains(&entry.name.as_str()));
        self.demand(known, None, || format!("{entries:?}"));
        self.refresh();
    }
}

/// One chunk; (inexact, cached) tokens when it was the last.
fn pull(stream: &mut ResponseStream<'_>, given: &mut Answer) -> Result<Option<(usize, usize)>> {
    let chunk = stream.next();
    given.tokens = stream.output().to_vec();
    let Some(chunk) = chunk? else { return Err(Error::EmptyPrompt) };
    given.text += &chunk.text;
    given.finish = chunk.finish_reason;
    Ok(chunk.usage.map(|usage| (usage.inexact_tokens, usage.cached_tokens)))
}

/// Which file an adapter was opened from, as it says itself.
fn content(adapter: &BoundAdapter) -> usize {
    adapter.name().parse().unwrap()
}

fn contents(list: &[(BoundAdapter, f32)]) -> Vec<(usize, f32)> {
    list.iter().map(|(adapter, scale)| (content(adapter), *scale)).collect()
}

fn is_missing(error: &Error) -> bool {
    match error {
        Error::MissingFile { .. } => true,
        Error::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}
