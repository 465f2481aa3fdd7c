//! Which adapters stay on the device: those in use, and those used lately within the budget.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use calora::engine::{BoundAdapter, DeviceChoice, Engine, EngineOptions};
use calora::session::{Session, SessionOptions};

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(path)
}

/// An engine whose budget is so many times the bytes of one shipped adapter.
fn engine(adapters: f64) -> Engine {
    let load = |adapter_budget| {
        let options = EngineOptions { device: DeviceChoice::Cpu, adapter_budget, ..EngineOptions::default() };
        Engine::load(shipped("base"), options).unwrap()
    };
    let bytes = open(&load(None), "intent").tail().byte_len() as f64;
    load(Some((adapters * bytes) as u64))
}

fn open(engine: &Engine, name: &str) -> BoundAdapter {
    engine.open_adapter(shipped("adapters").join(name)).unwrap()
}

fn session(engine: &Engine) -> Session {
    let options = SessionOptions { context_size: Some(16), ..SessionOptions::default() };
    engine.session(options).unwrap()
}

/// How many adapters are on the device; those of peft differ in bytes by less than a hundredth.
fn resident(engine: &Engine, one: u64) -> u64 {
    (engine.memory().tails + one / 2) / one
}

#[test]
fn the_least_recently_used_goes_first_and_one_in_use_never() {
    let engine = engine(2.5);
    let [a, b, c, d] = ["intent", "spam", "clean-question", "novelist"].map(|name| open(&engine, name));
    let use_once = |adapter: &BoundAdapter| drop(engine.resident(&[(adapter.clone(), 1.0)]).unwrap());

    use_once(&a);
    let bytes = engine.memory().tails;
    use_once(&b);
    assert_eq!(resident(&engine, bytes), 2);
    use_once(&a);
    use_once(&c); // b is the oldest now
    assert_eq!(resident(&engine, bytes), 2, "the budget holds two");
    engine.evict(&b);
    assert_eq!(resident(&engine, bytes), 2, "b was gone already");
    engine.evict(&a);
    assert_eq!(resident(&engine, bytes), 1);

    let mut held = session(&engine);
    held.switch_to(&[(d.clone(), 1.0)]).unwrap();
    for adapter in [&a, &b, &c] {
        use_once(adapter);
    }
    engine.evict(&d);
    assert_eq!(engine.evict_idle(), 2);
    assert_eq!(resident(&engine, bytes), 1, "a session uses it");
    drop(held);
    assert_eq!(engine.memory().tails, 0);
}

#[test]
fn without_a_budget_nothing_outlives_its_use() {
    let engine = engine(0.0);
    let mut session = session(&engine);
    session.switch_to(&[(open(&engine, "intent"), 1.0)]).unwrap();
    assert!(engine.memory().tails > 0);
    session.switch_to(&[]).unwrap();
    assert_eq!(engine.memory().tails, 0);
}

#[test]
fn a_released_cache_comes_back_with_the_same_text() {
    let engine = engine(1.0);
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let options = calora::session::GenerationOptions { max_tokens: Some(12), ..Default::default() };
    let first = session.respond("wake me with some quiet piano music", &options).unwrap().collect().unwrap();
    let tokens = session.tokens().to_vec();
    assert!(engine.memory().caches > 0);
    assert!(session.release_cache());
    assert!(!session.release_cache());
    assert_eq!((engine.memory().caches, session.cached_tokens()), (0, 0));
    assert_eq!(session.tokens(), tokens, "the conversation stays");
    session.reset();
    let again = session.respond("wake me with some quiet piano music", &options).unwrap().collect().unwrap();
    assert_eq!(again.text, first.text);
}
