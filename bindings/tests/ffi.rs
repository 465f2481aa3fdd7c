//! The border as Kotlin and Swift meet it, called from Rust: one engine thread, pulled streams, cancelling, closing.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "ffi/adapters.rs"]
mod adapters;
#[path = "ffi/device.rs"]
mod device;
#[path = "ffi/routing.rs"]
mod routing;
#[path = "ffi/streams.rs"]
mod streams;
#[path = "ffi/swap.rs"]
mod swap;
#[path = "ffi/together.rs"]
mod together;

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use calora_ffi::{
    AdapterChange, AdapterOpenOptions, Availability, BenchmarkOptions, CachePolicy, DeviceChoice, DeviceKind,
    Engine, EngineConfig, EngineError, EngineEvent, GenerationOptions, LoadProgress, LoadState, LogLevel,
    LogSink, MemoryPolicy, MemoryPressure, ResponseChunk, ResponseStream, ScaledAdapter, Session,
    SessionConfig, SessionPriority, SwapBenchmarkOptions, TaskAdapter, UnavailableReason, availability,
    encrypt_adapter, inspect_adapter, memory_plan, set_log_level, set_log_sink,
};
use pollster::block_on;

const COMMAND: &str = "wake me with some quiet piano music";
const MESSAGE: &str =
    "CONGRATULATIONS! You have WON a free holiday. Call 09061 555 0100 now to claim your prize";
const STORY: &str = "The old house stood at the end of the lane, and";

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

/// A call that has been made: its work waits its turn, whenever the result is asked for.
fn made<T>(call: impl Future<Output = T> + Send + 'static) -> Pin<Box<dyn Future<Output = T> + Send>> {
    let mut call: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(call);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(call.as_mut().poll(&mut context).is_pending(), "nothing is done by the call itself");
    call
}

/// The first pull of a stream, made.
fn pull(stream: Arc<ResponseStream>) -> Pin<Box<dyn Future<Output = Pulled> + Send>> {
    made(async move { (stream.next().await, stream) })
}

type Pulled = (Result<Option<ResponseChunk>, EngineError>, Arc<ResponseStream>);

/// A whole text of which the first chunk was pulled.
fn rest((first, stream): Pulled) -> String {
    first.unwrap().map_or(String::new(), |chunk| chunk.text) + &text(&stream)
}

fn ask(session: &Session, prompt: &str) -> String {
    text(&session.respond(prompt.into(), at_most(24)).unwrap())
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
