//! The device: lost, watched, trimmed, measured.

use super::*;

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
    assert_eq!(moderate.freed_bytes, moderate.adapter_bytes + moderate.prefix_bytes);
    assert!(moderate.adapter_bytes > 0 && moderate.mapped_bytes == 0);
    let critical = block_on(engine.trim(MemoryPressure::Critical)).unwrap();
    assert_eq!((critical.dropped_caches, critical.cache_bytes), (1, before.cache_bytes));
    assert!(critical.scratch_bytes > 0 && critical.mapped_bytes > 10_000_000, "{critical:?}");
    let after = block_on(engine.memory()).unwrap();
    assert_eq!(after.cache_bytes, 0);
    assert!(after.adapter_bytes > 0 && after.adapter_bytes < before.adapter_bytes, "the one in use stays");
    block_on(session.reset()).unwrap();
    assert_eq!(ask(&session, COMMAND), first);
}

#[test]
fn a_model_that_does_not_fit_says_what_would() {
    let whole = memory_plan(config()).unwrap();
    assert!(whole.fits && whole.fitting_context_size.is_none() && whole.least_bytes.is_none());
    assert_eq!((whole.kind, whole.context_size, whole.sessions), (DeviceKind::Cpu, 256, 1));
    let parts =
        [whole.copy_bytes, whole.cache_bytes, whole.adapter_bytes, whole.prefix_bytes, whole.scratch_bytes];
    assert_eq!(whole.weight_bytes + parts.iter().sum::<u64>(), whole.total_bytes);
    let more = memory_plan(EngineConfig { planned_sessions: Some(3), ..config() }).unwrap();
    assert_eq!(more.cache_bytes, 3 * whole.cache_bytes);

    let tight = EngineConfig { memory_budget_bytes: Some(whole.total_bytes - 1), ..config() };
    let Err(EngineError::DoesNotFit { plan, reason }) = block_on(Engine::load(tight.clone(), None)) else {
        panic!("it was loaded");
    };
    assert_eq!((plan.total_bytes, plan.available_bytes), (whole.total_bytes, Some(whole.total_bytes - 1)));
    assert!(
        !plan.fits && plan.least_bytes < Some(whole.total_bytes) && reason.contains("available"),
        "{reason}"
    );
    assert_eq!(memory_plan(tight.clone()).unwrap(), *plan);
    let Availability::Unavailable { reason, .. } = availability(tight.clone()) else { panic!("available") };
    assert_eq!(reason, UnavailableReason::NotEnoughMemory);
    let fitting = EngineConfig { context_size: plan.fitting_context_size, ..tight.clone() };
    assert_eq!(block_on(Engine::load(fitting.clone(), None)).unwrap().model_info().context_size, 255);

    let shrunk = EngineConfig { memory_policy: MemoryPolicy::Shrink, ..tight };
    let engine = block_on(Engine::load(shrunk, None)).unwrap();
    let plan = engine.memory_plan();
    assert!(plan.fits && plan.total_bytes < whole.total_bytes, "{plan:?}");
    assert_eq!(engine.model_info().context_size, plan.context_size);
    assert_eq!(block_on(engine.residency()).unwrap().budget_bytes, plan.adapter_bytes);
    assert_eq!(ask(&session(&engine, vec![]), COMMAND), ask(&session(&self::engine(), vec![]), COMMAND));
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
fn the_report_of_a_gpu_is_json() {
    let folder = tempfile::tempdir().unwrap();
    let config = EngineConfig {
        device: DeviceChoice::Gpu,
        device_folder: Some(folder.path().display().to_string()),
        ..config()
    };
    let engine = block_on(Engine::load(config, None)).unwrap();
    let report = block_on(engine.device_report()).unwrap().unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((report["failed"].as_u64(), report["kept"].as_u64()), (Some(0), Some(0)), "{report}");
    assert!(report["kernels"].as_array().unwrap().iter().any(|kernel| kernel["chosen"] == true));
    assert!(std::fs::read_dir(folder.path()).unwrap().count() > 0);
    assert_eq!(block_on(super::engine().device_report()).unwrap(), None);
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
