//! Model folders as they are read: other people's files against independent values, shards, ties, ids and their cache.
#![allow(clippy::excessive_precision, clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use calora::arch::{self, MatrixSpec};
use calora::quant::{Bits, Group, Scheme};
use calora::weights::{BaseIds, ModelFolder, SafetensorsFile, Shards, Storage};
use common::test_data;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_owned();
        if path.is_file() && name != ".calora-id.json" {
            // Not fs::copy: the permissions of read-only data would come along.
            fs::write(to.join(name), fs::read(&path).unwrap()).unwrap();
        }
    }
}

/// Unpacked in float64 from the raw tensors, sharing no code with the library but the container.
fn unpacked(file: &SafetensorsFile, module: &str, bits: usize, symmetric: bool) -> Vec<f64> {
    let raw = |kind: &str| file.raw(&format!("{module}.{kind}")).unwrap();
    let words = |kind: &str| -> Vec<u32> {
        raw(kind).2.chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let (packed, shape, scale_shape) = (words("weight_packed"), raw("weight_shape").2, raw("weight_scale").1);
    let scales: Vec<f64> = words("weight_scale").iter().map(|w| f64::from(f32::from_bits(*w))).collect();
    let dim = |i: usize| i64::from_le_bytes(shape[i * 8..i * 8 + 8].try_into().unwrap()) as usize;
    let (rows, cols, groups, per) = (dim(0), dim(1), scale_shape[1], 32 / bits);
    // The i-th integer of a run that starts at word `at` and goes on every `step` words.
    let integer = |words: &[u32], at: usize, step: usize, i: usize| {
        f64::from((words[at + i / per * step] >> (i % per * bits)) & ((1 << bits) - 1))
    };
    let zeros = (!symmetric).then(|| words("weight_zero_point"));
    let mut out = Vec::new();
    for r in 0..rows {
        for k in 0..cols {
            let g = k / (cols / groups);
            let zero = match &zeros {
                Some(z) => integer(z, g, groups, r),
                None => f64::from(1 << (bits - 1)),
            };
            let q = integer(&packed, r * cols.div_ceil(per), 1, k);
            out.push((q - zero) * scales[r * groups + g]);
        }
    }
    out
}

/// What compressed-tensors 0.20 decompresses (`PackedQuantizationCompressor.decompress`): sum, sum of squares, and the
/// elements 0, 1, 33 and the last of two matrices of each folder.
type Expected = (&'static str, &'static str, f64, f64, [f32; 4]);
const DOWN: &str = "model.layers.0.mlp.down_proj";
const KEY: &str = "model.layers.1.self_attn.k_proj";
const DECOMPRESSED: &[Expected] = &[
    (
        "int4-sym",
        DOWN,
        -11.646018298342824,
        91.62638992005779,
        [0.062098954, 0.062098954, 0.12407098, -0.030132378],
    ),
    ("int4-sym", KEY, 2.6346173770725727, 46.74085049940196, [0.082961455, -0.041480727, -0.15080185, 0.0]),
    (
        "int8-sym",
        DOWN,
        -8.061722921556793,
        91.22322693190195,
        [0.049313873, 0.047487434, 0.11312354, -0.023042407],
    ),
    (
        "int8-sym",
        KEY,
        4.354428416467272,
        46.45584527983763,
        [0.0683212, -0.029280514, -0.13527812, 0.012370507],
    ),
    (
        "int4-asym",
        DOWN,
        -8.454523837193847,
        91.78583690434375,
        [0.052074775, 0.052074775, 0.11634137, -0.02468446],
    ),
    ("int4-asym", KEY, 4.569628128781915, 46.87758649485685, [0.06870296, -0.03435148, -0.14056721, 0.0]),
];

#[test]
fn compressed_tensors_folders_read_as_their_writer_reads_them() {
    let Some(data) = test_data("compressed-tensors folders") else { return };
    for (kind, bits, symmetric) in
        [("int4-sym", Bits::Int4, true), ("int8-sym", Bits::Int8, true), ("int4-asym", Bits::Int4, false)]
    {
        let path = data.join(format!("formats/compressed-tensors-{kind}"));
        let folder = ModelFolder::open(&path).unwrap();
        let recipe = arch::recipe(folder.config(), folder.config_path()).unwrap();
        let weights = folder.weights(&recipe).unwrap();
        let file = SafetensorsFile::open(path.join("model.safetensors")).unwrap();
        let mut packed = 0;
        for (spec, matrix) in recipe.matrices.iter().zip(&weights.matrices) {
            let Storage::Packed { scheme, .. } = &matrix.storage else { continue };
            packed += 1;
            assert_eq!(*scheme, Scheme { bits, group: Group::Size(32), symmetric }, "{kind} {}", spec.path);
            let expected = unpacked(&file, &spec.path, bits.count(), symmetric);
            for (a, b) in matrix.to_f32().unwrap().iter().zip(&expected) {
                // One rounding of the product.
                assert!((f64::from(*a) - b).abs() <= b.abs() * 6e-8, "{kind} {}: {a} is not {b}", spec.path);
            }
        }
        assert_eq!(packed, 14, "{kind}");
        for (_, module, sum, squares, elements) in DECOMPRESSED.iter().filter(|e| e.0 == kind) {
            let at = recipe.matrices.iter().position(|m| m.path == *module).unwrap();
            let values = weights.matrices[at].to_f32().unwrap();
            let close =
                |a: f64, b: f64| assert!((a - b).abs() < 1e-9 * b.abs().max(1.0), "{kind} {module}: {a} {b}");
            close(values.iter().map(|v| f64::from(*v)).sum(), *sum);
            close(values.iter().map(|v| f64::from(*v).powi(2)).sum(), *squares);
            assert_eq!(
                [values[0], values[1], values[33], values[values.len() - 1]],
                *elements,
                "{kind} {module}"
            );
        }
    }
}

#[test]
fn real_checkpoints_open_in_either_spelling_of_tied_embeddings() {
    let Some(data) = test_data("the two trained checkpoints") else { return };
    for (name, stored) in [("tinystories-656k", "lm_head"), ("stories260k", "model.embed_tokens")] {
        let folder = ModelFolder::open(data.join("models").join(name)).unwrap();
        let recipe = arch::recipe(folder.config(), folder.config_path()).unwrap();
        assert_eq!(folder.stored_path(&recipe.matrices[0]), stored);
        let weights = folder.weights(&recipe).unwrap();
        let tensor = folder.tensors().require(&format!("{stored}.weight")).unwrap();
        assert_eq!(weights.matrices[0].to_f32().unwrap(), tensor.to_f32().unwrap());
        assert_eq!(weights.matrices.len(), recipe.matrices.len());
        assert!(weights.vectors.iter().flatten().any(|v| *v != 1.0));
    }
}

#[test]
fn shards_are_one_name_space() {
    let folder = ModelFolder::open(golden("plain")).unwrap();
    assert_eq!(folder.tensors().files().len(), 3);
    let recipe = arch::recipe(folder.config(), folder.config_path()).unwrap();
    assert_eq!(folder.weights(&recipe).unwrap().matrices.len(), recipe.matrices.len());
    let names: Vec<&str> = folder.tensors().names().collect();
    assert!(names.is_sorted() && names.len() > 10);
}

#[test]
fn a_missing_tensor_names_its_neighbours() {
    let folder = ModelFolder::open(golden("gqa")).unwrap();
    let spec = |path: &str| MatrixSpec { path: path.into(), alias: None, rows: 1, cols: 1 };
    let error = folder.matrix(&spec("layers.0.mlp.down_proj")).unwrap_err().to_string();
    assert!(error.contains("nearest") && error.contains("model.layers.0.mlp.down_proj.weight"), "{error}");
    let error = folder.matrix(&spec("model.layers.0.mlp.down_proj")).unwrap_err().to_string();
    assert!(error.contains("expected [1, 1]"), "{error}");
}

/// Rewrites the tensors of a folder into one file, in reverse order.
fn merged(from: &Path, to: &Path) {
    let shards = Shards::open(from).unwrap();
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for name in shards.names().collect::<Vec<_>>().into_iter().rev() {
        let (dtype, shape, bytes) = shards.raw(name).unwrap();
        let range = [data.len(), data.len() + bytes.len()];
        header
            .insert(name.into(), serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": range}));
        data.extend_from_slice(bytes);
    }
    let text = serde_json::Value::Object(header).to_string();
    fs::create_dir_all(to).unwrap();
    let file = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &data].concat();
    fs::write(to.join("model.safetensors"), file).unwrap();
    fs::write(to.join("config.json"), fs::read(from.join("config.json")).unwrap()).unwrap();
}

#[test]
fn an_id_is_of_the_content_and_not_of_the_files() {
    let temp = tempfile::tempdir().unwrap();
    let (one, two) = (temp.path().join("one"), temp.path().join("two"));
    merged(&golden("plain"), &one);
    let computed = |path: &Path| ModelFolder::open(path).unwrap().computed_id(&|_, _| ()).unwrap();
    assert_eq!(computed(&golden("plain")), computed(&one));
    copy(&one, &two);

    // One bit of one weight, and one field of the configuration.
    let path = two.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_ne!(computed(&one), computed(&two));
    let config = fs::read_to_string(one.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["rms_norm_eps"] = serde_json::json!(0.25);
    fs::write(one.join("config.json"), config.to_string()).unwrap();
    assert_ne!(computed(&golden("plain")), computed(&one));
}

#[test]
fn ids_are_kept_and_a_changed_or_damaged_entry_is_void() {
    let temp = tempfile::tempdir().unwrap();
    copy(&golden("gqa"), temp.path());
    let ids = || ModelFolder::open(temp.path()).unwrap().ids().unwrap();
    let first = ids();
    let id = first.source.clone().unwrap();
    assert!(first.compressed.is_none() && calora::weights::id::is_id(&id));
    let kept = temp.path().join(".calora-id.json");
    let entry = fs::read_to_string(&kept).unwrap();

    // It is really read: another id in it comes back.
    let forged = format!("blake3:{}", "ab".repeat(32));
    fs::write(&kept, entry.replace(&id, &forged)).unwrap();
    assert_eq!(ids().source.unwrap(), forged);
    for damage in ["", "{", "[]", "{\"id\": 3}", "{\"id\": \"blake3:00\"}", "\u{0}\u{1}"] {
        fs::write(&kept, damage).unwrap();
        assert_eq!(ids(), first, "{damage}");
        assert_eq!(fs::read_to_string(&kept).unwrap(), entry, "{damage}");
    }
    // A weight changed: the entry is for other files.
    let path = temp.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, &bytes).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_ne!(ids(), first);
    assert!(
        fs::read_dir(temp.path()).unwrap().all(|e| !e
            .unwrap()
            .path()
            .to_string_lossy()
            .ends_with(".partial"))
    );
}

#[test]
fn progress_of_an_id_reaches_its_total() {
    let temp = tempfile::tempdir().unwrap();
    copy(&golden("wide"), temp.path());
    let seen = std::sync::Mutex::new(Vec::new());
    let folder = ModelFolder::open(temp.path()).unwrap();
    folder.ids_with(&|done, total| seen.lock().unwrap().push((done, total))).unwrap();
    let seen = seen.into_inner().unwrap();
    let total = seen[0].1;
    assert!(total > 100_000 && seen.iter().all(|(done, t)| *t == total && *done <= total));
    assert_eq!(seen.iter().map(|(done, _)| *done).max(), Some(total));
}

#[test]
fn a_foreign_compressed_folder_has_a_compressed_id_only() {
    let Some(data) = test_data("ids of compressed-tensors folders") else { return };
    let ids = ["int4-sym", "int8-sym", "int4-asym"].map(|kind| {
        ModelFolder::open(data.join(format!("formats/compressed-tensors-{kind}"))).unwrap().ids().unwrap()
    });
    for BaseIds { source, compressed } in &ids {
        assert!(source.is_none() && compressed.is_some());
    }
    assert_ne!(ids[0], ids[1]);
    assert_ne!(ids[0], ids[2]);
}
