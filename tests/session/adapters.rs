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
    assert_eq!(engine.memory().tails, 2);
    drop(kept);
    assert_eq!(engine.memory().tails, 2, "a session holds it");
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
