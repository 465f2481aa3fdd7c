//! Several sessions on one engine: who goes first, and who shares a pass.

use super::*;

fn background(engine: &Engine, adapters: Vec<ScaledAdapter>) -> Arc<Session> {
    let priority = Some(SessionPriority::Background);
    let config = SessionConfig { adapters, priority, ..SessionConfig::default() };
    block_on(engine.session(config)).unwrap()
}

#[test]
fn four_streams_with_four_adapters_share_passes_and_each_is_as_if_alone() {
    let engine = engine();
    let tasks: Vec<_> = ["intent", "spam", "clean-question"].map(|name| with(&adapter(&engine, name))).into();
    let adapters = |i: usize| tasks.get(i).cloned().unwrap_or_default();
    let ask = |session: &Session| session.complete(STORY.into(), at_most(30)).unwrap();
    let before = engine.statistics().unwrap().passes;
    let alone: Vec<String> = (0..4).map(|i| text(&ask(&session(&engine, adapters(i))))).collect();
    let one_by_one = engine.statistics().unwrap().passes - before;
    assert!(alone.iter().collect::<std::collections::HashSet<_>>().len() > 2, "{alone:?}");
    let sessions: Vec<_> = (0..4).map(|i| session(&engine, adapters(i))).collect();
    let streams: Vec<_> = sessions.iter().map(|session| ask(session)).collect();
    let before = engine.statistics().unwrap().passes;
    block_on(engine.pause()).unwrap();
    let pulls: Vec<_> = streams.into_iter().map(pull).collect();
    engine.resume().unwrap();
    let readers: Vec<_> =
        pulls.into_iter().map(|pull| std::thread::spawn(move || rest(block_on(pull)))).collect();
    let together: Vec<String> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    assert_eq!(together, alone);
    let shared = engine.statistics().unwrap().passes - before;
    assert!(shared < one_by_one, "{shared} passes for {one_by_one}");
}

#[test]
fn the_background_makes_no_pass_while_the_foreground_waits() {
    let engine = engine();
    let quiet = background(&engine, vec![]);
    let alone = text(&quiet.complete(STORY.into(), at_most(20)).unwrap());
    block_on(quiet.reset()).unwrap();
    let urgent = [session(&engine, vec![]), session(&engine, with(&adapter(&engine, "spam")))];
    block_on(engine.pause()).unwrap();
    // The background asks first. Each foreground response fits the queue of its reader: it never waits for one.
    let first = pull(quiet.complete(STORY.into(), at_most(20)).unwrap());
    let pulls: Vec<_> =
        urgent.iter().map(|session| pull(session.complete(STORY.into(), at_most(4)).unwrap())).collect();
    engine.resume().unwrap();
    let first = block_on(first);
    assert!(urgent.iter().all(|session| !session.is_responding()), "all of the foreground was over by then");
    assert_eq!(rest(first), alone);
    for pull in pulls {
        block_on(pull).0.unwrap().unwrap();
    }
}

#[test]
fn a_background_classification_yields_after_every_pass() {
    let engine = engine();
    let quiet = background(&engine, with(&adapter(&engine, "spam")));
    let choices: Vec<String> = (0..40).map(|i| format!("ham {i}")).collect();
    let expected = block_on(quiet.classify(MESSAGE.into(), choices.clone())).unwrap();
    assert!(engine.statistics().unwrap().passes >= 40, "a pass a choice at least");
    let urgent = session(&engine, vec![]);
    block_on(engine.pause()).unwrap();
    let classified = {
        let (quiet, choices) = (quiet.clone(), choices.clone());
        made(async move { quiet.classify(MESSAGE.into(), choices).await })
    };
    // Asked for in the midst of the classification, and answered before it ends: what is counted are passes.
    let before = engine.statistics().unwrap().passes;
    engine.resume().unwrap();
    while engine.statistics().unwrap().passes == before {
        std::thread::yield_now();
    }
    let stream = urgent.complete(STORY.into(), at_most(4)).unwrap();
    let began = engine.statistics().unwrap().passes;
    block_on(stream.next()).unwrap();
    let answered = engine.statistics().unwrap().passes;
    assert!(answered - began < 30, "{answered} after {began}");
    // The session does one thing after the other.
    let next = quiet.complete(STORY.into(), at_most(6)).unwrap();
    let next = text(&next);
    assert_eq!(block_on(classified).unwrap(), expected);
    let fresh = background(&engine, with(&adapter(&engine, "spam")));
    assert_eq!(next, text(&fresh.complete(STORY.into(), at_most(6)).unwrap()));
    text(&stream);
}

#[test]
fn a_classification_that_nobody_waits_for_ends_and_frees_its_session() {
    let engine = engine();
    let session = session(&engine, vec![]);
    block_on(engine.pause()).unwrap();
    let choices = |n: usize| (0..n).map(|i| format!("choice {i}")).collect::<Vec<_>>();
    {
        let session = session.clone();
        drop(made(async move { session.classify(MESSAGE.into(), choices(400)).await }));
    }
    let before = engine.statistics().unwrap().passes;
    engine.resume().unwrap();
    assert_eq!(block_on(session.classify(MESSAGE.into(), choices(2))).unwrap().len(), 2);
    assert!(engine.statistics().unwrap().passes - before < 20, "the first was not computed");
}

#[test]
fn cancelling_one_of_several_leaves_the_others_alone() {
    let engine = engine();
    let sessions: Vec<_> = (0..3).map(|_| session(&engine, vec![])).collect();
    let alone = text(&sessions[0].complete(STORY.into(), at_most(40)).unwrap());
    let streams: Vec<_> = sessions.iter().map(|s| s.complete(STORY.into(), at_most(40)).unwrap()).collect();
    let readers: Vec<_> = streams[..2]
        .iter()
        .map(|stream| {
            let stream = stream.clone();
            std::thread::spawn(move || text(&stream))
        })
        .collect();
    block_on(streams[2].next()).unwrap();
    streams[2].cancel();
    assert_eq!(block_on(streams[2].next()), Err(EngineError::Cancelled));
    sessions[2].close();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), alone);
    }
}
