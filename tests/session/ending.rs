//! Where text is cut and where a response ends.

use super::*;

#[test]
fn characters_are_never_split() {
    let (engine, state) = engine(Setup::default());
    let text = "x👩‍👩‍👧é 한y";
    state.lock().unwrap().say(3, &[ids(text), vec![device::EOS]].concat());
    let chunks = all(&mut session(&engine), "a", &GenerationOptions::default());
    let pieces: Vec<&str> = chunks.iter().map(|c| c.text.as_str()).collect();
    assert_eq!(pieces, ["x", "👩", "\u{200d}", "👩", "\u{200d}", "👧", "é", " ", "한", "y", ""]);
    assert_eq!(chunks.last().unwrap().finish_reason, Some(FinishReason::EndOfTurn));
    assert_eq!(chunks.last().unwrap().usage.unwrap().output_tokens, ids(text).len());
    // Cut in the middle of a character, the rest is one replacement character in the last chunk.
    let cut = all(&mut session(&engine), "a", &tokens(3));
    assert_eq!(cut.iter().map(|c| c.text.as_str()).collect::<Vec<_>>(), ["x", "\u{FFFD}"]);
}

#[test]
fn stop_texts_span_tokens_and_never_leak() {
    let (engine, state) = engine(Setup::default());
    state.lock().unwrap().say(3, &ids("one end two\n\nthree"));
    let stop = |stops: &[&str]| GenerationOptions {
        stop: stops.iter().map(|s| s.to_string()).collect(),
        max_tokens: Some(18),
        ..GenerationOptions::default()
    };
    let run = |options: &GenerationOptions| {
        let chunks = all(&mut session(&engine), "a", options);
        let text: String = chunks.iter().map(|c| c.text.as_str()).collect();
        (
            text,
            chunks.last().unwrap().finish_reason.unwrap(),
            chunks.last().unwrap().usage.unwrap().output_tokens,
        )
    };
    assert_eq!(run(&stop(&["\n\n"])), ("one end two".into(), FinishReason::StopSequence, 13));
    assert_eq!(run(&stop(&["endless", "two\n"])), ("one end ".into(), FinishReason::StopSequence, 12));
    assert_eq!(
        run(&stop(&["never", "threes"])),
        ("one end two\n\nthree".into(), FinishReason::MaxTokens, 18)
    );
    assert_eq!(run(&stop(&["o"])), (String::new(), FinishReason::StopSequence, 1));
    // The transcript has the answer as it was given out.
    let mut session = session(&engine);
    respond(&mut session, "a", &stop(&["end"]));
    assert_eq!(session.messages()[1].content, "one ");
}

#[test]
fn end_of_turn_comes_from_the_model_and_can_be_ignored() {
    let (engine, state) = engine(Setup {
        generation_config: serde_json::json!({"eos_token_id": [290, 291]}),
        ..Setup::default()
    });
    assert_eq!(engine.model_info().end_of_turn, [device::EOS, 290, 291]);
    for end in [device::EOS, 290, 291] {
        state.lock().unwrap().say(3, &[ids("hi"), vec![end], ids("more")].concat());
        let response = respond(&mut session(&engine), "a", &GenerationOptions::default());
        assert_eq!((response.text.as_str(), response.finish_reason), ("hi", FinishReason::EndOfTurn));
        assert_eq!(response.tokens, ids("hi"));
    }
    let options = GenerationOptions { ignore_end_of_turn: true, ..tokens(7) };
    assert_eq!(respond(&mut session(&engine), "a", &options).tokens.len(), 7);
    // At once: an empty answer is an answer.
    state.lock().unwrap().say(3, &[device::EOS]);
    let chunks = all(&mut session(&engine), "a", &GenerationOptions::default());
    assert_eq!((chunks.len(), chunks[0].text.as_str()), (1, ""));
    assert_eq!(chunks[0].usage.unwrap().output_tokens, 0);
}

#[test]
fn a_full_context_ends_the_response() {
    let (engine, state) = engine(Setup { context_size: 20, ..Setup::default() });
    let mut full = session(&engine);
    let response = respond(&mut full, "abcdefgh", &GenerationOptions::default());
    // Ten prompt tokens, ten more positions, and one token that needs no position.
    assert_eq!((response.finish_reason, response.tokens.len()), (FinishReason::ContextFull, 11));
    assert!(matches!(
        full.respond("more", &tokens(1)),
        Err(Error::ContextFull { needed: 26, available: 20 })
    ));
    // A prompt that fills the context still has one answer token.
    let prompt: Vec<u32> = (0..20).map(|i| 260 + i).collect();
    let mut session = session(&engine);
    let response = session.respond_to_tokens(&prompt, &tokens(5)).unwrap().collect().unwrap();
    assert_eq!((response.finish_reason, response.tokens.len()), (FinishReason::ContextFull, 1));
    assert!(matches!(
        session.respond_to_tokens(&[prompt, vec![260]].concat(), &tokens(1)),
        Err(Error::ContextFull { needed: 21, available: 20 })
    ));
    assert!(state.lock().unwrap().passes > 0);
}
