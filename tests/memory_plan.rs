//! What is planned before a model is loaded is what it then takes; what does not fit is refused or made smaller.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "common/folder.rs"]
mod folder;

use std::path::{Path, PathBuf};

use calora::Error;
use calora::device::DeviceMemory;
use calora::engine::{ActivationChoice, BoundAdapter, DeviceChoice, Engine, EngineOptions, WeightAccess};
use calora::memory::{LEAST_ADAPTERS, LEAST_CONTEXT, MemoryOptions, MemoryPlan, MemoryPolicy};
use calora::quant::Bits;
use calora::session::{Generation, GenerationOptions, Session, SessionOptions, pass_together};
use calora::weights::DType;
use common::{Random, Store, random_model, random_tail, scheme};
use serde_json::{Value, json};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Wide enough for every group size; a context in which smaller ones can be told apart.
fn config() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 500,
        "max_position_embeddings": 4000, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false
    })
}

fn generated(folder: &Path, store: Store) -> PathBuf {
    let path = folder.join(format!("{store:?}").replace(|c: char| !c.is_alphanumeric(), "-"));
    folder::write(&random_model(&config(), store, 5), &config(), &path);
    path
}

fn on(device: DeviceChoice) -> EngineOptions {
    EngineOptions { device, prefix_budget: Some(0), ..EngineOptions::default() }
}

fn within(budget: u64, policy: MemoryPolicy, options: EngineOptions) -> EngineOptions {
    EngineOptions { memory: MemoryOptions { budget: Some(budget), policy, sessions: None }, ..options }
}

fn tokens(n: usize, vocab: usize) -> Vec<u32> {
    let mut random = Random(3);
    (0..n).map(|_| random.below(vocab) as u32).collect()
}

fn continuation(engine: &Engine, prompt: usize, adapters: &[(BoundAdapter, f32)]) -> Vec<u32> {
    let options = SessionOptions { adapters: adapters.to_vec(), ..SessionOptions::default() };
    let greedy = GenerationOptions {
        max_tokens: Some(4),
        temperature: Some(0.0),
        repetition_penalty: Some(1.0),
        ignore_end_of_turn: true,
        ..GenerationOptions::default()
    };
    let prompt = tokens(prompt, engine.model_info().shape.vocab);
    let mut session = engine.session(options).unwrap();
    session.respond_to_tokens(&prompt, &greedy).unwrap().collect().unwrap().tokens
}

fn close(what: &str, held: u64, planned: u64) {
    let share = held.abs_diff(planned) as f64 / planned.max(1) as f64;
    assert!(share <= 0.05, "{what}: {held} bytes are held, {planned} were planned");
}

/// Loads, opens sessions, attaches an adapter, computes the longest pass, and compares every part with the plan.
fn check(folder: &Path, options: &EngineOptions, sessions: usize, case: &str) {
    let first = Engine::load(folder, options.clone()).unwrap();
    // On a GPU as many ranks as plans of batches count with; the CPU's plan leaves inner values out, which are little for few.
    let (lora, recovery) = if options.device == DeviceChoice::Gpu { (48, 16) } else { (8, 4) };
    let mut tail = random_tail(first.recipe(), lora, recovery, DType::F16, 9);
    for (linear, branches) in first.recipe().linears.iter().zip(&mut tail.branches) {
        if linear.path == "lm_head" {
            branches.clear();
        }
    }
    let adapter_budget = Some(first.adapter_bytes(&first.adapter("task", tail.clone())).unwrap());
    drop(first);
    let memory = MemoryOptions { sessions: Some(sessions), ..MemoryOptions::default() };
    let options = EngineOptions { adapter_budget, memory, ..options.clone() };
    let plan = Engine::plan(folder, &options).unwrap();

    let engine = Engine::load(folder, options).unwrap();
    // What the system has left changes all the time.
    let chosen = MemoryPlan { available: plan.available, ..engine.memory_plan().unwrap().clone() };
    assert_eq!(chosen, plan, "{case}");
    let info = engine.device_info();
    assert_eq!((plan.kind, plan.device.as_str()), (info.kind, info.name.as_str()), "{case}");
    let adapter = engine.adapter("task", tail);
    let open = |_| engine.session(SessionOptions::default()).unwrap();
    let mut others: Vec<_> = (1..sessions).map(open).collect();
    let vocab = engine.model_info().shape.vocab;
    let prompt = tokens(plan.context_size.min(300), vocab);
    let mut session = engine
        .session(SessionOptions { adapters: vec![(adapter, 1.0)], ..SessionOptions::default() })
        .unwrap();
    // Short passes first: working memory must not grow in steps beyond what was planned.
    for len in [3, 5, prompt.len()] {
        session.reset();
        for temperature in [0.0, 1.0] {
            let options = GenerationOptions {
                max_tokens: Some(1),
                temperature: Some(temperature),
                seed: Some(1),
                ..GenerationOptions::default()
            };
            session.respond_to_tokens(&prompt[prompt.len() - len..], &options).unwrap().collect().unwrap();
        }
    }
    if sessions > 1 {
        // Together: one with the adapter, the others without.
        let options = GenerationOptions {
            max_tokens: Some(3),
            temperature: Some(1.0),
            seed: Some(1),
            ignore_end_of_turn: true,
            ..GenerationOptions::default()
        };
        session.reset();
        let mut members: Vec<(Generation, &mut Session)> = Vec::new();
        for session in others.iter_mut().chain([&mut session]) {
            let mut generation = session.begin_tokens(&prompt[..3], &options).unwrap();
            generation.pass(session).unwrap();
            members.push((generation, session));
        }
        let mut members: Vec<_> =
            members.iter_mut().map(|(generation, session)| (generation, &mut **session)).collect();
        assert!(pass_together(&mut members).iter().all(Option::is_some), "{case}: all share a pass");
    }
    let DeviceMemory { weights, caches, tails, scratch } = engine.memory();
    assert_eq!(
        (weights, caches),
        (plan.weights, plan.caches),
        "{case}: weights and caches are known exactly"
    );
    close(&format!("{case}: adapters"), tails, plan.adapters);
    close(&format!("{case}: working memory"), scratch, plan.scratch);
    close(&format!("{case}: all"), weights + caches + tails + scratch, plan.total());
    drop((session, others));
}

#[test]
fn what_is_planned_is_what_is_held() {
    let folder = tempfile::tempdir().unwrap();
    let mut models: Vec<PathBuf> = ["gqa", "tied", "head_dim", "wide", "plain", "biases"]
        .map(|n| repository("tests/golden").join(n))
        .into();
    models.push(repository("models/base"));
    for store in [
        Store::F32,
        Store::F16,
        Store::BF16,
        scheme(Bits::Int8, None, true),
        scheme(Bits::Int8, Some(64), false),
        scheme(Bits::Int4, Some(32), true),
        scheme(Bits::Int4, Some(128), false),
        scheme(Bits::Int3, Some(32), true),
        scheme(Bits::Int2, Some(64), true),
    ] {
        models.push(generated(folder.path(), store));
    }
    if let Some(data) = common::test_data("plans of other people's checkpoints") {
        models.push(data.join("models/stories260k"));
        models.push(data.join("models/tinystories-656k"));
    }
    for (n, model) in models.iter().enumerate() {
        for device in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
            // The longest context, and a short one for more sessions.
            let cases = [
                (ActivationChoice::F32, None, 1),
                (ActivationChoice::Auto, Some(61 - n), 3),
                (ActivationChoice::Int8, None, 1),
            ];
            // Software Vulkan compiles its kernels for each load.
            let cases = if device == DeviceChoice::Gpu { &cases[..2] } else { &cases };
            for &(activations, context_size, sessions) in cases {
                let options = EngineOptions { activations, context_size, ..on(device) };
                let case = format!("{} {device:?} {activations:?} {context_size:?}", model.display());
                check(model, &options, sessions, &case);
            }
        }
    }
}

#[test]
fn copied_weights_are_planned_where_they_are_held_twice() {
    let base = repository("models/base");
    for (device, mapped) in [(DeviceChoice::Cpu, true), (DeviceChoice::Gpu, false)] {
        let plan = |weights| Engine::plan(&base, &EngineOptions { weights, ..on(device) }).unwrap();
        let (on_map, copied) = (plan(WeightAccess::Mapped), plan(WeightAccess::Copied));
        assert_eq!((on_map.mapped, copied.mapped, on_map.copies), (mapped, false, 0), "{device:?}");
        let file = std::fs::metadata(base.join("model.safetensors")).unwrap().len();
        assert_eq!(copied.copies, if device == DeviceChoice::Gpu { file } else { 0 });
        assert_eq!(copied.private(), copied.total());
        assert_eq!(on_map.private(), on_map.total() - if mapped { on_map.weights } else { 0 });
    }
}

fn refused(folder: &Path, options: EngineOptions) -> (MemoryPlan, Option<usize>, u64) {
    match Engine::load(folder, options) {
        Err(Error::DoesNotFit { plan, fits, least }) => (*plan, fits, least),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_budget_fits_to_the_byte_and_a_refusal_says_what_would() {
    let folder = tempfile::tempdir().unwrap();
    let model = generated(folder.path(), scheme(Bits::Int4, Some(32), true));
    for device in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
        let options = EngineOptions { adapter_budget: Some(5 << 20), ..on(device) };
        let plan = Engine::plan(&model, &options).unwrap();
        let (total, refuse) = (plan.total(), MemoryPolicy::Refuse);
        Engine::load(&model, within(total, refuse, options.clone())).unwrap();
        let (same, fits, least) = refused(&model, within(total - 1, refuse, options.clone()));
        assert_eq!(same, MemoryPlan { available: Some(total - 1), ..plan.clone() }, "{device:?}");
        let fits = fits.unwrap();
        assert!(fits < plan.context_size && fits + 8 >= plan.context_size, "{device:?}: {fits}");
        let of = |context_size| EngineOptions { context_size: Some(context_size), ..options.clone() };
        Engine::load(&model, within(total - 1, refuse, of(fits))).unwrap();
        refused(&model, within(total - 1, refuse, of(fits + 1)));

        let error = Engine::load(&model, within(total - 1, refuse, options.clone())).unwrap_err().to_string();
        for number in [total, total - 1, plan.weights, plan.caches, plan.adapters, plan.scratch, fits as u64]
        {
            assert!(error.contains(&number.to_string()), "{number} is not in: {error}");
        }
        assert!(!error.contains("shrink"), "{error}");

        // The stated least is enough for shrinking, and a byte less is not.
        let shrunk = Engine::load(&model, within(least, MemoryPolicy::Shrink, options.clone())).unwrap();
        let least_plan = shrunk.memory_plan().unwrap();
        assert_eq!((least_plan.total(), least_plan.context_size), (least, LEAST_CONTEXT), "{device:?}");
        assert_eq!(least_plan.adapters, LEAST_ADAPTERS);
        let (wanted, none, same) = refused(&model, within(least - 1, MemoryPolicy::Shrink, options.clone()));
        assert_eq!(
            (wanted.context_size, wanted.adapters),
            (plan.context_size, plan.adapters),
            "as asked for"
        );
        assert_eq!((none, same), (None, least));
        let check = Engine::check(&model, &within(least - 1, MemoryPolicy::Shrink, options.clone()));
        assert!(matches!(check, Err(Error::DoesNotFit { .. })));
        let plan = Engine::plan(&model, &within(least - 1, MemoryPolicy::Shrink, options)).unwrap();
        assert!(!plan.fits() && plan == wanted, "a plan that does not fit is told");
    }
}

#[test]
fn a_smaller_budget_gives_a_smaller_engine_that_computes_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let model = generated(folder.path(), scheme(Bits::Int4, Some(32), true));
    for device in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
        let options = EngineOptions {
            adapter_budget: Some(6 << 20),
            prefix_budget: Some(1 << 20),
            ..EngineOptions { device, ..EngineOptions::default() }
        };
        let whole = Engine::load(&model, options.clone()).unwrap();
        let tail = random_tail(whole.recipe(), 8, 0, DType::F16, 9);
        let with = |engine: &Engine| continuation(engine, 40, &[(engine.adapter("t", tail.clone()), 1.0)]);
        let (expected, full) = (with(&whole), whole.memory_plan().unwrap().clone());
        assert_ne!(expected, continuation(&whole, 40, &[]), "the adapter acts");
        let (mut last, mut stages) = (full.clone(), [0; 3]);
        let (_, _, least) = refused(&model, within(1, MemoryPolicy::Shrink, options.clone()));
        for budget in (least..=full.total()).rev().step_by((full.total() - least) as usize / 12) {
            let engine = Engine::load(&model, within(budget, MemoryPolicy::Shrink, options.clone())).unwrap();
            let plan = engine.memory_plan().unwrap().clone();
            assert!(plan.total() <= budget && plan.fits(), "{device:?} {budget}: {plan}");
            // Nothing is left over that something was cut for: a position and a rounding at most.
            let cut = plan.context_size < full.context_size;
            assert!(!cut || budget - plan.total() <= plan.caches / plan.context_size as u64 + 64, "{plan}");
            // In this order: context, beginnings, adapters.
            assert!(plan.prefixes == full.prefixes || plan.context_size == LEAST_CONTEXT, "{plan}");
            assert!(plan.adapters == full.adapters || plan.prefixes == 0, "{plan}");
            for (stage, (now, before)) in [
                (plan.context_size as u64, last.context_size as u64),
                (plan.prefixes, last.prefixes),
                (plan.adapters, last.adapters),
            ]
            .into_iter()
            .enumerate()
            {
                assert!(now <= before, "{plan}");
                stages[stage] += usize::from(now < before);
            }
            assert_eq!(engine.model_info().context_size, plan.context_size);
            assert_eq!(engine.residency().budget_bytes, plan.adapters);
            assert_eq!(with(&engine), expected, "{device:?} {budget}");
            last = plan;
        }
        assert!(stages.iter().all(|n| *n > 0), "every stage was reached: {stages:?}");
    }
}

#[test]
fn where_the_gpu_has_no_room_the_cpu_is_planned_for() {
    let base = repository("models/base");
    // The GPU's own copy of the weights is beside theirs.
    let copied = |device| EngineOptions { weights: WeightAccess::Copied, ..on(device) };
    let gpu = Engine::plan(&base, &copied(DeviceChoice::Gpu)).unwrap();
    let cpu = Engine::plan(&base, &copied(DeviceChoice::Cpu)).unwrap();
    assert!(cpu.total() < gpu.total(), "{cpu} {gpu}");
    let between = within(gpu.total() - 1, MemoryPolicy::Refuse, copied(DeviceChoice::Gpu));
    let (plan, ..) = refused(&base, between.clone());
    assert_eq!(plan.kind, "gpu");
    let engine = Engine::load(&base, EngineOptions { fallback_to_cpu: Some(true), ..between }).unwrap();
    assert_eq!((engine.device_info().kind, engine.memory_plan().unwrap().kind), ("cpu", "cpu"));
}

/// A model that says it was made for very long texts.
fn endless(folder: &Path) -> PathBuf {
    let model = generated(folder, Store::F16);
    let mut config = config();
    config["max_position_embeddings"] = json!(1u64 << 28);
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    model
}

#[test]
fn a_context_is_no_longer_than_one_buffer_of_the_gpu() {
    let folder = tempfile::tempdir().unwrap();
    let model = endless(folder.path());
    let options = EngineOptions { context_size: Some(1 << 28), ..on(DeviceChoice::Gpu) };
    let (plan, fits, _) = refused(&model, within(u64::MAX - 1, MemoryPolicy::Refuse, options.clone()));
    let largest = plan.largest_context.unwrap();
    assert!(plan.total() < u64::MAX - 1 && plan.context_size > largest && fits == Some(largest), "{plan}");
    let error = Engine::load(&model, within(u64::MAX - 1, MemoryPolicy::Refuse, options)).unwrap_err();
    assert!(error.to_string().contains(&format!("one of its buffers holds {largest} tokens")), "{error}");
    // And what one buffer holds can be had: two of 128 MB a layer on software Vulkan.
    let options = EngineOptions { context_size: Some(largest), ..on(DeviceChoice::Gpu) };
    let engine = Engine::load(&model, within(u64::MAX - 1, MemoryPolicy::Refuse, options)).unwrap();
    assert!(engine.session(SessionOptions::default()).is_ok());
}

#[test]
fn sizes_without_bounds_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let model = endless(folder.path());
    for device in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
        for policy in [MemoryPolicy::Refuse, MemoryPolicy::Shrink] {
            for budget in [None, Some(0), Some(u64::MAX)] {
                for options in [
                    EngineOptions { context_size: Some(1 << 27), ..on(device) },
                    EngineOptions { context_size: Some(1 << 28), ..on(device) },
                    EngineOptions { adapter_budget: Some(u64::MAX), ..on(device) },
                    EngineOptions { prefix_budget: Some(u64::MAX), ..on(device) },
                    EngineOptions { prefill_chunk: Some(usize::MAX), ..on(device) },
                    EngineOptions { prefill_chunk: Some(1 << 60), ..on(device) },
                ] {
                    for sessions in [None, Some(usize::MAX)] {
                        let memory = MemoryOptions { budget, policy, sessions };
                        let options = EngineOptions { memory, ..options.clone() };
                        let planned = Engine::plan(&model, &options).unwrap();
                        match Engine::load(&model, options.clone()) {
                            Ok(engine) => {
                                assert!(
                                    engine.memory_plan().unwrap().fits() && planned.fits(),
                                    "{options:?}"
                                );
                                match engine.session(SessionOptions::default()) {
                                    Ok(_) | Err(Error::OutOfMemory { .. }) => {}
                                    Err(other) => panic!("{options:?}: {other}"),
                                }
                            }
                            Err(Error::DoesNotFit { plan, .. }) => assert!(!plan.fits(), "{options:?}"),
                            Err(Error::OutOfMemory { .. }) => assert!(planned.fits(), "{options:?}"),
                            Err(other) => panic!("{options:?}: {other}"),
                        }
                    }
                }
            }
        }
        for (wrong, option) in [
            (EngineOptions { context_size: Some((1 << 28) + 1), ..on(device) }, "context_size"),
            (EngineOptions { context_size: Some(0), ..on(device) }, "context_size"),
            (EngineOptions { prefill_chunk: Some(0), ..on(device) }, "prefill_chunk"),
            (
                EngineOptions {
                    memory: MemoryOptions { sessions: Some(0), ..MemoryOptions::default() },
                    ..on(device)
                },
                "sessions",
            ),
        ] {
            for error in
                [Engine::plan(&model, &wrong).unwrap_err(), Engine::load(&model, wrong.clone()).unwrap_err()]
            {
                assert!(matches!(&error, Error::InvalidOption { option: o, .. } if o == option), "{error}");
            }
        }
    }
}
