//! Tensors of a checkpoint by name: in memory, or in files that are mapped and read a tensor at a time.
#![allow(unsafe_code)]

use crate::ops::WeightType;
use crate::params::is_hidden_matrix;
use crate::weight::{Bytes, Packed};
use crate::{Error, Result, checkpoint};
use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where tensors are until a layer takes them.
pub enum Stored {
    /// In memory.
    Memory(HashMap<String, Tensor>),
    /// In mapped files.
    Mapped(Mapped),
}

/// Mapped safetensors files and where each tensor lies in them.
pub struct Mapped {
    files: Vec<(PathBuf, Arc<Mmap>)>,
    places: HashMap<String, Place>,
}

struct Place {
    file: usize,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
    /// Blocks in the order of our kernels, as [`checkpoint::save_packed`] writes them; `shape` is then the weight's.
    packed: Option<WeightType>,
    /// Where the file has the weight's rows otherwise than our kernels read them.
    foreign: Option<Foreign>,
}

/// A weight in GGUF's order.
#[derive(Debug, Clone, Copy)]
struct Foreign {
    ty: WeightType,
    /// Heads whose rotary pairs lie side by side in the file, where ours are halves.
    pairs: Option<usize>,
    /// Whether the file has one head's values, which all heads share.
    shared: bool,
}

impl From<HashMap<String, Tensor>> for Stored {
    fn from(tensors: HashMap<String, Tensor>) -> Self {
        Self::Memory(tensors)
    }
}

/// A file's bytes, mapped.
pub fn map(path: &Path) -> Result<Mmap> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    // SAFETY: the mapping is read-only; that nobody shortens the file meanwhile is asked of the caller, as every program that
    // maps checkpoints does.
    unsafe { Mmap::map(&file) }.map_err(Error::io(path))
}

impl Stored {
    /// Maps a model folder's files: safetensors, or those of torch.save (pytorch_model.bin). They must not change while the
    /// model is loaded.
    pub fn map_dir(dir: &Path) -> Result<Self> {
        Self::map_files(checkpoint::files_of(dir)?)
    }

    /// Maps files of any kind: safetensors, torch.save's, GGUF.
    pub fn map_files(paths: Vec<PathBuf>) -> Result<Self> {
        let mut mapped = Mapped { files: Vec::new(), places: HashMap::new() };
        for path in paths {
            let map = map(&path)?;
            if crate::torch::is_torch(&map) {
                for (name, (dtype, shape, bytes)) in crate::torch::tensors(&path, &map)? {
                    let place = Place { file: mapped.files.len(), dtype, shape, bytes, packed: None, foreign: None };
                    mapped.places.insert(name, place);
                }
                mapped.files.push((path, Arc::new(map)));
                continue;
            }
            if crate::gguf::is_gguf(&map) {
                for (name, p) in crate::gguf::head(&path, &map)?.places {
                    let dtype = match p.ty {
                        WeightType::F16 => safetensors::Dtype::F16,
                        WeightType::Bf16 => safetensors::Dtype::BF16,
                        _ => safetensors::Dtype::F32,
                    };
                    let foreign = p.ty.is_blocks().then_some(Foreign { ty: p.ty, pairs: None, shared: false });
                    let file = mapped.files.len();
                    mapped
                        .places
                        .insert(name, Place { file, dtype, shape: p.shape, bytes: p.bytes, packed: None, foreign });
                }
                mapped.files.push((path, Arc::new(map)));
                continue;
            }
            let bad = |e: safetensors::SafeTensorError| {
                Error::bad_file(&path, format!("not a safetensors file ({e}); was the download complete?"))
            };
            let tensors = SafeTensors::deserialize(&map).map_err(bad)?;
            let (_, header) = SafeTensors::read_metadata(&map).map_err(bad)?;
            let packed = checkpoint::packed_of(&path, header.metadata().as_ref())?;
            for (name, view) in tensors.iter() {
                let start = view.data().as_ptr() as usize - map.as_ptr() as usize;
                let mut place = Place {
                    file: mapped.files.len(),
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    bytes: start..start + view.data().len(),
                    packed: None,
                    foreign: None,
                };
                if let Some((ty, rows, cols)) = packed.get(name) {
                    if !cols.is_multiple_of(ty.block()) || ty.bytes(*rows, *cols) != view.data().len() {
                        let why = format!("tensor `{name}`: not the bytes of a {} weight [{rows}, {cols}]", ty.name());
                        return Err(Error::bad_file(&path, why));
                    }
                    (place.packed, place.shape) = (Some(*ty), vec![*rows, *cols]);
                }
                mapped.places.insert(name.to_owned(), place);
            }
            mapped.files.push((path, Arc::new(map)));
        }
        Ok(Self::Mapped(mapped))
    }

    /// The same tensors under other names.
    pub fn renamed(self, name: impl Fn(&str) -> String) -> Self {
        match self {
            Self::Memory(t) => Self::Memory(t.into_iter().map(|(k, v)| (name(&k), v)).collect()),
            Self::Mapped(m) => {
                let places = m.places.into_iter().map(|(k, v)| (name(&k), v)).collect();
                Self::Mapped(Mapped { files: m.files, places })
            }
        }
    }

    /// Cuts a tensor into parts by its rows, each under a name of its own, without a copy; nothing where there is no such
    /// tensor.
    pub fn split_rows(&mut self, name: &str, parts: &[String]) -> Result<()> {
        let uneven = |rows: usize| Error::invalid(format!("tensor `{name}`: {rows} rows for {} parts", parts.len()));
        match self {
            Self::Memory(t) => {
                let Some(whole) = t.remove(name) else { return Ok(()) };
                let rows = whole.dims().first().copied().unwrap_or(0);
                let each = rows / parts.len().max(1);
                if each * parts.len() != rows {
                    return Err(uneven(rows));
                }
                for (i, part) in parts.iter().enumerate() {
                    t.insert(part.clone(), whole.narrow(0, i * each, each)?.contiguous()?);
                }
            }
            Self::Mapped(m) => {
                let Some(whole) = m.places.remove(name) else { return Ok(()) };
                let rows = whole.shape.first().copied().unwrap_or(0);
                let (each, bytes) = (rows / parts.len().max(1), whole.bytes.len() / parts.len().max(1));
                if each * parts.len() != rows || whole.packed.is_some() || whole.foreign.is_some() {
                    return Err(uneven(rows));
                }
                for (i, part) in parts.iter().enumerate() {
                    let start = whole.bytes.start + i * bytes;
                    let mut shape = whole.shape.clone();
                    shape[0] = each;
                    let place = Place { bytes: start..start + bytes, shape, ..whole };
                    m.places.insert(part.clone(), place);
                }
            }
        }
        Ok(())
    }

    /// Says that a mapped weight's rows are rotary pairs side by side for each of `heads` heads (llama.cpp's files), where ours
    /// are a head's first halves and then its second ones; they are put in our order as they are read.
    pub fn part_pairs(&mut self, name: &str, heads: usize) -> Result<()> {
        let Self::Mapped(m) = self else { return Ok(()) };
        let Some(p) = m.places.get_mut(name) else { return Ok(()) };
        let rows = p.shape.first().copied().unwrap_or(0);
        if p.shape.len() != 2 || heads == 0 || !rows.is_multiple_of(2 * heads) {
            return Err(Error::invalid(format!("tensor `{name}`: {rows} rows for {heads} heads of rotary pairs")));
        }
        let ty = p.foreign.map_or(float_type(p.dtype), |f| f.ty);
        p.foreign = Some(Foreign { ty, pairs: Some(heads), shared: false });
        Ok(())
    }

    /// Says that a mapped vector has a head's rotary pairs side by side and is every head's (Chameleon's norms in its authors' files): it
    /// is read as [heads, width] in our order.
    pub fn part_pairs_of_all(&mut self, name: &str, heads: usize) -> Result<()> {
        let Self::Mapped(m) = self else { return Ok(()) };
        let Some(p) = m.places.get_mut(name) else { return Ok(()) };
        let width = p.shape.first().copied().unwrap_or(0);
        if p.shape.len() != 1 || heads == 0 || !width.is_multiple_of(2) {
            return Err(Error::invalid(format!("tensor `{name}`: shape {:?} is no vector of rotary pairs", p.shape)));
        }
        p.foreign = Some(Foreign { ty: float_type(p.dtype), pairs: Some(heads), shared: true });
        p.shape = vec![heads, width];
        Ok(())
    }

    /// The tensors whose names are wanted.
    pub fn filtered(self, wanted: impl Fn(&str) -> bool) -> Self {
        match self {
            Self::Memory(t) => Self::Memory(t.into_iter().filter(|t| wanted(&t.0)).collect()),
            Self::Mapped(m) => {
                let places = m.places.into_iter().filter(|p| wanted(&p.0)).collect();
                Self::Mapped(Mapped { files: m.files, places })
            }
        }
    }

    /// These tensors and others.
    pub fn and(self, other: Self) -> Result<Self> {
        match (self, other) {
            (Self::Mapped(mut a), Self::Mapped(b)) => {
                let before = a.files.len();
                a.files.extend(b.files);
                a.places.extend(b.places.into_iter().map(|(k, p)| (k, Place { file: p.file + before, ..p })));
                Ok(Self::Mapped(a))
            }
            (Self::Memory(mut a), Self::Memory(b)) => {
                a.extend(b);
                Ok(Self::Memory(a))
            }
            _ => Err(Error::invalid("tensors in memory and in mapped files do not go together")),
        }
    }

    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Memory(t) => t.contains_key(name),
            Self::Mapped(m) => m.places.contains_key(name),
        }
    }

    /// The type that a tensor is stored as; float32 for blocks.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        match self {
            Self::Memory(t) => t.get(name).map(Tensor::dtype),
            Self::Mapped(m) => m.places.get(name).and_then(|p| match (p.packed, p.foreign) {
                (None, Some(f)) if f.ty.is_blocks() => Some(DType::F32),
                (Some(_), _) => Some(DType::F32),
                (None, _) => DType::try_from(p.dtype).ok(),
            }),
        }
    }

    /// Shapes by name.
    pub fn shapes(&self) -> Vec<(&str, &[usize])> {
        match self {
            Self::Memory(t) => t.iter().map(|(k, v)| (k.as_str(), v.dims())).collect(),
            Self::Mapped(m) => m.places.iter().map(|(k, v)| (k.as_str(), v.shape.as_slice())).collect(),
        }
    }

    /// A weight as it is stored, without a copy where it lies in a file; nothing where there is no such tensor, or one of
    /// another number of dimensions or kind.
    pub fn weight(&self, name: &str) -> Result<Option<Packed>> {
        match self {
            Self::Memory(t) => {
                let Some(t) = t.get(name).filter(|t| t.rank() == 2) else { return Ok(None) };
                let (rows, cols) = t.dims2()?;
                let ty = match t.dtype() {
                    DType::F32 => WeightType::F32,
                    DType::F16 => WeightType::F16,
                    DType::BF16 => WeightType::Bf16,
                    _ => return Ok(None),
                };
                let mut bytes = Vec::with_capacity(ty.bytes(rows, cols));
                t.write_bytes(&mut bytes).map_err(|e| Error::invalid(format!("tensor `{name}`: {e}")))?;
                Packed::new(ty, Bytes::Owned(Arc::new(bytes)), rows, cols).map(Some)
            }
            Self::Mapped(m) => {
                let Some(place) = m.places.get(name).filter(|p| p.shape.len() == 2) else { return Ok(None) };
                if place.foreign.is_some_and(|f| f.shared) {
                    return Ok(None);
                }
                if place.foreign.is_some() {
                    return m.translated(place).map(Some);
                }
                let ty = match (place.packed, place.dtype) {
                    (Some(ty), _) => ty,
                    (None, safetensors::Dtype::F32) => WeightType::F32,
                    (None, safetensors::Dtype::F16) => WeightType::F16,
                    (None, safetensors::Dtype::BF16) => WeightType::Bf16,
                    _ => return Ok(None),
                };
                let bytes = Bytes::Mapped(m.files[place.file].1.clone(), place.bytes.clone());
                Packed::new(ty, bytes, place.shape[0], place.shape[1]).map(Some)
            }
        }
    }

    /// Lets the system take back the file's pages of a tensor that has been copied.
    pub fn forget(&self, name: &str) {
        if let Self::Mapped(m) = self
            && let Some(place) = m.places.get(name)
        {
            m.forget(place);
        }
    }

    /// All of them in memory.
    pub fn into_memory(self) -> Result<HashMap<String, Tensor>> {
        match self {
            Self::Memory(t) => Ok(t),
            Self::Mapped(m) => m.places.iter().map(|(name, p)| Ok((name.clone(), m.read(name, p)?))).collect(),
        }
    }

    /// A tensor on the CPU.
    pub fn get(&self, name: &str) -> Result<Option<Tensor>> {
        match self {
            Self::Memory(t) => Ok(t.get(name).cloned()),
            Self::Mapped(m) => m.places.get(name).map(|p| m.read(name, p)).transpose(),
        }
    }
}

impl Mapped {
    /// A weight that the file holds in GGUF's order, in ours: a copy.
    fn translated(&self, place: &Place) -> Result<Packed> {
        let (Some(Foreign { ty, pairs, .. }), &[rows, cols]) = (place.foreign, &place.shape[..]) else {
            return Err(Error::invalid("a tensor of blocks that is no matrix"));
        };
        let data = &self.files[place.file].1[place.bytes.clone()];
        let half = pairs.map_or(0, |heads| rows / heads / 2);
        let from = |row: usize| match pairs {
            // row (head, which half, i) of ours is row (head, i, which half) of theirs
            Some(_) => row / (2 * half) * 2 * half + row % half * 2 + row % (2 * half) / half,
            None => row,
        };
        let packed = Packed::from_gguf(ty, rows, cols, data, from)?;
        self.forget(place);
        Ok(packed)
    }

    fn read(&self, name: &str, place: &Place) -> Result<Tensor> {
        let (path, map) = &self.files[place.file];
        let bad = |e: String| Error::bad_file(path, format!("tensor `{name}`: {e}"));
        let data = &map[place.bytes.clone()];
        if let Some(ty) = place.packed {
            let bytes = Bytes::Mapped(map.clone(), place.bytes.clone());
            let packed = Packed::new(ty, bytes, place.shape[0], place.shape[1])?;
            return Ok(Tensor::from_vec(packed.values(), place.shape.clone(), &Device::Cpu)?);
        }
        if place.foreign.is_some_and(|f| f.shared) {
            let (heads, width) = (place.shape[0], place.shape[1]);
            let view = TensorView::new(place.dtype, vec![width / 2, 2], data).map_err(|e| bad(e.to_string()))?;
            let pairs = view.load(&Device::Cpu).map_err(|e| bad(e.to_string()))?;
            return Ok(pairs.t()?.contiguous()?.reshape((1, width))?.repeat((heads, 1))?);
        }
        if place.foreign.is_some() {
            let packed = self.translated(place)?;
            return Ok(Tensor::from_vec(packed.values(), place.shape.clone(), &Device::Cpu)?);
        }
        let view = TensorView::new(place.dtype, place.shape.clone(), data).map_err(|e| bad(e.to_string()))?;
        let tensor = view.load(&Device::Cpu).map_err(|e| bad(e.to_string()))?;
        self.forget(place);
        Ok(tensor)
    }

    fn forget(&self, place: &Place) {
        let (start, len) = (place.bytes.start, place.bytes.len());
        // the copy is what is used from here on
        // SAFETY: a read-only mapping of a file, so dropped pages come back from the file unchanged.
        let _ = unsafe { self.files[place.file].1.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
    }
}

/// How floats of a file are kept.
fn float_type(dtype: safetensors::Dtype) -> WeightType {
    match dtype {
        safetensors::Dtype::F16 => WeightType::F16,
        safetensors::Dtype::BF16 => WeightType::Bf16,
        _ => WeightType::F32,
    }
}

/// Whether a tensor is kept in blocks where those are asked for: hidden layers, tables and heads of words.
pub fn may_be_blocks(name: &str, shape: &[usize]) -> bool {
    let table = ["embed_tokens.", "lm_head.", "tok_embeddings."].iter().any(|t| name.contains(t));
    shape.len() == 2 && name.ends_with(".weight") && (table || is_hidden_matrix(name, shape))
}

/// Bytes that a tensor takes once it is loaded for inference with weights of this type.
pub fn weight_bytes(name: &str, shape: &[usize], ty: WeightType) -> usize {
    let n: usize = shape.iter().product();
    if may_be_blocks(name, shape) {
        return crate::params::fitting(ty, shape[1]).bytes(shape[0], shape[1]);
    }
    n * 4
}
