//! Responses of several sessions that share passes of the device: each is what it is alone, whatever happens to the others
//! and to the device.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "survive/faulty.rs"]
#[allow(dead_code)]
mod faulty;
#[path = "survive/scenario.rs"]
#[allow(dead_code)]
mod scenario;

use std::sync::{Arc, Mutex};

use calora::device::Model;
use calora::engine::{Engine, EngineEvent};
use calora::session::{FinishReason, Generation, GenerationOptions, Progress, Session, Usage, pass_together};
use calora::{Error, Result};
use common::{Store, random_model, small_config};
use faulty::{CHUNK, Fault, Plan, Shared, engine, failing_cpu, failing_gpu, sound_cpu};
use scenario::{adapter, greedy, prompt, sampled, session};

const ROOMY: u64 = 1 << 30;

fn model() -> Model {
    random_model(&small_config(), Store::F32, 3)
}

fn on_cpu(model: &Model, plan: &Shared) -> Engine {
    engine(model, &small_config(), plan, (failing_cpu(model, plan), None), ROOMY)
}

/// One of the sessions of the scenario, its response and what that gave.
struct Talk {
    session: Session,
    generation: Generation,
    request: (Vec<u32>, GenerationOptions),
    given: Vec<(Vec<u32>, FinishReason)>,
    usage: Option<Usage>,
    failures: usize,
}

impl Talk {
    fn new(mut session: Session, tokens: Vec<u32>, options: GenerationOptions) -> Self {
        let generation = session.begin_tokens(&tokens, &options).unwrap();
        Self { session, generation, request: (tokens, options), given: Vec::new(), usage: None, failures: 0 }
    }

    fn ask(&mut self, tokens: Vec<u32>, options: GenerationOptions) {
        self.generation = self.session.begin_tokens(&tokens, &options).unwrap();
        self.request = (tokens, options);
    }

    /// Takes down what a pass gave; a request that found no room is made again.
    fn note(&mut self, result: Result<Progress>) {
        match result {
            Ok(Progress::Chunk(chunk)) => {
                if let Some(reason) = chunk.finish_reason {
                    self.given.push((self.generation.output().to_vec(), reason));
                    self.usage = chunk.usage;
                }
            }
            Ok(Progress::Computing) => {}
            Err(Error::OutOfMemory { .. }) => {
                self.failures += 1;
                let (tokens, options) = self.request.clone();
                self.ask(tokens, options);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// How the scenario's sessions advance.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    InTurn,
    Together,
}

/// Advances until all are over, or `passes` times; at most one pass of the device each time.
fn advance(engine: &Engine, talks: &mut [Talk], way: Way, passes: usize) {
    for turn in 0..passes {
        let mut live: Vec<&mut Talk> = talks.iter_mut().filter(|talk| !talk.generation.is_over()).collect();
        if live.is_empty() {
            return;
        }
        let count = live.len();
        live.rotate_left(turn % count);
        let before = engine.counters();
        match way {
            Way::InTurn => {
                let talk = &mut *live[0];
                let result = talk.generation.pass(&mut talk.session);
                talk.note(result);
            }
            Way::Together => {
                let mut members: Vec<_> =
                    live.iter_mut().map(|talk| (&mut talk.generation, &mut talk.session)).collect();
                let results = pass_together(&mut members);
                assert_eq!(results.len(), count);
                assert!(results[0].is_some(), "the first always has its turn");
                for (talk, result) in live.into_iter().zip(results) {
                    if let Some(result) = result {
                        talk.note(result);
                    }
                }
            }
        }
        let now = engine.counters();
        // What makes room, or fails, is tried again within the turn.
        assert!(now.passes - before.passes <= 2, "{before:?} {now:?}");
        assert!(now.tokens - before.tokens <= (2 * count.max(CHUNK)) as u64, "{before:?} {now:?}");
    }
}

/// Six sessions with none, one, another and stacked adapters, at different positions, greedy and drawn. One ends early, one
/// is cancelled and goes on with other adapters, one swaps between two responses.
fn scenario(engine: &Engine, way: Way) -> Vec<Talk> {
    let (a, b) = (adapter(engine, 1), adapter(engine, 2));
    let both = [a.clone(), (b.0.clone(), 0.5)];
    let lists: [&[_]; 6] = [&[], std::slice::from_ref(&a), std::slice::from_ref(&b), &both, &[], &both[..1]];
    let mut talks: Vec<Talk> = lists
        .iter()
        .enumerate()
        .map(|(i, list)| {
            let (seed, length) = (i as u64, [15, 9, 2, 7, 20, 1][i]);
            let options = if i % 2 == 0 { greedy(6 + 3 * i) } else { sampled(6 + 3 * i) };
            let session = loop {
                match session(engine, list) {
                    Err(Error::OutOfMemory { .. }) => {}
                    opened => break opened.unwrap(),
                }
            };
            Talk::new(
                session,
                prompt(seed, length),
                GenerationOptions { max_tokens: Some(if i == 2 { 2 } else { 8 + i }), ..options },
            )
        })
        .collect();
    advance(engine, &mut talks, way, 24);
    let cancelled = &mut talks[4];
    cancelled.generation.roll_back(&mut cancelled.session);
    assert!(cancelled.session.tokens().is_empty());
    loop {
        match cancelled.session.switch_to(std::slice::from_ref(&b)) {
            Err(Error::OutOfMemory { .. }) => {}
            switched => break switched.unwrap(),
        }
    }
    cancelled.given.clear();
    cancelled.ask(prompt(9, 11), sampled(7));
    advance(engine, &mut talks, way, usize::MAX);
    let first = &mut talks[1];
    first.session.switch_to(&[]).unwrap_or_else(|_| first.session.switch_to(&[]).unwrap());
    for (i, talk) in talks.iter_mut().enumerate() {
        let next = [talk.session.tokens(), &prompt(20 + i as u64, 3)].concat();
        talk.ask(next, greedy(4));
    }
    advance(engine, &mut talks, way, usize::MAX);
    talks
}

fn same(talks: &[Talk], expected: &[Talk], case: &str) {
    for (i, (a, b)) in talks.iter().zip(expected).enumerate() {
        assert_eq!(a.given, b.given, "{case}, session {i}");
        assert_eq!(a.session.tokens(), b.session.tokens(), "{case}, session {i}");
        assert_eq!(a.session.cached_tokens(), b.session.cached_tokens(), "{case}, session {i}");
    }
}

#[test]
fn sessions_together_give_what_each_gives_in_turn() {
    let model = model();
    let plans = [Shared::default(), Shared::default()];
    let engines = [on_cpu(&model, &plans[0]), on_cpu(&model, &plans[1])];
    let expected = scenario(&engines[0], Way::InTurn);
    let together = scenario(&engines[1], Way::Together);
    same(&together, &expected, "undisturbed");
    for (a, b) in together.iter().zip(&expected) {
        assert_eq!(a.given.len(), 2);
        let usage = |talk: &Talk| {
            let usage = talk.usage.unwrap();
            (usage.prompt_tokens, usage.cached_tokens, usage.output_tokens)
        };
        assert_eq!(usage(a), usage(b));
    }
    let distinct: std::collections::HashSet<_> = expected.iter().map(|talk| &talk.given[1].0).collect();
    assert!(distinct.len() > 3, "the sessions differ");
    let [alone, shared] = engines.map(|engine| engine.counters());
    assert!(shared.passes * 3 < alone.passes * 2, "{shared:?} for {alone:?}: passes are shared");
}

#[test]
fn a_device_lost_at_any_call_changes_nothing_for_any_session() {
    let model = model();
    let plan = Shared::default();
    let expected = scenario(&on_cpu(&model, &plan), Way::Together);
    let calls = plan.lock().unwrap().calls;
    assert!(calls > 40, "{calls}");
    for fault in [Fault::Lost, Fault::Refused, Fault::OutOfMemory] {
        for n in 1..=calls {
            let faults = [(n, fault)].into();
            let plan = Arc::new(Mutex::new(Plan { faults, ..Plan::default() }));
            let talks = scenario(&on_cpu(&model, &plan), Way::Together);
            same(&talks, &expected, &format!("{fault:?} at call {n}"));
            let events = &plan.lock().unwrap().events;
            let lost = events.iter().filter(|e| matches!(e, EngineEvent::DeviceLost { .. })).count();
            assert_eq!(lost, usize::from(fault != Fault::OutOfMemory), "{fault:?} at call {n}: {events:?}");
            // A batch without room is made one by one: nobody's request fails for it.
            let failures: usize = talks.iter().map(|talk| talk.failures).sum();
            assert!(failures <= usize::from(fault == Fault::OutOfMemory), "{fault:?} at call {n}");
        }
    }
}

/// Five sessions on a device where passes of more than three tokens, and so batches, fail; what happened, and the engine.
fn five(model: &Model, fault: Option<Fault>) -> (Vec<Talk>, Shared) {
    let most_tokens = fault.map(|fault| (3, fault));
    let plan = Arc::new(Mutex::new(Plan { most_tokens, ..Plan::default() }));
    let engine = on_cpu(model, &plan);
    let mut talks: Vec<Talk> = (0..5u64)
        .map(|i| Talk::new(session(&engine, &[adapter(&engine, i)]).unwrap(), prompt(i, 3), greedy(12)))
        .collect();
    advance(&engine, &mut talks, Way::Together, 1000);
    (talks, plan)
}

#[test]
fn a_batch_that_takes_every_device_down_is_given_up_for_passes_alone() {
    let model = model();
    let (expected, _) = five(&model, None);
    let (talks, plan) = five(&model, Some(Fault::Lost));
    same(&talks, &expected, "lost");
    let events = &plan.lock().unwrap().events;
    let lost = events.iter().filter(|e| matches!(e, EngineEvent::DeviceLost { .. })).count();
    assert!((1..=2).contains(&lost), "{events:?}");
}

#[test]
fn a_batch_that_never_has_room_is_computed_one_by_one() {
    let model = model();
    let (expected, _) = five(&model, None);
    let (talks, plan) = five(&model, Some(Fault::OutOfMemory));
    same(&talks, &expected, "no room");
    assert!(talks.iter().all(|talk| talk.failures == 0), "nobody is told");
    assert_eq!(plan.lock().unwrap().events, []);
    let cached = |talk: &Talk| talk.usage.unwrap().cached_tokens;
    assert_eq!(talks.iter().map(cached).collect::<Vec<_>>(), expected.iter().map(cached).collect::<Vec<_>>());
}

#[test]
fn on_the_gpu_sessions_together_give_the_same_tokens_and_survive() {
    let model = model();
    let make =
        |plan: &Shared| engine(&model, &small_config(), plan, (failing_gpu(&model, plan), None), ROOMY);
    let plan = Shared::default();
    let expected = scenario(&make(&plan), Way::InTurn);
    let plan = Shared::default();
    same(&scenario(&make(&plan), Way::Together), &expected, "undisturbed");
    let calls = plan.lock().unwrap().calls;
    for n in (1..=calls).step_by(9) {
        let faults = [(n, Fault::Lost)].into();
        let plan = Arc::new(Mutex::new(Plan { faults, ..Plan::default() }));
        same(&scenario(&make(&plan), Way::Together), &expected, &format!("destroyed at call {n}"));
    }
}

#[test]
fn sessions_of_another_engine_and_finished_ones_do_not_ride_along() {
    let model = model();
    let (one, two) = (on_cpu(&model, &Shared::default()), on_cpu(&model, &Shared::default()));
    let mut talks: Vec<Talk> = [&one, &one, &two]
        .into_iter()
        .map(|engine| Talk::new(session(engine, &[]).unwrap(), prompt(1, 4), greedy(5)))
        .collect();
    for talk in &mut talks {
        let result = talk.generation.pass(&mut talk.session);
        talk.note(result);
        assert!(talk.generation.is_decoding());
    }
    let together = |talks: &mut [Talk]| -> Vec<bool> {
        let mut members: Vec<_> = talks.iter_mut().map(|t| (&mut t.generation, &mut t.session)).collect();
        pass_together(&mut members).into_iter().map(|result| result.map(Result::unwrap).is_some()).collect()
    };
    assert_eq!(together(&mut talks), [true, true, false]);
    let over = &mut talks[1];
    over.generation.roll_back(&mut over.session);
    assert_eq!(together(&mut talks), [true, false, false]);
    assert_eq!(pass_together(&mut []).len(), 0);
    // Over: an error for the one that asks, as alone.
    let over = &mut talks[1];
    let results = pass_together(&mut [(&mut over.generation, &mut over.session)]);
    assert!(matches!(results[..], [Some(Err(Error::Cancelled))]));
}

#[test]
fn a_session_that_moves_to_the_cpu_takes_its_batch_along() {
    let model = model();
    let plan = Arc::new(Mutex::new(Plan { refuses: true, ..Plan::default() }));
    let makes = (failing_cpu(&model, &plan), Some(sound_cpu(&model)));
    let moving = engine(&model, &small_config(), &plan, makes, ROOMY);
    let expected = scenario(&on_cpu(&model, &Shared::default()), Way::InTurn);
    let calls = plan.lock().unwrap().calls;
    plan.lock().unwrap().faults.insert(calls + 30, Fault::Lost);
    same(&scenario(&moving, Way::Together), &expected, "moved");
    assert!(matches!(
        plan.lock().unwrap().events[..],
        [EngineEvent::DeviceLost { .. }, EngineEvent::MovedToCpu { .. }]
    ));
}
