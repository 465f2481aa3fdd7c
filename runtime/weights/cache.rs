//! A model's computed id, kept in its folder so that gigabytes are hashed once.
//!
//! Only ever a shortcut: what cannot be read is computed again, what cannot be written is not kept, and a changed file
//! (size or time of change) or configuration makes the entry void.

use std::fs;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use super::folder::ModelFolder;
use super::id::is_id;
use super::write::write_atomically;

/// The file's name in the model folder.
const NAME: &str = ".calora-id.json";

/// What an entry is valid for.
pub(super) struct Key {
    path: PathBuf,
    seen: Value,
}

impl Key {
    /// The present state of a folder's files; nothing where the system does not tell.
    pub(super) fn new(folder: &ModelFolder, config: &str) -> Option<Self> {
        let mut files = Vec::new();
        for file in folder.tensors().files() {
            let info = fs::metadata(file.path()).ok()?;
            let changed = info.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
            let name = file.path().file_name()?.to_str()?;
            files.push(json!([name, info.len(), changed.as_nanos().to_string()]));
        }
        let seen = json!({"version": 1, "config": config, "files": files});
        Some(Self { path: folder.path().join(NAME), seen })
    }

    /// The id, if one was kept for just this state.
    pub(super) fn read(&self) -> Option<String> {
        let info = fs::metadata(&self.path).ok()?;
        if !info.is_file() || info.len() > 1 << 20 {
            return None;
        }
        let kept: Value = serde_json::from_slice(&fs::read(&self.path).ok()?).ok()?;
        let id = kept.get("id")?.as_str().filter(|id| is_id(id))?;
        (kept.get("seen") == Some(&self.seen)).then(|| id.to_owned())
    }

    /// Keeps an id; a folder that cannot be written is left as it is.
    pub(super) fn write(&self, id: &str) {
        let content = json!({"id": id, "seen": self.seen}).to_string();
        if let Err(e) = write_atomically(&self.path, content.as_bytes()) {
            log::debug!("the id is not kept: {e}");
        }
    }
}
