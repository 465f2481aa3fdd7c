//! The border as Kotlin and Swift meet it, called from Rust: one engine thread, pulled streams, cancelling, closing.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use calora_ffi::{
    AdapterChange, AdapterOpenOptions, Availability, BenchmarkOptions, CachePolicy, DeviceChoice, Engine,
    EngineConfig, EngineError, EngineEvent, GenerationOptions, LoadProgress, LoadState, LogLevel, LogSink,
    MemoryPressure, ResponseStream, ScaledAdapter, Session, SessionConfig, SwapBenchmarkOptions, TaskAdapter,
    UnavailableReason, availability, encrypt_adapter, inspect_adapter, set_log_level, set_log_sink,
};
use pollster::block_on;

fn root(path: &str) -> String {
    format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))
}

fn config() -> EngineConfig {
    EngineConfig {
        model: root("models/base"),
        device: DeviceChoice::Cpu,
        context_size: Some(256),
        threads: Some(1),
        ..EngineConfig::default()
    }
}

fn engine() -> Arc<Engine> {
    block_on(Engine::load(config(), None)).unwrap()
}

fn adapter(engine: &Engine, name: &str) -> Arc<TaskAdapter> {
    block_on(engine.open_adapter(root(&format!("models/adapters/{name}")))).unwrap()
}

fn with(adapter: &Arc<TaskAdapter>) -> Vec<ScaledAdapter> {
    vec![ScaledAdapter { adapter: adapter.clone(), scale: 1.0 }]
}

fn session(engine: &Engine, adapters: Vec<ScaledAdapter>) -> Arc<Session> {
    block_on(engine.session(SessionConfig { adapters, ..SessionConfig::default() })).unwrap()
}

fn at_most(tokens: u32) -> GenerationOptions {
    GenerationOptions { max_tokens: Some(tokens), temperature: Some(0.0), ..GenerationOptions::default() }
}

fn text(stream: &ResponseStream) -> String {
    let mut text = String::new();
    while let Some(chunk) = block_on(stream.next()).unwrap() {
        text += &chunk.text;
    }
    text
}

fn ask(session: &Session, prompt: &str) -> String {
    text(&session.respond(prompt.into(), at_most(24)).unwrap())
}

/// Tokens computed so far, once the engine thread has come to rest.
fn settled(engine: &Engine) -> u64 {
    let mut before = engine.statistics().unwrap().tokens;
    loop {
        std::thread::sleep(Duration::from_millis(80));
        let now = engine.statistics().unwrap().tokens;
        if now == before {
            return now;
        }
        before = now;
    }
}

const COMMAND: &str = "wake me with some quiet piano music";
const MESSAGE: &str =
    "CONGRATULATIONS! You have WON a free holiday. Call 09061 555 0100 now to claim your prize";
const STORY: &str = "The old house stood at the end of the lane, and";

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
    let slow = long.complete(STORY.into(), at_most(180)).unwrap();
    let slow = std::thread::spawn(move || {
        text(&slow);
        Instant::now()
    });
    std::thread::sleep(Duration::from_millis(20));
    ask(&short, MESSAGE);
    let done = Instant::now();
    assert!(slow.join().unwrap() > done);
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

#[test]
fn whatever_was_closed_says_so_and_closing_twice_is_fine() {
    let engine = engine();
    let spam = adapter(&engine, "spam");
    let kept = session(&engine, with(&spam));
    spam.close();
    spam.close();
    let again = SessionConfig { adapters: with(&spam), ..SessionConfig::default() };
    assert_eq!(block_on(engine.session(again)).err(), Some(EngineError::Closed { what: "adapter".into() }));
    assert_eq!(ask(&kept, MESSAGE), "spam", "a session keeps what it uses");
    kept.close();
    kept.close();
    let closed = |what: &str| Some(EngineError::Closed { what: what.into() });
    assert_eq!(kept.respond("a".into(), at_most(1)).err(), closed("session"));

    let open = session(&engine, vec![]);
    let stream = open.complete(STORY.into(), at_most(200)).unwrap();
    block_on(stream.next()).unwrap();
    engine.close();
    engine.close();
    assert_eq!(block_on(stream.next()).err(), closed("session"));
    assert_eq!(open.respond("a".into(), at_most(1)).err(), closed("session"));
    assert_eq!(block_on(engine.memory()).err(), closed("engine"));
    assert_eq!(engine.count_tokens("a".into()).err(), closed("engine"));
    assert_eq!(block_on(engine.open_adapter(root("models/adapters/spam"))).err(), closed("engine"));
}

#[test]
fn closing_a_paused_engine_ends_its_thread() {
    let engine = engine();
    let session = session(&engine, vec![]);
    let stream = session.respond(COMMAND.into(), at_most(8)).unwrap();
    block_on(engine.pause()).unwrap();
    engine.close();
    assert_eq!(block_on(stream.next()), Err(EngineError::Closed { what: "session".into() }));
}

#[derive(Default)]
struct Watch {
    fractions: Mutex<Vec<f64>>,
    refuse: bool,
}

impl LoadProgress for Watch {
    fn on_progress(&self, state: LoadState) -> Result<(), EngineError> {
        self.fractions.lock().unwrap().push(state.fraction);
        if self.refuse { Err(EngineError::Internal { reason: "the app".into() }) } else { Ok(()) }
    }
}

#[test]
fn loading_reports_and_can_be_refused() {
    let watch = Arc::new(Watch::default());
    block_on(Engine::load(config(), Some(watch.clone()))).unwrap();
    let fractions = watch.fractions.lock().unwrap().clone();
    assert_eq!((fractions.first(), fractions.last()), (Some(&0.0), Some(&1.0)));
    assert!(fractions.is_sorted());
    // On a GPU, once a matrix.
    let watch = Arc::new(Watch::default());
    let gpu = EngineConfig { device: DeviceChoice::Gpu, ..config() };
    block_on(Engine::load(gpu, Some(watch.clone()))).unwrap();
    assert!(watch.fractions.lock().unwrap().len() > 10);
    let watch = Arc::new(Watch { refuse: true, ..Watch::default() });
    let error = block_on(Engine::load(config(), Some(watch))).err();
    assert_eq!(error, Some(EngineError::Internal { reason: "the app".into() }));
}

#[test]
fn errors_carry_what_an_app_needs() {
    let missing = block_on(Engine::load(EngineConfig { model: "/no/model".into(), ..config() }, None)).err();
    assert!(matches!(missing, Some(EngineError::FileNotFound { path, .. }) if path.contains("/no/model")));

    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(root(&format!("models/base/{name}")), folder.path().join(name)).unwrap();
    }
    let whole = std::fs::read(root("models/base/model.safetensors")).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), &whole[..whole.len() / 2]).unwrap();
    let damaged = EngineConfig { model: folder.path().display().to_string(), ..config() };
    let error = block_on(Engine::load(damaged.clone(), None)).err();
    assert!(
        matches!(error, Some(EngineError::InvalidFile { path, .. }) if path.ends_with("model.safetensors"))
    );
    assert!(matches!(
        availability(damaged),
        Availability::Unavailable { reason: UnavailableReason::ModelDamaged, .. }
    ));
    assert!(
        matches!(availability(config()), Availability::Available { weight_bytes, .. } if weight_bytes > 11_000_000)
    );

    let engine = engine();
    let foreign = block_on(engine.open_adapter(root("tests/golden/gqa/adapters/lora"))).err();
    assert!(
        matches!(
            foreign,
            Some(
                EngineError::InvalidFile { .. }
                    | EngineError::AdapterTouchesNothing { .. }
                    | EngineError::Unsupported { .. }
            )
        ),
        "{foreign:?}"
    );
    let session = session(&engine, vec![]);
    let hot = GenerationOptions { temperature: Some(-1.0), ..GenerationOptions::default() };
    let stream = session.respond(COMMAND.into(), hot).unwrap();
    let error = block_on(stream.next()).err();
    assert!(matches!(error, Some(EngineError::InvalidOption { option, .. }) if option == "temperature"));
    let stream = session.respond("word ".repeat(400), at_most(1)).unwrap();
    let error = block_on(stream.next()).err();
    assert!(
        matches!(error, Some(EngineError::ContextSizeExceeded { context_size: 256, token_count }) if token_count > 256)
    );
    assert!(matches!(block_on(session.classify("a".into(), vec![])), Err(EngineError::InvalidOption { .. })));
    // None of that has hurt the session.
    assert!(!ask(&session, COMMAND).is_empty());
}

#[test]
fn adapters_are_inspected_without_an_engine() {
    let info = inspect_adapter(root("models/adapters/spam")).unwrap();
    assert_eq!((info.rank, info.has_lora, info.has_recovery), (8, true, false));
    let info = inspect_adapter(root("models/adapted/clean-question-int2.safetensors")).unwrap();
    assert!(info.has_recovery && info.base_id.is_some() && info.bytes > 0 && info.modules > 0);
}

/// A signed task file with a canary, its signer, and a key of the app.
fn protected() -> (String, Vec<u8>, Vec<u8>) {
    let hex = std::fs::read_to_string(root("tests/golden/protect/signer.pub")).unwrap();
    let hex = hex.trim().rsplit(' ').next().unwrap();
    let signer = (0..32).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect();
    (root("tests/golden/protect/spam.safetensors"), signer, vec![7; 32])
}

#[test]
fn a_protected_adapter_opens_with_its_key_and_signer_and_acts() {
    let folder = tempfile::tempdir().unwrap();
    let sealed = folder.path().join("spam.sealed").display().to_string();
    let (plain, signer, key) = protected();
    encrypt_adapter(plain.clone(), sealed.clone(), key.clone()).unwrap();
    let engine = engine();
    let open = |path: &str, options| block_on(engine.open_adapter_with(path.into(), options));
    let options = |key: &[u8], signers: &[&[u8]]| AdapterOpenOptions {
        key: Some(key.to_vec()),
        trusted_signers: Some(signers.iter().map(|s| s.to_vec()).collect()),
        check_canary: true,
    };
    let reference = block_on(engine.open_adapter(plain.clone())).unwrap();
    assert_eq!((reference.info().signer, reference.info().encrypted), (None, false));
    let opened = open(&sealed, options(&key, &[&signer])).unwrap();
    let info = opened.info();
    assert!(
        info.encrypted && info.has_canary && info.signer.is_some_and(|s| s.len() == 64),
        "{:?}",
        info.name
    );
    assert!(block_on(engine.memory()).unwrap().decrypted_bytes > 50_000);
    let answers =
        [session(&engine, with(&reference)), session(&engine, with(&opened))].map(|s| ask(&s, MESSAGE));
    assert_eq!(answers[0], answers[1]);
    assert_ne!(ask(&session(&engine, vec![]), MESSAGE), answers[0]);

    for wrong in [AdapterOpenOptions::default(), options(&[8; 32], &[&signer])] {
        let error = open(&sealed, wrong).err();
        assert!(
            matches!(&error, Some(EngineError::AdapterLocked { path, .. }) if *path == sealed),
            "{error:?}"
        );
    }
    for signers in [&[][..], &[&[9; 32][..]]] {
        let error = open(&sealed, options(&key, signers)).err();
        assert!(matches!(error, Some(EngineError::AdapterUntrusted { .. })), "{error:?}");
    }
    let folder_of_peft = open(&root("models/adapters/spam"), options(&key, &[&signer])).err();
    assert!(matches!(folder_of_peft, Some(EngineError::AdapterUntrusted { .. })), "{folder_of_peft:?}");
    let short = open(&sealed, options(&[171; 31], &[])).err();
    assert!(
        matches!(&short, Some(EngineError::InvalidOption { value, .. }) if !value.contains("171")),
        "{short:?}"
    );
    assert!(matches!(inspect_adapter(sealed.clone()), Err(EngineError::AdapterLocked { .. })));
    let peft = encrypt_adapter(root("models/adapters/spam"), sealed.clone(), key.clone());
    assert!(matches!(peft, Err(EngineError::Unsupported { .. })), "{peft:?}");
    let twice = encrypt_adapter(sealed.clone(), sealed, key);
    assert!(matches!(twice, Err(EngineError::Unsupported { .. })), "{twice:?}");
    drop(opened);
    block_on(engine.trim(MemoryPressure::Critical)).unwrap();
}

#[test]
fn an_adapter_that_does_something_else_is_unproven() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, ..) = protected();
    let mut bytes = std::fs::read(plain).unwrap();
    // Every scaling of the file doubled: it fits as before.
    let (from, to) = (b"\\\"lora\\\":2.0", b"\\\"lora\\\":4.0");
    let places: Vec<usize> =
        (0..bytes.len() - from.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
    assert_eq!(places.len(), 42, "the file's scalings are others");
    places.into_iter().for_each(|at| bytes[at..at + to.len()].copy_from_slice(to));
    let path = folder.path().join("doubled.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let (engine, path) = (engine(), path.display().to_string());
    block_on(engine.open_adapter(path.clone())).unwrap();
    let options = AdapterOpenOptions { check_canary: true, ..AdapterOpenOptions::default() };
    let error = block_on(engine.open_adapter_with(path, options)).err();
    assert!(
        matches!(&error, Some(EngineError::AdapterUnproven { adapter, .. }) if adapter == "spam"),
        "{error:?}"
    );
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
fn trimming_frees_what_is_idle_and_changes_no_answer() {
    let engine = engine();
    let intent = adapter(&engine, "intent");
    block_on(engine.preload(adapter(&engine, "spam"))).unwrap();
    let session = session(&engine, with(&intent));
    let first = ask(&session, COMMAND);
    let before = block_on(engine.memory()).unwrap();
    let moderate = block_on(engine.trim(MemoryPressure::Moderate)).unwrap();
    assert_eq!((moderate.evicted_adapters, moderate.dropped_caches), (1, 0));
    assert!(moderate.freed_bytes > 0);
    let critical = block_on(engine.trim(MemoryPressure::Critical)).unwrap();
    assert_eq!(critical.dropped_caches, 1);
    let after = block_on(engine.memory()).unwrap();
    assert_eq!(after.cache_bytes, 0);
    assert!(after.adapter_bytes > 0 && after.adapter_bytes < before.adapter_bytes, "the one in use stays");
    block_on(session.reset()).unwrap();
    assert_eq!(ask(&session, COMMAND), first);
}

#[derive(Default)]
struct Lines {
    lines: Mutex<Vec<String>>,
    count: AtomicUsize,
}

impl LogSink for Lines {
    fn on_log(&self, _: LogLevel, _: String, line: String) -> Result<(), EngineError> {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.lines.lock().unwrap().push(line);
        Ok(())
    }
}

#[test]
fn log_lines_reach_the_app_and_hold_no_prompt() {
    let sink = Arc::new(Lines::default());
    set_log_sink(Some(sink.clone()));
    set_log_level(LogLevel::Debug);
    let engine = engine();
    ask(&session(&engine, vec![]), COMMAND);
    block_on(engine.trim(MemoryPressure::Moderate)).unwrap();
    set_log_level(LogLevel::Warning);
    set_log_sink(None);
    assert!(sink.count.load(Ordering::Relaxed) > 0);
    assert!(!sink.lines.lock().unwrap().iter().any(|line| line.contains("piano")));
}

#[test]
fn the_benchmark_of_swaps_is_json() {
    let options = |resident| SwapBenchmarkOptions {
        folder: root("models/adapters"),
        resident,
        prompt_tokens: 32,
        runs: 1,
    };
    let engine = engine();
    let report: serde_json::Value =
        serde_json::from_str(&block_on(engine.benchmark_swaps(options(3))).unwrap()).unwrap();
    assert!(report["tasks"].as_u64() > Some(3) && report["resident_bytes"].as_u64() > Some(0));
    assert_eq!(report["policies"][1]["exact"], true);
    let refused = block_on(engine.benchmark_swaps(options(100))).unwrap_err();
    assert!(
        matches!(&refused, EngineError::InvalidOption { option, .. } if option == "resident"),
        "{refused:?}"
    );
}

#[test]
fn the_benchmark_is_json() {
    let options = BenchmarkOptions {
        adapters: vec![root("models/adapters/spam")],
        prompt_tokens: 16,
        output_tokens: 4,
        runs: 1,
    };
    let json: serde_json::Value =
        serde_json::from_str(&block_on(engine().benchmark(options)).unwrap()).unwrap();
    assert!(json["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(json["swap_us"]["hot"]["p50"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_device_lost_while_the_app_is_in_the_background_comes_back() {
    let engine = engine();
    let session = session(&engine, with(&adapter(&engine, "intent")));
    let whole = text(&session.complete(STORY.into(), at_most(40)).unwrap());
    let events = engine.events();
    let stream = session.complete(STORY.into(), at_most(40)).unwrap();
    let mut got = block_on(stream.next()).unwrap().unwrap().text;
    block_on(engine.pause()).unwrap();
    engine.simulate_device_loss().unwrap();
    engine.resume().unwrap();
    got += &text(&stream);
    assert_eq!(got, whole);
    // And between two responses.
    engine.simulate_device_loss().unwrap();
    assert_eq!(block_on(engine.memory()).unwrap().weight_bytes, 0);
    assert_eq!(text(&session.complete(STORY.into(), at_most(40)).unwrap()), whole);
    assert!(block_on(engine.memory()).unwrap().weight_bytes > 0);
    for _ in 0..2 {
        let lost = EngineEvent::DeviceLost { reason: "simulated".into() };
        assert_eq!(block_on(events.next()), Some(lost));
        let rebuilt = block_on(events.next());
        assert!(
            matches!(&rebuilt, Some(EngineEvent::DeviceRebuilt { device, seconds })
                if *device == engine.device_info().name && *seconds > 0.0),
            "{rebuilt:?}"
        );
    }
}

#[test]
fn streams_of_events_end_with_their_reader_or_their_engine() {
    let engine = engine();
    let (left, closed) = (engine.events(), engine.events());
    let waiting = {
        let left = left.clone();
        std::thread::spawn(move || block_on(left.next()))
    };
    left.cancel();
    assert_eq!(waiting.join().unwrap(), None);
    engine.simulate_device_loss().unwrap();
    engine.close();
    assert!(matches!(block_on(closed.next()), Some(EngineEvent::DeviceLost { .. })), "told before it closed");
    assert_eq!((block_on(closed.next()), block_on(engine.events().next())), (None, None));
    assert!(matches!(engine.simulate_device_loss(), Err(EngineError::Closed { .. })));
}

#[test]
fn a_library_gives_a_new_generation_and_a_running_session_keeps_its_own() {
    let engine = engine();
    let folder = std::env::temp_dir().join(format!("calora-ffi-library-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let directory = folder.display().to_string();
    let library = block_on(engine.adapter_library(directory, AdapterOpenOptions::default())).unwrap();
    let [first, second] = ["intent", "spam"].map(|name| {
        let path = folder.join(format!("{name}.source"));
        pack(name, &path);
        path.display().to_string()
    });
    let version = block_on(library.replace("task".into(), None, first)).unwrap();
    let running = session(&engine, with(&block_on(library.open("task".into())).unwrap()));
    assert_eq!(ask(&running, COMMAND), "PlayMusic");

    let conflict = block_on(library.replace("task".into(), None, second.clone())).unwrap_err();
    let expected = EngineError::VersionConflict {
        adapter: "task".into(),
        expected: None,
        actual: Some(version.clone()),
    };
    assert_eq!(conflict, expected);
    let newer = block_on(library.replace("task".into(), Some(version), second)).unwrap();
    block_on(running.reset()).unwrap();
    assert_eq!(ask(&running, COMMAND), "PlayMusic", "it keeps what it has");
    let fresh = session(&engine, with(&block_on(library.open("task".into())).unwrap()));
    assert_eq!(ask(&fresh, MESSAGE), "spam");
    let entries = block_on(library.entries()).unwrap();
    assert_eq!((entries.len(), &entries[0].version, entries[0].in_use), (1, &newer, true));
    assert_eq!(block_on(engine.residency()).unwrap().adapters.len(), 2);

    // A file that is copied over it is seen at the next look.
    std::fs::write(folder.join("task.safetensors"), [0; 3]).unwrap();
    let changes = block_on(library.refresh()).unwrap();
    assert!(matches!(&changes[..], [AdapterChange::Refused { name, .. }] if name == "task"), "{changes:?}");
    assert!(matches!(block_on(library.open("task".into())), Err(EngineError::InvalidFile { .. })));
    engine.close();
    assert_eq!(block_on(library.entries()), Err(EngineError::Closed { what: "engine".into() }));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A shipped adapter as a task file.
fn pack(adapter: &str, path: &std::path::Path) {
    use calora::adapter::{BranchStorage, TaskAdapter, write_task_file};
    let opened = TaskAdapter::open(root(&format!("models/adapters/{adapter}"))).unwrap();
    let modules = opened.modules().map(|(module, branches)| (module.to_owned(), branches.to_vec())).collect();
    write_task_file(path, opened.info(), None, &modules, BranchStorage::F16).unwrap();
}
