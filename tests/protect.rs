//! Signed and encrypted adapters: what was changed, moved, cut or opened with the wrong key is refused with a typed error
//! that names the file; what is right computes exactly as the plain file does.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};

use calora::adapter::protect::{is_encrypted, protect, read_task_file, signer};
use calora::adapter::{
    AdapterOptions, BranchStorage, Protection, PublicKey, SecretKey, SigningKey, TaskAdapter, task_file_bytes,
};
use calora::engine::{BoundAdapter, DeviceChoice, Engine, EngineOptions};
use calora::{Error, Result};
use common::Random;

const HEADER: usize = 88;
const PART: usize = 65536 + 16;

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(path)
}

/// A small task file: one part when encrypted.
fn small() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gqa/recovery/ranks.safetensors"))
        .unwrap()
}

/// A shipped task as a task file: several parts.
fn spam() -> Vec<u8> {
    let adapter = TaskAdapter::open(shipped("adapters/spam")).unwrap();
    let modules = adapter.modules().map(|(m, b)| (m.to_owned(), b.to_vec())).collect();
    let path = Path::new("spam");
    task_file_bytes(path, adapter.info(), None, &modules, BranchStorage::F16).unwrap()
}

fn signed(bytes: &[u8], key: &SigningKey) -> Vec<u8> {
    let protection = Protection { sign: Some(key.clone()), ..Protection::default() };
    protect(Path::new("t"), bytes, &protection).unwrap()
}

fn encrypted(bytes: &[u8], key: &SecretKey) -> Vec<u8> {
    let protection = Protection { encrypt: Some(key.clone()), ..Protection::default() };
    protect(Path::new("t"), bytes, &protection).unwrap()
}

fn trusting(keys: &[PublicKey]) -> AdapterOptions {
    AdapterOptions { trusted_signers: Some(keys.to_vec()), ..AdapterOptions::default() }
}

fn with_key(key: &SecretKey) -> AdapterOptions {
    AdapterOptions { key: Some(key.clone()), ..AdapterOptions::default() }
}

/// Writes bytes to a file and opens it; an error names the file.
fn open(folder: &Path, bytes: &[u8], options: &AdapterOptions) -> Result<TaskAdapter> {
    let path = folder.join("task.bin");
    std::fs::write(&path, bytes).unwrap();
    let opened = TaskAdapter::open_with(&path, options);
    if let Err(error) = &opened {
        assert!(error.to_string().contains("task.bin"), "the error names no file: {error}");
    }
    opened
}

#[test]
fn no_byte_of_a_signed_file_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let key = SigningKey::generate().unwrap();
    let options = trusting(&[key.public()]);
    let good = signed(&small(), &key);
    let opened = open(folder.path(), &good, &options).unwrap();
    assert_eq!(opened.info().signer, Some(key.public()));
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let mut rng = Random(3);
    // All of the header, where the signature is; of the tensors every 97th byte.
    for at in (0..header).chain((header..good.len()).step_by(97)) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << rng.below(8);
        assert!(open(folder.path(), &bytes, &options).is_err(), "byte {at} is free");
    }
    for at in [8 + 1, good.len() - 1] {
        let longer = [&good[..at], b" ", &good[at..]].concat();
        assert!(open(folder.path(), &longer, &options).is_err(), "a byte more at {at}");
    }
    // A tensor that changes changes nothing else: the signature alone finds it.
    let mut bytes = good;
    *bytes.last_mut().unwrap() ^= 1;
    open(folder.path(), &bytes, &AdapterOptions::default()).unwrap();
    let error = open(folder.path(), &bytes, &options).unwrap_err();
    assert!(matches!(&error, Error::Untrusted { reason, .. } if reason.contains("not what was signed")));
    assert!(matches!(signer(&folder.path().join("task.bin"), None), Err(Error::Untrusted { .. })));
}

#[test]
fn a_signature_fits_one_file_and_one_signer() {
    let folder = tempfile::tempdir().unwrap();
    let (key, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let trusted = trusting(&[key.public()]);
    let untrusted =
        |bytes: &[u8], options: &AdapterOptions, word: &str| match open(folder.path(), bytes, options) {
            Err(Error::Untrusted { reason, .. }) => assert!(reason.contains(word), "{reason}"),
            other => panic!("{word}: {other:?}"),
        };
    let (small, spam) = (small(), spam());
    untrusted(&small, &trusted, "not signed");
    untrusted(&signed(&small, &other), &trusted, &other.public().to_string());
    // An empty list trusts nobody.
    untrusted(&signed(&small, &key), &trusting(&[]), "not among");
    open(folder.path(), &signed(&small, &other), &trusting(&[key.public(), other.public()])).unwrap();
    // Signing again replaces.
    let twice = open(folder.path(), &signed(&signed(&small, &other), &key), &trusted).unwrap();
    assert_eq!(twice.info().signer, Some(key.public()));
    // Unasked, nothing is said.
    assert_eq!(
        open(folder.path(), &signed(&small, &key), &AdapterOptions::default()).unwrap().info().signer,
        None
    );

    let digits = |file: &[u8], name: &str, len: usize| {
        let pattern = format!("\"{name}\":\"");
        let at = file.windows(pattern.len()).position(|w| w == pattern.as_bytes()).unwrap() + pattern.len();
        at..at + len
    };
    let (from, mut to) = (signed(&spam, &key), signed(&small, &key));
    let signature = from[digits(&from, "calora.signature", 128)].to_vec();
    let place = digits(&to, "calora.signature", 128);
    to[place].copy_from_slice(&signature);
    untrusted(&to, &trusted, "not what was signed");
    // A trusted name over somebody else's signature.
    let mut renamed = signed(&small, &other);
    let place = digits(&renamed, "calora.signer", 64);
    renamed[place].copy_from_slice(key.public().to_string().as_bytes());
    untrusted(&renamed, &trusted, "not what was signed");
    // The same value in other letters is another file.
    let mut upper = signed(&small, &key);
    let place = digits(&upper, "calora.signature", 128);
    upper[place].make_ascii_uppercase();
    untrusted(&upper, &trusted, "lower-case");

    std::fs::remove_file(folder.path().join("task.bin")).unwrap();
    let error = TaskAdapter::open_with(shipped("adapters/spam"), &trusted).unwrap_err();
    assert!(matches!(&error, Error::Untrusted { reason, .. } if reason.contains("PEFT")), "{error}");
}

#[test]
fn every_change_of_an_encrypted_file_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let key = SecretKey::generate().unwrap();
    let plain = spam();
    let good = encrypted(&plain, &key);
    let options = with_key(&key);
    assert!(open(folder.path(), &good, &options).unwrap().info().encrypted);
    let path = folder.path().join("task.bin");
    assert!(is_encrypted(&path));
    assert_eq!(read_task_file(&path, Some(&key)).unwrap().bytes(), plain);
    let parts = (good.len() - HEADER).div_ceil(PART);
    assert!(parts >= 3, "{parts} parts say little about their order");
    let refused = |what: String, bytes: &[u8]| match open(folder.path(), bytes, &options) {
        Err(Error::Malformed { .. } | Error::Locked { .. } | Error::UnsupportedAdapter { .. }) => {}
        other => panic!("{what}: {other:?}"),
    };
    let mut rng = Random(5);
    let ends = (1..parts).flat_map(|n| [HEADER + n * PART - 17, HEADER + n * PART - 1, HEADER + n * PART]);
    for at in
        (0..HEADER).chain(ends).chain((HEADER..good.len()).step_by(good.len() / 50)).chain([good.len() - 1])
    {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << rng.below(8);
        refused(format!("byte {at} changed"), &bytes);
    }
    for keep in
        (1..HEADER + 1).chain((1..parts).map(|n| HEADER + n * PART)).chain([good.len() - 1, good.len() - 16])
    {
        refused(format!("cut to {keep} bytes"), &good[..keep]);
    }
    let part = |file: &[u8], n: usize| file[HEADER + n * PART..HEADER + (n + 1) * PART].to_vec();
    let placed = |n: usize, content: &[u8]| {
        let mut bytes = good.clone();
        bytes[HEADER + n * PART..HEADER + (n + 1) * PART].copy_from_slice(content);
        bytes
    };
    let mut swapped = placed(0, &part(&good, 1));
    swapped[HEADER + PART..HEADER + 2 * PART].copy_from_slice(&part(&good, 0));
    refused("two parts swapped".into(), &swapped);
    refused("a part twice".into(), &placed(1, &part(&good, 0)));
    // The same content under the same key, encrypted again: not one part is interchangeable.
    let again = encrypted(&plain, &key);
    assert_ne!(good[HEADER..HEADER + 64], again[HEADER..HEADER + 64]);
    refused("a part of another file".into(), &placed(0, &part(&again, 0)));
    refused("bytes appended".into(), &[&good[..], &[0; 16]].concat());
    // A file that ends early, its length made to match: the last part is not the last.
    for keep in 1..parts {
        let mut bytes = good[..HEADER + keep * PART].to_vec();
        bytes[16..24].copy_from_slice(&((keep * 65536) as u64).to_le_bytes());
        refused(format!("{keep} parts with their length"), &bytes);
    }
}

/// Lengths are compared with the file's before anything is allocated.
#[test]
fn announced_lengths_are_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let key = SecretKey::generate().unwrap();
    let good = encrypted(&small(), &key);
    for len in [0, 1, u64::MAX, u64::MAX - 15, 1 << 62, 1 << 40, good.len() as u64] {
        let mut bytes = good.clone();
        bytes[16..24].copy_from_slice(&len.to_le_bytes());
        let error = open(folder.path(), &bytes, &with_key(&key)).unwrap_err();
        assert!(matches!(&error, Error::Malformed { .. }), "{len}: {error}");
    }
    let mut bytes = good.clone();
    bytes[8] = 2;
    let error = open(folder.path(), &bytes, &with_key(&key)).unwrap_err();
    assert!(matches!(&error, Error::UnsupportedAdapter { .. }) && error.to_string().contains("version 2"));
    let mut bytes = good;
    bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(open(folder.path(), &bytes, &with_key(&key)), Err(Error::Malformed { .. })));
}

#[test]
fn without_its_key_a_file_stays_closed_and_says_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (key, other) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
    let good = encrypted(&spam(), &key);
    for word in ["spam", "calora.", "lora_A", "q_proj"] {
        assert!(!good.windows(word.len()).any(|w| w == word.as_bytes()), "{word} is readable");
    }
    let locked = |options: &AdapterOptions| match open(folder.path(), &good, options) {
        Err(Error::Locked { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(locked(&AdapterOptions::default()).contains("with the key"));
    assert!(locked(&with_key(&other)).contains("another one"));
    // A plain file needs no key, and does not mind one.
    open(folder.path(), &small(), &with_key(&key)).unwrap();
    // What is decrypted is checked like any other file.
    let nonsense = encrypted(b"no task file at all", &key);
    assert!(matches!(open(folder.path(), &nonsense, &with_key(&key)), Err(Error::Malformed { .. })));
    for length in [0, 31, 33] {
        assert!(matches!(SecretKey::from_slice(&vec![7; length]), Err(Error::InvalidOption { .. })));
    }
}

#[test]
fn random_damage_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let key = SecretKey::generate().unwrap();
    let (good, mut rng) = (encrypted(&small(), &key), Random(17));
    for _ in 0..300 {
        let mut bytes = good.clone();
        for _ in 0..1 + rng.below(3) {
            let reach = if rng.below(2) == 0 { HEADER } else { bytes.len() };
            bytes[rng.below(reach)] ^= 1 + rng.below(255) as u8;
        }
        bytes.truncate(bytes.len() - rng.below(2) * rng.below(200));
        // Two changes of one byte may meet and undo each other.
        assert!(bytes == good || open(folder.path(), &bytes, &with_key(&key)).is_err());
    }
}

#[test]
fn a_protected_adapter_computes_exactly_as_the_plain_one() {
    let folder = tempfile::tempdir().unwrap();
    let (key, sign) = (SecretKey::generate().unwrap(), SigningKey::generate().unwrap());
    let plain = spam();
    for device in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
        let options = EngineOptions { device, threads: Some(2), ..EngineOptions::default() };
        let engine = Engine::load(shipped("base"), options).unwrap();
        let ids = engine.tokenizer().unwrap().encode("you have won a prize").unwrap();
        let logits = |list: &[(BoundAdapter, f32)]| engine.logits(&ids, list).unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let open = engine.open_adapter(write("plain.safetensors", &plain)).unwrap();
        // The canary before the signature, the signature inside what is encrypted.
        let canary = Some(engine.record_canary(&open, &ids).unwrap());
        let protection = Protection { canary, sign: Some(sign.clone()), encrypt: Some(key.clone()) };
        let path = write("task.sealed", &protect(Path::new("t"), &plain, &protection).unwrap());
        let options = AdapterOptions {
            key: Some(key.clone()),
            trusted_signers: Some(vec![sign.public()]),
            canary: true,
        };
        let before = logits(&[]);
        let expected = logits(&[(open, 1.0)]);
        assert_eq!(engine.decrypted_bytes(), 0);
        let bound = engine.open_adapter_with(&path, &options).unwrap();
        let size = engine.decrypted_bytes() as usize;
        assert!(size > plain.len() && size < plain.len() + 4096, "{size} for {}", plain.len());
        assert_eq!(logits(&[(bound.clone(), 1.0)]), expected);
        assert_ne!(before, expected);
        assert_eq!(logits(&[]), before);
        assert_eq!(signer(&path, Some(&key)).unwrap(), Some(sign.public()));
        engine.evict(&bound);
        drop(bound);
        assert_eq!(engine.decrypted_bytes(), 0, "a decrypted file outlives its adapter");
    }
    let files = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, 2, "something was written beside the two files");
}

#[test]
fn a_canary_does_not_break_a_signature_in_silence() {
    let engine = Engine::load(
        shipped("base"),
        EngineOptions { device: DeviceChoice::Cpu, threads: Some(2), ..EngineOptions::default() },
    )
    .unwrap();
    let (key, plain) = (SigningKey::generate().unwrap(), spam());
    let (bound, _) = engine.bind_adapter(&TaskAdapter::from_bytes("spam", &plain).unwrap()).unwrap();
    let canary = Some(engine.record_canary(&bound, &[1, 2, 3]).unwrap());
    let protection = Protection { canary, ..Protection::default() };
    let error = protect(Path::new("t"), &signed(&plain, &key), &protection).unwrap_err();
    assert!(error.to_string().contains("sign it again"), "{error}");
    let both = Protection { sign: Some(key), ..protection };
    let bytes = protect(Path::new("t"), &plain, &both).unwrap();
    let adapter = TaskAdapter::from_bytes("spam", &bytes).unwrap();
    assert_eq!(adapter.info().canary, both.canary);
}

/// Files as the first version wrote them open for ever.
#[test]
fn files_of_version_1_open() {
    let golden = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/protect").join(name);
    let line = std::fs::read_to_string(golden("signer.pub")).unwrap();
    let public: PublicKey = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
    let key = SecretKey::from_slice(&[7; 32]).unwrap();
    let engine = Engine::load(
        shipped("base"),
        EngineOptions { device: DeviceChoice::Cpu, threads: Some(2), ..EngineOptions::default() },
    )
    .unwrap();
    let options = AdapterOptions { key: Some(key), trusted_signers: Some(vec![public]), canary: true };
    for name in ["spam.safetensors", "spam.sealed"] {
        let bound = engine.open_adapter_with(golden(name), &options).unwrap();
        assert_eq!(bound.name(), "spam");
        let report = engine.check_canary(&bound).unwrap();
        assert!(report.cosine.unwrap() > 0.999, "{name}: {report:?}");
    }
    let plain = read_task_file(&golden("spam.sealed"), options.key.as_ref()).unwrap();
    assert_eq!(plain.bytes(), std::fs::read(golden("spam.safetensors")).unwrap());
}
