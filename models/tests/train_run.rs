//! Training runs as users meet them: killed and resumed, written, read by the engine, and refused.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use calora::engine::{DeviceChoice, Engine, EngineOptions};
use calora_models::compress::{CompressOptions, compress};
use calora_models::train::DType;
use calora_models::train::adapt::{AdaptJob, Init, Recovery, adapt};
use calora_models::train::batch::Batch;
use calora_models::train::branches::Branches;
use calora_models::train::data::Example;
use calora_models::train::device::DeviceChoice as TrainDevice;
use calora_models::train::forward::{Pass, Plan};
use calora_models::train::lora::{LoraJob, lora};
use calora_models::train::loss::LossWeights;
use calora_models::train::options::TrainOptions;
use calora_models::train::report::Report;
use calora_models::train::run::Event;
use calora_models::train::setup::Base;
use calora_models::{eval, rows};

fn models(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The shipped base, its 4-bit form, and a small task: say which of two words was said.
struct Work {
    folder: tempfile::TempDir,
}

impl Work {
    fn new() -> Self {
        let work = Self { folder: tempfile::tempdir().unwrap() };
        let line = |index: usize| {
            let words = ["red", "blue", "green"];
            let word = words[index % 3];
            let noise = ["please", "now", "then", "again", "soon"][index % 5];
            serde_json::json!({
                "prompt": format!("<|user|>the {word} one {noise}<|assistant|>"), "completion": word
            })
        };
        let text =
            |range: std::ops::Range<usize>| range.map(|i| format!("{}\n", line(i))).collect::<String>();
        std::fs::write(work.path("train.jsonl"), text(0..30)).unwrap();
        std::fs::write(work.path("heldout.jsonl"), text(31..45)).unwrap();
        work
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn options(&self, steps: usize) -> TrainOptions {
        TrainOptions { steps, batch: 4, eval_every: 4, checkpoint_every: 2, ..TrainOptions::default() }
    }

    fn lora(&self, out: &str, steps: usize) -> LoraJob {
        LoraJob {
            model: models("base"),
            data: self.path("train.jsonl"),
            heldout: Some(self.path("heldout.jsonl")),
            heldout_limit: None,
            out: self.path(out),
            init: None,
            rank: 4,
            alpha: 8.0,
            run: self.path(&format!("{out}.run")),
            device: TrainDevice::Cpu,
            options: self.options(steps),
        }
    }

    /// The shipped intent LoRA on the base at 4 bits.
    fn adapt(&self, out: &str, steps: usize) -> AdaptJob {
        let compressed = self.path("int4");
        if !compressed.exists() {
            let options = CompressOptions::new(calora::quant::Bits::Int4, Some(32));
            compress(&models("base"), &compressed, &options, |_, _| ()).unwrap();
        }
        AdaptJob {
            base: models("base"),
            compressed,
            lora: Some(models("adapters/intent")),
            data: self.path("train.jsonl"),
            heldout: Some(self.path("heldout.jsonl")),
            heldout_limit: None,
            calibration: None,
            out: self.path(out),
            fold: false,
            inherit: true,
            recovery: Some((Recovery::Gelu, Some(4))),
            init: Init::Zero,
            distill: LossWeights { hidden: 0.5, logits: 0.0 },
            name: None,
            run: self.path(&format!("{out}.run")),
            device: TrainDevice::Cpu,
            options: self.options(steps),
        }
    }
}

fn train(job: &LoraJob) -> Report {
    lora(job, &mut |_| ()).unwrap()
}

fn file(path: PathBuf) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// An engine's own evaluation of an adapter.
fn evaluate(model: &Path, adapter: &Path, data: &Path) -> eval::Evaluation {
    let options = EngineOptions {
        device: DeviceChoice::Cpu,
        activations: calora::engine::ActivationChoice::F32,
        ..EngineOptions::default()
    };
    let engine = Engine::load(model, options).unwrap();
    let adapters = [(engine.open_adapter(adapter).unwrap(), 1.0)];
    eval::evaluate(&engine, &adapters, &rows::read(data, None).unwrap(), 256, |_| Ok(())).unwrap()
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let work = Work::new();
    train(&work.lora("whole", 9));
    let job = work.lora("killed", 9);
    let kill = catch_unwind(AssertUnwindSafe(|| {
        lora(&job, &mut |event| {
            if let Event::Step { step: 7, .. } = event {
                std::panic::resume_unwind(Box::new("killed"));
            }
        })
    }));
    assert!(kill.is_err() && !job.out.exists());
    let checkpoint = |step: usize| job.run.join(format!("checkpoint-{step:06}"));
    assert!(checkpoint(6).exists() && checkpoint(4).exists() && !checkpoint(2).exists());
    // The newest checkpoint is damaged, as by a power cut: the one before serves.
    std::fs::write(checkpoint(6).join("branches.safetensors"), b"torn").unwrap();
    let mut resumed = None;
    lora(&job, &mut |event| {
        if let Event::Resumed(step) = event {
            resumed = Some(step);
        }
    })
    .unwrap();
    assert_eq!(resumed, Some(4));
    let weights = |out: &str| file(work.path(out).join("adapter_model.safetensors"));
    assert!(weights("whole") == weights("killed"), "the resumed run ended elsewhere");
    let steps = |out: &str| -> Vec<(u64, f64)> {
        let text = String::from_utf8(file(work.path(&format!("{out}.run")).join("log.jsonl"))).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter_map(|v| Some((v["step"].as_u64()?, v["loss"].as_f64()?))).collect()
    };
    assert_eq!(steps("whole"), steps("killed"));
    assert!(!checkpoint(4).exists(), "a finished run keeps no checkpoints");
    assert!(file(job.run.join("loss.svg")).starts_with(b"<svg"));
}

/// Of an adaptation too, which then does not compute its start again.
#[test]
fn a_killed_adaptation_goes_on_without_its_start() {
    let work = Work::new();
    let residual = |out: &str| AdaptJob { init: Init::Residual, ..work.adapt(out, 5) };
    adapt(&residual("whole.safetensors"), &mut |_| ()).unwrap();
    let job = residual("killed.safetensors");
    let mut calibrated = 0;
    let kill = catch_unwind(AssertUnwindSafe(|| {
        adapt(&job, &mut |event| match event {
            Event::Calibration(..) => calibrated += 1,
            Event::Step { step: 3, .. } => std::panic::resume_unwind(Box::new("killed")),
            _ => {}
        })
    }));
    assert!(kill.is_err() && calibrated > 0);
    adapt(&job, &mut |event| assert!(!matches!(event, Event::Calibration(..)), "the start again")).unwrap();
    let tensors = |out: &str| {
        let file = calora::weights::SafetensorsFile::open(work.path(out)).unwrap();
        let mut names: Vec<String> = file.names().map(str::to_owned).collect();
        names.sort();
        names
            .into_iter()
            .map(|name| (file.require(&name).unwrap().to_f32().unwrap(), name))
            .collect::<Vec<_>>()
    };
    assert!(tensors("whole.safetensors") == tensors("killed.safetensors"), "it ended elsewhere");
}

#[test]
fn another_run_does_not_go_on_from_a_folder() {
    let work = Work::new();
    train(&work.lora("one", 2));
    let mut other = work.lora("one", 2);
    other.options.learning_rate = 1e-4;
    let error = format!("{:#}", lora(&other, &mut |_| ()).unwrap_err());
    assert!(error.contains("other settings") && error.contains("options"), "{error}");
}

#[test]
fn a_checkpoint_that_cannot_be_saved_leaves_the_one_before() {
    let work = Work::new();
    let job = work.lora("full", 6);
    let run = job.run.clone();
    let error = lora(&job, &mut |event| {
        if let Event::Step { step: 3, .. } = event {
            // A file where the folder of the next checkpoint should be made: what a full disk does, at another place.
            std::fs::write(run.join(".checkpoint-000004"), b"").unwrap();
        }
    });
    let error = format!("{:#}", error.unwrap_err());
    assert!(error.contains("checkpoint") && error.contains("intact"), "{error}");
    std::fs::remove_file(job.run.join(".checkpoint-000004")).unwrap();
    let mut resumed = None;
    lora(&job, &mut |event| {
        if let Event::Resumed(step) = event {
            resumed = Some(step);
        }
    })
    .unwrap();
    assert_eq!(resumed, Some(2));
}

#[test]
fn a_lora_learns_and_the_engine_agrees() {
    let work = Work::new();
    let job = LoraJob {
        options: TrainOptions { batch: 8, eval_every: 10, ..work.options(40) },
        ..work.lora("learned", 40)
    };
    let report = train(&job);
    let heldout = report.heldout.unwrap();
    assert!(heldout.best.score.loss < 0.1 * heldout.start.loss, "{heldout:?}");
    assert_eq!(heldout.start.accuracy, Some(0.0));
    let engine = evaluate(&job.model, &job.out, &work.path("heldout.jsonl"));
    assert_eq!(engine.exact_match, heldout.best.score.accuracy, "engine against trainer");
    assert!(engine.exact_match.unwrap() >= 0.9);
    // Going on from it begins where it ended.
    let more = LoraJob { init: Some(job.out.clone()), ..work.lora("more", 0) };
    let start = train(&more).heldout.unwrap().start;
    assert!((start.loss - heldout.best.score.loss).abs() < 1e-6);
}

#[test]
fn adaptation_is_a_task_file_that_the_engine_runs() {
    let work = Work::new();
    let job = work.adapt("task.safetensors", 12);
    let report = adapt(&job, &mut |_| ()).unwrap();
    let heldout = report.heldout.unwrap();
    assert!(heldout.best.score.loss < 0.5 * heldout.start.loss, "{heldout:?}");
    let engine = evaluate(&job.compressed, &job.out, &work.path("heldout.jsonl"));
    assert!((engine.exact_match.unwrap() - heldout.best.score.accuracy.unwrap()).abs() < 0.08);
    // It belongs to this compressed model alone.
    let engine =
        Engine::load(models("base"), EngineOptions { device: DeviceChoice::Cpu, ..Default::default() });
    let error = engine.unwrap().open_adapter(&job.out).unwrap_err();
    assert!(matches!(error, calora::Error::AdapterMismatch { .. }), "{error}");
    // Untouched, it is the LoRA: zero recovery changes nothing.
    let untouched = work.adapt("untouched.safetensors", 0);
    let before = adapt(&untouched, &mut |_| ()).unwrap().heldout.unwrap();
    assert_eq!(before.start, before.best.score);
    assert!((before.start.loss - heldout.start.loss).abs() < 1e-9);
}

/// The engine and the trainer compute the same logits from the same task file.
#[test]
fn the_engine_computes_what_was_trained() {
    let work = Work::new();
    let job = work.adapt("task.safetensors", 6);
    adapt(&job, &mut |_| ()).unwrap();
    let options = EngineOptions {
        device: DeviceChoice::Cpu,
        activations: calora::engine::ActivationChoice::F32,
        ..EngineOptions::default()
    };
    let engine = Engine::load(&job.compressed, options).unwrap();
    let ids = [1, 40, 50, 60, 70, 80];
    let adapter = engine.open_adapter(&job.out).unwrap();
    let actual = engine.logits(&ids, &[(adapter, 1.0)]).unwrap();

    let compressed = Base::open(&job.compressed).unwrap();
    let task = calora::adapter::TaskAdapter::open(&job.out).unwrap();
    let (tail, _) = task.bind(&compressed.recipe, &compressed.ids).unwrap();
    let device = burn::tensor::Device::flex();
    let model = compressed.frozen(&device, DType::F32, 16, 1 << 30).unwrap();
    let branches = Branches::from_tail(&tail, &device, DType::F32).unwrap();
    // The last token of an example is predicted, not read.
    let example = Example { ids: [&ids[..], &[2]].concat(), first: 1 };
    let batch = Batch::new(&[&example], &model.recipe, &device, DType::F32);
    let plan = Plan::new(&model.recipe).unwrap();
    let pass = Pass { model: &model, branches: &branches, batch: &batch };
    let hidden = pass.last_hidden(&plan).unwrap();
    let expected = pass.logits(&plan, hidden).unwrap().try_into_vec_as::<f32>().unwrap();
    let error: f64 = actual.iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let power: f64 = expected.iter().map(|v| f64::from(*v).powi(2)).sum();
    println!("engine against trainer: NMSE {:.1e}", error / power);
    assert!(actual.len() == expected.len() && error / power < 1e-9, "{:.1e}", error / power);
}

#[test]
fn every_part_can_be_left_out() {
    let work = Work::new();
    let loss = |name: &str, edit: &dyn Fn(&mut AdaptJob)| {
        let mut job = work.adapt(name, 3);
        edit(&mut job);
        let report = adapt(&job, &mut |_| ()).unwrap();
        (report.trainable_parameters, report.heldout.unwrap())
    };
    let (all, whole) = loss("whole.safetensors", &|_| ());
    let (inherited, _) = loss("inherit.safetensors", &|job| {
        job.recovery = None;
        job.distill = LossWeights::default();
    });
    let (fresh, other) = loss("fresh.safetensors", &|job| job.inherit = false);
    assert_eq!(all, fresh);
    assert!(inherited < all);
    assert_ne!(whole.start.loss, other.start.loss, "a fresh LoRA begins elsewhere");
    let (linear, _) = loss("linear.safetensors", &|job| job.recovery = Some((Recovery::Linear, Some(4))));
    assert_eq!(linear, all);
    let (_, logits) = loss("logits.safetensors", &|job| {
        job.distill = LossWeights { hidden: 0.0, logits: 0.5 };
    });
    assert_ne!(logits.best.score.loss, whole.best.score.loss);
}

/// Linear recovery and LoRA fold into one plain LoRA with the same logits.
#[test]
fn linear_recovery_folds() {
    let work = Work::new();
    let mut job = work.adapt("linear.safetensors", 4);
    job.recovery = Some((Recovery::Linear, Some(4)));
    adapt(&job, &mut |_| ()).unwrap();
    let folded =
        AdaptJob { fold: true, out: work.path("folded"), run: work.path("folded.run"), ..job.clone() };
    adapt(&folded, &mut |_| ()).unwrap();
    let options = EngineOptions {
        device: DeviceChoice::Cpu,
        activations: calora::engine::ActivationChoice::F32,
        ..EngineOptions::default()
    };
    let engine = Engine::load(&job.compressed, options).unwrap();
    let logits = |path: &Path| {
        let adapter = engine.open_adapter(path).unwrap();
        engine.logits(&[1, 40, 50, 60, 70], &[(adapter, 1.0)]).unwrap()
    };
    let (a, b) = (logits(&job.out), logits(&folded.out));
    let error: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let power: f64 = a.iter().map(|v| f64::from(*v).powi(2)).sum();
    // The task file holds f16, the folded LoRA f32.
    assert!(error / power < 1e-6, "{:.1e}", error / power);
    let gelu = AdaptJob { recovery: Some((Recovery::Gelu, Some(4))), ..folded };
    assert!(adapt(&gelu, &mut |_| ()).unwrap_err().to_string().contains("--recovery linear"));
}

#[test]
fn bad_input_is_refused_with_its_place() {
    let work = Work::new();
    let fails = |edit: &dyn Fn(&mut AdaptJob)| {
        let mut job = work.adapt("refused.safetensors", 1);
        edit(&mut job);
        let error = format!("{:#}", adapt(&job, &mut |_| ()).unwrap_err());
        assert!(!job.out.exists(), "{error}");
        error
    };
    std::fs::write(work.path("bad.jsonl"), "{\"prompt\": \"a\", \"completion\": \"b\"}\nnonsense\n").unwrap();
    let error = fails(&|job| job.data = work.path("bad.jsonl"));
    assert!(error.contains("bad.jsonl") && error.contains("line 2"), "{error}");
    std::fs::write(work.path("empty.jsonl"), "\n").unwrap();
    assert!(fails(&|job| job.heldout = Some(work.path("empty.jsonl"))).contains("no rows"));
    let error = fails(&|job| job.options.max_length = 2);
    assert!(error.contains("--max-length"), "{error}");
    // A LoRA of another shape, and of a module that is not there.
    let other = models("../tests/golden/gqa/adapters/all");
    let error = fails(&|job| job.lora = Some(other.clone()));
    assert!(error.contains("shape") || error.contains("does not have"), "{error}");
    // A base that is not this one, a compressed folder that is no compression of it.
    let error = fails(&|job| job.base = job.compressed.clone());
    assert!(error.contains("compressed itself"), "{error}");
    let error = fails(&|job| job.compressed = models("../tests/golden/plain"));
    assert!(error.contains("golden"), "{error}");
    assert!(fails(&|job| job.recovery = Some((Recovery::Gelu, Some(0)))).contains("--recovery-rank"));
    assert!(
        fails(&|job| {
            job.recovery = None;
            job.lora = None;
        })
        .contains("nothing to train")
    );
}
