//! Several sessions, and adapters that change.

use calora::engine::BoundAdapter;

use super::*;

#[test]
fn switching_adapters_computes_the_transcript_anew() {
    let (engine, _) = engine(Setup::default());
    let (a, b) = (adapter(&engine, 1), adapter(&engine, 2));
    let run = |session: &mut Session, prompt: &[u32]| {
        session.respond_to_tokens(prompt, &tokens(8)).unwrap().collect().unwrap()
    };
    let mut never = session(&engine);
    respond(&mut never, "once upon", &tokens(8));
    let transcript = never.tokens().to_vec();
    let prompt = [transcript.clone(), ids("go on")].concat();
    let base = run(&mut never, &prompt);
    let mut answers = vec![base.tokens.clone()];
    for list in [vec![(a.clone(), 1.0)], vec![(a.clone(), 0.5)], vec![(a.clone(), 1.0), (b.clone(), 1.0)]] {
        let mut session = session(&engine);
        respond(&mut session, "once upon", &tokens(8));
        session.switch_to(&list).unwrap();
        assert_eq!(session.tokens(), transcript, "the transcript stays");
        assert_eq!(session.adapters().unwrap().adapters().len(), list.len());
        let attached = run(&mut session, &prompt);
        assert_eq!(attached.usage.cached_tokens, 0, "nothing of another adapter's cache is used");
        let options = SessionOptions { adapters: list, ..SessionOptions::default() };
        let mut fresh = engine.session(options).unwrap();
        assert_eq!(
            attached.tokens,
            run(&mut fresh, &prompt).tokens,
            "as if it had been attached from the start"
        );
        answers.push(attached.tokens);
        session.switch_to(&[]).unwrap();
        let detached = run(&mut session, &prompt);
        assert_eq!(
            (detached.tokens, detached.usage.cached_tokens),
            (base.tokens.clone(), 0),
            "never attached"
        );
    }
    for (i, answer) in answers.iter().enumerate() {
        assert!(answers[i + 1..].iter().all(|other| other != answer), "every list has its own answer");
    }
    // There and back without computing between: the cache is still the right one.
    let held = never.cached_tokens();
    never.switch_to(&[(a, 1.0)]).unwrap();
    assert_eq!(never.cached_tokens(), 0);
    never.switch_to(&[]).unwrap();
    assert_eq!(never.cached_tokens(), held);
}

#[test]
fn equal_lists_share_one_resident_tail_and_everything_is_freed() {
    let (engine, state) = engine(Setup::default());
    let a = adapter(&engine, 1);
    let list = [(a.clone(), 1.0)];
    let kept = engine.resident(&list).unwrap();
    let with =
        || engine.session(SessionOptions { adapters: list.to_vec(), ..SessionOptions::default() }).unwrap();
    let (one, mut two) = (with(), with());
    assert_eq!((engine.memory().tails, engine.memory().caches), (1, 2));
    two.switch_to(&[(a, 0.5)]).unwrap();
    assert_eq!(engine.memory().tails, 1, "a scale is no copy");
    drop(kept);
    assert_eq!(engine.memory().tails, 1, "a session holds it");
    drop(one);
    assert_eq!((engine.memory().tails, engine.memory().caches), (1, 1));
    two.switch_to(&[]).unwrap();
    drop(two);
    assert_eq!((engine.memory().tails, engine.memory().caches), (0, 0));
    let kept = engine.resident(&list).unwrap();
    drop(engine);
    assert_eq!(state.lock().unwrap().tails.len(), 1, "a resident adapter keeps the engine alive");
    drop(kept);
    assert_eq!(state.lock().unwrap().tails.len(), 0);
}

#[test]
fn sessions_interleave_token_by_token() {
    let (engine, _) = engine(Setup::default());
    let a = adapter(&engine, 4);
    let with = |adapters: Vec<(BoundAdapter, f32)>| {
        engine.session(SessionOptions { adapters, ..SessionOptions::default() }).unwrap()
    };
    let alone = |adapters, prompt| {
        let mut session = with(adapters);
        respond(&mut session, prompt, &tokens(12)).tokens
    };
    let expected = [alone(vec![], "the first one"), alone(vec![(a.clone(), 1.0)], "the second")];
    let (mut first, mut second) = (with(vec![]), with(vec![(a, 1.0)]));
    let options = tokens(12);
    let mut streams =
        [first.respond("the first one", &options).unwrap(), second.respond("the second", &options).unwrap()];
    let mut live = true;
    while live {
        live = false;
        for stream in &mut streams {
            live |= stream.next().unwrap().is_some();
        }
    }
    assert_eq!(streams.each_ref().map(|s| s.output().to_vec()), expected);
    drop(streams);
    // And from threads of their own.
    let results = std::thread::scope(|scope| {
        let run = |session: Session, prompt: &'static str| {
            scope.spawn(move || {
                let mut session = session;
                session.reset();
                respond(&mut session, prompt, &tokens(12)).tokens
            })
        };
        let handles = [run(first, "the first one"), run(second, "the second")];
        handles.map(|handle| handle.join().unwrap())
    });
    assert_eq!(results, expected);
}

/// Options that scale the attached adapters.
fn scaled(n: usize, scales: &[f32]) -> GenerationOptions {
    GenerationOptions { adapter_scales: scales.to_vec(), ..tokens(n) }
}

fn attached(engine: &Engine, adapters: &[(BoundAdapter, f32)]) -> Session {
    engine.session(SessionOptions { adapters: adapters.to_vec(), ..SessionOptions::default() }).unwrap()
}

#[test]
fn a_request_scales_its_adapters_without_a_copy() {
    let (engine, state) = engine(Setup::default());
    let (base, task) = (adapter(&engine, 1), adapter(&engine, 2));
    let list = |scale| [(base.clone(), 1.0), (task.clone(), scale)];
    let mut session = attached(&engine, &list(1.0));
    let mut answers = Vec::new();
    for i in 1..=100 {
        let scale = i as f32 / 100.0;
        session.reset();
        let response = respond(&mut session, "fade in", &scaled(6, &[1.0, scale]));
        assert_eq!(response.usage.cached_tokens, 0, "another scale is another computation");
        let loads = state.lock().unwrap().loads;
        assert_eq!((loads, engine.memory().tails), (1, 1));
        assert_eq!(engine.residency().lists.len(), 1);
        assert_eq!(session.adapters().unwrap().adapters()[1].1, 1.0, "the session's own scale stays");
        answers.push(response.tokens);
    }
    answers.dedup();
    assert_eq!(answers.len(), 100, "every scale has its own answer");
    // Each is what a session gives that was attached so.
    for (answer, scale) in [(&answers[29], 0.3), (&answers[99], 1.0)] {
        assert_eq!(respond(&mut attached(&engine, &list(scale)), "fade in", &tokens(6)).tokens, *answer);
    }
    let loads = state.lock().unwrap().loads;
    assert_eq!(loads, 1);
}

#[test]
fn scale_0_is_detached_and_scale_1_attached() {
    let (engine, state) = engine(Setup::default());
    let (a, b) = (adapter(&engine, 1), adapter(&engine, 2));
    let prompt = |session: &mut Session, options: &GenerationOptions| {
        session.reset();
        respond(session, "the sea", options)
    };
    let plain = prompt(&mut attached(&engine, &[]), &tokens(6)).tokens;
    let with_a = prompt(&mut attached(&engine, &[(a.clone(), 1.0)]), &tokens(6)).tokens;
    assert_ne!(plain, with_a);
    let mut session = attached(&engine, &[(a.clone(), 1.0)]);
    assert_eq!(prompt(&mut session, &scaled(6, &[0.0])).tokens, plain);
    assert_eq!(prompt(&mut session, &scaled(6, &[1.0])).tokens, with_a);
    assert_eq!(prompt(&mut session, &tokens(6)).tokens, with_a);
    let mut both = attached(&engine, &[(a.clone(), 1.0), (b.clone(), 1.0)]);
    assert_eq!(prompt(&mut both, &scaled(6, &[1.0, 0.0])).tokens, with_a);
    assert_eq!(prompt(&mut both, &scaled(6, &[-0.0, 0.0])).tokens, plain);

    // The journal knows: what scale 0 computed is what no adapter computes, and nothing else is.
    let held = both.cached_tokens();
    assert_eq!(held, 0, "it was computed at other scales than the session's");
    both.switch_to(&[]).unwrap();
    let held = both.cached_tokens();
    assert!(held > 8);
    let reused = prompt(&mut both, &tokens(6));
    assert_eq!((reused.tokens, reused.usage.cached_tokens), (plain.clone(), 8));
    both.switch_to(&[(a.clone(), 0.0), (b, 0.0)]).unwrap();
    assert!(both.cached_tokens() > 8);
    both.switch_to(&[(a.clone(), 0.5)]).unwrap();
    assert_eq!(both.cached_tokens(), 0);

    // A pass at scale 0 names no tail.
    let loads = state.lock().unwrap().loads;
    both.switch_to(&[(a, 0.0)]).unwrap();
    prompt(&mut both, &tokens(3));
    let now = state.lock().unwrap().loads;
    assert_eq!(now, loads);
}

#[test]
fn one_adapter_acts_at_two_scales_at_the_same_time() {
    let (engine, state) = engine(Setup::default());
    let a = [(adapter(&engine, 4), 1.0)];
    let alone = |scale: f32| respond(&mut attached(&engine, &a), "one of two", &scaled(12, &[scale])).tokens;
    let expected = [alone(0.25), alone(0.75)];
    assert_ne!(expected[0], expected[1]);
    let (mut first, mut second) = (attached(&engine, &a), attached(&engine, &a));
    let loads = state.lock().unwrap().loads;
    let mut streams = [
        first.respond("one of two", &scaled(12, &[0.25])).unwrap(),
        second.respond("one of two", &scaled(12, &[0.75])).unwrap(),
    ];
    let mut live = true;
    while live {
        live = false;
        for stream in &mut streams {
            live |= stream.next().unwrap().is_some();
        }
    }
    assert_eq!(streams.each_ref().map(|s| s.output().to_vec()), expected);
    let now = state.lock().unwrap().loads;
    assert_eq!(now, loads);
}

#[test]
fn scales_that_fit_no_list_are_refused_before_anything_is_computed() {
    let (engine, state) = engine(Setup::default());
    let a = [(adapter(&engine, 1), 1.0)];
    for (list, scales) in [
        (&a[..], &[1.0, 0.5][..]),
        (&a[..], &[f32::NAN][..]),
        (&[][..], &[1.0][..]),
        (&a[..], &[f32::INFINITY][..]),
    ] {
        let mut session = attached(&engine, list);
        let before = snapshot(&session);
        let error = session.respond("no", &scaled(3, scales)).map(drop).unwrap_err();
        assert!(
            matches!(&error, Error::InvalidOption { option, .. } if option == "adapter_scales"),
            "{error}"
        );
        assert_eq!(snapshot(&session), before);
    }
    let passes = state.lock().unwrap().passes;
    assert_eq!(passes, 0);
    let defaults = scaled(3, &[0.0]);
    let options = SessionOptions { adapters: a.to_vec(), defaults, ..SessionOptions::default() };
    let by_default = respond(&mut engine.session(options).unwrap(), "hello", &tokens(4)).tokens;
    assert_eq!(by_default, respond(&mut attached(&engine, &[]), "hello", &tokens(4)).tokens);
}
