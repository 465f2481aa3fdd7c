//! A folder of adapters: generations under running sessions, compare-and-swap, residency, files changed in place.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use calora::Error;
use calora::adapter::{
    AdapterOptions, BranchStorage, Protection, SecretKey, TaskAdapter, protect::protect, write_task_file,
};
use calora::engine::{DeviceChoice, Engine, EngineOptions, WeightAccess};
use calora::library::{AdapterChange, AdapterLibrary, Version};
use calora::session::{Session, SessionOptions};

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(path)
}

fn engine() -> Engine {
    let options = EngineOptions { device: DeviceChoice::Cpu, ..EngineOptions::default() };
    Engine::load(shipped("base"), options).unwrap()
}

/// A shipped adapter as a task file.
fn pack(adapter: &str, path: &Path) {
    let opened = TaskAdapter::open(shipped("adapters").join(adapter)).unwrap();
    let modules = opened.modules().map(|(module, branches)| (module.to_owned(), branches.to_vec())).collect();
    write_task_file(path, opened.info(), None, &modules, BranchStorage::F16).unwrap();
}

fn logits(engine: &Engine, library: &AdapterLibrary, name: &str) -> Vec<f32> {
    engine.logits(&[1, 2, 3], &[(library.get(name).unwrap(), 1.0)]).unwrap()
}

fn session(engine: &Engine, library: &AdapterLibrary, name: &str) -> Session {
    let adapters = vec![(library.get(name).unwrap(), 1.0)];
    engine.session(SessionOptions { adapters, context_size: Some(32), ..SessionOptions::default() }).unwrap()
}

/// Logits after three tokens, in a session that keeps what it has.
fn answer(session: &mut Session) -> Vec<f32> {
    let mut all = Vec::new();
    session.visit_logits(&[1, 2, 3], 0, |_, row| all.extend_from_slice(row)).unwrap();
    all
}

fn version(library: &AdapterLibrary, name: &str) -> Version {
    library.entries().into_iter().find(|e| e.name == name).unwrap().version
}

/// The changes as short words.
fn words(changes: &[AdapterChange]) -> Vec<String> {
    let word = |change: &AdapterChange| match change {
        AdapterChange::Added { name, .. } => format!("+{name}"),
        AdapterChange::Replaced { name, .. } => format!("~{name}"),
        AdapterChange::Removed { name } => format!("-{name}"),
        AdapterChange::Refused { name, error } => {
            assert!(matches!(**error, Error::Malformed { .. }), "{error}");
            format!("!{name}")
        }
    };
    changes.iter().map(word).collect()
}

#[test]
fn watching_tells_each_change_once() {
    let (engine, folder) = (engine(), tempfile::tempdir().unwrap());
    let at = |name: &str| folder.path().join(name);
    pack("spam", &at("spam.safetensors"));
    let library = AdapterLibrary::open(&engine, folder.path()).unwrap();
    assert!(library.refresh().unwrap().is_empty());
    assert!(AdapterLibrary::open(&engine, at("nowhere")).is_err());

    pack("intent", &at("intent.safetensors"));
    pack("novelist", &at("spam.safetensors"));
    fs::write(at("broken.safetensors"), [1, 2, 3]).unwrap();
    fs::write(at("notes.txt"), "no adapter").unwrap();
    fs::write(at(".hidden.safetensors"), [1]).unwrap();
    assert_eq!(words(&library.refresh().unwrap()), ["!broken", "+intent", "~spam"]);
    assert!(library.refresh().unwrap().is_empty());
    let names: Vec<_> = library.entries().into_iter().map(|e| (e.name, e.error.is_some())).collect();
    assert_eq!(names, [("broken".into(), true), ("intent".into(), false), ("spam".into(), false)]);
    assert!(matches!(library.get("broken"), Err(Error::Malformed { .. })));
    assert!(matches!(library.get("nobody"), Err(Error::MissingFile { .. })));

    fs::remove_file(at("intent.safetensors")).unwrap();
    pack("intent", &at("broken.safetensors.new"));
    fs::rename(at("broken.safetensors.new"), at("broken.safetensors")).unwrap();
    assert_eq!(words(&library.refresh().unwrap()), ["-intent", "+broken"]);
    library.get("broken").unwrap();
}

#[test]
fn a_replaced_file_is_a_new_generation_and_a_session_keeps_the_old_one() {
    let (engine, folder) = (engine(), tempfile::tempdir().unwrap());
    let file = folder.path().join("task.safetensors");
    pack("spam", &file);
    let plain = engine.logits(&[1, 2, 3], &[]).unwrap();
    let library = AdapterLibrary::open(&engine, folder.path()).unwrap();
    assert!(library.get("task").unwrap().same(&library.get("task").unwrap()));
    let old = logits(&engine, &library, "task");
    assert_ne!(old, plain);
    let held = library.get("task").unwrap();
    let mut running = session(&engine, &library, "task");
    let before = answer(&mut running);

    pack("intent", &file);
    assert!(library.get("task").unwrap().same(&held), "nothing changes before somebody looks");
    assert_eq!(words(&library.refresh().unwrap()), ["~task"]);
    assert!(!library.get("task").unwrap().same(&held));
    let new = logits(&engine, &library, "task");
    assert_ne!(new, old, "the new file is another task");
    running.reset();
    assert_eq!(answer(&mut running), before);
    // Also when the old one has to be read again: the map outlives the name.
    drop(running);
    engine.evict_idle();
    assert_eq!(engine.memory().tails, 0);
    assert_eq!(engine.logits(&[1, 2, 3], &[(held, 1.0)]).unwrap(), old);
    assert_eq!(engine.logits(&[1, 2, 3], &[]).unwrap(), plain, "without it, bit for bit");
}

#[test]
fn replacing_is_compare_and_swap() {
    let (engine, folder, outside) = (engine(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [spam, intent] = ["spam", "intent"].map(|name| {
        let path = outside.path().join(name);
        pack(name, &path);
        path
    });
    let library = AdapterLibrary::open(&engine, folder.path()).unwrap();
    let first = library.replace("task", None, &spam).unwrap();
    assert_eq!(version(&library, "task"), first);
    let old = logits(&engine, &library, "task");
    assert!(matches!(
        library.replace("task", None, &intent),
        Err(Error::VersionConflict { expected: None, actual: Some(_), .. })
    ));
    let second = library.replace("task", Some(&first), &intent).unwrap();
    assert_ne!(first, second);
    assert_ne!(logits(&engine, &library, "task"), old);
    let conflict = library.replace("task", Some(&first), &spam).unwrap_err();
    assert!(conflict.to_string().contains(&second.to_string()), "{conflict}");

    // What does not fit does not land.
    fs::write(outside.path().join("broken"), [0; 100]).unwrap();
    assert!(library.replace("task", Some(&second), outside.path().join("broken")).is_err());
    assert!(library.replace("task", Some(&second), shipped("adapters/spam")).is_err(), "a folder");
    assert!(library.replace("../task", None, &spam).is_err());
    assert_eq!(version(&library, "task"), second);

    // What somebody who was killed left is no adapter, and goes with the next replacement.
    let rubbish = folder.path().join(".calora-library-task.1-0.partial");
    fs::write(&rubbish, [0; 10]).unwrap();
    assert!(library.refresh().unwrap().is_empty());
    assert!(library.remove("task", &first).is_err());
    library.remove("task", &second).unwrap();
    assert!(!rubbish.exists() && library.entries().is_empty());
}

#[test]
fn of_several_who_replace_one_version_one_wins() {
    let (engine, folder, outside) = (engine(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = outside.path().join("spam");
    pack("spam", &source);
    // Two libraries, as two engines of one app have them.
    let libraries = [0, 1].map(|_| AdapterLibrary::open(&engine, folder.path()).unwrap());
    let mut expected = None;
    for _ in 0..5 {
        let results: Vec<_> = std::thread::scope(|scope| {
            let race = |i: usize| {
                let (library, source, expected) = (&libraries[i % 2], &source, expected.clone());
                scope.spawn(move || library.replace("task", expected.as_ref(), source))
            };
            let threads: Vec<_> = (0..4).map(race).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 3));
        assert!(lost.iter().all(|r| matches!(r, Err(Error::VersionConflict { .. }))));
        expected = won.into_iter().next().unwrap().ok();
    }
}

#[test]
fn a_peft_folder_gives_way_to_a_task_file() {
    let (engine, folder, outside) = (engine(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let peft = folder.path().join("task");
    fs::create_dir(&peft).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(shipped("adapters/spam").join(file), peft.join(file)).unwrap();
    }
    pack("intent", &outside.path().join("intent"));
    let library = AdapterLibrary::open(&engine, folder.path()).unwrap();
    let spam = logits(&engine, &library, "task");
    library.replace("task", Some(&version(&library, "task")), outside.path().join("intent")).unwrap();
    assert!(!peft.exists());
    assert_ne!(logits(&engine, &library, "task"), spam);
}

#[test]
fn residency_is_visible() {
    let (engine, folder) = (engine(), tempfile::tempdir().unwrap());
    for name in ["spam", "intent"] {
        pack(name, &folder.path().join(format!("{name}.safetensors")));
    }
    let library = AdapterLibrary::open(&engine, folder.path()).unwrap();
    let look = || {
        let entries = library.entries();
        let state = |e: &calora::library::AdapterEntry| (e.resident_bytes > 0, e.in_use, e.preloaded);
        [state(&entries[0]), state(&entries[1])]
    };
    let nothing = (false, false, false);
    assert!(library.entries().iter().all(|e| e.mapped_bytes > 100_000));
    library.prefetch("spam").unwrap();
    assert_eq!(look(), [nothing; 2], "a hint makes nothing resident");
    library.preload(&["spam"]).unwrap();
    assert_eq!(look(), [nothing, (true, false, true)]);
    let running = session(&engine, &library, "intent");
    let both = session(&engine, &library, "spam");
    assert_eq!(look(), [(true, true, false), (true, true, true)]);
    let report = engine.residency();
    assert_eq!((report.lists.len(), report.budget_bytes), (2, 64 << 20));
    assert_eq!(report.used_bytes, report.lists.iter().map(|l| l.bytes).sum::<u64>());
    drop((running, both));
    library.release();
    assert_eq!(look(), [(true, false, false); 2], "within the budget");
    library.evict("spam").unwrap();
    assert_eq!(look(), [(true, false, false), nothing]);
    engine.evict_idle();
    assert!(engine.residency().lists.is_empty());
}

/// Cuts or writes into files under their maps: without the copies this test ends in a bus error.
#[test]
fn a_file_changed_in_place_is_an_error_and_nothing_worse() {
    let (engine, folder) = (engine(), tempfile::tempdir().unwrap());
    let peft = folder.path().join("peft");
    fs::create_dir(&peft).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(shipped("adapters/spam").join(file), peft.join(file)).unwrap();
    }
    pack("spam", &folder.path().join("task.safetensors"));
    pack("spam", &folder.path().join("gone.safetensors"));
    let library = AdapterLibrary::open(&engine, folder.path()).unwrap();
    let cut = |path: &Path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(100).unwrap();
    for (name, file) in
        [("peft", peft.join("adapter_model.safetensors")), ("task", folder.path().join("task.safetensors"))]
    {
        let bound = library.get(name).unwrap();
        let mut running = session(&engine, &library, name);
        let before = answer(&mut running);
        cut(&file);
        running.reset();
        assert_eq!(answer(&mut running), before, "what is resident goes on");
        drop(running);
        engine.evict_idle();
        let error = engine.resident(&[(bound, 1.0)]).unwrap_err();
        assert!(matches!(&error, Error::FileChanged { path } if *path == file), "{error}");
        // Also where the report of what it touches is made.
        assert!(library.open_adapter(name).unwrap().1.bind(engine.recipe(), &engine.ids().unwrap()).is_err());
    }
    // Cut first and replaced then: the name no longer leads to the mapped file.
    let (bound, file) = (library.get("gone").unwrap(), folder.path().join("gone.safetensors"));
    cut(&file);
    fs::remove_file(&file).unwrap();
    pack("intent", &file);
    assert!(matches!(engine.resident(&[(bound, 1.0)]), Err(Error::FileChanged { .. })));
    library.refresh().unwrap();
    library.preload(&["gone"]).unwrap();
}

#[test]
fn a_copied_model_outlives_its_file() {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(shipped("base")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let options = EngineOptions {
        device: DeviceChoice::Cpu,
        weights: WeightAccess::Copied,
        ..EngineOptions::default()
    };
    let engine = Engine::load(folder.path(), options).unwrap();
    let before = engine.logits(&[1, 2, 3], &[]).unwrap();
    assert_eq!(before, self::engine().logits(&[1, 2, 3], &[]).unwrap());
    for entry in fs::read_dir(folder.path()).unwrap() {
        fs::OpenOptions::new().write(true).open(entry.unwrap().path()).unwrap().set_len(0).unwrap();
    }
    // On mapped weights this is a bus error.
    assert_eq!(engine.logits(&[1, 2, 3], &[]).unwrap(), before);
}

#[test]
fn a_library_opens_encrypted_adapters_with_its_key() {
    let (engine, folder) = (engine(), tempfile::tempdir().unwrap());
    let (plain, sealed) = (folder.path().join("plain.safetensors"), folder.path().join("sealed.safetensors"));
    pack("spam", &plain);
    let key = SecretKey::generate().unwrap();
    let protection = Protection { encrypt: Some(key.clone()), ..Protection::default() };
    fs::write(&sealed, protect(&plain, &fs::read(&plain).unwrap(), &protection).unwrap()).unwrap();

    let locked = AdapterLibrary::open(&engine, folder.path()).unwrap();
    assert!(locked.entries()[1].error.is_some() && locked.entries()[0].error.is_none());
    assert!(matches!(locked.get("sealed"), Err(Error::Locked { .. })));
    let options = AdapterOptions { key: Some(key), canary: true, ..AdapterOptions::default() };
    let library = AdapterLibrary::open_with(&engine, folder.path(), options).unwrap();
    assert_eq!(logits(&engine, &library, "sealed"), logits(&engine, &library, "plain"));
    assert!(library.get("sealed").unwrap().same(&library.get("sealed").unwrap()));
}
