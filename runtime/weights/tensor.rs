//! A tensor as a view of mapped (or owned) bytes: cloning one copies no weights.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};

use super::mapped::Mapped;
use super::private::PrivateBytes;
use crate::error::{Error, Result};

/// Element types that tensors are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// Signed byte.
    I8,
    /// 32-bit integer (packed words).
    I32,
    /// 64-bit integer (shapes).
    I64,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::I8 => 1,
            Self::F16 | Self::BF16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }
}

/// The first 16-bit float whose exponent is all ones.
fn not_finite_16(bytes: &[u8], exponent: i16) -> Option<usize> {
    /// Looked through at a time, without a branch for each.
    const PIECE: usize = 4096;
    let size = |b: &[u8; 2]| i16::from_le_bytes(*b) & i16::MAX;
    let values = bytes.as_chunks().0;
    let piece =
        values.chunks(PIECE).position(|p| p.iter().fold(0, |most, b| most.max(size(b))) >= exponent)?;
    let start = piece * PIECE;
    values[start..].iter().position(|b| size(b) >= exponent).map(|at| start + at)
}

/// Where a tensor's bytes live.
#[derive(Clone)]
pub(crate) enum Backing {
    Mapped(Arc<Mapped>),
    /// A decrypted file, a checked copy, or generated values.
    Private(Arc<PrivateBytes>),
}

impl Backing {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map.bytes(),
            Self::Private(private) => private.bytes(),
        }
    }

    /// The bytes `range` in memory, and where they lie in what holds them.
    pub(super) fn copied(&self, range: Range<usize>) -> Result<(Self, Range<usize>)> {
        match self {
            Self::Mapped(map) => {
                let len = range.len();
                Ok((Self::Private(Arc::new(map.copy(range)?)), 0..len))
            }
            Self::Private(_) => Ok((self.clone(), range)),
        }
    }
}

/// A named array with its shape, backed by a file or by memory.
#[derive(Clone)]
pub struct Tensor {
    pub(crate) backing: Backing,
    pub(crate) range: Range<usize>,
    pub(crate) path: Arc<PathBuf>,
    /// The name in the file.
    pub name: Arc<str>,
    /// The element type.
    pub dtype: DType,
    /// The shape, outermost first.
    pub shape: Vec<usize>,
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {:?}", self.name, self.dtype, self.shape)
    }
}

impl Tensor {
    /// A tensor in memory, for generated weights.
    pub fn from_slice<T: bytemuck::Pod>(
        name: &str,
        dtype: DType,
        shape: &[usize],
        values: &[T],
    ) -> Result<Self> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if shape.iter().product::<usize>() * dtype.size() != bytes.len() {
            let reason = format!("{} bytes for shape {shape:?} of {dtype:?}", bytes.len());
            return Err(Error::tensor("(memory)", name, reason));
        }
        let path = PathBuf::from("(memory)");
        Ok(Self {
            backing: Backing::Private(Arc::new(PrivateBytes::copy(&path, bytes)?)),
            range: 0..bytes.len(),
            path: Arc::new(path),
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
        })
    }

    /// A float32 tensor in memory.
    pub fn from_f32(name: &str, shape: &[usize], values: &[f32]) -> Result<Self> {
        Self::from_slice(name, DType::F32, shape, values)
    }

    /// The file that it came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The raw little-endian bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.backing.bytes()[self.range.clone()]
    }

    /// The same tensor in memory of this process. Unlike [`Self::bytes`], this cannot be hurt by somebody who truncates
    /// the file: that is [`Error::FileChanged`]. Cheap where it is in memory already.
    pub fn copied(&self) -> Result<Self> {
        let (backing, range) = self.backing.copied(self.range.clone())?;
        Ok(Self { backing, range, ..self.clone() })
    }

    /// [`Self::copied`] of several at once: what lies in one file is copied as one piece, what lies between included.
    pub(crate) fn copy_all(tensors: &mut [&mut Self]) -> Result<()> {
        while let Some(map) = tensors.iter().find_map(|tensor| tensor.map().cloned()) {
            let in_map = |tensor: &Self| tensor.map().is_some_and(|other| Arc::ptr_eq(other, &map));
            let ranges = || tensors.iter().filter(|tensor| in_map(tensor)).map(|tensor| &tensor.range);
            let start = ranges().map(|range| range.start).min().unwrap_or_default();
            let end = ranges().map(|range| range.end).max().unwrap_or_default();
            let copy = Arc::new(map.copy(start..end)?);
            for tensor in tensors.iter_mut().filter(|tensor| in_map(tensor)) {
                tensor.range = tensor.range.start - start..tensor.range.end - start;
                tensor.backing = Backing::Private(copy.clone());
            }
        }
        Ok(())
    }

    fn map(&self) -> Option<&Arc<Mapped>> {
        match &self.backing {
            Backing::Mapped(map) => Some(map),
            Backing::Private(_) => None,
        }
    }

    /// Refuses a float tensor with a value that is not finite; looks at exponents alone.
    pub fn check_finite(&self) -> Result<()> {
        let bytes = self.bytes();
        let at = match self.dtype {
            DType::F16 => not_finite_16(bytes, 0x7c00),
            DType::BF16 => not_finite_16(bytes, 0x7f80),
            DType::F32 => bytes.as_chunks().0.iter().position(|b| !f32::from_le_bytes(*b).is_finite()),
            _ => None,
        };
        match at {
            Some(at) => {
                let value = self.to_f32_range(at..at + 1)?.first().copied().unwrap_or(f32::NAN);
                Err(Error::tensor(self.path(), &self.name, format!("element {at} is {value}")))
            }
            None => Ok(()),
        }
    }

    /// Whether it lies in this process's memory and in no mapped file.
    pub(crate) fn is_private(&self) -> bool {
        matches!(self.backing, Backing::Private(_))
    }

    /// Whether a check holds for all bytes, shown in pieces of whole elements; stops at the first that fails. As safe as
    /// [`Self::copied`].
    pub(crate) fn all(&self, mut holds: impl FnMut(&[u8]) -> bool) -> Result<bool> {
        let Backing::Mapped(map) = &self.backing else { return Ok(holds(self.bytes())) };
        let mut all = true;
        map.visit(self.range.clone(), |piece| {
            all &= holds(piece);
            all
        })?;
        Ok(all)
    }

    /// Asks the system to read the bytes soon; returns at once.
    pub(crate) fn prefetch(&self) {
        if let Backing::Mapped(map) = &self.backing {
            map.prefetch(self.range.clone());
        }
    }

    /// Gives mapped pages back to the system; how many bytes of the tensor they held at most.
    pub(crate) fn release_pages(&self) -> u64 {
        match &self.backing {
            Backing::Mapped(map) => map.release(self.range.clone()),
            Backing::Private(_) => 0,
        }
    }

    /// The elements as `T`, borrowed where the file has them aligned.
    pub fn elements<T: bytemuck::Pod>(&self) -> Cow<'_, [T]> {
        match bytemuck::try_cast_slice(self.bytes()) {
            Ok(slice) => Cow::Borrowed(slice),
            Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(self.bytes())),
        }
    }

    /// The elements `range` (counted in elements) as float32; packed and integer types are refused.
    pub fn to_f32_range(&self, range: Range<usize>) -> Result<Vec<f32>> {
        let size = self.dtype.size();
        let bytes = &self.bytes()[range.start * size..range.end * size];
        Ok(match self.dtype {
            DType::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            DType::F16 => bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            DType::BF16 => {
                bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
            }
            other => {
                return Err(Error::tensor(
                    self.path(),
                    &self.name,
                    format!("is {other:?}, expected a float type"),
                ));
            }
        })
    }

    /// All elements as float32.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        self.to_f32_range(0..self.len())
    }

    /// Refuses another shape.
    pub fn expect_shape(&self, shape: &[usize]) -> Result<()> {
        if self.shape == shape {
            return Ok(());
        }
        Err(Error::tensor(self.path(), &self.name, format!("has shape {:?}, expected {shape:?}", self.shape)))
    }
}
