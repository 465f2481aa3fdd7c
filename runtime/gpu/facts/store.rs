//! Where facts outlive the process: one file of verdicts and one of compiled pipelines for each key.
//!
//! A key is everything that decides whether they still hold: GPU, driver, interface, shaders, calora's version. It names
//! the files and stands in them. A cache: what is missing, damaged or foreign is made again.

use std::fs;
use std::path::{Path, PathBuf};

use super::verdict::Verdict;
use crate::kernels::SHADER_PARTS;
use crate::weights::checked::Magic;
use crate::weights::{read_checked, write_checked};

const FACTS: &Magic = b"caloraDF";
const PIPELINES: &Magic = b"caloraPC";
/// Larger files are none of ours.
const MOST_FACTS: u64 = 1 << 20;
const MOST_PIPELINES: u64 = 64 << 20;
/// Keys whose files are kept: a machine has few GPUs, and updates of drivers leave old files behind.
const KEPT: usize = 6;
/// Processes that ended while they tried one kernel before it is given up.
const CHANCES: u32 = 2;

/// The files of one key.
pub(super) struct Store {
    key: String,
    /// Without an extension.
    path: PathBuf,
    /// Kernels whose tests began and did not end, and how often: this process' own, and those of processes that ended.
    begun: Vec<(u32, String)>,
}

/// What decides whether facts of this GPU still hold.
pub(super) fn key(info: &wgpu::AdapterInfo) -> String {
    let mut shaders = blake3::Hasher::new();
    SHADER_PARTS.iter().for_each(|part| _ = shaders.update(part.as_bytes()).update(&[0]));
    let wgpu::AdapterInfo { name, vendor, device, driver, driver_info, backend, .. } = info;
    let (version, shaders) = (env!("CARGO_PKG_VERSION"), shaders.finalize().to_hex());
    let key = format!(
        "calora {version}, shaders {shaders}, {name} {vendor:04x}:{device:04x}, {driver} {driver_info}, {backend}"
    );
    key.replace(['\n', '\t'], " ")
}

impl Store {
    pub(super) fn new(folder: &Path, key: String) -> Self {
        let path = folder.join(&blake3::hash(key.as_bytes()).to_hex()[..32]);
        let marks = fs::read_to_string(path.with_extension("testing")).unwrap_or_default();
        let begun = marks.lines().filter_map(|line| {
            let (count, name) = line.split_once('\t')?;
            Some((count.parse().ok()?, name.to_owned()))
        });
        let begun = begun.collect();
        Self { key, path, begun }
    }

    /// Kernels in whose tests processes ended, too often to try them again.
    pub(super) fn given_up(&self) -> Vec<String> {
        let often = self.begun.iter().filter(|(count, _)| *count >= CHANCES);
        often.map(|(_, name)| name.clone()).collect()
    }

    /// Says that a kernel is being tried, in case that this process does not live to tell.
    pub(super) fn begin(&mut self, kernel: &str) {
        match self.begun.iter_mut().find(|(_, name)| name == kernel) {
            Some((count, _)) => *count = count.saturating_add(1),
            None => self.begun.push((1, kernel.to_owned())),
        }
        self.mark();
    }

    /// Says that this process lives.
    pub(super) fn end(&mut self, kernel: &str) {
        self.begun.retain(|(_, name)| name != kernel);
        self.mark();
    }

    /// Nothing waits for the disk: a process that ends leaves what it wrote.
    fn mark(&self) {
        let path = self.path.with_extension("testing");
        let done = match self.begun.is_empty() {
            true => fs::remove_file(&path),
            false => {
                let lines: String = self.begun.iter().map(|(n, name)| format!("{n}\t{name}\n")).collect();
                let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
                folder.and_then(|()| fs::write(&path, lines))
            }
        };
        if let Err(e) = done {
            log::debug!("{}: {e}", path.display());
        }
    }

    /// The verdicts that were kept.
    pub(super) fn read(&self) -> Option<Vec<(String, Verdict)>> {
        let path = self.path.with_extension("facts");
        let text = String::from_utf8(read_checked(&path, FACTS, MOST_FACTS)?).ok()?;
        let mut lines = text.lines();
        if lines.next()? != self.key {
            log::warn!("{}: facts of another device or version; they are made again", path.display());
            return None;
        }
        lines.map(Verdict::parse).collect()
    }

    /// Keeps verdicts; not being able to costs the next start its tests.
    pub(super) fn write<'a>(&self, verdicts: impl Iterator<Item = (&'a String, &'a Verdict)>) {
        let mut text = format!("{}\n", self.key);
        for (name, verdict) in verdicts {
            text.push_str(&verdict.line(name));
        }
        match write_checked(&self.path.with_extension("facts"), FACTS, text.as_bytes()) {
            Ok(()) => self.prune(),
            Err(e) => log::warn!("facts of the device were not kept: {e}"),
        }
    }

    /// The driver's compiled pipelines.
    pub(super) fn read_pipelines(&self) -> Option<Vec<u8>> {
        let mut bytes = read_checked(&self.path.with_extension("pipelines"), PIPELINES, MOST_PIPELINES)?;
        let rest = bytes.strip_prefix(self.key.as_bytes())?.len();
        Some(bytes.split_off(bytes.len() - rest))
    }

    /// Keeps the driver's compiled pipelines.
    pub(super) fn write_pipelines(&self, bytes: &[u8]) {
        if bytes.len() as u64 + self.key.len() as u64 > MOST_PIPELINES {
            return;
        }
        let content = [self.key.as_bytes(), bytes].concat();
        if let Err(e) = write_checked(&self.path.with_extension("pipelines"), PIPELINES, &content) {
            log::warn!("compiled pipelines were not kept: {e}");
        }
    }

    /// Removes the files of all but the newest keys.
    fn prune(&self) {
        let entries = self.path.parent().map(fs::read_dir).into_iter().flatten().flatten().flatten();
        let facts = entries.filter(|entry| entry.path().extension().is_some_and(|e| e == "facts"));
        let mut all: Vec<_> =
            facts.filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path()))).collect();
        all.sort();
        let surplus = all.len().saturating_sub(KEPT);
        for (_, path) in all.into_iter().take(surplus) {
            for extension in ["facts", "pipelines", "testing"] {
                let _ = fs::remove_file(path.with_extension(extension));
            }
        }
    }
}
