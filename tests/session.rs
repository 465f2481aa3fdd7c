//! Sessions on a device that checks every position: reuse, cancelling, streaming, stopping.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

#[path = "session/adapters.rs"]
mod adapters;
mod common;
#[path = "session/device.rs"]
mod device;
#[path = "session/ending.rs"]
mod ending;

use std::sync::{Arc, Mutex};

use calora::Error;
use calora::device::Want;
use calora::engine::Engine;
use calora::session::{
    CancelHandle, FinishReason, GenerationOptions, Response, ResponseChunk, Session, SessionOptions,
};
use calora::text::Role;
use device::{MAX_TOKENS, Setup, State, VOCAB, adapter, device_error, engine, ids};

fn tokens(n: usize) -> GenerationOptions {
    GenerationOptions { max_tokens: Some(n), ..GenerationOptions::default() }
}

fn session(engine: &Engine) -> Session {
    engine.session(SessionOptions::default()).unwrap()
}

fn respond(session: &mut Session, prompt: &str, options: &GenerationOptions) -> Response {
    session.respond(prompt, options).unwrap().collect().unwrap()
}

/// Everything that a cancelled request must leave alone.
fn snapshot(session: &Session) -> (Vec<u32>, Vec<calora::text::Message>, usize) {
    (session.tokens().to_vec(), session.messages().to_vec(), session.cached_tokens())
}

fn all(session: &mut Session, prompt: &str, options: &GenerationOptions) -> Vec<ResponseChunk> {
    let mut stream = session.respond(prompt, options).unwrap();
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.next().unwrap() {
        chunks.push(chunk);
    }
    assert_eq!(stream.next().unwrap(), None, "the end stays the end");
    let (last, rest) = chunks.split_last().unwrap();
    assert!(last.finish_reason.is_some() && last.usage.is_some());
    assert!(rest.iter().all(|c| c.finish_reason.is_none() && c.usage.is_none() && !c.text.is_empty()));
    chunks
}

/// Cancels, from inside the device, while pass `number` runs.
fn cancel_in(state: &Arc<Mutex<State>>, number: usize, handle: CancelHandle) {
    let passes = state.lock().unwrap().passes;
    state.lock().unwrap().hook = Some(Box::new(move |pass| {
        if pass == passes + number {
            handle.cancel();
        }
        Ok(())
    }));
}

#[test]
fn prefill_runs_in_chunks_and_reads_back_once_a_token() {
    let (engine, state) = engine(Setup::default());
    let response = respond(&mut session(&engine), "abcdefghijklmnopqr", &tokens(3));
    // BOS, blank, 18 letters.
    let log = state.lock().unwrap().log.clone();
    let expected =
        [(8, Want::Nothing), (8, Want::Nothing), (4, Want::Argmax), (1, Want::Argmax), (1, Want::Argmax)];
    assert_eq!(log, expected, "the last token of an answer is not computed for nothing");
    assert_eq!(response.usage.prompt_tokens, 20);
    assert_eq!((response.usage.cached_tokens, response.usage.output_tokens), (0, 3));
    assert_eq!(response.finish_reason, FinishReason::MaxTokens);
    assert!(response.usage.prefill_tokens_per_second > 0.0 && response.usage.decode_tokens_per_second > 0.0);
    assert!(!response.usage.time_to_first_token.is_zero());
}

#[test]
fn reused_prefixes_give_the_same_tokens_as_fresh_ones() {
    let (engine, state) = engine(Setup::default());
    let mut session = session(&engine);
    let first = respond(&mut session, "tell me of the sea", &tokens(10));
    let held = session.cached_tokens();
    assert_eq!(held, session.tokens().len() - 1, "the last token was never computed");
    let before = state.lock().unwrap().computed();
    let second = respond(&mut session, "and of the wind", &tokens(10));
    assert_eq!(second.usage.cached_tokens, held);
    let prompt = second.usage.prompt_tokens;
    assert_eq!(state.lock().unwrap().computed() - before, prompt - held + 9);
    // The same transcript from nothing.
    let transcript = session.tokens().to_vec();
    let mut fresh = engine.session(SessionOptions::default()).unwrap();
    let again = fresh.respond_to_tokens(&transcript[..prompt], &tokens(10)).unwrap().collect().unwrap();
    assert_eq!((again.tokens, again.usage.cached_tokens), (second.tokens, 0));
    assert_eq!(fresh.tokens(), transcript);
    // Another conversation with the same beginning keeps what both share, and nothing of the rest.
    let mut other = transcript[..20].to_vec();
    other.extend(ids("otherwise"));
    let diverged = session.respond_to_tokens(&other, &tokens(5)).unwrap().collect().unwrap();
    assert_eq!(diverged.usage.cached_tokens, 20);
    let fresh = engine
        .session(SessionOptions::default())
        .unwrap()
        .respond_to_tokens(&other, &tokens(5))
        .unwrap()
        .collect();
    assert_eq!(diverged.tokens, fresh.unwrap().tokens);
    assert_ne!(first.tokens, diverged.tokens);
    // The very same prompt: only its last token is computed for its logits.
    let repeat = session.respond_to_tokens(&other, &tokens(5)).unwrap().collect().unwrap();
    assert_eq!(repeat.usage.cached_tokens, other.len() - 1);
    assert_eq!(repeat.tokens, diverged.tokens);
}

#[test]
fn cancelling_costs_one_pass_at_most_and_changes_nothing() {
    let (engine, state) = engine(Setup::default());
    let mut session = session(&engine);
    respond(&mut session, "a long beginning that fills some chunks", &tokens(6));
    let before = snapshot(&session);
    let reference = {
        let transcript = session.tokens().to_vec();
        let prompt =
            [transcript, engine.tokenizer().unwrap().encode_plain("and then some more of it").unwrap()]
                .concat();
        let mut fresh = engine.session(SessionOptions::default()).unwrap();
        fresh.respond_to_tokens(&prompt, &tokens(8)).unwrap().collect().unwrap().tokens
    };
    // 26 tokens (one of them the last of the answer): 4 prefill passes, then decoding.
    for pass in 1..=9 {
        let mut stream = session.respond("and then some more of it", &tokens(8)).unwrap();
        cancel_in(&state, pass, stream.cancel_handle());
        let passes = state.lock().unwrap().passes;
        let error = loop {
            match stream.next() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended before pass {pass}"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Cancelled));
        assert_eq!(stream.next().unwrap(), None);
        drop(stream);
        assert_eq!(state.lock().unwrap().passes - passes, pass, "no pass after the one that was running");
        assert_eq!(snapshot(&session), before, "cancelled in pass {pass}");
    }
    state.lock().unwrap().hook = None;
    let response = respond(&mut session, "and then some more of it", &tokens(8));
    assert_eq!(response.usage.cached_tokens, before.2);
    assert_eq!(response.tokens, reference);
}

#[test]
fn cancelled_before_the_first_pull_computes_nothing() {
    let (engine, state) = engine(Setup::default());
    let mut session = session(&engine);
    let mut stream = session.respond("abc", &tokens(4)).unwrap();
    let handle = stream.cancel_handle();
    std::thread::spawn(move || handle.clone().cancel()).join().unwrap();
    assert!(matches!(stream.next(), Err(Error::Cancelled)));
    drop(stream);
    assert_eq!(state.lock().unwrap().passes, 0);
    assert!(session.tokens().is_empty());
    // After the end, cancelling is too late to matter.
    let mut stream = session.respond("abc", &tokens(1)).unwrap();
    let handle = stream.cancel_handle();
    while stream.next().unwrap().is_some_and(|c| c.finish_reason.is_none()) {}
    handle.cancel();
    assert_eq!(stream.next().unwrap(), None);
    drop(stream);
    assert_eq!(session.tokens().len(), 6);
}

#[test]
fn errors_and_drops_roll_back() {
    let (engine, state) = engine(Setup { template: true, ..Setup::default() });
    let mut session = session(&engine);
    respond(&mut session, "hello", &tokens(4));
    let before = snapshot(&session);
    for pass in 1..=8 {
        let passes = state.lock().unwrap().passes;
        state.lock().unwrap().hook =
            Some(Box::new(move |number| if number == passes + pass { Err(device_error()) } else { Ok(()) }));
        let result = session.respond("what now", &tokens(20)).unwrap().collect();
        assert!(matches!(result, Err(Error::DeviceLost { .. })), "pass {pass}");
        assert_eq!(
            (session.tokens().to_vec(), session.messages().to_vec()),
            (before.0.clone(), before.1.clone())
        );
    }
    state.lock().unwrap().hook = None;
    for pulls in 0..4 {
        let mut stream = session.respond("what now", &tokens(20)).unwrap();
        for _ in 0..pulls {
            stream.next().unwrap();
        }
        drop(stream);
        assert_eq!(
            (session.tokens().to_vec(), session.messages().to_vec()),
            (before.0.clone(), before.1.clone())
        );
    }
    let after = respond(&mut session, "what now", &tokens(20)).tokens;
    let mut fresh = engine.session(SessionOptions::default()).unwrap();
    fresh.restore(before.1).unwrap();
    assert_eq!(respond(&mut fresh, "what now", &tokens(20)).tokens, after);
}

#[test]
fn impossible_requests_are_typed_errors() {
    let (engine, state) = engine(Setup::default());
    let mut session = session(&engine);
    assert!(matches!(session.respond_to_tokens(&[], &tokens(1)), Err(Error::EmptyPrompt)));
    assert!(matches!(
        session.respond_to_tokens(&[5, 300], &tokens(1)),
        Err(Error::TokenOutOfRange { id: 300, vocab: VOCAB })
    ));
    assert!(matches!(session.respond("a", &tokens(0)), Err(Error::InvalidOption { .. })));
    for size in [0, 257] {
        let options = SessionOptions { context_size: Some(size), ..SessionOptions::default() };
        assert!(matches!(engine.session(options), Err(Error::InvalidOption { .. })), "{size}");
    }
    let scale = [(adapter(&engine, 1), f32::NAN)];
    assert!(matches!(session.switch_to(&scale), Err(Error::InvalidOption { .. })));
    assert!(matches!(session.restore(Vec::new()), Err(Error::ChatTemplate { .. })));
    assert!(matches!(engine.logits(&[], &[]), Err(Error::EmptyPrompt)));
    assert!(matches!(engine.logits(&[1; 257], &[]), Err(Error::ContextFull { needed: 257, available: 256 })));
    assert_eq!(state.lock().unwrap().passes, 0);
}

#[test]
fn without_a_tokenizer_tokens_still_go_in_and_out() {
    let (engine, _) = engine(Setup { tokenizer: false, ..Setup::default() });
    let mut session = session(&engine);
    assert!(matches!(session.respond("a", &tokens(1)), Err(Error::MissingFile { .. })));
    assert!(matches!(engine.count_tokens("a"), Err(Error::MissingFile { .. })));
    let mut stream = session.respond_to_tokens(&[1, 2, 3], &tokens(4)).unwrap();
    let mut pulls = 0;
    while stream.next().unwrap().is_some() {
        pulls += 1;
        assert_eq!(stream.output().len(), pulls);
    }
    assert_eq!(pulls, 4);
}

#[test]
fn seeds_repeat_and_greedy_is_temperature_zero() {
    let (engine, state) = engine(Setup::default());
    let run = |options: GenerationOptions| {
        let mut session = engine.session(SessionOptions::default()).unwrap();
        respond(&mut session, "abc", &GenerationOptions { max_tokens: Some(24), ..options }).tokens
    };
    let sampled = |seed| {
        run(GenerationOptions { temperature: Some(1.5), seed: Some(seed), ..GenerationOptions::default() })
    };
    let greedy = run(GenerationOptions::default());
    assert_eq!(run(GenerationOptions { temperature: Some(0.0), ..GenerationOptions::default() }), greedy);
    assert_eq!(sampled(1), sampled(1));
    assert_ne!(sampled(1), sampled(2));
    assert_ne!(sampled(1), greedy);
    let first = |top_k, temperature| {
        let options = GenerationOptions {
            top_k: Some(top_k),
            temperature: Some(temperature),
            ..GenerationOptions::default()
        };
        run(options)
    };
    assert_eq!(first(1, 1.5), greedy);
    // A penalty needs the logits, and changes greedy text.
    state.lock().unwrap().log.clear();
    let penalised = run(GenerationOptions { repetition_penalty: Some(9.0), ..GenerationOptions::default() });
    assert!(state.lock().unwrap().log.iter().any(|(_, want)| *want == Want::LastLogits));
    let mut unique = penalised.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), penalised.len(), "with a large penalty no token comes twice");
}

#[test]
fn options_fall_back_to_the_session_then_to_the_model() {
    let config = serde_json::json!({"do_sample": true, "temperature": 1.0, "top_k": 1, "max_new_tokens": 9});
    let (engine, _) = engine(Setup { generation_config: config, ..Setup::default() });
    assert_eq!(engine.generation_defaults().top_k, Some(1));
    let defaults = GenerationOptions { max_tokens: Some(5), ..GenerationOptions::default() };
    let mut session = engine.session(SessionOptions { defaults, ..SessionOptions::default() }).unwrap();
    assert_eq!(respond(&mut session, "a", &GenerationOptions::default()).tokens.len(), 5);
    assert_eq!(respond(&mut session, "a", &tokens(2)).tokens.len(), 2);
}

#[test]
fn conversations_follow_the_template_and_reuse_their_history() {
    let (engine, state) = engine(Setup { template: true, ..Setup::default() });
    let instructions = Some("be brief".to_owned());
    let mut session = engine.session(SessionOptions { instructions, ..SessionOptions::default() }).unwrap();
    let open =
        engine.tokenizer().unwrap().encode_plain("<s>[system]be brief</s>[user]hi</s>[assistant]").unwrap();
    state.lock().unwrap().say(open.len(), &[ids("yes"), vec![device::EOS]].concat());
    let first = respond(&mut session, "hi", &GenerationOptions::default());
    assert_eq!((first.text.as_str(), first.usage.prompt_tokens), ("yes", open.len()));
    assert_eq!(session.tokens(), [open.clone(), ids("yes")].concat());
    state.lock().unwrap().script.clear();
    let second = respond(&mut session, "why", &tokens(3));
    assert_eq!(second.usage.cached_tokens, open.len() + 3, "the whole history");
    let roles: Vec<Role> = session.messages().iter().map(|m| m.role).collect();
    assert_eq!(roles, [Role::User, Role::Assistant, Role::User, Role::Assistant]);
    // Taken up elsewhere, the conversation goes on the same way.
    let mut copy = engine
        .session(SessionOptions { instructions: Some("be brief".into()), ..SessionOptions::default() })
        .unwrap();
    copy.restore(session.messages()[..2].to_vec()).unwrap();
    assert_eq!(respond(&mut copy, "why", &tokens(3)).tokens, second.tokens);
    // A new conversation keeps the instructions' part of the cache.
    session.reset();
    let again = respond(&mut session, "why", &tokens(3));
    let common = engine.tokenizer().unwrap().encode_plain("<s>[system]be brief</s>[user]").unwrap().len();
    assert_eq!(again.usage.cached_tokens, common);
}

#[test]
fn prewarming_moves_the_cost_and_nothing_else() {
    let (engine, state) = engine(Setup { template: true, ..Setup::default() });
    let mut cold = session(&engine);
    let expected = respond(&mut cold, "a long question about ships", &tokens(6));
    let mut warm = session(&engine);
    warm.prewarm("a long question").unwrap();
    assert!(warm.messages().is_empty() && warm.tokens().is_empty());
    assert!(state.lock().unwrap().log.last().unwrap().1 == Want::Nothing);
    let response = respond(&mut warm, "a long question about ships", &tokens(6));
    assert_eq!(response.tokens, expected.tokens);
    assert!(response.usage.cached_tokens > MAX_TOKENS, "{:?}", response.usage);
}

#[test]
fn logits_are_those_of_every_position_and_share_prefixes() {
    let (engine, state) = engine(Setup::default());
    let text: Vec<u32> = (0..30).map(|i| 260 + i % 26).collect();
    let all = engine.logits(&text, &[]).unwrap();
    assert_eq!(all.len(), 30 * VOCAB);
    let a = adapter(&engine, 3);
    assert_ne!(engine.logits(&text, &[(a, 1.0)]).unwrap(), all);
    assert_eq!(engine.memory().caches, 0, "the cache was its own");
    let mut session = session(&engine);
    let mut seen = Vec::new();
    for from in [0, 12, 29, 99] {
        let first = from.min(29);
        seen.clear();
        let before = state.lock().unwrap().computed();
        session
            .visit_logits(&text, from, |position, row| {
                assert_eq!(row, &all[position * VOCAB..(position + 1) * VOCAB]);
                seen.push(position);
            })
            .unwrap();
        assert_eq!(seen, (first..30).collect::<Vec<_>>());
        assert_eq!(state.lock().unwrap().computed() - before, 30 - first, "the beginning is in the cache");
    }
    assert!(session.tokens().is_empty());
}
