//! Packing PEFT LoRAs into task files: the logits stay, several become their weighted sum.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use calora::adapter::{BranchStorage, Tail, TaskAdapter};
use calora::arch;
use calora::cpu::{CpuDevice, CpuOptions};
use calora::device::{Activations, Answer, Device, Forward, Model, Want};
use calora::weights::{BaseIds, ModelFolder};
use calora_models::pack::{PackOptions, pack};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(path)
}

fn model() -> Model {
    let folder = ModelFolder::open(golden("gqa")).unwrap();
    let recipe = arch::recipe(folder.config(), &golden("gqa/config.json")).unwrap();
    let weights = folder.weights(&recipe).unwrap();
    Model { recipe: Arc::new(recipe), weights: Arc::new(weights) }
}

fn logits(model: &Model, tail: &Tail) -> Vec<f32> {
    scaled_logits(model, &[tail], &[1.0])
}

fn scaled_logits(model: &Model, tails: &[&Tail], scales: &[f32]) -> Vec<f32> {
    let options = CpuOptions { threads: Some(2), activations: Activations::F32, max_tokens: 64, simd: None };
    let mut device = CpuDevice::new(model, options).unwrap();
    let ids: Vec<u32> = (0..20).map(|i| i * 5 % 128).collect();
    let cache = device.create_cache(32).unwrap();
    let tail = Some(device.load_tails(tails).unwrap());
    let pass = Forward { tokens: &ids, position: 0, cache, tail, scales, want: Want::AllLogits };
    let Answer::Logits(logits) = device.forward(&pass).unwrap() else { panic!("no logits") };
    logits
}

fn nmse(a: &[f32], b: &[f32]) -> f64 {
    let error: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    error / b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()
}

fn options(weights: &[f32], storage: BranchStorage) -> PackOptions {
    PackOptions { name: None, weights: weights.to_vec(), storage }
}

#[test]
fn one_adapter_keeps_its_logits() {
    let model = model();
    let ids = BaseIds { source: Some("blake3:s".into()), compressed: None };
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("t.safetensors");
    // f16 rounds the f32 branches of this adapter once; int8 rows keep about 7 bits.
    for (storage, limit) in [(BranchStorage::F16, 1e-6), (BranchStorage::Int8, 1e-3)] {
        let adapter = TaskAdapter::open(golden("gqa/adapters/rank_pattern")).unwrap();
        let expected = logits(&model, &adapter.bind(&model.recipe, &ids).unwrap().0);
        let coverage = pack(&[adapter], &model.recipe, &ids, &out, &options(&[], storage)).unwrap();
        assert_eq!(coverage.touched.len(), 21);
        let packed = TaskAdapter::open(&out).unwrap();
        assert_eq!(packed.info().base.as_deref(), Some("blake3:s"));
        let error = nmse(&logits(&model, &packed.bind(&model.recipe, &ids).unwrap().0), &expected);
        assert!(error <= limit, "{storage:?}: {error:.1e}");
    }
}

#[test]
fn several_adapters_are_their_weighted_sum() {
    let (model, ids) = (model(), BaseIds::default());
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("t.safetensors");
    let adapters =
        ["all", "lora", "rank_pattern"].map(|n| TaskAdapter::open(golden("gqa/adapters").join(n)).unwrap());
    let weights = [0.5, -1.0, 0.25];
    let tails = adapters.clone().map(|a| a.bind(&model.recipe, &ids).unwrap().0);
    let expected = scaled_logits(&model, &tails.each_ref(), &weights);
    pack(&adapters, &model.recipe, &ids, &out, &options(&weights, BranchStorage::F16)).unwrap();
    let packed = TaskAdapter::open(&out).unwrap().bind(&model.recipe, &ids).unwrap().0;
    let error = nmse(&logits(&model, &packed), &expected);
    assert!(error <= 1e-6, "{error:.1e}");
    let error = pack(&adapters, &model.recipe, &ids, &out, &options(&[1.0], BranchStorage::F16)).unwrap_err();
    assert!(error.to_string().contains("1 weights for 3 adapters"), "{error}");
}
