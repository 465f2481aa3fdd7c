//! What survives: a device that is lost at any call, refused work, no room, a GPU that does not come back.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "survive/faulty.rs"]
mod faulty;

use std::path::Path;
use std::sync::{Arc, Mutex};

use calora::device::Model;
use calora::engine::{BoundAdapter, DeviceChoice, Engine, EngineEvent, EngineOptions};
use calora::session::{
    CachePolicy, FinishReason, GenerationOptions, ResponseStream, Session, SessionOptions,
};
use calora::weights::DType;
use calora::{Error, Result};
use common::{Store, random_model, random_tail, small_config};
use faulty::{CHUNK, Fault, Plan, Shared, engine, failing_cpu, failing_gpu, sound_cpu};

/// No adapter outlives its use.
const TIGHT: u64 = 0;
const ROOMY: u64 = 1 << 30;

fn model() -> Model {
    random_model(&small_config(), Store::F32, 3)
}

fn on_cpu(model: &Model, plan: &Shared, adapter_budget: u64) -> Engine {
    engine(model, &small_config(), plan, (failing_cpu(model, plan), None), adapter_budget)
}

fn adapter(engine: &Engine, seed: u64) -> (BoundAdapter, f32) {
    (engine.adapter(format!("task {seed}"), random_tail(engine.recipe(), 3, 2, DType::F32, seed)), 1.0)
}

fn session(engine: &Engine, adapters: &[(BoundAdapter, f32)]) -> Result<Session> {
    engine.session(SessionOptions { adapters: adapters.to_vec(), ..SessionOptions::default() })
}

fn greedy(max_tokens: usize) -> GenerationOptions {
    let ignore_end_of_turn = true;
    GenerationOptions { max_tokens: Some(max_tokens), ignore_end_of_turn, ..GenerationOptions::default() }
}

fn sampled(max_tokens: usize) -> GenerationOptions {
    let repetition_penalty = Some(1.2);
    GenerationOptions { temperature: Some(0.9), seed: Some(7), repetition_penalty, ..greedy(max_tokens) }
}

/// `n` tokens of the vocabulary, none of them special.
fn prompt(seed: u64, n: usize) -> Vec<u32> {
    let mut random = common::Random(seed);
    (0..n).map(|_| 3 + random.below(110) as u32).collect()
}

/// What a response gave; the last is the number of tokens that were cached.
#[derive(Clone, Debug, PartialEq)]
struct Given(Vec<u32>, FinishReason, usize, usize, usize);

/// Everything that the scenario gives, and how often a request had to be made again.
#[derive(Clone, Debug, Default)]
struct Outcome {
    given: Vec<Given>,
    likelihood: u64,
    failures: usize,
}

impl Outcome {
    /// Makes a request until it does not run out of memory; a failed one leaves the session as it was.
    fn request<T>(&mut self, session: &mut Session, mut work: impl FnMut(&mut Session) -> Result<T>) -> T {
        loop {
            let before = (session.tokens().to_vec(), session.messages().to_vec());
            match work(session) {
                Ok(value) => return value,
                Err(Error::OutOfMemory { .. }) => {
                    let after = (session.tokens().to_vec(), session.messages().to_vec());
                    assert_eq!(after, before);
                    self.failures += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn respond(&mut self, session: &mut Session, tokens: &[u32], options: &GenerationOptions) {
        let given = self.request(session, |session| {
            let mut stream = session.respond_to_tokens(tokens, options)?;
            loop {
                if let Some(given) = pull(&mut stream)? {
                    return Ok(given);
                }
            }
        });
        self.given.push(given);
    }

    fn open(&mut self, engine: &Engine, adapters: &[(BoundAdapter, f32)]) -> Session {
        loop {
            match session(engine, adapters) {
                Err(Error::OutOfMemory { .. }) => self.failures += 1,
                opened => return opened.unwrap(),
            }
        }
    }

    fn same(&self, other: &Self, n: usize, fault: &dyn std::fmt::Debug) {
        assert_eq!(self.likelihood, other.likelihood, "{fault:?} at call {n}");
        assert_eq!(self.given.len(), other.given.len());
        for (a, b) in self.given.iter().zip(&other.given) {
            assert_eq!((&a.0, a.1, a.2, a.3), (&b.0, b.1, b.2, b.3), "{fault:?} at call {n}");
            assert!(a.4 <= b.4, "{fault:?} at call {n}: {a:?} for {b:?}");
        }
    }
}

/// One chunk; the whole response when it was the last.
fn pull(stream: &mut ResponseStream<'_>) -> Result<Option<Given>> {
    let chunk = stream.next()?.unwrap();
    Ok(chunk.usage.map(|usage| {
        let (reason, output) = (chunk.finish_reason.unwrap(), stream.output().to_vec());
        Given(output, reason, usage.prompt_tokens, usage.output_tokens, usage.cached_tokens)
    }))
}

/// Two sessions in turn, one with an adapter; then a conversation that goes on, drawn; then a swap, a stack, and a
/// likelihood.
fn scenario(engine: &Engine) -> Outcome {
    let mut out = Outcome::default();
    let (a, b) = (adapter(engine, 1), adapter(engine, 2));
    let mut first = out.open(engine, std::slice::from_ref(&a));
    let mut second = out.open(engine, &[]);
    let (x, y) = (prompt(1, 15), prompt(2, 9));
    let mut given = [None, None];
    {
        let mut streams = [
            first.respond_to_tokens(&x, &greedy(7)).unwrap(),
            second.respond_to_tokens(&y, &sampled(5)).unwrap(),
        ];
        let mut open = [true, true];
        while open.contains(&true) {
            for i in (0..2).filter(|i| open[*i]).collect::<Vec<_>>() {
                match pull(&mut streams[i]) {
                    Ok(None) => {}
                    Ok(done) => (given[i], open[i]) = (done, false),
                    Err(Error::OutOfMemory { .. }) => (out.failures, open[i]) = (out.failures + 1, false),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
    let [one, two] = given;
    match one {
        Some(one) => out.given.push(one),
        None => out.respond(&mut first, &x, &greedy(7)),
    }
    match two {
        Some(two) => out.given.push(two),
        None => out.respond(&mut second, &y, &sampled(5)),
    }
    let next = [first.tokens(), &prompt(3, 8)].concat();
    out.respond(&mut first, &next, &sampled(6));
    out.request(&mut first, |session| session.switch_to(std::slice::from_ref(&b)));
    let next = [first.tokens(), &prompt(4, 2)].concat();
    out.respond(&mut first, &next, &greedy(3));
    out.request(&mut first, |session| session.switch_to(&[a.clone(), (b.0.clone(), 0.5)]));
    out.respond(&mut first, &prompt(5, 27), &greedy(4));
    // What the stack computed stays in use, is put aside, is written over, and comes back.
    let alone = std::slice::from_ref(&b);
    out.request(&mut first, |session| session.switch_with(alone, CachePolicy::Keep));
    let next = [first.tokens(), &prompt(7, 3)].concat();
    out.respond(&mut first, &next, &greedy(3));
    out.request(&mut first, |session| {
        session.switch_with(&[a.clone(), (b.0.clone(), 0.5)], CachePolicy::Restore)
    });
    out.request(&mut first, |session| session.switch_with(alone, CachePolicy::Restore));
    out.respond(&mut first, &prompt(8, 5), &greedy(2));
    out.request(&mut first, |session| {
        session.switch_with(&[a.clone(), (b.0.clone(), 0.5)], CachePolicy::Restore)
    });
    out.respond(&mut first, &prompt(5, 30), &greedy(4));
    let text = prompt(6, 13);
    out.likelihood = out.request(&mut second, |session| session.log_likelihood(&text, 5)).to_bits();
    out
}

/// The scenario undisturbed, and how many calls of the device it makes.
fn undisturbed(make: impl Fn(&Shared) -> Engine) -> (Outcome, usize) {
    let plan = Shared::default();
    let outcome = scenario(&make(&plan));
    let calls = plan.lock().unwrap().calls;
    assert_eq!(plan.lock().unwrap().events, []);
    assert!(outcome.given.iter().any(|given| given.4 > 0), "something is reused");
    (outcome, calls)
}

fn with_faults(faults: &[(usize, Fault)]) -> Shared {
    let faults = faults.iter().copied().collect();
    Arc::new(Mutex::new(Plan { faults, ..Plan::default() }))
}

/// Counts of events: lost, rebuilt, moved, out of memory.
fn events(plan: &Shared) -> [usize; 4] {
    let mut counts = [0; 4];
    for event in &plan.lock().unwrap().events {
        counts[match event {
            EngineEvent::DeviceLost { .. } => 0,
            EngineEvent::DeviceRebuilt { .. } => 1,
            EngineEvent::MovedToCpu { .. } => 2,
            EngineEvent::OutOfMemory { .. } => 3,
            other => panic!("{other:?}"),
        }] += 1;
    }
    counts
}

#[test]
fn a_device_lost_at_any_call_changes_nothing() {
    let model = model();
    let (expected, calls) = undisturbed(|plan| on_cpu(&model, plan, TIGHT));
    assert!(calls > 40, "{calls}");
    for fault in [Fault::Lost, Fault::Refused] {
        for n in 1..=calls {
            let plan = with_faults(&[(n, fault)]);
            let outcome = scenario(&on_cpu(&model, &plan, TIGHT));
            outcome.same(&expected, n, &fault);
            assert_eq!((outcome.failures, events(&plan)), (0, [1, 1, 0, 0]), "{fault:?} at call {n}");
            assert!(plan.lock().unwrap().calls > calls, "what was lost is computed again");
        }
    }
}

#[test]
fn a_device_lost_again_while_it_recovers_changes_nothing() {
    let model = model();
    let (expected, calls) = undisturbed(|plan| on_cpu(&model, plan, TIGHT));
    for apart in [1, 2, 5] {
        for n in 1..=calls {
            let plan = with_faults(&[(n, Fault::Lost), (n + apart, Fault::Refused)]);
            let outcome = scenario(&on_cpu(&model, &plan, TIGHT));
            outcome.same(&expected, n, &apart);
            // A loss at the very end leaves nothing to be lost again.
            let losses = 1 + usize::from(plan.lock().unwrap().calls >= n + apart);
            assert_eq!(
                (outcome.failures, events(&plan)),
                (0, [losses, losses, 0, 0]),
                "{apart} after call {n}"
            );
            assert!(losses == 2 || n + apart > calls);
        }
    }
}

#[test]
fn a_request_without_room_fails_and_leaves_everything_as_it_was() {
    let model = model();
    let (expected, calls) = undisturbed(|plan| on_cpu(&model, plan, TIGHT));
    for n in 1..=calls {
        let plan = with_faults(&[(n, Fault::OutOfMemory)]);
        let outcome = scenario(&on_cpu(&model, &plan, TIGHT));
        outcome.same(&expected, n, &Fault::OutOfMemory);
        assert_eq!((outcome.failures, events(&plan)), (1, [0, 0, 0, 0]), "call {n}");
    }
}

#[test]
fn idle_adapters_make_room() {
    let model = model();
    let plan = Shared::default();
    let engine = on_cpu(&model, &plan, ROOMY);
    let (idle, used) = (adapter(&engine, 1), adapter(&engine, 2));
    let fail_next = |after: usize| {
        let mut plan = plan.lock().unwrap();
        let number = plan.calls + after;
        plan.faults.insert(number, Fault::OutOfMemory);
    };
    let mut held = session(&engine, std::slice::from_ref(&used)).unwrap();
    let one = engine.memory().tails;
    let mut out = Outcome::default();
    out.respond(&mut held, &prompt(1, 9), &greedy(4));
    let expected = out.given[0].clone();
    // A cache, a tail, a pass.
    for (after, round) in [(1, 0), (1, 1), (2, 2)] {
        drop(engine.resident(std::slice::from_ref(&idle)).unwrap());
        assert_eq!(engine.memory().tails, 2 * one);
        fail_next(after);
        match round {
            0 => drop(session(&engine, &[]).unwrap()),
            1 => drop(engine.resident(&[adapter(&engine, 3)]).unwrap()),
            _ => {
                held.reset();
                held.release_cache();
                out.respond(&mut held, &prompt(1, 9), &greedy(4));
            }
        }
        assert_eq!(events(&plan), [0, 0, 0, round + 1]);
        engine.evict_idle();
        assert_eq!(engine.memory().tails, one, "the one in use stays");
    }
    assert_eq!((out.failures, &out.given[1]), (0, &expected));
    // Nothing is idle any more: the error reaches the caller, once.
    fail_next(1);
    assert!(matches!(session(&engine, &[]), Err(Error::OutOfMemory { .. })));
    assert!(session(&engine, &[]).is_ok());
}

#[test]
fn work_that_takes_every_device_down_moves_to_the_cpu_or_fails() {
    let model = model();
    let tokens = prompt(1, 20);
    let watchdog = || Arc::new(Mutex::new(Plan { most_tokens: Some(CHUNK - 1), ..Plan::default() }));

    let plan = watchdog();
    let alone = on_cpu(&model, &plan, TIGHT);
    let mut talk = session(&alone, &[]).unwrap();
    let failed = talk.respond_to_tokens(&tokens, &greedy(4)).unwrap().collect().unwrap_err();
    assert!(matches!(failed, Error::DeviceLost { .. }), "{failed}");
    assert_eq!((talk.tokens().len(), events(&plan)), (0, [3, 2, 0, 0]));
    let mut out = Outcome::default();
    plan.lock().unwrap().most_tokens = None;
    out.respond(&mut talk, &tokens, &greedy(4)); // the next request tries once more

    let plan = watchdog();
    let makes = (failing_cpu(&model, &plan), Some(sound_cpu(&model)));
    let moving = engine(&model, &small_config(), &plan, makes, TIGHT);
    let mut talk = session(&moving, &[]).unwrap();
    out.respond(&mut talk, &tokens, &greedy(4));
    assert_eq!((out.failures, events(&plan)), (0, [3, 2, 1, 0]));
    assert_eq!(out.given[0], out.given[1]);
}

#[test]
fn a_gpu_that_does_not_come_back_is_an_error_and_may_come_back_later() {
    let model = model();
    let plan = Shared::default();
    let engine = on_cpu(&model, &plan, TIGHT);
    let mut talk = session(&engine, &[adapter(&engine, 1)]).unwrap();
    let mut out = Outcome::default();
    out.respond(&mut talk, &prompt(1, 9), &greedy(4));
    let before = talk.tokens().to_vec();
    let next = [before.as_slice(), &prompt(2, 3)].concat();

    plan.lock().unwrap().refuses = true;
    let mut stream = talk.respond_to_tokens(&next, &greedy(4)).unwrap();
    stream.next().unwrap();
    engine.simulate_device_loss().unwrap();
    assert_eq!(engine.memory(), calora::device::DeviceMemory::default());
    assert!(matches!(stream.next(), Err(Error::NoDevice { .. })));
    assert_eq!(stream.next().unwrap(), None);
    drop(stream);
    assert_eq!(talk.tokens(), before);
    assert!(matches!(session(&engine, &[]), Err(Error::NoDevice { .. })));

    plan.lock().unwrap().refuses = false;
    out.respond(&mut talk, &next, &greedy(4));
    let fresh = Shared::default();
    let fresh = on_cpu(&model, &fresh, TIGHT);
    let mut talk = session(&fresh, &[adapter(&fresh, 1)]).unwrap();
    out.respond(&mut talk, &next, &greedy(4));
    assert_eq!(out.given[1].0, out.given[2].0);
    assert_eq!(events(&plan), [1, 1, 0, 0]);
}

#[test]
fn many_threads_survive_a_device_that_comes_and_goes() {
    let model = model();
    let plan = Shared::default();
    let engine = on_cpu(&model, &plan, TIGHT);
    let work = |engine: &Engine, seed: u64| {
        let mut talk = session(engine, &[adapter(engine, seed % 2)]).unwrap();
        let mut out = Outcome::default();
        out.respond(&mut talk, &prompt(seed, 20), &sampled(30));
        out.given[0].0.clone()
    };
    let alone: Vec<_> = (0..4).map(|seed| work(&engine, seed)).collect();
    let losses = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|seed| {
                let (engine, alone) = (engine.clone(), &alone);
                scope
                    .spawn(move || (0..3).for_each(|_| assert_eq!(work(&engine, seed), alone[seed as usize])))
            })
            .collect();
        let takes_away = scope.spawn(|| {
            while losses.load(std::sync::atomic::Ordering::Relaxed) {
                let passes = engine.counters().passes;
                engine.simulate_device_loss().unwrap();
                // Let some work be done in between, if there is any left.
                while engine.counters().passes < passes + 40
                    && losses.load(std::sync::atomic::Ordering::Relaxed)
                {
                    std::thread::yield_now();
                }
            }
        });
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        losses.store(false, std::sync::atomic::Ordering::Relaxed);
        takes_away.join().unwrap();
        results.into_iter().for_each(|result| result.unwrap());
    });
    let [lost, rebuilt, ..] = events(&plan);
    assert!(lost > 2 && rebuilt > 2, "{lost} {rebuilt}");
    assert_eq!(engine.memory().caches, 0, "nothing of any device is left");
}

#[test]
fn a_loaded_engine_goes_on_with_the_same_text() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/base");
    let options = EngineOptions { device: DeviceChoice::Cpu, ..EngineOptions::default() };
    let engine = Engine::load(base, options).unwrap();
    let story = "The old house stood at the end of the lane, and";
    let text = |lose_after: usize| {
        let mut session = engine.session(SessionOptions::default()).unwrap();
        let mut generation = session.begin_text(story, &sampled(24)).unwrap();
        let (mut text, mut passes) = (String::new(), 0);
        while !generation.is_over() {
            if passes == lose_after {
                engine.simulate_device_loss().unwrap();
            }
            if let calora::session::Progress::Chunk(chunk) = generation.pass(&mut session).unwrap() {
                text += &chunk.text;
            }
            passes += 1;
        }
        (text, engine.device_info().kind)
    };
    let whole = text(usize::MAX);
    for lose_after in [0, 1, 2, 13] {
        assert_eq!(text(lose_after), whole, "lost before pass {lose_after}");
    }
}

#[test]
fn a_gpu_destroyed_in_the_middle_of_a_response_changes_nothing() {
    let model = model();
    let make =
        |plan: &Shared| engine(&model, &small_config(), plan, (failing_gpu(&model, plan), None), TIGHT);
    let (expected, calls) = undisturbed(make);
    for n in (1..=calls).step_by(5) {
        let plan = with_faults(&[(n, Fault::Lost)]);
        let outcome = scenario(&make(&plan));
        outcome.same(&expected, n, &"destroyed");
        assert_eq!((outcome.failures, events(&plan)), (0, [1, 1, 0, 0]), "call {n}");
    }
}

#[test]
fn on_another_device_given_tokens_stay_and_the_rest_agrees_where_the_choice_was_clear() {
    let model = model();
    let (tokens, options) = (prompt(1, 15), greedy(20));
    let run = |plan: &Shared| {
        let makes = (failing_gpu(&model, plan), Some(sound_cpu(&model)));
        let engine = engine(&model, &small_config(), plan, makes, TIGHT);
        let adapters = [adapter(&engine, 1)];
        let mut talk = session(&engine, &adapters).unwrap();
        let output = talk.respond_to_tokens(&tokens, &options).unwrap().collect().unwrap().tokens;
        (engine, output)
    };
    let plan = Shared::default();
    let (on_gpu, undisturbed) = run(&plan);
    assert_eq!(on_gpu.device_info().kind, "gpu");
    // The tail, the cache, three chunks of the prompt; then a token each.
    for lost_at in [1, 2, 4, 6, 12, 20] {
        let plan = with_faults(&[(lost_at, Fault::Lost)]);
        plan.lock().unwrap().refuses = true;
        let (engine, output) = run(&plan);
        assert_eq!((engine.device_info().kind, events(&plan)), ("cpu", [1, 0, 1, 0]), "lost at {lost_at}");
        let given = lost_at.saturating_sub(5);
        assert_eq!(output[..given], undisturbed[..given], "lost at {lost_at}");
        let all = [tokens.as_slice(), &output].concat();
        let logits = engine.logits(&all, &[adapter(&engine, 1)]).unwrap();
        let rows: Vec<&[f32]> = logits.chunks_exact(engine.recipe().shape.vocab).collect();
        for i in given..output.len() {
            let row = rows[tokens.len() + i - 1];
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
            assert_eq!(output[i] as usize, order[0], "the CPU chose it");
            if output[i] != undisturbed[i] {
                let margin = row[order[0]] - row[order[1]];
                assert!(margin <= 1e-3, "lost at {lost_at}, token {i}: margin {margin}");
                break; // what follows has another context
            }
        }
    }
}

/// Bytes of each version of the file that the child writes.
const VERSION: usize = 8 << 20;

/// Not a test: what [`a_killed_write_leaves_the_old_file_or_the_new`] runs in a process of its own.
#[test]
#[ignore = "a child process of another test"]
fn write_without_end() {
    let Some(path) = std::env::var_os("CALORA_WRITE_WITHOUT_END") else { return };
    for version in 0.. {
        calora::weights::write_atomically(Path::new(&path), &vec![version as u8; VERSION]).unwrap();
    }
}

#[test]
fn a_killed_write_leaves_the_old_file_or_the_new() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let partial = || {
        let entries = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|e| e == "partial")).collect::<Vec<_>>()
    };
    let mut in_the_middle = 0;
    for round in 0..12 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "write_without_end"])
            .env("CALORA_WRITE_WITHOUT_END", &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // At a different point of the write each time: when so much of a new version is on its way.
        let wanted = (VERSION / 13 * (round + 1)) as u64;
        let half = || partial().iter().filter_map(|p| p.metadata().ok()).any(|m| m.len() >= wanted);
        while !(path.exists() && half()) {
            assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() == VERSION && bytes.iter().all(|byte| *byte == bytes[0]), "round {round}");
        for left in partial() {
            in_the_middle += 1;
            std::fs::remove_file(left).unwrap();
        }
    }
    assert!(in_the_middle > 0, "no kill met a write");
}
