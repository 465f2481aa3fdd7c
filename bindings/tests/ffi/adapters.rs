//! Adapters as files: inspected, protected, kept in a library.

use super::*;

#[test]
fn adapters_are_inspected_without_an_engine() {
    let info = inspect_adapter(root("models/adapters/spam")).unwrap();
    assert_eq!((info.rank, info.has_lora, info.has_recovery), (8, true, false));
    let info = inspect_adapter(root("models/adapted/clean-question-int2.safetensors")).unwrap();
    assert!(info.has_recovery && info.base_id.is_some() && info.bytes > 0 && info.modules > 0);
}

/// A signed task file with a canary, its signer, and a key of the app.
fn protected() -> (String, Vec<u8>, Vec<u8>) {
    let hex = std::fs::read_to_string(root("tests/golden/protect/signer.pub")).unwrap();
    let hex = hex.trim().rsplit(' ').next().unwrap();
    let signer = (0..32).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect();
    (root("tests/golden/protect/spam.safetensors"), signer, vec![7; 32])
}

#[test]
fn a_protected_adapter_opens_with_its_key_and_signer_and_acts() {
    let folder = tempfile::tempdir().unwrap();
    let sealed = folder.path().join("spam.sealed").display().to_string();
    let (plain, signer, key) = protected();
    encrypt_adapter(plain.clone(), sealed.clone(), key.clone()).unwrap();
    let engine = engine();
    let open = |path: &str, options| block_on(engine.open_adapter_with(path.into(), options));
    let options = |key: &[u8], signers: &[&[u8]]| AdapterOpenOptions {
        key: Some(key.to_vec()),
        trusted_signers: Some(signers.iter().map(|s| s.to_vec()).collect()),
        check_canary: true,
    };
    let reference = block_on(engine.open_adapter(plain.clone())).unwrap();
    assert_eq!((reference.info().signer, reference.info().encrypted), (None, false));
    let opened = open(&sealed, options(&key, &[&signer])).unwrap();
    let info = opened.info();
    assert!(
        info.encrypted && info.has_canary && info.signer.is_some_and(|s| s.len() == 64),
        "{:?}",
        info.name
    );
    assert!(block_on(engine.memory()).unwrap().decrypted_bytes > 50_000);
    let answers =
        [session(&engine, with(&reference)), session(&engine, with(&opened))].map(|s| ask(&s, MESSAGE));
    assert_eq!(answers[0], answers[1]);
    assert_ne!(ask(&session(&engine, vec![]), MESSAGE), answers[0]);

    for wrong in [AdapterOpenOptions::default(), options(&[8; 32], &[&signer])] {
        let error = open(&sealed, wrong).err();
        assert!(
            matches!(&error, Some(EngineError::AdapterLocked { path, .. }) if *path == sealed),
            "{error:?}"
        );
    }
    for signers in [&[][..], &[&[9; 32][..]]] {
        let error = open(&sealed, options(&key, signers)).err();
        assert!(matches!(error, Some(EngineError::AdapterUntrusted { .. })), "{error:?}");
    }
    let folder_of_peft = open(&root("models/adapters/spam"), options(&key, &[&signer])).err();
    assert!(matches!(folder_of_peft, Some(EngineError::AdapterUntrusted { .. })), "{folder_of_peft:?}");
    let short = open(&sealed, options(&[171; 31], &[])).err();
    assert!(
        matches!(&short, Some(EngineError::InvalidOption { value, .. }) if !value.contains("171")),
        "{short:?}"
    );
    assert!(matches!(inspect_adapter(sealed.clone()), Err(EngineError::AdapterLocked { .. })));
    let peft = encrypt_adapter(root("models/adapters/spam"), sealed.clone(), key.clone());
    assert!(matches!(peft, Err(EngineError::Unsupported { .. })), "{peft:?}");
    let twice = encrypt_adapter(sealed.clone(), sealed, key);
    assert!(matches!(twice, Err(EngineError::Unsupported { .. })), "{twice:?}");
    drop(opened);
    block_on(engine.trim(MemoryPressure::Critical)).unwrap();
}

#[test]
fn an_adapter_that_does_something_else_is_unproven() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, ..) = protected();
    let mut bytes = std::fs::read(plain).unwrap();
    // Every scaling of the file doubled: it fits as before.
    let (from, to) = (b"\\\"lora\\\":2.0", b"\\\"lora\\\":4.0");
    let places: Vec<usize> =
        (0..bytes.len() - from.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
    assert_eq!(places.len(), 42, "the file's scalings are others");
    places.into_iter().for_each(|at| bytes[at..at + to.len()].copy_from_slice(to));
    let path = folder.path().join("doubled.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let (engine, path) = (engine(), path.display().to_string());
    block_on(engine.open_adapter(path.clone())).unwrap();
    let options = AdapterOpenOptions { check_canary: true, ..AdapterOpenOptions::default() };
    let error = block_on(engine.open_adapter_with(path, options)).err();
    assert!(
        matches!(&error, Some(EngineError::AdapterUnproven { adapter, .. }) if adapter == "spam"),
        "{error:?}"
    );
}

#[test]
fn a_library_gives_a_new_generation_and_a_running_session_keeps_its_own() {
    let engine = engine();
    let folder = std::env::temp_dir().join(format!("calora-ffi-library-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let directory = folder.display().to_string();
    let library = block_on(engine.adapter_library(directory, AdapterOpenOptions::default())).unwrap();
    let [first, second] = ["intent", "spam"].map(|name| {
        let path = folder.join(format!("{name}.source"));
        pack(name, &path);
        path.display().to_string()
    });
    let version = block_on(library.replace("task".into(), None, first)).unwrap();
    let running = session(&engine, with(&block_on(library.open("task".into())).unwrap()));
    assert_eq!(ask(&running, COMMAND), "PlayMusic");

    let conflict = block_on(library.replace("task".into(), None, second.clone())).unwrap_err();
    let expected = EngineError::VersionConflict {
        adapter: "task".into(),
        expected: None,
        actual: Some(version.clone()),
    };
    assert_eq!(conflict, expected);
    let newer = block_on(library.replace("task".into(), Some(version), second)).unwrap();
    block_on(running.reset()).unwrap();
    assert_eq!(ask(&running, COMMAND), "PlayMusic", "it keeps what it has");
    let fresh = session(&engine, with(&block_on(library.open("task".into())).unwrap()));
    assert_eq!(ask(&fresh, MESSAGE), "spam");
    let entries = block_on(library.entries()).unwrap();
    assert_eq!((entries.len(), &entries[0].version, entries[0].in_use), (1, &newer, true));
    assert_eq!(block_on(engine.residency()).unwrap().adapters.len(), 2);

    // A file that is copied over it is seen at the next look.
    std::fs::write(folder.join("task.safetensors"), [0; 3]).unwrap();
    let changes = block_on(library.refresh()).unwrap();
    assert!(matches!(&changes[..], [AdapterChange::Refused { name, .. }] if name == "task"), "{changes:?}");
    assert!(matches!(block_on(library.open("task".into())), Err(EngineError::InvalidFile { .. })));
    engine.close();
    assert_eq!(block_on(library.entries()), Err(EngineError::Closed { what: "engine".into() }));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A shipped adapter as a task file.
fn pack(adapter: &str, path: &std::path::Path) {
    use calora::adapter::{BranchStorage, TaskAdapter, write_task_file};
    let opened = TaskAdapter::open(root(&format!("models/adapters/{adapter}"))).unwrap();
    let modules = opened.modules().map(|(module, branches)| (module.to_owned(), branches.to_vec())).collect();
    write_task_file(path, opened.info(), None, &modules, BranchStorage::F16).unwrap();
}
