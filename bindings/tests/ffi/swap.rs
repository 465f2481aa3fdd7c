//! Tasks on one session: attached, swapped, detached, asked.

use super::*;

#[test]
fn tasks_are_swapped_and_a_swap_equals_a_fresh_session() {
    let engine = engine();
    let (intent, spam) = (adapter(&engine, "intent"), adapter(&engine, "spam"));
    assert_eq!(ask(&session(&engine, with(&intent)), COMMAND), "PlayMusic");
    assert_eq!(ask(&session(&engine, with(&spam)), MESSAGE), "spam");

    let swapped = session(&engine, with(&intent));
    let first = ask(&swapped, COMMAND);
    block_on(swapped.switch_to(with(&spam), CachePolicy::Recompute)).unwrap();
    block_on(swapped.reset()).unwrap();
    assert_eq!(ask(&swapped, MESSAGE), "spam");
    block_on(swapped.switch_to(vec![], CachePolicy::Recompute)).unwrap();
    block_on(swapped.reset()).unwrap();
    let plain = ask(&swapped, COMMAND);
    assert_eq!(plain, ask(&session(&engine, vec![]), COMMAND));
    assert_ne!(plain, first, "an attached adapter must change the answer");
    // At scale 0 it is as if it were not there.
    block_on(swapped.switch_to(vec![ScaledAdapter { adapter: intent, scale: 0.0 }], CachePolicy::Recompute))
        .unwrap();
    block_on(swapped.reset()).unwrap();
    assert_eq!(ask(&swapped, COMMAND), plain);
}

#[test]
fn a_swap_keeps_the_transcript_and_says_what_it_costs() {
    let engine = engine();
    let (intent, spam) = (adapter(&engine, "intent"), adapter(&engine, "spam"));
    let session = session(&engine, with(&intent));
    ask(&session, COMMAND);
    let before = session.messages();
    block_on(session.switch_to(with(&spam), CachePolicy::Recompute)).unwrap();
    assert_eq!(session.messages(), before);
    let stream = session.respond(MESSAGE.into(), at_most(8)).unwrap();
    let mut usage = None;
    while let Some(chunk) = block_on(stream.next()).unwrap() {
        usage = chunk.usage;
    }
    let usage = usage.unwrap();
    assert_eq!(usage.cached_tokens, 0, "keys and values of the other adapter are not reused");
    assert!(usage.prompt_tokens as usize > before.len());
    assert_eq!(session.messages().len(), 4);
}

#[test]
fn a_policy_says_what_of_the_conversation_is_kept() {
    let engine = engine();
    let (intent, spam) = (adapter(&engine, "intent"), adapter(&engine, "spam"));
    let session = session(&engine, with(&intent));
    ask(&session, &[COMMAND; 4].join(" "));
    let switch = |to: &Arc<TaskAdapter>, policy| block_on(session.switch_to(with(to), policy)).unwrap();
    let away = switch(&spam, CachePolicy::Restore);
    assert!(away.put_aside_bytes > 0 && away.cached_tokens == 0, "{away:?}");
    assert_eq!(block_on(engine.memory()).unwrap().prefix_bytes, away.put_aside_bytes);
    let back = switch(&intent, CachePolicy::Restore);
    assert!(back.cached_tokens > 16 && back.inexact_tokens == 0, "{back:?}");
    let kept = switch(&spam, CachePolicy::Keep);
    assert!(kept.cached_tokens > 16 && kept.inexact_tokens == kept.cached_tokens, "{kept:?}");
    assert_eq!(switch(&spam, CachePolicy::KeepInstructions).cached_tokens, 0, "there are none");
    let freed = block_on(engine.trim(MemoryPressure::Moderate)).unwrap().freed_bytes;
    assert!(freed >= away.put_aside_bytes);
    assert_eq!(block_on(engine.memory()).unwrap().prefix_bytes, 0);
}

#[test]
fn classification_gives_shares_that_add_up() {
    let engine = engine();
    let session = session(&engine, with(&adapter(&engine, "spam")));
    let choices = vec!["ham".to_owned(), "spam".to_owned()];
    let scores = block_on(session.classify(MESSAGE.into(), choices.clone())).unwrap();
    assert!(scores[1].probability > 0.9 && scores[1].log_likelihood < 0.0, "{scores:?}");
    assert!((scores.iter().map(|s| s.probability).sum::<f64>() - 1.0).abs() < 1e-9);
    let scores = block_on(session.classify("did you feed the cat before you left?".into(), choices)).unwrap();
    assert!(scores[0].probability > 0.9);
    assert!(session.messages().is_empty());
}

#[test]
fn a_request_fades_an_adapter_in_without_a_copy_of_it() {
    let engine = engine();
    let (intent, spam) = (adapter(&engine, "intent"), adapter(&engine, "spam"));
    let at = |session: &Session, scales: &[f32]| {
        block_on(session.reset()).unwrap();
        let options = GenerationOptions { adapter_scales: scales.to_vec(), ..at_most(12) };
        text(&session.respond(COMMAND.into(), options).unwrap())
    };
    let plain = at(&session(&engine, vec![]), &[]);
    let with_spam = at(&session(&engine, with(&spam)), &[]);
    block_on(engine.evict(spam.clone())).unwrap();
    let both = session(&engine, [with(&intent), with(&spam)].concat());
    let bytes = block_on(engine.memory()).unwrap().adapter_bytes;
    assert_eq!(at(&both, &[0.0, 0.0]), plain);
    assert_eq!(at(&both, &[0.0, 1.0]), with_spam);
    (1..10).for_each(|tenth| drop(at(&both, &[tenth as f32 / 10.0, 1.0])));
    assert_eq!(at(&both, &[1.0, 0.0]), "PlayMusic");
    assert_eq!(block_on(engine.memory()).unwrap().adapter_bytes, bytes);
    let wrong = GenerationOptions { adapter_scales: vec![1.0], ..at_most(1) };
    let error = block_on(both.respond(COMMAND.into(), wrong).unwrap().next()).err();
    assert!(matches!(error, Some(EngineError::InvalidOption { option, .. }) if option == "adapter_scales"));
}
