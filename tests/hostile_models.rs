//! Damaged and hostile model folders: each a typed error that names the file and the cause, and never a panic.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use calora::arch;
use calora::device::Weights;
use calora::weights::{ModelFolder, SafetensorsFile};
use calora::{Error, Result};
use common::{Random, test_data};
use serde_json::{Value, json};

/// A tensor of a file to be written: name, type, shape, bytes.
type Part = (String, String, Vec<usize>, Vec<u8>);

fn floats(name: &str, shape: &[usize], rng: &mut Random) -> Part {
    let values = rng.normals(shape.iter().product(), 0.1);
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    (name.into(), "F32".into(), shape.to_vec(), bytes)
}

fn words(name: String, shape: &[usize], rng: &mut Random) -> Part {
    let count: usize = shape.iter().product();
    let bytes = (0..count).flat_map(|_| (rng.next() as u32).to_le_bytes()).collect();
    (name, "I32".into(), shape.to_vec(), bytes)
}

/// A one-layer Llama whose linears are int4 in groups of 32.
fn config() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 16, "max_position_embeddings": 64, "tie_word_embeddings": true,
        "quantization_config": {
            "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
                "num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32}}}}
    })
}

const LAYER: &str = "model.layers.0";

fn parts() -> Vec<Part> {
    let mut rng = Random(3);
    let mut parts = vec![floats("model.embed_tokens.weight", &[16, 32], &mut rng)];
    for norm in ["model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"] {
        parts.push(floats(&format!("{norm}.weight"), &[32], &mut rng));
    }
    for (name, rows, cols) in [
        ("self_attn.q_proj", 32, 32),
        ("self_attn.k_proj", 32, 32),
        ("self_attn.v_proj", 32, 32),
        ("self_attn.o_proj", 32, 32),
        ("mlp.gate_proj", 64, 32),
        ("mlp.up_proj", 64, 32),
        ("mlp.down_proj", 32, 64usize),
    ] {
        let module = format!("{LAYER}.{name}");
        parts.push(words(format!("{module}.weight_packed"), &[rows, cols / 8], &mut rng));
        parts.push(floats(&format!("{module}.weight_scale"), &[rows, cols / 32], &mut rng));
        let shape = [rows as i64, cols as i64].iter().flat_map(|v| v.to_le_bytes()).collect();
        parts.push((format!("{module}.weight_shape"), "I64".into(), vec![2], shape));
    }
    parts
}

/// A safetensors file; `header` may spoil the header before it is written.
fn safetensors(parts: &[Part], header: impl Fn(&mut Value)) -> Vec<u8> {
    let mut map = json!({"__metadata__": {"format": "pt"}});
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in parts {
        let range = [data.len(), data.len() + bytes.len()];
        map[name] = json!({"dtype": dtype, "shape": shape, "data_offsets": range});
        data.extend_from_slice(bytes);
    }
    header(&mut map);
    raw_file(&map.to_string(), &data)
}

fn raw_file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(config: &Value, weights: &[u8]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("config.json", config.to_string().as_bytes());
        folder.write("model.safetensors", weights);
        folder
    }

    fn good() -> Self {
        Self::new(&config(), &safetensors(&parts(), |_| ()))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.file(name), bytes).unwrap();
    }

    fn weights(&self) -> Result<Weights> {
        let folder = ModelFolder::open(self.path())?;
        folder.weights(&arch::recipe(folder.config(), folder.config_path())?)
    }

    /// The error of reading it, which must name this file and this cause.
    fn refused(&self, file: &str, cause: &str) -> Error {
        let error = self.weights().err().unwrap_or_else(|| panic!("accepted, expected: {cause}"));
        let text = error.to_string();
        assert!(text.contains(file) && text.contains(cause), "expected {file} and {cause}: {text}");
        error
    }
}

/// A folder whose one tensor was changed.
fn with_part(name: &str, change: impl Fn(&mut Part)) -> Folder {
    let mut parts = parts();
    change(parts.iter_mut().find(|p| p.0 == name).unwrap());
    Folder::new(&config(), &safetensors(&parts, |_| ()))
}

fn with_header(header: impl Fn(&mut Value)) -> Folder {
    Folder::new(&config(), &safetensors(&parts(), header))
}

const WORDS: &str = "model.layers.0.mlp.down_proj.weight_packed";
const SCALES: &str = "model.layers.0.mlp.down_proj.weight_scale";
const SHAPE: &str = "model.layers.0.mlp.down_proj.weight_shape";
const NORM: &str = "model.norm.weight";
const FILE: &str = "model.safetensors";

#[test]
fn the_untouched_folder_is_read() {
    let weights = Folder::good().weights().unwrap();
    assert_eq!(weights.matrices.len(), 8);
    assert!(weights.matrices[7].to_f32().unwrap().iter().any(|v| *v != 0.0));
}

#[test]
fn truncated_files() {
    let whole = safetensors(&parts(), |_| ());
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for (len, cause) in [
        (0, "is empty"),
        (5, "too short"),
        (8, "truncated"),
        (header / 2, "truncated"),
        (header, "truncated"),
        (whole.len() - 1, "truncated"),
    ] {
        Folder::new(&config(), &whole[..len]).refused(FILE, cause);
    }
}

#[test]
fn bytes_after_the_last_tensor() {
    let mut bytes = safetensors(&parts(), |_| ());
    bytes.extend([0; 3]);
    assert!(matches!(Folder::new(&config(), &bytes).refused(FILE, "cover"), Error::Malformed { .. }));
}

#[test]
fn oversized_headers() {
    for len in [100_000_001, 1 << 40, u64::MAX] {
        let bytes = [&len.to_le_bytes()[..], b"{}"].concat();
        Folder::new(&config(), &bytes).refused(FILE, "header");
    }
}

#[test]
fn overlapping_tensors_and_holes() {
    let overlap = with_header(|h| h[NORM]["data_offsets"] = json!([0, 128]));
    overlap.refused(FILE, "overlap");
    let hole = with_header(|h| h.as_object_mut().unwrap().retain(|name, _| name != NORM));
    hole.refused(FILE, "hole");
}

#[test]
fn offsets_that_go_backwards_or_far_outside() {
    with_header(|h| h[NORM]["data_offsets"] = json!([2176, 2048])).refused(NORM, "before they start");
    with_header(|h| h[NORM]["data_offsets"] = json!([2048, u64::MAX])).refused(NORM, "outside");
    with_header(|h| h[NORM]["data_offsets"] = json!([-1, 4])).refused(NORM, FILE);
}

#[test]
fn shapes_that_do_not_fit_their_bytes() {
    with_header(|h| h[NORM]["shape"] = json!([33])).refused(NORM, "needs 132");
    with_header(|h| h[NORM]["shape"] = json!([u64::MAX, 2])).refused(NORM, "more than can be counted");
}

#[test]
fn sums_of_offsets_that_overflow() {
    // Eight tensors of 2^61 bytes each: the ends add up to more than a u64 less the header.
    let mut header = serde_json::Map::new();
    for i in 0..8u64 {
        let end = if i == 7 { u64::MAX } else { (i + 1) << 61 };
        let entry = json!({"dtype": "U8", "shape": [end - (i << 61)], "data_offsets": [i << 61, end]});
        header.insert(format!("t{i}"), entry);
    }
    Folder::new(&config(), &raw_file(&Value::Object(header).to_string(), &[]))
        .refused(FILE, "outside the file");
}

#[test]
fn a_name_twice() {
    let entry = r#""a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}"#;
    let bytes = raw_file(&format!("{{{entry}, {entry}}}"), &[]);
    Folder::new(&config(), &bytes).refused(FILE, "tensor a appears twice");
}

#[test]
fn headers_that_are_not_headers() {
    let nested = "[".repeat(100_000);
    for header in ["", "[]", "{", "{\"a\": 3}", "{\"a\": {\"dtype\": \"F32\"}}", "\u{7f}", &nested] {
        Folder::new(&config(), &raw_file(header, &[])).refused(FILE, "header");
    }
    let mut bytes = raw_file("{\"aaaa\": 1}", &[]);
    bytes[10] = 0xff;
    Folder::new(&config(), &bytes).refused(FILE, "header");
}

#[test]
fn wrong_types() {
    with_header(|h| h[NORM]["dtype"] = json!("I32")).refused(NORM, "expected a float type");
    with_header(|h| h[NORM]["dtype"] = json!("U32")).refused(NORM, "of type U32");
    with_header(|h| h[NORM]["dtype"] = json!("F33")).refused(FILE, "F33");
    with_header(|h| h[WORDS]["dtype"] = json!("F32")).refused(WORDS, "expected I32");
    with_header(|h| h[SCALES]["dtype"] = json!("I32")).refused(SCALES, "expected a float type");
    with_header(|h| h["model.embed_tokens.weight"]["dtype"] = json!("I32"))
        .refused("embed_tokens", "float type");
    with_part(SHAPE, |p| (p.1, p.2) = ("F32".into(), vec![4])).refused(SHAPE, "expected I64");
}

#[test]
fn an_odd_type_matters_only_where_it_is_used() {
    let mut parts = parts();
    parts.push(("unused.mask".into(), "BOOL".into(), vec![3], vec![1, 0, 1]));
    let folder = Folder::new(&config(), &safetensors(&parts, |_| ()));
    folder.weights().unwrap();
    let file = SafetensorsFile::open(folder.file(FILE)).unwrap();
    assert!(file.contains("unused.mask") && file.tensor("unused.mask").is_none());
    assert!(matches!(file.require("unused.mask"), Err(Error::Tensor { .. })));
}

#[test]
fn wrong_shapes() {
    with_header(|h| h[NORM]["shape"] = json!([4, 8])).refused(NORM, "expected [32]");
    with_header(|h| h[WORDS]["shape"] = json!([8, 32])).refused(WORDS, "expected [32, 8]");
    with_header(|h| h[SCALES]["shape"] = json!([2, 32])).refused(SCALES, "expected [32, 2]");
    with_header(|h| h["model.embed_tokens.weight"]["shape"] = json!([512]))
        .refused("embed_tokens", "two dimensions");
    with_header(|h| h["model.embed_tokens.weight"]["shape"] = json!([32, 16]))
        .refused("embed_tokens", "expected [16, 32]");
    let swapped = [64i64, 32].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    with_part(SHAPE, |p| p.3.clone_from(&swapped)).refused(SHAPE, "expected [32, 64]");
}

#[test]
fn nan_scales_are_found_when_they_are_used() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let folder = with_part(SCALES, |p| p.3[20..24].copy_from_slice(&bad.to_le_bytes()));
        let weights = folder.weights().unwrap();
        let error = weights.matrices[7].scales().unwrap_err().to_string();
        assert!(error.contains(FILE) && error.contains(SCALES) && error.contains("element 5"), "{error}");
        assert!(weights.matrices[7].to_f32().is_err());
        assert!(weights.matrices[6].scales().is_ok());
    }
    with_part(NORM, |p| p.3[4..8].copy_from_slice(&f32::NAN.to_le_bytes())).refused(NORM, "element 1 is NaN");
}

#[test]
fn packed_tensors_that_contradict_the_configuration() {
    let with_config = |change: &dyn Fn(&mut Value)| {
        let mut config = config();
        change(&mut config);
        Folder::new(&config, &safetensors(&parts(), |_| ()))
    };
    let group = "/quantization_config/config_groups/group_0/weights";
    let no_quantization = with_config(&|c| drop(c.as_object_mut().unwrap().remove("quantization_config")));
    no_quantization.refused("weight_packed", "no quantization_config");
    with_config(&|c| c["quantization_config"]["ignore"] = json!(["Linear"]))
        .refused("weight_packed", "no scheme");
    with_config(&|c| c.pointer_mut(group).unwrap()["num_bits"] = json!(8))
        .refused("weight_packed", "expected [32, 8]");
    with_config(&|c| c.pointer_mut(group).unwrap()["group_size"] = json!(64)).refused("weight_packed", "64");
    with_config(&|c| c.pointer_mut(group).unwrap()["symmetric"] = json!(false))
        .refused("weight_packed", "zero_point");
    with_config(&|c| c.pointer_mut(group).unwrap()["num_bits"] = json!(2)).refused("config.json", "num_bits");
    // calora's extension: the same tensors are too wide for two bits, and four bits have no mid-rise levels.
    let extended = |bits: u8| {
        with_config(&|c| {
            c["quantization_config"]["format"] = json!("calora-mid-rise");
            let weights = c.pointer_mut(group).unwrap();
            (weights["num_bits"], weights["levels"]) = (json!(bits), json!("mid-rise"));
        })
    };
    extended(2).refused("weight_packed", "expected [32, 2]");
    extended(3).refused("weight_packed", "expected [32, 3]");
    extended(4).refused("config.json", "levels");
    with_config(&|c| c["quantization_config"]["quant_method"] = json!("awq"))
        .refused("config.json", "quant_method");
}

#[test]
fn doubled_reordered_and_missing_tensors() {
    let with_more = |name: &str| {
        let mut parts = parts();
        parts.push((name.into(), "I32".into(), vec![1], vec![0; 4]));
        Folder::new(&config(), &safetensors(&parts, |_| ()))
    };
    with_more("model.layers.0.mlp.down_proj.weight").refused(WORDS, "both compressed and dense");
    with_more("model.layers.0.mlp.down_proj.weight_g_idx").refused(WORDS, "weight_g_idx");
    with_more("model.layers.0.mlp.down_proj.weight_zero_point").refused("zero_point", "no zero points");
    for name in [SCALES, SHAPE, NORM, "model.embed_tokens.weight"] {
        let parts: Vec<Part> = parts().into_iter().filter(|p| p.0 != name).collect();
        Folder::new(&config(), &safetensors(&parts, |_| ())).refused(name, "is missing");
    }
}

#[test]
fn missing_files() {
    let folder = Folder::good();
    let opened = ModelFolder::open(folder.path()).unwrap();
    let error = opened.file("tokenizer.json", "copy it from the original model").unwrap_err();
    assert!(matches!(&error, Error::MissingFile { file, .. } if file == "tokenizer.json"), "{error}");
    fs::remove_file(folder.file("config.json")).unwrap();
    assert!(matches!(folder.refused("config.json", "there is no"), Error::MissingFile { .. }));
    let folder = Folder::good();
    fs::remove_file(folder.file(FILE)).unwrap();
    assert!(matches!(folder.refused(FILE, "there is no"), Error::MissingFile { .. }));
    folder.write("pytorch_model.bin", b"x");
    folder.refused(FILE, "pytorch_model.bin");
    assert!(matches!(ModelFolder::open(folder.file("nowhere")), Err(Error::Io { .. })));
    assert!(matches!(ModelFolder::open(folder.file("config.json")), Err(Error::Io { .. })));
}

#[test]
fn folders_and_pipes_in_place_of_files() {
    let folder = Folder::good();
    fs::remove_file(folder.file(FILE)).unwrap();
    fs::create_dir(folder.file(FILE)).unwrap();
    folder.refused(FILE, "not a regular file");
    let folder = Folder::good();
    fs::remove_file(folder.file("config.json")).unwrap();
    fs::create_dir(folder.file("config.json")).unwrap();
    folder.refused("config.json", "not a regular file");
}

#[test]
fn configurations_that_are_not_json() {
    for (text, cause) in [("", "not JSON"), ("{", "not JSON"), ("[1]", "object"), ("\u{0}", "not JSON")] {
        let folder = Folder::good();
        folder.write("config.json", text.as_bytes());
        folder.refused("config.json", cause);
    }
    let folder = Folder::good();
    folder.write("generation_config.json", b"nonsense");
    folder.refused("generation_config.json", "not JSON");
}

/// Two shards, and an index that `change` may spoil.
fn sharded(change: impl Fn(&mut Value)) -> Folder {
    let folder = Folder::good();
    fs::remove_file(folder.file(FILE)).unwrap();
    let (first, second): (Vec<Part>, Vec<Part>) = parts().into_iter().partition(|p| p.0.contains("mlp"));
    let mut map = serde_json::Map::new();
    for (name, parts) in [("a.safetensors", first), ("b.safetensors", second)] {
        folder.write(name, &safetensors(&parts, |_| ()));
        map.extend(parts.into_iter().map(|p| (p.0, name.into())));
    }
    let mut index = json!({"metadata": {}, "weight_map": map});
    change(&mut index);
    folder.write("model.safetensors.index.json", index.to_string().as_bytes());
    folder
}

#[test]
fn indices_that_lie() {
    const INDEX: &str = "model.safetensors.index.json";
    sharded(|_| ()).weights().unwrap();
    for outside in ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "", "C:a", "..\\a"] {
        let error =
            sharded(|i| i["weight_map"][NORM] = json!(outside)).refused(INDEX, "not a file of its folder");
        assert!(matches!(error, Error::Malformed { .. }));
    }
    sharded(|i| i["weight_map"][NORM] = json!("a.safetensors"))
        .refused("a.safetensors", "is not in this shard");
    sharded(|i| i["weight_map"]["ghost"] = json!("a.safetensors")).refused("ghost", "is not in this shard");
    sharded(|i| i["weight_map"][NORM] = json!(7)).refused(INDEX, "no file name");
    sharded(|i| *i = json!({"metadata": {}})).refused(INDEX, "weight_map");
    let lacking = sharded(|_| ());
    fs::remove_file(lacking.file("b.safetensors")).unwrap();
    assert!(matches!(lacking.refused("b.safetensors", "there is no"), Error::MissingFile { .. }));
    let doubled = sharded(|_| ());
    doubled.write("a.safetensors", &safetensors(&parts(), |_| ()));
    doubled.refused("a.safetensors", "also in another shard");
}

#[test]
fn git_lfs_pointers() {
    let pointer = b"version https://git-lfs.example/spec/v1\noid sha256:00\nsize 132195448\n";
    for name in [FILE, "config.json", "generation_config.json"] {
        let folder = Folder::good();
        folder.write(name, pointer);
        let error = folder.refused(name, "git lfs pull");
        assert!(matches!(error, Error::LfsPointer { size: 132195448, .. }), "{error}");
    }
    let Some(data) = test_data("the Git LFS pointers of a real clone") else { return };
    let error =
        SafetensorsFile::open(data.join("adapters/lfs-pointer/adapter_model.safetensors")).unwrap_err();
    assert!(matches!(error, Error::LfsPointer { size: 132195448, .. }), "{error}");
}

#[test]
fn two_thousand_mutations_never_panic() {
    let good = safetensors(&parts(), |_| ());
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let folder = Folder::good();
    let config_text = config().to_string();
    let mut rng = Random(11);
    let (mut refused, mut read) = (0, 0);
    for round in 0..2000 {
        let (mut text, mut data) = (good[8..header].to_vec(), good[header..].to_vec());
        for _ in 0..1 + rng.below(3) {
            // Every third time the data only: such files are read, whatever their numbers are.
            let (part, at) = match round % 3 {
                0 => (&mut data, rng.below(good.len() - header)),
                _ => (&mut text, rng.below(header - 20)),
            };
            match rng.below(if round % 3 == 0 { 1 } else { 4 }) {
                0 => part[at] = rng.next() as u8,
                1 => part[at] = b"0123456789[]{},\":-eF"[rng.below(20)],
                2 => drop(part.remove(at)),
                _ => part.insert(at, b"0123456789[]{},\":"[rng.below(17)]),
            }
        }
        // Mostly a length that fits the text, so that what is inside it is read at all.
        let wrong = if rng.below(8) == 0 { rng.next() >> rng.below(64) } else { 0 };
        let mut bytes = [&(text.len() as u64 ^ wrong).to_le_bytes()[..], &text, &data].concat();
        if rng.below(20) == 0 {
            bytes.truncate(rng.below(bytes.len()));
        }
        folder.write(FILE, &bytes);
        // Every tenth time the configuration is damaged too.
        let mut text = config_text.clone().into_bytes();
        if round % 10 == 0 {
            let at = rng.below(text.len());
            text[at] = b"0123456789[]{},\":-e."[rng.below(20)];
        }
        folder.write("config.json", &text);
        match folder.weights() {
            Err(error) => {
                refused += 1;
                let text = error.to_string();
                assert!(text.contains(FILE) || text.contains("config.json"), "names no file: {text}");
            }
            Ok(weights) => {
                read += 1;
                for matrix in &weights.matrices {
                    let _ = matrix.to_f32();
                }
                let _ = ModelFolder::open(folder.path()).unwrap().computed_id(&|_, _| ());
            }
        }
    }
    // Both must happen, or the mutations are too harsh or too mild.
    assert!(refused > 500 && read > 200, "{refused} refused, {read} read");
}
