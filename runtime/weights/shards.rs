//! A folder's weights, whether one file or shards with an index: one name space over all of them.
//!
//! Invariant: an index can only name files that lie directly in its folder, and every tensor that it lists is in the
//! shard that it names, or opening fails.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};

use super::file::SafetensorsFile;
use super::read::read_json;
use super::tensor::Tensor;
use crate::error::{Error, Result};

/// The whole model in one file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Which shard has which tensor.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The mapped weight files of a folder.
#[derive(Clone, Debug)]
pub struct Shards {
    folder: std::path::PathBuf,
    files: Vec<SafetensorsFile>,
    /// Tensor name to index in `files`; sorted, so that iteration has one order everywhere.
    by_name: BTreeMap<String, usize>,
}

impl Shards {
    /// Maps `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        if folder.join(SINGLE).exists() {
            let file = SafetensorsFile::open(folder.join(SINGLE))?;
            let by_name = file.names().map(|name| (name.to_owned(), 0)).collect();
            return Ok(Self { folder: folder.to_owned(), files: vec![file], by_name });
        }
        if folder.join(INDEX).exists() {
            return Self::from_index(folder);
        }
        let help = if folder.join("pytorch_model.bin").exists() {
            "it has pytorch_model.bin; save it again with safetensors"
        } else {
            "a model is a Hugging Face folder with safetensors weights"
        };
        Err(Error::MissingFile { folder: folder.to_owned(), file: SINGLE.into(), help: help.into() })
    }

    fn from_index(folder: &Path) -> Result<Self> {
        let path = folder.join(INDEX);
        let index = read_json(&path)?;
        let Some(map) = index.get("weight_map").and_then(|m| m.as_object()) else {
            return Err(Error::malformed(&path, "has no weight_map object"));
        };
        let mut files: Vec<SafetensorsFile> = Vec::new();
        let mut opened: HashMap<&str, usize> = HashMap::new();
        let mut by_name = BTreeMap::new();
        for (tensor, shard) in map {
            let Some(shard) = shard.as_str() else {
                return Err(Error::malformed(&path, format!("tensor {tensor} has no file name")));
            };
            let at = match opened.get(shard) {
                Some(at) => *at,
                None => {
                    if !is_plain_name(shard) {
                        let reason = format!("names the shard {shard:?}, which is not a file of its folder");
                        return Err(Error::malformed(&path, reason));
                    }
                    if !folder.join(shard).exists() {
                        let help = format!("{INDEX} says that it has tensor {tensor}; download it too");
                        return Err(Error::MissingFile { folder: folder.into(), file: shard.into(), help });
                    }
                    files.push(SafetensorsFile::open(folder.join(shard))?);
                    opened.insert(shard, files.len() - 1);
                    files.len() - 1
                }
            };
            by_name.insert(tensor.clone(), at);
        }
        for (tensor, at) in &by_name {
            for (i, file) in files.iter().enumerate() {
                match (i == *at, file.contains(tensor)) {
                    (true, false) => {
                        let reason = format!("is not in this shard, although {INDEX} says so");
                        return Err(Error::tensor(file.path(), tensor, reason));
                    }
                    (false, true) => {
                        let reason = "is also in another shard, and the two may differ";
                        return Err(Error::tensor(file.path(), tensor, reason));
                    }
                    _ => {}
                }
            }
        }
        Ok(Self { folder: folder.to_owned(), files, by_name })
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// The same tensors in memory of this process; see [`SafetensorsFile::copied`].
    pub fn copied(self) -> Result<Self> {
        let files = self.files.iter().map(SafetensorsFile::copied).collect::<Result<_>>()?;
        Ok(Self { files, ..self })
    }

    /// The files.
    pub fn files(&self) -> &[SafetensorsFile] {
        &self.files
    }

    /// Whether a tensor of this name is there, of whatever type.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// A tensor that must be there, of a type that calora reads.
    pub fn require(&self, name: &str) -> Result<Tensor> {
        match self.by_name.get(name).and_then(|at| self.files.get(*at)) {
            Some(file) => file.require(name),
            None => Err(self.missing(name)),
        }
    }

    /// A tensor's type as the file spells it, its shape and its raw bytes, also where calora does not read the type.
    pub fn raw(&self, name: &str) -> Option<(&str, &[usize], &[u8])> {
        self.files.get(*self.by_name.get(name)?)?.raw(name)
    }

    /// The error for an absent tensor, with the names that come closest.
    pub(crate) fn missing(&self, name: &str) -> Error {
        let near = nearest(name, self.names());
        let reason = match near.as_slice() {
            [] => "is missing".to_owned(),
            names => format!("is missing; the nearest are {}", names.join(", ")),
        };
        let path = match self.files.as_slice() {
            [file] => file.path(),
            _ => &self.folder,
        };
        Error::tensor(path, name, reason)
    }
}

/// Whether a name is that of a file in the same folder: one component, no way up, no drive, no alternative separator.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(components.next(), Some(Component::Normal(_)))
        && components.next().is_none()
        && !name.contains(['/', '\\', ':', '\0'])
}

/// At most three names that share the longest beginning and end with `wanted`.
fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let common = |a: &mut dyn Iterator<Item = u8>, b: &mut dyn Iterator<Item = u8>| {
        a.zip(b).take_while(|(x, y)| x == y).count()
    };
    let mut scored: Vec<(usize, &str)> = names
        .map(|name| {
            let front = common(&mut wanted.bytes(), &mut name.bytes());
            let back = common(&mut wanted.bytes().rev(), &mut name.bytes().rev());
            (front + back, name)
        })
        // A shared `.weight` says nothing.
        .filter(|(score, _)| *score > wanted.len() / 2)
        .collect();
    scored.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    scored.truncate(3);
    scored.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_help() {
        let names = ["lm_head.weight", "layers.0.mlp.up_proj.weight", "layers.0.mlp.gate_proj.weight"];
        let near = nearest("model.layers.0.mlp.up_proj.weight", names.into_iter());
        assert_eq!(near, ["layers.0.mlp.up_proj.weight"]);
        assert!(nearest("model.norm.weight", ["lm_head.weight"].into_iter()).is_empty());
    }

    #[test]
    fn only_files_of_the_folder_are_plain() {
        assert!(is_plain_name("model-00001-of-00002.safetensors"));
        for bad in ["../x", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "c:x", "./x", "x/"] {
            assert!(!is_plain_name(bad), "{bad}");
        }
    }
}
