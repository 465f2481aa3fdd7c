//! The teacher's hidden states: computed once, kept on disk.
//!
//! The teacher (the uncompressed model with the original LoRA) never changes, so its last hidden states are computed
//! before training for the rows that training will see, and read back as needed: teacher and student are not in memory
//! together, and no step pays for the teacher again. Layout of the file: for each example in turn (tokens read, C) f16,
//! little-endian. The key says what it was made from.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use super::batch::Batch;
use super::branches::Branches;
use super::data::Example;
use super::forward::{Pass, Plan};
use super::frozen::Frozen;

/// Hidden states of some examples, on disk.
pub struct TeacherStates {
    path: PathBuf,
    file: File,
    width: usize,
    /// For each example the offset of its states in rows, where it has any.
    offsets: Vec<Option<usize>>,
}

/// What a file of states was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeacherKey {
    /// Ids of the model and the adapter, and a hash of the examples.
    pub made_from: String,
    /// The examples that it holds.
    pub examples: Vec<usize>,
}

/// Tokens that the teacher computes at once.
const TOKENS: usize = 2048;

impl TeacherStates {
    /// Opens the states in a folder if they were made from the same, else computes them. `progress` gets examples done
    /// and in all.
    pub fn open_or_compute(
        folder: &Path,
        key: &TeacherKey,
        model: &Frozen,
        branches: &Branches,
        examples: &[Example],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let (path, key_path) = (folder.join("teacher.f16"), folder.join("teacher.json"));
        let width = model.recipe.shape.hidden;
        let mut offsets = vec![None; examples.len()];
        let mut at = 0;
        for index in &key.examples {
            offsets[*index] = Some(at);
            at += examples[*index].inputs().len();
        }
        let expected = (at * width * 2) as u64;
        let stored = std::fs::read(&key_path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let whole = std::fs::metadata(&path).is_ok_and(|m| m.len() == expected);
        if stored.as_ref() != Some(key) || !whole {
            // The key is written last: without it a half-written file is not believed.
            let _ = std::fs::remove_file(&key_path);
            compute(&path, key, model, branches, examples, progress)
                .with_context(|| path.display().to_string())?;
            calora::weights::write_atomically(&key_path, &serde_json::to_vec(key)?)?;
        }
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        Ok(Self { path, file, width, offsets })
    }

    /// (T, C) states of a batch's tokens, and the sum of their squares.
    pub fn read(
        &mut self,
        examples: &[Example],
        indices: &[usize],
        device: &Device,
        dtype: DType,
    ) -> Result<(Tensor<2>, f64)> {
        let mut values: Vec<f32> = Vec::new();
        for index in indices {
            let offset = self.offsets[*index].context("the teacher has not seen this row")?;
            let mut halves = vec![f16::ZERO; examples[*index].inputs().len() * self.width];
            let mut read = || {
                self.file.seek(SeekFrom::Start((offset * self.width * 2) as u64))?;
                self.file.read_exact(bytemuck::cast_slice_mut(&mut halves))
            };
            read().with_context(|| self.path.display().to_string())?;
            values.extend(halves.to_f32_vec());
        }
        let square = values.iter().map(|v| f64::from(*v).powi(2)).sum();
        let shape = [values.len() / self.width, self.width];
        Ok((Tensor::from_data(TensorData::new(values, shape), (device, dtype)), square))
    }
}

fn compute(
    path: &Path,
    key: &TeacherKey,
    model: &Frozen,
    branches: &Branches,
    examples: &[Example],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<()> {
    let plan = Plan::new(&model.recipe)?;
    let mut out = BufWriter::new(File::create(path)?);
    let (mut done, mut start) = (0, 0);
    while start < key.examples.len() {
        let (mut end, mut tokens) = (start, 0);
        while end < key.examples.len() && (end == start || tokens < TOKENS) {
            tokens += examples[key.examples[end]].inputs().len();
            end += 1;
        }
        let chosen: Vec<&Example> = key.examples[start..end].iter().map(|i| &examples[*i]).collect();
        let batch = Batch::new(&chosen, &model.recipe, &model.device, model.dtype);
        let hidden = Pass { model, branches, batch: &batch }.last_hidden(&plan)?;
        let values = hidden.try_into_vec_as::<f32>()?;
        let halves: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
        out.write_all(bytemuck::cast_slice(&halves))?;
        done += end - start;
        start = end;
        progress(done, key.examples.len());
    }
    // On the disk before the key that says so.
    Ok(out.into_inner()?.sync_all()?)
}
