//! Responses: pulled, cancelled, paused, several at once.

use super::*;

/// Tokens computed so far, once the engine thread finds nothing to compute: it has answered several times and no pass ran
/// between two answers, however slow the machine is.
fn settled(engine: &Engine) -> u64 {
    let (mut before, mut still) = (0, 0);
    while still < 5 {
        block_on(engine.memory()).unwrap();
        let now = engine.statistics().unwrap().tokens;
        still = if now == before { still + 1 } else { 0 };
        before = now;
        std::thread::sleep(Duration::from_millis(10));
    }
    before
}

#[test]
fn cancelling_stops_within_one_pass_and_leaves_the_session_as_it_was() {
    let engine = engine();
    let session = session(&engine, vec![]);
    ask(&session, COMMAND);
    let (messages, tokens) = (session.messages(), session.token_count());
    let stream = session.complete(STORY.into(), at_most(200)).unwrap();
    block_on(stream.next()).unwrap().unwrap();
    let before = engine.statistics().unwrap().tokens;
    stream.cancel();
    assert_eq!(block_on(stream.next()), Err(EngineError::Cancelled));
    let after = settled(&engine);
    assert!(after - before <= 5, "{} tokens were computed after cancelling", after - before);
    assert!(after < 200);
    assert_eq!((session.messages(), session.token_count()), (messages, tokens));
    // At once free for the next request, which gives what a fresh session gives.
    let again = text(&session.complete(STORY.into(), at_most(12)).unwrap());
    let fresh = block_on(engine.session(SessionConfig::default())).unwrap();
    assert_eq!(again, text(&fresh.complete(STORY.into(), at_most(12)).unwrap()));
}

#[test]
fn a_dropped_stream_and_one_that_nobody_reads_stop_too() {
    let engine = engine();
    let session = session(&engine, vec![]);
    let stream = session.complete(STORY.into(), at_most(200)).unwrap();
    block_on(stream.next()).unwrap();
    let ahead = settled(&engine);
    // The prompt, and a queue of four chunks, whose texts may take several tokens.
    assert!(ahead < 100, "a reader that does not read must not be served without end: {ahead}");
    drop(stream);
    let dropped = settled(&engine);
    assert_eq!(dropped, ahead);
    assert!(!session.is_responding());
}

#[test]
fn a_cancel_wakes_a_pull_that_waits() {
    let engine = engine();
    let session = session(&engine, vec![]);
    block_on(engine.pause()).unwrap();
    let stream = session.respond(COMMAND.into(), at_most(8)).unwrap();
    let waiting = {
        let stream = stream.clone();
        std::thread::spawn(move || block_on(stream.next()))
    };
    std::thread::sleep(Duration::from_millis(50));
    assert!(!waiting.is_finished(), "a paused engine computes nothing");
    stream.cancel();
    assert_eq!(waiting.join().unwrap(), Err(EngineError::Cancelled));
    engine.resume().unwrap();
    assert!(!ask(&session, COMMAND).is_empty());
}

#[test]
fn a_pause_holds_the_device_and_a_resume_goes_on_with_the_same_text() {
    let engine = engine();
    let session = session(&engine, vec![]);
    let whole = text(&session.complete(STORY.into(), at_most(40)).unwrap());
    let stream = session.complete(STORY.into(), at_most(40)).unwrap();
    let mut got = block_on(stream.next()).unwrap().unwrap().text;
    block_on(engine.pause()).unwrap();
    let held = engine.statistics().unwrap();
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(engine.statistics().unwrap(), held);
    engine.resume().unwrap();
    got += &text(&stream);
    assert_eq!(got, whole);
}

#[test]
fn several_sessions_advance_in_turn_and_each_as_if_alone() {
    let engine = engine();
    let tasks =
        [("intent", COMMAND), ("spam", MESSAGE), ("clean-question", "Who wrote no who sang the song?")];
    let alone: Vec<String> =
        tasks.iter().map(|(n, p)| ask(&session(&engine, with(&adapter(&engine, n))), p)).collect();
    let streams: Vec<_> = (0..9)
        .map(|i| {
            let (name, prompt) = tasks[i % 3];
            let session = session(&engine, with(&adapter(&engine, name)));
            let stream = session.respond(prompt.into(), at_most(24)).unwrap();
            (session, stream)
        })
        .collect();
    let readers: Vec<_> = streams
        .iter()
        .map(|(_, stream)| {
            let stream = stream.clone();
            std::thread::spawn(move || text(&stream))
        })
        .collect();
    for (i, reader) in readers.into_iter().enumerate() {
        assert_eq!(reader.join().unwrap(), alone[i % 3]);
    }
    // In turn: a short answer does not wait for a long one that was asked for earlier.
    let (long, short) = (session(&engine, vec![]), session(&engine, with(&adapter(&engine, "spam"))));
    block_on(engine.pause()).unwrap();
    let slow = pull(long.complete(STORY.into(), at_most(180)).unwrap());
    // Short enough for the queue of a reader who does not read.
    let quick = pull(short.respond(MESSAGE.into(), at_most(3)).unwrap());
    engine.resume().unwrap();
    let (first, slow) = block_on(slow);
    first.unwrap();
    for _ in 0..40 {
        block_on(slow.next()).unwrap().unwrap();
    }
    assert!(!short.is_responding() && long.is_responding());
    rest(block_on(quick));
}

#[test]
fn one_response_at_a_time() {
    let engine = engine();
    let session = session(&engine, vec![]);
    let stream = session.respond(COMMAND.into(), at_most(8)).unwrap();
    assert_eq!(session.respond(COMMAND.into(), at_most(8)).err(), Some(EngineError::Busy));
    assert_eq!(block_on(session.switch_to(vec![], CachePolicy::Recompute)), Err(EngineError::Busy));
    assert_eq!(block_on(session.prewarm("a".into())), Err(EngineError::Busy));
    text(&stream);
    assert!(!session.is_responding());
    ask(&session, COMMAND);
}

/// A caller that wants a lock of its own when it is resumed, as a task of Swift's does.
struct Resumed {
    status: Mutex<()>,
    woken: std::sync::mpsc::SyncSender<()>,
}

impl std::task::Wake for Resumed {
    fn wake(self: Arc<Self>) {
        self.woken.send(()).unwrap();
        drop(self.status.lock().unwrap());
    }
}

/// Swift cancels under the lock of the task's status, which resuming the task asks for.
#[test]
fn a_cancel_that_holds_what_a_wake_waits_for_comes_through() {
    let engine = engine();
    let (woken, wakes) = std::sync::mpsc::sync_channel(64);
    let task = Arc::new(Resumed { status: Mutex::new(()), woken });
    for round in 0..3 {
        let session = session(&engine, vec![]);
        block_on(engine.pause()).unwrap();
        let stream = session.complete(STORY.into(), at_most(100)).unwrap();
        let mut next = Box::pin(stream.next());
        let waker = std::task::Waker::from(task.clone());
        assert!(next.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending(), "it is paused");
        let (done, cancelled) = std::sync::mpsc::channel();
        let (status, other) = (task.clone(), stream.clone());
        let wakes = &wakes;
        std::thread::scope(|scope| {
            let held = task.status.lock().unwrap();
            // The engine's thread is in the midst of waking the caller when another one cancels it.
            engine.resume().unwrap();
            wakes.recv_timeout(Duration::from_secs(120)).unwrap();
            scope.spawn(move || {
                match round {
                    0 => other.cancel(),
                    1 => session.close(),
                    _ => drop((other, session.is_responding(), session.token_count())),
                }
                done.send(()).unwrap();
            });
            let came_through = cancelled.recv_timeout(Duration::from_secs(60));
            drop(held);
            assert!(
                came_through.is_ok(),
                "round {round}: the cancellation waits for the wake, and the wake for it"
            );
        });
        drop(status);
        drop(next);
        stream.cancel();
        while wakes.try_recv().is_ok() {}
    }
}
