//! What survives: a device that is lost at any call, refused work, no room, a GPU that does not come back.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "survive/faulty.rs"]
mod faulty;
#[path = "survive/scenario.rs"]
mod scenario;

use std::path::Path;
use std::sync::{Arc, Mutex};

use calora::device::Model;
use calora::engine::{DeviceChoice, Engine, EngineEvent, EngineOptions};
use calora::session::{Progress, SessionOptions};
use calora::{Error, Result};
use common::{Store, random_model, small_config};
use faulty::{CHUNK, Fault, Plan, Shared, engine, failing_cpu, failing_gpu, sound_cpu};
use scenario::{Outcome, adapter, greedy, prompt, pull, sampled, scenario, session};

/// No adapter outlives its use.
const TIGHT: u64 = 0;
const ROOMY: u64 = 1 << 30;

fn model() -> Model {
    random_model(&small_config(), Store::F32, 3)
}

fn on_cpu(model: &Model, plan: &Shared, adapter_budget: u64) -> Engine {
    engine(model, &small_config(), plan, (failing_cpu(model, plan), None), adapter_budget)
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
    let watchdog =
        || Arc::new(Mutex::new(Plan { most_tokens: Some((CHUNK - 1, Fault::Lost)), ..Plan::default() }));

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

    // A CPU that fails too gets as many tries.
    let plan = watchdog();
    let makes = (failing_cpu(&model, &plan), Some(failing_cpu(&model, &plan)));
    let hopeless = engine(&model, &small_config(), &plan, makes, TIGHT);
    let mut talk = session(&hopeless, &[]).unwrap();
    let failed = talk.respond_to_tokens(&tokens, &greedy(4)).unwrap().collect().unwrap_err();
    assert!(matches!(failed, Error::DeviceLost { .. }), "{failed}");
    assert_eq!(events(&plan), [6, 4, 1, 0]);
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
fn threads_that_take_the_device_from_each_other_all_finish() {
    let model = model();
    let plan = Shared::default();
    let engine = on_cpu(&model, &plan, TIGHT);
    let work = |engine: &Engine, seed: u64, loses: bool| {
        let mut talk = session(engine, &[adapter(engine, seed % 2)]).unwrap();
        let mut stream = talk.respond_to_tokens(&prompt(seed, 20), &sampled(30)).unwrap();
        loop {
            if loses && stream.output().len() as u64 % 10 == seed {
                engine.simulate_device_loss().unwrap();
            }
            if pull(&mut stream).unwrap().is_some() {
                return stream.output().to_vec();
            }
        }
    };
    let alone: Vec<_> = (0..4).map(|seed| work(&engine, seed, false)).collect();
    std::thread::scope(|scope| {
        for (seed, alone) in (0..).zip(&alone) {
            let engine = engine.clone();
            scope.spawn(move || (0..3).for_each(|_| assert_eq!(&work(&engine, seed, true), alone)));
        }
    });
    let [lost, rebuilt, ..] = events(&plan);
    // The last loss may have come after the last use.
    assert!(lost >= 9 && (lost == rebuilt || lost == rebuilt + 1), "{lost} {rebuilt}");
    assert_eq!(engine.memory().caches, 0, "nothing of any device is left");
}

fn load(device: DeviceChoice, fallback_to_cpu: Option<bool>) -> Result<Engine> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/base");
    Engine::load(base, EngineOptions { device, fallback_to_cpu, ..EngineOptions::default() })
}

#[test]
fn a_loaded_engine_goes_on_with_the_same_text() {
    let story = "The old house stood at the end of the lane, and";
    for (device, kind) in [(DeviceChoice::Cpu, "cpu"), (DeviceChoice::Gpu, "gpu")] {
        let engine = load(device, None).unwrap();
        let text = |lose_after: usize| {
            let mut session = engine.session(SessionOptions::default()).unwrap();
            let mut generation = session.begin_text(story, &sampled(16)).unwrap();
            let (mut text, mut passes) = (String::new(), 0);
            while !generation.is_over() {
                if passes == lose_after {
                    engine.simulate_device_loss().unwrap();
                }
                if let Progress::Chunk(chunk) = generation.pass(&mut session).unwrap() {
                    text += &chunk.text;
                }
                passes += 1;
            }
            text
        };
        let whole = text(usize::MAX);
        for lose_after in [0, 1, 9] {
            assert_eq!(text(lose_after), whole, "{kind}: lost before pass {lose_after}");
        }
        assert_eq!(engine.device_info().kind, kind);
    }
}

/// Not a test: what [`a_machine_without_a_gpu_computes_on_the_cpu_where_it_may`] runs in a process of its own.
#[test]
#[ignore = "a child process of another test"]
fn load_without_a_gpu() {
    if std::env::var_os("CALORA_WITHOUT_GPU").is_none() {
        return;
    }
    for (device, fallback, loads) in [
        (DeviceChoice::Auto, None, true),
        (DeviceChoice::Auto, Some(false), false),
        (DeviceChoice::Gpu, None, false),
        (DeviceChoice::Gpu, Some(true), true),
    ] {
        match load(device, fallback) {
            Ok(engine) => assert!(loads && engine.device_info().kind == "cpu", "{device:?} {fallback:?}"),
            Err(error) => assert!(!loads && matches!(error, Error::NoDevice { .. }), "{error}"),
        }
    }
}

#[test]
fn a_machine_without_a_gpu_computes_on_the_cpu_where_it_may() {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--ignored", "--exact", "load_without_a_gpu"]).env("CALORA_WITHOUT_GPU", "1");
    for drivers in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES", "__EGL_VENDOR_LIBRARY_FILENAMES"] {
        child.env(drivers, "/nowhere");
    }
    let output = child.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
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
