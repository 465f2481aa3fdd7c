//! A Hugging Face model folder: its configuration and its tensors, resolved for a recipe.
//!
//! Invariant: opening reads configurations and headers only. What [`ModelFolder::weights`] returns has the shapes and
//! types that the recipe asks for; a tensor that does not fit is an error that names it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::matrix::Matrix;
use super::read::read_json;
use super::scheme::QuantConfig;
use super::shards::Shards;
use super::tensor::{DType, Tensor};
use crate::arch::{MatrixSpec, Recipe, VectorSpec};
use crate::device::Weights;
use crate::error::{Error, Result};

/// Where base weights are read from while the engine computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightAccess {
    /// From the mapped files: no load time, and the system may drop pages and read them again. Whoever truncates a model
    /// file in place while it is mapped ends the process with a bus error; replacing it by renaming hurts nobody.
    #[default]
    Mapped,
    /// From a private copy, read while the engine loads: nothing that happens to the files afterwards can hurt. Costs the
    /// weights' bytes of memory that the system cannot take back; on a GPU that is beside the GPU's own copy.
    Copied,
}

/// An opened model folder; nothing of its weights is read yet.
#[derive(Clone, Debug)]
pub struct ModelFolder {
    path: PathBuf,
    config_path: PathBuf,
    config: Value,
    generation_config: Option<Value>,
    tensors: Shards,
    quantization: Option<QuantConfig>,
}

impl ModelFolder {
    /// Opens `config.json`, `generation_config.json` where there is one, and maps the safetensors files.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if let Err(e) = std::fs::read_dir(path) {
            return Err(Error::io(path, e));
        }
        let config_path = required(path, "config.json", "a model is a Hugging Face folder")?;
        let config = read_json(&config_path)?;
        if !config.is_object() {
            return Err(Error::malformed(&config_path, "expected a JSON object"));
        }
        let generation_path = path.join("generation_config.json");
        let generation_config = match generation_path.exists() {
            true => Some(read_json(&generation_path)?),
            false => None,
        };
        let quantization = QuantConfig::parse(&config, &config_path)?;
        let tensors = Shards::open(path)?;
        Ok(Self { path: path.to_owned(), config_path, config, generation_config, tensors, quantization })
    }

    /// The same folder with its weights as [`WeightAccess`] says.
    pub fn with_access(self, access: WeightAccess) -> Result<Self> {
        match access {
            WeightAccess::Mapped => Ok(self),
            WeightAccess::Copied => Ok(Self { tensors: self.tensors.copied()?, ..self }),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`'s path, for errors.
    pub fn config_path(&self) -> &Path {
        &self.config_path
    }

    /// `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// `generation_config.json`, where the folder has one.
    pub fn generation_config(&self) -> Option<&Value> {
        self.generation_config.as_ref()
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> &Shards {
        &self.tensors
    }

    /// `quantization_config`, where the folder is compressed.
    pub fn quantization(&self) -> Option<&QuantConfig> {
        self.quantization.as_ref()
    }

    /// A file of the folder that must be there (`tokenizer.json`); `help` says what to do where it is not.
    pub fn file(&self, name: &str, help: &str) -> Result<PathBuf> {
        required(&self.path, name, help)
    }

    /// Every tensor that a recipe asks for: matrices as views of the files, vectors as float32.
    pub fn weights(&self, recipe: &Recipe) -> Result<Weights> {
        Ok(Weights {
            matrices: recipe.matrices.iter().map(|m| self.matrix(m)).collect::<Result<_>>()?,
            vectors: recipe.vectors.iter().map(|v| self.vector(v)).collect::<Result<_>>()?,
        })
    }

    /// One matrix, dense or compressed, under its own name or its alias.
    pub fn matrix(&self, spec: &MatrixSpec) -> Result<Matrix> {
        let module = self.stored_path(spec);
        let matrix = if self.tensors.contains(&format!("{module}.weight_packed")) {
            self.packed(spec, module)?
        } else {
            Matrix::dense(self.tensors.require(&format!("{module}.weight"))?)?
        };
        if (matrix.rows, matrix.cols) != (spec.rows, spec.cols) {
            matrix.tensor().expect_shape(&[spec.rows, spec.cols])?;
        }
        Ok(matrix)
    }

    /// The module path under which the files have a matrix (the spec's own where they have it under none).
    pub fn stored_path<'a>(&self, spec: &'a MatrixSpec) -> &'a str {
        let stored = |module: &str| {
            ["weight", "weight_packed"].iter().any(|kind| self.tensors.contains(&format!("{module}.{kind}")))
        };
        match &spec.alias {
            Some(alias) if !stored(&spec.path) && stored(alias) => alias,
            _ => &spec.path,
        }
    }

    fn packed(&self, spec: &MatrixSpec, module: &str) -> Result<Matrix> {
        let words = self.tensors.require(&format!("{module}.weight_packed"))?;
        let wrong = |reason: &str| Err(Error::tensor(words.path(), &words.name, reason));
        let Some(config) = &self.quantization else {
            return wrong("is compressed, but config.json has no quantization_config");
        };
        if self.tensors.contains(&format!("{module}.weight")) {
            return wrong("is there both compressed and dense");
        }
        if self.tensors.contains(&format!("{module}.weight_g_idx")) {
            return wrong("is stored in activation order (weight_g_idx), which is not supported");
        }
        // The head is a Linear and the embedding is not, whichever of the two a tied matrix is stored as.
        let class = if module.ends_with("embed_tokens") { "Embedding" } else { "Linear" };
        let Some(scheme) = config.scheme(module, class) else {
            return wrong("is compressed, but quantization_config has no scheme for it");
        };
        let shape = self.tensors.require(&format!("{module}.weight_shape"))?;
        let stored = integers(&shape)?;
        if stored != [spec.rows as i64, spec.cols as i64] {
            let reason = format!("says {stored:?}, expected [{}, {}]", spec.rows, spec.cols);
            return Err(Error::tensor(shape.path(), &shape.name, reason));
        }
        let scales = self.tensors.require(&format!("{module}.weight_scale"))?;
        let zeros = format!("{module}.weight_zero_point");
        let zeros = if self.tensors.contains(&zeros) { Some(self.tensors.require(&zeros)?) } else { None };
        // Matrix::packed reports a bad group as an option; here it is the file's fault.
        if let Err(e) = scheme.check(spec.cols) {
            return wrong(&format!("cannot be {scheme}: {e}"));
        }
        Matrix::packed(spec.rows, spec.cols, scheme, words, scales, zeros)
    }

    /// One vector as float32; refuses NaN and infinities, which only a damaged file has.
    pub fn vector(&self, spec: &VectorSpec) -> Result<Vec<f32>> {
        let tensor = self.tensors.require(&spec.name)?;
        tensor.expect_shape(&[spec.len])?;
        let values = tensor.to_f32()?;
        match values.iter().position(|v| !v.is_finite()) {
            Some(at) => {
                Err(Error::tensor(tensor.path(), &tensor.name, format!("element {at} is {}", values[at])))
            }
            None => Ok(values),
        }
    }
}

/// A small integer tensor.
fn integers(tensor: &Tensor) -> Result<Vec<i64>> {
    match tensor.dtype {
        DType::I64 => Ok(tensor.elements::<i64>().into_owned()),
        DType::I32 => Ok(tensor.elements::<i32>().iter().map(|v| i64::from(*v)).collect()),
        other => Err(Error::tensor(tensor.path(), &tensor.name, format!("is {other:?}, expected I64"))),
    }
}

fn required(folder: &Path, name: &str, help: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    if path.exists() {
        return Ok(path);
    }
    Err(Error::MissingFile { folder: folder.to_owned(), file: name.to_owned(), help: help.to_owned() })
}
