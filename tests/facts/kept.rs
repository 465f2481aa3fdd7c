//! Facts that outlive the process: damage, other processes, and processes that did not live to tell.

use std::path::PathBuf;

use super::*;

/// The only file with this extension.
pub(super) fn file(folder: &Path, extension: &str) -> PathBuf {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files = files.filter(|path| path.extension().is_some_and(|e| e == extension));
    let file = files.next().unwrap_or_else(|| panic!("no .{extension} in {}", folder.display()));
    assert!(files.next().is_none(), "more than one .{extension}");
    file
}

/// Loads with a folder; (kept, tried) kernels.
fn load(model: &Model, folder: &Path) -> (usize, usize) {
    let device = open(model, options(Activations::F32, Some(folder)));
    let facts = device.facts().unwrap();
    assert!(!facts.kernels.is_empty());
    (facts.kept, facts.kernels.len() - facts.kept)
}

#[test]
fn facts_outlive_the_process_and_damage_costs_only_their_making() {
    let folder = tempfile::tempdir().unwrap();
    let model = model();
    let (kept, tried) = load(&model, folder.path());
    assert!(kept == 0 && tried > 6, "{kept} {tried}");
    assert_eq!(load(&model, folder.path()), (tried, 0));
    let path = file(folder.path(), "facts");
    let sound = std::fs::read(&path).unwrap();
    let same = || assert_eq!(std::fs::read(&path).unwrap(), sound, "the same facts again");
    let try_with = |what: &str, bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(load(&model, folder.path()), (0, tried), "{what}");
        same();
        assert_eq!(load(&model, folder.path()), (tried, 0), "{what}");
    };
    for sixteenth in 0..16 {
        let mut bytes = sound.clone();
        bytes[sound.len() * sixteenth / 16] ^= 0x10;
        try_with(&format!("damaged at {sixteenth}/16"), &bytes);
    }
    for sixteenth in [0, 1, 7, 15] {
        try_with(&format!("cut at {sixteenth}/16"), &sound[..sound.len() * sixteenth / 16]);
    }
    try_with("longer", &[sound.as_slice(), b"x"].concat());
    // Larger than memory, without taking its place on the disk.
    std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(load(&model, folder.path()), (0, tried));
    same();
    // Sound, but of another driver.
    let text = String::from_utf8(sound[40..].to_vec()).unwrap();
    try_with("foreign", &sealed(&text.replacen("calora", "caloria", 1)));
    try_with("no lines", &sealed("nothing"));
    try_with("half a line", &sealed(&text[..text.len() - 4]));
    // And another model adds to them.
    let other = random_model(&small_config(), Store::F32, 3);
    let (kept, more) = load(&other, folder.path());
    assert!(kept == tried && more > 0, "{kept} {more}");
    assert_eq!(load(&model, folder.path()), (tried + more, 0));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(
        left.iter().all(|path| path.extension().is_some_and(|e| e == "facts" || e == "pipelines")),
        "{left:?}"
    );
}

/// A file of facts with a checksum that holds.
pub(super) fn sealed(text: &str) -> Vec<u8> {
    [b"caloraDF".as_slice(), blake3::hash(text.as_bytes()).as_bytes(), text.as_bytes()].concat()
}

#[test]
fn a_failure_is_remembered_and_a_folder_that_cannot_be_written_is_no_error() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    let fault =
        replace(|name| name.starts_with("Matvec") && name.contains("Lanes"), "y[i] = value;", "y[i] = 1.0;");
    let (mask, first) = (CapsMask { family: Some(Family::Lanes), ..CapsMask::default() }, folder.path());
    let with = |folder| GpuOptions { mask, ..options(Activations::F32, Some(folder)) };
    let broken = with_fault(fault, || failures(&open(&model, with(first)).facts().unwrap()));
    assert!(!broken.is_empty());
    let mut later = open(&model, with(first));
    let facts = later.facts().unwrap();
    assert_eq!(failures(&facts), broken);
    assert_eq!(facts.kernels.len(), facts.kept);
    assert!(chosen(&facts).is_disjoint(&broken));
    check("remembered", &model, &mut later);

    let file = folder.path().join("a file");
    std::fs::write(&file, "").unwrap();
    let mut device = open(&model, options(Activations::F32, Some(&file.join("no folder"))));
    assert_eq!(device.facts().unwrap().kept, 0);
    check("no folder", &model, &mut device);
}

/// Not a test: a process that ends in the midst of a kernel's test, as with a driver that crashes.
#[test]
#[ignore = "a child process of another test"]
fn load_with_a_driver_that_crashes() {
    let Some(folder) = std::env::var_os("CALORA_CRASHING_DRIVER") else { return };
    let fault = |name: &str, _: &str| -> Option<String> {
        if name.contains("64 lanes Subgroup") {
            std::process::abort();
        }
        None
    };
    let split = CapsMask { family: Some(Family::Split), no_subgroups: false, ..CapsMask::default() };
    let model = model();
    let mut device = with_fault(fault, || {
        open(&model, GpuOptions { mask: split, ..options(Activations::F32, Some(Path::new(&folder))) })
    });
    with_fault(fault, || check("after crashes", &model, &mut device));
    let facts = device.facts().unwrap();
    assert!(
        facts.failures().all(|fact| fact.failure.as_ref().unwrap().contains("the process ended")),
        "{facts:?}"
    );
    assert!(facts.failures().count() > 0);
}

#[test]
fn a_kernel_that_crashes_the_process_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let child = || {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--ignored", "--exact", "kept::load_with_a_driver_that_crashes"]);
        child.env("CALORA_CRASHING_DRIVER", folder.path());
        child.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        child.status().unwrap().success()
    };
    let crashes = (0..40).take_while(|_| !child()).count();
    // Two for each kernel that crashes: matvec, shrink, prepare, attention and their relatives.
    assert!(crashes >= 4 && crashes.is_multiple_of(2) && crashes < 40, "{crashes} crashes");
    assert!(child(), "and it stays so");
}

#[test]
fn several_processes_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let models = [
        model(),
        random_model(&small_config(), Store::F32, 3),
        random_model(&small_config(), Store::BF16, 4),
    ];
    std::thread::scope(|scope| {
        for model in &models {
            scope.spawn(|| load(model, folder.path()));
        }
    });
    // What one lost to another is tried again, once.
    models.iter().for_each(|model| _ = load(model, folder.path()));
    assert!(models.iter().all(|model| load(model, folder.path()).1 == 0));

    // What another process has found since is not lost when this one adds to it.
    let folder = tempfile::tempdir().unwrap();
    let mut device = open(&models[0], options(Activations::F32, Some(folder.path())));
    let (_, more) = load(&models[2], folder.path());
    assert!(more > 0, "another form of weights");
    device.load_tail(&tail(&models[0])).unwrap();
    assert_eq!(load(&models[2], folder.path()).1, 0);
    let mut again = open(&models[0], options(Activations::F32, Some(folder.path())));
    again.load_tail(&tail(&models[0])).unwrap();
    let facts = again.facts().unwrap();
    assert_eq!(facts.kernels.len(), facts.kept);
}
