//! What becomes of a conversation's keys and values when its adapters change, and what sessions share of their beginnings.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod common;
#[path = "session/device.rs"]
mod device;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use calora::Error;
use calora::engine::{BoundAdapter, DeviceChoice, Engine, EngineOptions};
use calora::session::{CachePolicy, GenerationOptions, Response, Session, SessionOptions, SwitchReport};
use device::{Setup, State, adapter, engine};

const FIRST: &str = "tell me of the sea and of the wind";
const SECOND: &str = "and now of the hills";
const INSTRUCTIONS: &str = "you know all tales and tell them well";

/// An engine that has room for put-aside beginnings.
fn roomy() -> (Engine, Arc<Mutex<State>>) {
    engine(Setup { template: true, prefix_budget: Some(1 << 20), ..Setup::default() })
}

fn options() -> GenerationOptions {
    GenerationOptions { max_tokens: Some(12), ..GenerationOptions::default() }
}

fn session(engine: &Engine, adapters: &[(BoundAdapter, f32)], instructions: Option<&str>) -> Session {
    let options = SessionOptions {
        adapters: adapters.to_vec(),
        instructions: instructions.map(str::to_owned),
        ..SessionOptions::default()
    };
    engine.session(options).unwrap()
}

fn respond(session: &mut Session, prompt: &str) -> Response {
    session.respond(prompt, &options()).unwrap().collect().unwrap()
}

/// What a new session with the conversation of `like` answers.
fn fresh(
    engine: &Engine,
    like: &Session,
    adapters: &[(BoundAdapter, f32)],
    instructions: Option<&str>,
) -> Vec<u32> {
    engine.forget_prefixes();
    let mut fresh = session(engine, adapters, instructions);
    fresh.restore(like.messages().to_vec()).unwrap();
    let response = respond(&mut fresh, SECOND);
    assert_eq!(response.usage.cached_tokens, 0);
    response.tokens
}

/// A session that held its first turn with `a` and then went to `b`.
fn switched(
    engine: &Engine,
    [a, b]: [&[(BoundAdapter, f32)]; 2],
    policy: CachePolicy,
    instructions: Option<&str>,
) -> (Session, SwitchReport) {
    let mut session = session(engine, a, instructions);
    respond(&mut session, FIRST);
    let report = session.switch_with(b, policy).unwrap();
    (session, report)
}

#[test]
fn recompute_shows_nothing_of_the_old_task() {
    let (engine, _) = roomy();
    let (a, b) = ([(adapter(&engine, 1), 1.0)], [(adapter(&engine, 2), 1.0)]);
    let (mut session, report) = switched(&engine, [&a, &b], CachePolicy::Recompute, None);
    assert_eq!((report.cached_tokens, report.put_aside_bytes), (0, 0));
    assert!(report.is_exact() && report.transcript_tokens > 40);
    let expected = fresh(&engine, &session, &b, None);
    let response = respond(&mut session, SECOND);
    assert_eq!((response.usage.cached_tokens, response.usage.inexact_tokens), (0, 0));
    assert_eq!(response.tokens, expected);
}

#[test]
fn keep_computes_nothing_again_and_says_that_it_is_not_exact() {
    let (engine, state) = roomy();
    let (a, b) = ([(adapter(&engine, 1), 1.0)], [(adapter(&engine, 2), 1.0)]);
    let (mut session, report) = switched(&engine, [&a, &b], CachePolicy::Keep, None);
    let held = report.cached_tokens;
    assert!(held > 40 && !report.is_exact());
    assert_eq!(report.inexact_tokens, held);
    let expected = fresh(&engine, &session, &b, None);
    let before = state.lock().unwrap().computed();
    let response = respond(&mut session, SECOND);
    let computed = state.lock().unwrap().computed() - before;
    let usage = response.usage;
    assert_eq!((usage.cached_tokens, usage.inexact_tokens), (held, held));
    assert_eq!(computed, usage.prompt_tokens - held + usage.output_tokens - 1);
    assert_ne!(response.tokens, expected, "the new task saw the old one's keys and values");

    // An exact policy trusts none of it again; the first task's own part is still its own.
    assert_eq!(session.switch_with(&b, CachePolicy::Recompute).unwrap().cached_tokens, 0);
    let back = session.switch_with(&a, CachePolicy::Recompute).unwrap();
    assert_eq!((back.cached_tokens, back.inexact_tokens), (held, 0));
}

#[test]
fn restore_brings_back_what_the_task_had_computed() {
    let (engine, state) = roomy();
    let (a, b) = ([(adapter(&engine, 1), 1.0)], [(adapter(&engine, 2), 1.0)]);
    let mut session = session(&engine, &a, None);
    let first = respond(&mut session, FIRST).usage;
    let away = session.switch_with(&b, CachePolicy::Restore).unwrap();
    assert!(away.put_aside_bytes > 0 && away.is_exact());
    assert_eq!((away.cached_tokens, engine.prefix_bytes()), (0, away.put_aside_bytes));
    respond(&mut session, SECOND);
    let back = session.switch_with(&a, CachePolicy::Restore).unwrap();
    // At least its prompt: the test's answers are bytes that may be spelt otherwise when they are read again.
    assert!(back.cached_tokens >= first.prompt_tokens && back.is_exact(), "{back:?} after {first:?}");
    let before = state.lock().unwrap().computed();
    let response = respond(&mut session, SECOND);
    let computed = state.lock().unwrap().computed() - before;
    assert_eq!(response.usage.cached_tokens, back.cached_tokens);
    assert_eq!(response.usage.inexact_tokens, 0);
    assert_eq!(
        computed,
        response.usage.prompt_tokens - back.cached_tokens + response.usage.output_tokens - 1
    );

    let mut alone = self::session(&engine, &a, None);
    engine.forget_prefixes();
    let said = session.messages();
    alone.restore(said[..said.len() - 2].to_vec()).unwrap();
    assert_eq!(respond(&mut alone, SECOND).tokens, response.tokens);
}

#[test]
fn without_room_restore_is_recompute() {
    for prefix_budget in [Some(0), Some(100)] {
        let (engine, _) = engine(Setup { template: true, prefix_budget, ..Setup::default() });
        let (a, b) = ([(adapter(&engine, 1), 1.0)], [(adapter(&engine, 2), 1.0)]);
        let (mut session, report) = switched(&engine, [&a, &b], CachePolicy::Restore, Some(INSTRUCTIONS));
        assert_eq!((report.put_aside_bytes, engine.prefix_bytes()), (0, 0));
        let expected = fresh(&engine, &session, &b, Some(INSTRUCTIONS));
        assert_eq!(respond(&mut session, SECOND).tokens, expected);
    }
}

#[test]
fn the_beginning_used_last_stays_within_the_budget() {
    let (probe, _) = roomy();
    let bytes = switched(&probe, [&[], &[]], CachePolicy::Restore, None).1.put_aside_bytes;
    let (engine, _) =
        engine(Setup { template: true, prefix_budget: Some(bytes * 5 / 2), ..Setup::default() });
    let tasks: Vec<_> = (1..4).map(|seed| [(adapter(&engine, seed), 1.0)]).collect();
    let mut sessions: Vec<Session> =
        tasks.iter().map(|task| switched(&engine, [task, &[]], CachePolicy::Restore, None).0).collect();
    assert!(engine.prefix_bytes() <= bytes * 5 / 2);
    let mut cached =
        |i: usize| sessions[i].switch_with(&tasks[i], CachePolicy::Recompute).unwrap().cached_tokens;
    // What a session's own cache still holds of its first task counts as well: only the store is asked here.
    assert!(cached(1) > 0 && cached(2) > 0);
    assert!(engine.forget_prefixes() >= bytes);
    assert_eq!(engine.prefix_bytes(), 0);
}

#[test]
fn instructions_are_computed_once_for_all_sessions() {
    let (engine, state) = roomy();
    let task = [(adapter(&engine, 1), 1.0)];
    let mut first = session(&engine, &task, Some(INSTRUCTIONS));
    let answer = respond(&mut first, FIRST);
    assert_eq!(answer.usage.cached_tokens, 0);
    let kept = engine.prefix_bytes();
    assert!(kept > 0);

    let mut second = session(&engine, &task, Some(INSTRUCTIONS));
    let before = state.lock().unwrap().computed();
    let again = respond(&mut second, FIRST);
    let computed = state.lock().unwrap().computed() - before;
    let shared = again.usage.cached_tokens;
    assert!(shared > INSTRUCTIONS.len() && shared < again.usage.prompt_tokens - FIRST.len());
    assert_eq!(computed, again.usage.prompt_tokens - shared + 11);
    assert_eq!((again.tokens, again.usage.inexact_tokens), (answer.tokens, 0));
    assert_eq!(engine.prefix_bytes(), kept, "kept once");

    // Other adapters, or other instructions, have beginnings of their own.
    for (adapters, instructions) in [(vec![], INSTRUCTIONS), (task.to_vec(), "you tell no tales at all")] {
        let mut other = session(&engine, &adapters, Some(instructions));
        assert!(respond(&mut other, FIRST).usage.cached_tokens < 16);
    }
    // Classifying and prewarming begin there as well.
    let mut third = session(&engine, &task, Some(INSTRUCTIONS));
    third.prewarm(FIRST).unwrap();
    let before = state.lock().unwrap().computed();
    let mut fourth = session(&engine, &task, Some(INSTRUCTIONS));
    let choices = ["a".to_owned(), "b".to_owned()];
    let scores = fourth.likelihoods(FIRST, &choices).unwrap();
    assert!(state.lock().unwrap().computed() - before < again.usage.prompt_tokens - shared + 8);
    engine.forget_prefixes();
    let mut alone = session(&engine, &task, Some(INSTRUCTIONS));
    assert_eq!(alone.likelihoods(FIRST, &choices).unwrap(), scores);
}

#[test]
fn keep_instructions_keeps_them_and_nothing_else() {
    let (engine, _) = roomy();
    let (a, b) = ([(adapter(&engine, 1), 1.0)], [(adapter(&engine, 2), 1.0)]);
    let (mut session, report) =
        switched(&engine, [&a, &b], CachePolicy::KeepInstructions, Some(INSTRUCTIONS));
    assert!(report.cached_tokens > INSTRUCTIONS.len() && report.inexact_tokens == report.cached_tokens);
    assert!(report.cached_tokens < report.transcript_tokens - FIRST.len());
    let expected = fresh(&engine, &session, &b, Some(INSTRUCTIONS));
    engine.forget_prefixes();
    let response = respond(&mut session, SECOND);
    assert_eq!(response.usage.inexact_tokens, report.cached_tokens);
    assert_ne!(response.tokens, expected);
    // What was read through borrowed keys is never kept as the task's own.
    assert_eq!(engine.prefix_bytes(), 0);
    let without = switched(&engine, [&a, &b], CachePolicy::KeepInstructions, None).1;
    assert_eq!(without.cached_tokens, 0);
}

#[test]
fn a_cache_that_cannot_be_copied_fails_the_switch_and_changes_nothing() {
    let (engine, state) = roomy();
    let (a, b) = ([(adapter(&engine, 1), 1.0)], [(adapter(&engine, 2), 1.0)]);
    let mut session = session(&engine, &a, None);
    respond(&mut session, FIRST);
    let held = session.cached_tokens();
    state.lock().unwrap().no_copies = true;
    assert!(matches!(session.switch_with(&b, CachePolicy::Restore), Err(Error::DeviceLost { .. })));
    assert_eq!(session.cached_tokens(), held);
    assert_eq!(session.adapters().unwrap().adapters()[0].0.name(), "task 1");
    // Instructions that cannot be kept cost their computation and no response.
    let mut told = self::session(&engine, &a, Some(INSTRUCTIONS));
    assert_eq!(respond(&mut told, FIRST).usage.output_tokens, 12);
    assert_eq!(engine.prefix_bytes(), 0);
}

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(path)
}

fn load(options: EngineOptions) -> Engine {
    Engine::load(shipped("base"), options).unwrap()
}

fn task(engine: &Engine, name: &str) -> [(BoundAdapter, f32); 1] {
    [(engine.open_adapter(shipped("adapters").join(name)).unwrap(), 1.0)]
}

/// A plain model: the instructions are the beginning of the text.
const TALE: &str = "The old house stood at the end of the lane, and nobody had lived in it since the winter of the great \
                    snow, when the river";

#[test]
fn real_devices_put_back_what_they_computed_bit_for_bit() {
    for device in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
        let engine = load(EngineOptions { device, ..EngineOptions::default() });
        let (a, b) = (task(&engine, "novelist"), task(&engine, "playwright"));
        let story = |session: &mut Session, text: &str| {
            let response = session.respond(text, &options()).unwrap().collect().unwrap();
            (response.text, response.usage.cached_tokens)
        };
        let mut stays = session(&engine, &a, None);
        let mut goes = session(&engine, &a, None);
        assert_eq!(story(&mut stays, TALE), story(&mut goes, TALE));
        let held = goes.cached_tokens();
        let away = goes.switch_with(&b, CachePolicy::Restore).unwrap();
        assert!(away.put_aside_bytes > 0);
        // The other task writes over the cache.
        let tokens = goes.tokens().to_vec();
        let other = goes.respond_to_tokens(&tokens[..40], &options()).unwrap().collect().unwrap();
        let mut alone = session(&engine, &b, None);
        let expected = alone.respond_to_tokens(&tokens[..40], &options()).unwrap().collect().unwrap();
        assert_eq!(other.tokens, expected.tokens);
        goes.switch_with(&a, CachePolicy::Restore).unwrap();
        let prompt = [&tokens[..], &[40, 50, 60]].concat();
        let logits = |session: &mut Session| {
            let mut all = Vec::new();
            session.visit_logits(&prompt, held, |_, row| all.extend_from_slice(row)).unwrap();
            all
        };
        let (back, stayed) = (logits(&mut goes), logits(&mut stays));
        assert_eq!(back, stayed, "{device:?}");
        // Computed through the other task they differ, so the comparison could fail.
        goes.switch_to(&b).unwrap();
        assert_ne!(logits(&mut goes), stayed);
    }
}

#[test]
fn one_device_takes_up_what_another_computed() {
    use calora::device::{Answer, Device, Forward, Want};
    let options = EngineOptions { device: DeviceChoice::Cpu, ..EngineOptions::default() };
    let model = load(options).model().clone();
    for activations in [calora::device::Activations::F32, calora::device::Activations::Int8] {
        let cpu = calora::cpu::CpuOptions { threads: Some(1), activations, max_tokens: 64, simd: None };
        let choice = calora::gpu::GpuChoice::Any;
        let gpu = calora::gpu::GpuOptions { activations, max_tokens: 64, choice, ..Default::default() };
        let mut devices: [Box<dyn Device>; 2] = [
            Box::new(calora::cpu::CpuDevice::new(&model, cpu).unwrap()),
            Box::new(calora::gpu::GpuDevice::new(&model, gpu).unwrap()),
        ];
        let tokens: Vec<u32> = (0..40).map(|i| 5 + i * 31 % 4000).collect();
        let caches = [48, 64].map(|positions| positions).into_iter().zip(&mut devices);
        let caches: Vec<_> = caches.map(|(positions, d)| d.create_cache(positions).unwrap()).collect();
        let mut pass = |i: usize, position: usize, tokens: &[u32]| {
            let (cache, want) = (caches[i], Want::LastLogits);
            match devices[i]
                .forward(&Forward { tokens, position, cache, tail: None, scales: &[], want })
                .unwrap()
            {
                Answer::Logits(logits) => logits,
                other => panic!("{other:?}"),
            }
        };
        pass(0, 0, &tokens);
        let expected = pass(0, 40, &[77]);
        let bytes = devices[0].read_cache(caches[0], 40).unwrap();
        assert_eq!(bytes.len(), 40 * calora::device::position_bytes(&model.recipe.shape, activations));
        devices[1].write_cache(caches[1], &bytes).unwrap();
        assert_eq!(devices[1].read_cache(caches[1], 40).unwrap(), bytes, "{activations:?}");
        assert_eq!(devices[1].read_cache(caches[1], 0).unwrap(), Vec::<u8>::new());
        let pass = Forward {
            tokens: &[77],
            position: 40,
            cache: caches[1],
            tail: None,
            scales: &[],
            want: Want::LastLogits,
        };
        let Answer::Logits(found) = devices[1].forward(&pass).unwrap() else { panic!("no logits") };
        let nmse = common::nmse(&found, &expected);
        assert!(nmse < 1e-6, "{activations:?}: {nmse}");
        // What does not fit, and what is no whole number of positions, is refused.
        assert!(matches!(devices[0].read_cache(caches[0], 49), Err(Error::ContextFull { needed: 49, .. })));
        for (device, cache) in devices.iter_mut().zip(&caches) {
            assert!(matches!(device.write_cache(*cache, &bytes[1..]), Err(Error::InvalidOption { .. })));
            let long = bytes.repeat(2);
            assert!(matches!(device.write_cache(*cache, &long), Err(Error::ContextFull { needed: 80, .. })));
        }
    }
}

#[test]
fn instructions_outlive_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let load = |budget: u64| {
        load(EngineOptions {
            device: DeviceChoice::Cpu,
            prefix_folder: Some(folder.path().join("made on demand")),
            prefix_budget: Some(budget),
            ..EngineOptions::default()
        })
    };
    let ask = |engine: &Engine, name: &str| {
        let mut session = session(engine, &task(engine, name), Some(TALE));
        let response = respond(&mut session, " was");
        (response.text, response.usage.cached_tokens)
    };
    let files = || {
        let entries = std::fs::read_dir(folder.path().join("made on demand")).into_iter().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
        paths.sort();
        paths
    };
    let (answer, cached) = ask(&load(1 << 24), "novelist");
    assert_eq!((cached, files().len()), (0, 1));
    let (again, cached) = ask(&load(1 << 24), "novelist");
    assert!(cached >= 16, "{cached}");
    assert_eq!(again, answer);
    // Another task's is another file.
    let other = load(1 << 24);
    assert_eq!(ask(&other, "playwright").1, 0);
    assert_eq!(files().len(), 2);

    // Damaged, truncated, emptied: computed again, never believed.
    let whole = std::fs::read(&files()[0]).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for damage in [flipped, whole[..whole.len() - 1].to_vec(), whole[..5].to_vec(), Vec::new()] {
        for path in files() {
            std::fs::write(&path, &damage).unwrap();
        }
        assert_eq!(ask(&load(1 << 24), "novelist"), (answer.clone(), 0));
    }
    // The oldest go where the budget is small.
    let one = whole.len() as u64;
    std::fs::remove_dir_all(folder.path().join("made on demand")).unwrap();
    for name in ["novelist", "playwright", "spam"] {
        ask(&load(one * 3 / 2), name);
        assert_eq!(files().len(), 1, "{name}");
    }
    let missing = EngineOptions { prefix_folder: Some("/proc/none/such".into()), ..EngineOptions::default() };
    let unwritable =
        Engine::load(shipped("base"), EngineOptions { device: DeviceChoice::Cpu, ..missing }).unwrap();
    assert_eq!(ask(&unwritable, "novelist").0, answer, "a cache that cannot be written costs nothing else");
}
