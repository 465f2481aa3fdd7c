//! Which state of an adapter was seen: an opaque word, equal while its files are the same.

use std::fmt;
use std::io;
use std::path::Path;

use crate::weights::Stamp;

/// One state of an adapter's files. Opaque: only equality means anything, and only within one folder.
///
/// Made of what the system says of the files (which they are, their lengths, their times of change), so that asking reads
/// nothing: hundreds of files are watched by asking again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(String);

impl Version {
    /// The version of what lies at a path now.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let mut hash = blake3::Hasher::new();
        if path.is_dir() {
            for file in ["adapter_config.json", "adapter_model.safetensors"] {
                // One that is missing is a state, too: the adapter is refused until it comes.
                match Stamp::at(&path.join(file)) {
                    Ok(stamp) => hash.update(&stamp.bytes()),
                    Err(_) => hash.update(b"none"),
                };
            }
        } else {
            hash.update(&Stamp::at(path)?.bytes());
        }
        Ok(Self(hash.finalize().to_hex()[..24].to_owned()))
    }
}

impl From<String> for Version {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
