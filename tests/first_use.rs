//! Memory for the next adapter lies ready before it is asked for. In a process of its own: there is one such piece.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use calora::engine::{BoundAdapter, DeviceChoice, Engine, EngineOptions};
use calora::memory::TrimLevel;
use calora::session::{GenerationOptions, Session, SessionOptions};

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(path)
}

fn load(device: DeviceChoice, adapter_budget: Option<u64>) -> Engine {
    let options = EngineOptions { device, adapter_budget, ..EngineOptions::default() };
    Engine::load(shipped("base"), options).unwrap()
}

fn use_first(session: &mut Session, adapter: &BoundAdapter) {
    session.switch_to(&[(adapter.clone(), 1.0)]).unwrap();
}

fn answer(session: &mut Session) -> Vec<u32> {
    let options = GenerationOptions {
        temperature: Some(0.0),
        max_tokens: Some(4),
        ignore_end_of_turn: true,
        ..GenerationOptions::default()
    };
    session.respond_to_tokens(&[1, 2, 3], &options).unwrap().collect().unwrap();
    session.tokens().to_vec()
}

#[test]
fn a_response_makes_room_for_the_next_adapter_within_the_budget() {
    let engine = load(DeviceChoice::Cpu, None);
    let [a, b] = ["intent", "spam"].map(|name| engine.open_adapter(shipped("adapters").join(name)).unwrap());
    let mut session = engine.session(SessionOptions::default()).unwrap();
    answer(&mut session);
    assert_eq!(engine.ready_bytes(), 0, "no adapter was used yet");

    use_first(&mut session, &a);
    assert_eq!(engine.ready_bytes(), 0, "nobody has been answered since");
    answer(&mut session);
    let ready = engine.ready_bytes();
    assert!((1.0..1.1).contains(&(ready as f64 / a.byte_len() as f64)), "{ready}");
    answer(&mut session);
    assert_eq!(engine.ready_bytes(), ready, "once is enough");

    use_first(&mut session, &b);
    assert_eq!(engine.ready_bytes(), 0, "it was used");
    let with_ready = answer(&mut session);
    use_first(&mut session, &a);
    use_first(&mut session, &b);
    assert_eq!(engine.ready_bytes(), ready, "both are resident");
    engine.trim(TrimLevel::Moderate);
    assert_eq!(engine.ready_bytes(), 0);
    session.switch_to(&[(a.clone(), 1.0), (b.clone(), 1.0)]).unwrap();
    answer(&mut session);
    assert_eq!(engine.ready_bytes(), 0, "two adapters are two copies");

    // Neither where the budget is full nor where memory was given back, which the next one finds.
    let small = load(DeviceChoice::Cpu, Some(a.byte_len() as u64 * 5 / 2));
    let mut other = small.session(SessionOptions::default()).unwrap();
    let [x, y, z] = ["intent", "spam", "sentiment"]
        .map(|name| small.open_adapter(shipped("adapters").join(name)).unwrap());
    use_first(&mut other, &x);
    answer(&mut other);
    assert_eq!(small.ready_bytes(), ready);
    for adapter in [&y, &z] {
        use_first(&mut other, adapter);
        answer(&mut other);
        assert_eq!(small.ready_bytes(), 0);
    }
    use_first(&mut other, &y);
    assert_eq!(answer(&mut other), with_ready, "what lay ready changes nothing");
    // A GPU has no use for it.
    let gpu = load(DeviceChoice::Gpu, None);
    let mut on_gpu = gpu.session(SessionOptions::default()).unwrap();
    engine.trim(TrimLevel::Moderate);
    use_first(&mut on_gpu, &gpu.open_adapter(shipped("adapters/spam")).unwrap());
    answer(&mut on_gpu);
    assert_eq!(gpu.ready_bytes(), 0);
}
