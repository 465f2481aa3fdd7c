//! Responses that are advanced pass by pass by whoever holds their sessions.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use calora::Error;
use calora::engine::{DeviceChoice, Engine, EngineOptions};
use calora::session::{Generation, GenerationOptions, Progress, Session, SessionOptions};

const STORY: &str = "The old house stood at the end of the lane, and";

fn engine() -> Engine {
    let options =
        EngineOptions { device: DeviceChoice::Cpu, prefill_chunk: Some(4), ..EngineOptions::default() };
    Engine::load(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/base"), options).unwrap()
}

fn session(engine: &Engine) -> Session {
    engine.session(SessionOptions { context_size: Some(128), ..SessionOptions::default() }).unwrap()
}

fn options() -> GenerationOptions {
    GenerationOptions { max_tokens: Some(16), ..GenerationOptions::default() }
}

/// One pass, its text appended; whether the response goes on.
fn advance(generation: &mut Generation, session: &mut Session, text: &mut String) -> bool {
    if let Progress::Chunk(chunk) = generation.pass(session).unwrap() {
        *text += &chunk.text;
        return chunk.finish_reason.is_none();
    }
    true
}

fn text(session: &mut Session, prompt: &str) -> String {
    let (mut generation, mut text) = (session.begin_text(prompt, &options()).unwrap(), String::new());
    while advance(&mut generation, session, &mut text) {}
    assert!(generation.is_over());
    text
}

#[test]
fn sessions_in_turn_give_what_each_gives_alone() {
    let engine = engine();
    let other = "In the morning she went out among the flowers";
    let alone = [text(&mut session(&engine), STORY), text(&mut session(&engine), other)];
    assert_ne!(alone[0], alone[1]);
    let (mut a, mut b) = (session(&engine), session(&engine));
    let mut first = (a.begin_text(STORY, &options()).unwrap(), String::new());
    let mut second = (b.begin_text(other, &options()).unwrap(), String::new());
    let (mut on, mut two) = (true, true);
    while on || two {
        on = on && advance(&mut first.0, &mut a, &mut first.1);
        two = two && advance(&mut second.0, &mut b, &mut second.1);
    }
    assert_eq!([first.1, second.1], alone);
}

#[test]
fn a_pass_computes_one_chunk_of_the_prompt_or_one_token() {
    let engine = engine();
    let mut session = session(&engine);
    let mut generation = session.begin_text(STORY, &options()).unwrap();
    let mut before = engine.counters();
    while !generation.is_over() {
        generation.pass(&mut session).unwrap();
        let now = engine.counters();
        assert!(now.passes - before.passes <= 1 && now.tokens - before.tokens <= 4, "{before:?} {now:?}");
        before = now;
    }
    assert!(before.tokens > 16);
}

#[test]
fn a_session_that_begins_another_response_forgets_the_earlier_one() {
    let engine = engine();
    let mut session = session(&engine);
    let expected = text(&mut session, STORY);
    session.reset();
    let mut old = session.begin_text("Somebody else's story", &options()).unwrap();
    old.pass(&mut session).unwrap();
    let (mut new, mut got) = (session.begin_text(STORY, &options()).unwrap(), String::new());
    advance(&mut new, &mut session, &mut got);
    let held = session.cached_tokens();
    // Neither of these touches the cache that is the new one's now.
    assert!(matches!(old.pass(&mut session), Err(Error::Cancelled)));
    old.roll_back(&mut session);
    assert_eq!(session.cached_tokens(), held);
    while advance(&mut new, &mut session, &mut got) {}
    assert_eq!(got, expected);
}

#[test]
fn likelihoods_agree_with_the_answer_and_leave_the_transcript_alone() {
    let engine = engine();
    let adapter =
        engine.open_adapter(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/adapters/spam")).unwrap();
    let adapters = vec![(adapter, 1.0)];
    let mut session = engine.session(SessionOptions { adapters, ..SessionOptions::default() }).unwrap();
    let choices = ["ham".to_owned(), "spam".to_owned()];
    for prompt in
        ["did you feed the cat before you left?", "You have WON a free holiday. Call 09061 555 0100"]
    {
        let scores = session.likelihoods(prompt, &choices).unwrap();
        assert!(session.messages().is_empty() && session.tokens().is_empty());
        let answer = session.respond(prompt, &options()).unwrap().collect().unwrap().text;
        session.reset();
        assert_eq!(answer, choices[usize::from(scores[1] > scores[0])], "{scores:?}");
    }
    assert!(matches!(session.likelihoods("a", &[]), Err(Error::InvalidOption { .. })));
}
