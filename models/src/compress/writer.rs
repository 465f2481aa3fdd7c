//! A safetensors file written tensor by tensor in any order, and the folder around it that appears at the end.
//!
//! Invariant: every tensor starts at a multiple of its element size, so that readers can use the map as it is; a folder
//! that was not finished leaves nothing behind.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use calora::weights::id::{TensorDigest, TensorHasher};
use calora::weights::write_atomically;
use calora::{Error, Result};
use serde_json::{Map, Value, json};

use super::{io, option};

/// One tensor of the file to be.
pub(super) struct Output {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    len: usize,
}

impl Output {
    pub(super) fn new(name: String, dtype: &str, shape: &[usize], len: usize) -> Self {
        Self { name, dtype: dtype.to_owned(), shape: shape.to_owned(), len }
    }

    fn element_size(&self) -> usize {
        self.len / self.shape.iter().product::<usize>().max(1)
    }
}

/// A tensor's place and what of it is written.
struct Slot {
    start: u64,
    len: u64,
    written: u64,
    pending: Vec<u8>,
    hasher: TensorHasher,
}

/// Small pieces are collected up to this size before they go to the file.
const PENDING: usize = 1 << 20;

/// The file.
pub(super) struct Writer {
    path: PathBuf,
    file: File,
    entries: Map<String, Value>,
    slots: Vec<Slot>,
    header_len: usize,
    data_len: u64,
}

impl Writer {
    /// Lays the tensors out and writes the header; metadata values may be replaced by others of the same length later.
    pub(super) fn create(path: &Path, outputs: &[Output], metadata: &[(&str, String)]) -> Result<Self> {
        // Wide elements first keeps everything aligned; then by name, as the format's own writer does.
        let mut order: Vec<usize> = (0..outputs.len()).collect();
        order.sort_by_key(|i| (std::cmp::Reverse(outputs[*i].element_size()), &outputs[*i].name));
        let mut starts = vec![0; outputs.len()];
        let mut entries = Map::new();
        let mut offset = 0u64;
        for i in order {
            let output = &outputs[i];
            let end = offset + output.len as u64;
            let entry = json!({"dtype": output.dtype, "shape": output.shape, "data_offsets": [offset, end]});
            entries.insert(output.name.clone(), entry);
            starts[i] = offset;
            offset = end;
        }
        let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(|e| io(path, e))?;
        let slots = outputs.iter().zip(starts).map(|(output, start)| Slot {
            start,
            len: output.len as u64,
            written: 0,
            pending: Vec::new(),
            hasher: TensorHasher::new(&output.name, &output.dtype, &output.shape),
        });
        let slots = slots.collect();
        let mut writer =
            Self { path: path.to_owned(), file, entries, slots, header_len: 0, data_len: offset };
        writer.header_len = writer.header(metadata).len();
        writer.write_header(metadata)?;
        let len = (8 + writer.header_len) as u64 + offset;
        writer.file.set_len(len).map_err(|e| io(path, e))?;
        Ok(writer)
    }

    /// The next bytes of a tensor.
    pub(super) fn append(&mut self, output: usize, bytes: &[u8]) -> Result<()> {
        let slot = &mut self.slots[output];
        slot.hasher.update(bytes);
        slot.pending.extend_from_slice(bytes);
        if slot.pending.len() >= PENDING { self.flush(output) } else { Ok(()) }
    }

    /// Bytes of a tensor.
    pub(super) fn byte_len(&self, output: usize) -> u64 {
        self.slots[output].len
    }

    fn flush(&mut self, output: usize) -> Result<()> {
        let slot = &mut self.slots[output];
        let at = (8 + self.header_len) as u64 + slot.start + slot.written;
        let written = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.write_all(&slot.pending));
        written.map_err(|e| io(&self.path, e))?;
        slot.written += slot.pending.len() as u64;
        slot.pending.clear();
        Ok(())
    }

    /// Writes what is pending; returns the digests and the size of all tensors.
    pub(super) fn finish_tensors(&mut self) -> Result<(Vec<TensorDigest>, u64)> {
        for output in 0..self.slots.len() {
            self.flush(output)?;
        }
        Ok((self.slots.iter().map(|slot| slot.hasher.clone().finish()).collect(), self.data_len))
    }

    /// Replaces the metadata and makes sure that everything is on the disk.
    pub(super) fn finish(mut self, metadata: &[(&str, String)]) -> Result<()> {
        self.write_header(metadata)?;
        self.file.sync_all().map_err(|e| io(&self.path, e))
    }

    fn header(&self, metadata: &[(&str, String)]) -> Vec<u8> {
        let mut notes = Map::new();
        notes.insert("format".into(), "pt".into());
        notes.extend(metadata.iter().map(|(key, value)| ((*key).to_owned(), value.as_str().into())));
        let mut header = Map::new();
        header.insert("__metadata__".into(), notes.into());
        header.extend(self.entries.clone());
        let mut bytes = Value::Object(header).to_string().into_bytes();
        bytes.resize(bytes.len().next_multiple_of(8), b' ');
        bytes
    }

    fn write_header(&mut self, metadata: &[(&str, String)]) -> Result<()> {
        let header = self.header(metadata);
        if header.len() != self.header_len {
            return Err(Error::Malformed {
                path: self.path.clone(),
                reason: "metadata changed its length".into(),
            });
        }
        let length = (header.len() as u64).to_le_bytes();
        let written = self.file.rewind().and_then(|()| self.file.write_all(&length));
        written.and_then(|()| self.file.write_all(&header)).map_err(|e| io(&self.path, e))
    }
}

/// A folder under a temporary name beside its final one.
pub(super) struct Folder {
    temporary: PathBuf,
    target: PathBuf,
}

impl Folder {
    /// Refuses a target that holds something.
    pub(super) fn create(target: &Path) -> Result<Self> {
        let Some(name) = target.file_name() else {
            return Err(option("OUT", target.display(), "must name a folder to be made"));
        };
        if target.exists() {
            let mut entries = fs::read_dir(target).map_err(|e| io(target, e))?;
            if entries.next().is_some() {
                return Err(option("OUT", target.display(), "is there and not empty; name a new folder"));
            }
        }
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(|e| io(parent, e))?;
        let temporary = format!(".{}.partial-{}", name.to_string_lossy(), std::process::id());
        let temporary = parent.join(temporary);
        fs::create_dir(&temporary).map_err(|e| io(&temporary, e))?;
        Ok(Self { temporary, target: target.to_owned() })
    }

    /// Where to write.
    pub(super) fn path(&self) -> &Path {
        &self.temporary
    }

    /// Writes a JSON file as people read it.
    pub(super) fn write_json(&self, name: &str, value: &Value) -> Result<()> {
        write_atomically(&self.temporary.join(name), format!("{value:#}\n").as_bytes())
    }

    /// Gives the folder its final name.
    pub(super) fn publish(self) -> Result<()> {
        if self.target.exists() {
            fs::remove_dir(&self.target).map_err(|e| io(&self.target, e))?;
        }
        fs::rename(&self.temporary, &self.target).map_err(|e| io(&self.target, e))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // After publishing there is nothing under this name any more.
        let _ = fs::remove_dir_all(&self.temporary);
    }
}
