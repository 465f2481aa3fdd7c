//! Compressed folders as they are read again: schemes, errors, ids, companions, and what is refused.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use calora::quant::{Bits, Group, Scheme};
use calora::weights::{Matrix, ModelFolder, SafetensorsFile, Storage};
use calora::{Error, arch};
use calora_models::compress::{CompressOptions, CompressReport, Head, Method, compress};
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// A copy that may be written, with the ids that it was given.
fn source(name: &str) -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("src")).unwrap();
    for entry in fs::read_dir(golden(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::write(temp.path().join("src").join(path.file_name().unwrap()), fs::read(&path).unwrap())
                .unwrap();
        }
    }
    temp
}

fn run(temp: &Path, options: &CompressOptions) -> calora::Result<CompressReport> {
    compress(&temp.join("src"), &temp.join("out"), options, |_, _| ())
}

/// All matrices of a folder by path.
fn matrices(path: &Path) -> BTreeMap<String, Matrix> {
    let folder = ModelFolder::open(path).unwrap();
    let recipe = arch::recipe(folder.config(), folder.config_path()).unwrap();
    let weights = folder.weights(&recipe).unwrap();
    recipe.matrices.into_iter().map(|m| m.path).zip(weights.matrices).collect()
}

fn scheme(matrix: &Matrix) -> Option<Scheme> {
    match &matrix.storage {
        Storage::Packed { scheme, .. } => Some(*scheme),
        Storage::Dense(_) => None,
    }
}

fn relative_error(a: &Matrix, b: &Matrix) -> f64 {
    let (a, b) = (a.to_f32().unwrap(), b.to_f32().unwrap());
    let error: f64 = a.iter().zip(&b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    error / b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()
}

#[test]
fn every_scheme_reads_back_near_its_source() {
    // (bits, group, symmetric, bound): normal weights measured 6.9e-3, 8.6e-3 and 1.0e-2 at int4 in groups of 32, 64 and
    // 128, 2.6e-5 to 5e-5 at int8; an integer or scale out of place gives 1e-1 and more.
    for (name, widths) in [("wide", 256), ("gqa", 64)] {
        let temp = source(name);
        let original = matrices(&temp.path().join("src"));
        for bits in [Bits::Int4, Bits::Int8] {
            for group in [Some(32), Some(64), Some(128), None] {
                for symmetric in [true, false] {
                    let mut options = CompressOptions::new(bits, group);
                    options.scheme.symmetric = symmetric;
                    let report = run(temp.path(), &options).unwrap();
                    let back = matrices(&temp.path().join("out"));
                    let (mut packed, mut odd) = (0, 0);
                    for (path, matrix) in &back {
                        let before = &original[path];
                        let Some(stored) = scheme(matrix) else {
                            assert_eq!(matrix.to_f32().unwrap(), before.to_f32().unwrap(), "{path}");
                            continue;
                        };
                        packed += 1;
                        let fits = options.scheme.check(matrix.cols).is_ok();
                        odd += usize::from(!fits);
                        let group = if fits { options.scheme.group } else { Group::Channel };
                        assert_eq!(stored, Scheme { group, ..options.scheme }, "{path}");
                        let error = relative_error(matrix, before);
                        let bound = if bits == Bits::Int4 { 2e-2 } else { 1e-4 };
                        assert!(error > 0.0 && error < bound, "{name} {stored} {path}: {error}");
                    }
                    assert_eq!((packed, odd), (report.linears.len(), report.per_channel.len()));
                    assert_eq!(report.kept, ["lm_head"]);
                    assert!(packed > 0 && report.bytes < report.source_bytes);
                    let bound = if bits == Bits::Int4 { 2e-2 } else { 1e-4 };
                    assert!(report.relative_error > 0.0 && report.relative_error < bound);
                    fs::remove_dir_all(temp.path().join("out")).unwrap();
                }
            }
        }
        assert!(original.values().any(|m| m.cols == widths));
    }
}

#[test]
fn widths_that_no_group_divides_are_named_by_path() {
    let temp = source("gqa");
    let report = run(temp.path(), &CompressOptions::new(Bits::Int4, Some(32))).unwrap();
    let down = report.per_channel.iter().all(|path| path.ends_with("mlp.down_proj"));
    assert!(down && !report.per_channel.is_empty(), "{:?}", report.per_channel);
    let config: Value =
        serde_json::from_slice(&fs::read(temp.path().join("out/config.json")).unwrap()).unwrap();
    let groups = config["quantization_config"]["config_groups"].as_object().unwrap();
    let channel = groups.values().find(|g| g["weights"]["strategy"] == "channel").unwrap();
    assert_eq!(channel["targets"], serde_json::json!(report.per_channel));
    assert!(channel["weights"]["group_size"].is_null());
}

#[test]
fn ids_of_source_and_result_are_recorded_and_true() {
    let temp = source("plain");
    let report = run(temp.path(), &CompressOptions::new(Bits::Int8, Some(32))).unwrap();
    let src = ModelFolder::open(temp.path().join("src")).unwrap();
    let out = ModelFolder::open(temp.path().join("out")).unwrap();
    assert_eq!(report.ids.source, Some(src.computed_id(&|_, _| ()).unwrap()));
    assert_eq!(report.ids.compressed, Some(out.computed_id(&|_, _| ()).unwrap()));
    assert_ne!(report.ids.source, report.ids.compressed);
    assert_eq!(out.ids().unwrap(), report.ids);
    // Recorded, so nothing was computed and kept.
    assert!(!temp.path().join("out/.calora-id.json").exists());

    // The scheme was edited after the fact: the record no longer counts, and the source is unknown.
    let path = temp.path().join("out/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["rms_norm_eps"] = serde_json::json!(0.5);
    fs::write(&path, config.to_string()).unwrap();
    let edited = ModelFolder::open(temp.path().join("out")).unwrap().ids().unwrap();
    assert!(edited.source.is_none() && edited.compressed != report.ids.compressed);
}

#[test]
fn the_same_source_gives_the_same_bytes() {
    let temp = source("wide");
    let options = CompressOptions::new(Bits::Int4, Some(64));
    let bytes = || {
        run(temp.path(), &options).unwrap();
        let bytes = fs::read(temp.path().join("out/model.safetensors")).unwrap();
        fs::remove_dir_all(temp.path().join("out")).unwrap();
        bytes
    };
    assert!(bytes() == bytes(), "two runs differ");
}

#[test]
fn tensors_can_be_used_in_place() {
    let temp = source("gqa");
    let mut options = CompressOptions::new(Bits::Int4, Some(32));
    options.scheme.symmetric = false;
    run(temp.path(), &options).unwrap();
    let file = SafetensorsFile::open(temp.path().join("out/model.safetensors")).unwrap();
    for name in file.names() {
        let tensor = file.tensor(name).unwrap();
        assert_eq!(tensor.bytes().as_ptr() as usize % tensor.dtype.size(), 0, "{name} is not aligned");
    }
}

#[test]
fn ignored_modules_and_the_head() {
    let temp = source("wide");
    let out = temp.path().join("out");
    let mut options = CompressOptions::new(Bits::Int4, Some(32));
    options.ignore =
        vec!["down_proj".into(), "model.layers.0.self_attn.q_proj".into(), "re:.*layers\\.1\\.mlp".into()];
    options.head = Head::Int8;
    let report = run(temp.path(), &options).unwrap();
    for (path, matrix) in matrices(&out) {
        let kept = path.ends_with("down_proj")
            || path == "model.layers.0.self_attn.q_proj"
            || path.starts_with("model.layers.1.mlp")
            || path == "model.embed_tokens";
        let expected = match path.as_str() {
            _ if kept => None,
            "lm_head" => Some(Scheme { bits: Bits::Int8, ..options.scheme }),
            _ => Some(options.scheme),
        };
        assert_eq!(scheme(&matrix), expected, "{path}");
    }
    assert!(report.kept.iter().any(|path| path.ends_with("0.mlp.down_proj")));
}

#[test]
fn a_tied_head_in_int8_serves_as_embedding() {
    let temp = source("tied");
    let mut options = CompressOptions::new(Bits::Int4, Some(32));
    options.head = Head::Int8;
    run(temp.path(), &options).unwrap();
    let before = matrices(&temp.path().join("src"));
    let after = matrices(&temp.path().join("out"));
    let embedding = &after["model.embed_tokens"];
    assert_eq!(scheme(embedding).map(|s| s.bits), Some(Bits::Int8));
    assert!(relative_error(embedding, &before["model.embed_tokens"]) < 1e-4);
}

#[test]
fn companions_come_along_and_others_stay() {
    let temp = source("wide");
    let src = temp.path().join("src");
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "LICENSE",
    ] {
        fs::write(src.join(name), format!("{{\"{name}\": 1}}")).unwrap();
    }
    fs::write(src.join("optimizer.pt"), "x").unwrap();
    let mut read_only = fs::metadata(src.join("LICENSE")).unwrap().permissions();
    read_only.set_readonly(true);
    fs::set_permissions(src.join("LICENSE"), read_only).unwrap();
    run(temp.path(), &CompressOptions::new(Bits::Int4, Some(32))).unwrap();
    let mut names: Vec<String> = fs::read_dir(temp.path().join("out"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, expected);
    assert!(!fs::metadata(temp.path().join("out/LICENSE")).unwrap().permissions().readonly());
}

/// What stands beside the source and the result; nothing half-written may.
fn left(temp: &Path) -> Vec<String> {
    let entries = fs::read_dir(temp).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    entries.filter(|name| name != "src").collect()
}

#[test]
fn what_cannot_work_is_refused_and_leaves_nothing() {
    let temp = source("wide");
    let good = CompressOptions::new(Bits::Int4, Some(32));
    let refused = |options: &CompressOptions, word: &str| {
        let error = run(temp.path(), options).unwrap_err();
        assert!(error.to_string().contains(word), "expected {word}: {error}");
        assert!(left(temp.path()).is_empty(), "{:?}", left(temp.path()));
    };
    refused(&CompressOptions::new(Bits::Int4, Some(48)), "multiple of 32");
    refused(&CompressOptions::new(Bits::Int4, Some(0)), "multiple of 32");
    refused(&CompressOptions { ignore: vec!["dwon_proj".into()], ..good.clone() }, "dwon_proj");
    refused(&CompressOptions { ignore: vec!["re:(".into()], ..good.clone() }, "pattern");
    refused(&CompressOptions { ignore: vec!["re:.*".into()], ..good.clone() }, "nothing to compress");

    // An occupied place stays as it is.
    let out = temp.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("precious"), "x").unwrap();
    assert!(matches!(run(temp.path(), &good), Err(Error::InvalidOption { .. })));
    assert_eq!(left(temp.path()), ["out"]);
    fs::remove_file(out.join("precious")).unwrap();
    // An empty folder is a place; a compressed one is no source.
    run(temp.path(), &good).unwrap();
    let error = compress(&out, &temp.path().join("again"), &good, |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("already"), "{error}");
    assert_eq!(left(temp.path()), ["out"]);
}

#[test]
fn weights_that_are_not_numbers_are_named() {
    let temp = source("gqa");
    let path = temp.path().join("src/model.safetensors");
    let name = "model.layers.0.mlp.down_proj.weight";
    let at = {
        let file = SafetensorsFile::open(&path).unwrap();
        let first = file.names().next().unwrap().to_owned();
        let start = file.raw(&first).unwrap().2.as_ptr() as usize;
        file.raw(name).unwrap().2.as_ptr() as usize - start
    };
    let mut bytes = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[header + at + 8..header + at + 12].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let error = run(temp.path(), &CompressOptions::new(Bits::Int4, Some(32))).unwrap_err();
    assert!(error.to_string().contains(name) && error.to_string().contains("element 2 is NaN"), "{error}");
    assert!(left(temp.path()).is_empty());
}

#[test]
fn progress_reaches_its_total() {
    let temp = source("wide");
    let last = std::sync::Mutex::new((0, 0));
    let options = CompressOptions::new(Bits::Int4, Some(32));
    compress(&temp.path().join("src"), &temp.path().join("out"), &options, |done, total| {
        let mut last = last.lock().unwrap();
        assert!(done <= total);
        *last = (last.0.max(done), total);
    })
    .unwrap();
    let (done, total) = last.into_inner().unwrap();
    assert!(total > 0 && done == total, "{done} of {total}");
}

/// Where other people's checkpoints are; says what is left out without them.
fn checkpoint(name: &str) -> Option<PathBuf> {
    let data = std::env::var_os("CALORA_TEST_DATA").map(|data| PathBuf::from(data).join("models").join(name));
    if data.is_none() {
        eprintln!("CALORA_TEST_DATA is not set: {name} is left out");
    }
    data
}

/// Calibration sequences of a text that the checkpoints were not trained on.
fn calibration(model: &Path, text: &str) -> Vec<Vec<u32>> {
    let config = calora::text::TokenizerConfig::load(model).unwrap();
    let tokenizer = calora::text::Tokenizer::load(model, &config).unwrap();
    let rows = [calora_models::rows::Row::Text { text: text.to_owned() }];
    calora_models::calibrate::sequences(&tokenizer, &rows, 256).unwrap()
}

#[test]
fn gptq_moves_outputs_less_than_rounding_does() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("base");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(|name| fs::read_to_string(root.join(name)));
    let text = text.map(Result::unwrap).concat();
    let mut models = vec![(base, text)];
    for name in ["tinystories-656k", "stories260k"] {
        let Some(folder) = checkpoint(name) else { break };
        let stories = folder.join("../../text/tinystories-mini.txt");
        models.push((folder, fs::read_to_string(stories).unwrap()));
    }
    for (model, text) in models {
        let mut calibration = calibration(&model, &text);
        calibration.truncate(6);
        for (bits, group) in [(Bits::Int4, Some(32)), (Bits::Int3, Some(64)), (Bits::Int2, None)] {
            let errors = [Method::Rtn, Method::Gptq].map(|method| {
                let temp = tempfile::tempdir().unwrap();
                let mut options = CompressOptions::new(bits, group);
                options.method = method;
                options.calibration = calibration.clone();
                let report = compress(&model, &temp.path().join("out"), &options, |_, _| ()).unwrap();
                let errors = report.linears.iter().filter_map(|l| Some((l.path.clone(), l.output_error?)));
                let errors: BTreeMap<String, f64> = errors.collect();
                assert_eq!(errors.len(), report.linears.len());
                // What the report says of the weights is what is in the folder.
                let (before, after) = (matrices(&model), matrices(&temp.path().join("out")));
                for linear in &report.linears {
                    let found = relative_error(&after[&linear.path], &before[&linear.path]);
                    let said = linear.relative_error;
                    assert!((found / said - 1.0).abs() < 1e-3, "{}: {found} and {said}", linear.path);
                    assert_eq!(linear.scheme, scheme(&after[&linear.path]).unwrap());
                }
                errors
            });
            let [rtn, gptq] = errors;
            let mean = |errors: &BTreeMap<String, f64>| errors.values().sum::<f64>() / errors.len() as f64;
            let ratio = mean(&gptq) / mean(&rtn);
            // Measured 0.34 to 0.39 (base), 0.53 to 0.57, 0.66 to 0.69; feedback of the wrong sign or order gives more than 1.
            assert!(ratio < 0.8, "{} {bits:?} {group:?}: {ratio}", model.display());
        }
    }
}

#[test]
fn what_a_model_samples_calibrates_it() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("base");
    let options =
        calora::engine::EngineOptions { device: calora::engine::DeviceChoice::Cpu, ..Default::default() };
    let engine = calora::engine::Engine::load(&base, options).unwrap();
    let sample = || calora_models::calibrate::sampled(&engine, 1, 1000, 200, |_| ()).unwrap();
    let sequences = sample();
    assert_eq!(sequences, sample());
    assert!((1000..1010).contains(&sequences.iter().map(Vec::len).sum::<usize>()));
    assert!(sequences.iter().all(|ids| ids[0] == 1 && ids.len() <= 200));
    let distinct: std::collections::BTreeSet<_> = sequences.concat().into_iter().collect();
    assert!(distinct.len() > 150, "{} distinct tokens: this is no text", distinct.len());
}

#[test]
fn exceptions_get_their_own_bits() {
    let temp = source("wide");
    let mut options = CompressOptions::new(Bits::Int4, Some(32));
    options.exceptions =
        vec![("model.layers.0.mlp.gate_proj".into(), Bits::Int8), ("gate_proj".into(), Bits::Int2)];
    let report = run(temp.path(), &options).unwrap();
    for (path, matrix) in matrices(&temp.path().join("out")) {
        let Some(found) = scheme(&matrix) else { continue };
        let bits = match path.as_str() {
            "model.layers.0.mlp.gate_proj" => Bits::Int8,
            _ if path.ends_with("gate_proj") => Bits::Int2,
            _ => Bits::Int4,
        };
        assert_eq!(found, Scheme { bits, ..options.scheme }, "{path}");
    }
    // Sizes by hand: bits of the weight, 16 bits of a scale a group of 32, 16 bytes of shape a linear.
    let bytes: u64 =
        report.linears.iter().map(|l| l.weights * (2 * l.scheme.bits.count() as u64 + 1) / 16 + 16).sum();
    assert_eq!(report.linears.iter().map(|l| l.bytes).sum::<u64>(), bytes);
    let weights: u64 = report.linears.iter().map(|l| l.weights).sum();
    assert!((report.bits_per_weight() - 8.0 * bytes as f64 / weights as f64).abs() < 1e-9);
    let file = SafetensorsFile::open(temp.path().join("out/model.safetensors")).unwrap();
    let all: u64 = file.names().map(|name| file.raw(name).unwrap().2.len() as u64).sum();
    assert_eq!(report.bytes, all);
    assert!((report.bits_per_parameter() - 8.0 * all as f64 / report.parameters as f64).abs() < 1e-9);
}

#[test]
fn calibration_that_cannot_work_is_refused() {
    let temp = source("gqa");
    let refused = |calibration: Vec<Vec<u32>>, damping: f64, word: &str| {
        let mut options = CompressOptions::new(Bits::Int4, Some(32));
        (options.method, options.calibration, options.damping) = (Method::Gptq, calibration, damping);
        let error = run(temp.path(), &options).unwrap_err().to_string();
        assert!(error.contains(word), "expected {word}: {error}");
        assert!(left(temp.path()).is_empty(), "{:?}", left(temp.path()));
    };
    let enough: Vec<Vec<u32>> = (0..4).map(|s| (0..100).map(|t| (t * 7 + s * 31) % 128).collect()).collect();
    refused(Vec::new(), 0.01, "calibration");
    refused(vec![enough[0].clone()], 0.01, "as many tokens as the widest linear has inputs, 112");
    refused(enough.clone(), 0.0, "damping");
    refused(enough.clone(), f64::NAN, "damping");
    refused(vec![vec![128; 120]], 0.01, "128");
    refused(vec![vec![1; 129]], 0.01, "129");
    // One token all over: its moments have rank one, which damping repairs or, too small, does not.
    refused(vec![vec![5; 112]], 1e-300, "not positive definite");
}
