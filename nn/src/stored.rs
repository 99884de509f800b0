//! Tensors of a checkpoint by name: in memory, or in files that are mapped and read a tensor at a time.
#![allow(unsafe_code)]

use crate::params::{Storage, is_hidden_matrix};
use crate::{Error, Result, checkpoint};
use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Where tensors are until a layer takes them.
pub enum Stored {
    /// In memory.
    Memory(HashMap<String, Tensor>),
    /// In mapped files.
    Mapped(Mapped),
}

/// Mapped safetensors files and where each tensor lies in them.
pub struct Mapped {
    files: Vec<(PathBuf, Mmap)>,
    places: HashMap<String, Place>,
}

struct Place {
    file: usize,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl From<HashMap<String, Tensor>> for Stored {
    fn from(tensors: HashMap<String, Tensor>) -> Self {
        Self::Memory(tensors)
    }
}

impl Stored {
    /// Maps the safetensors files of a model folder. They must not change while the model is loaded.
    pub fn map_dir(dir: &Path) -> Result<Self> {
        let mut mapped = Mapped { files: Vec::new(), places: HashMap::new() };
        for path in checkpoint::files_of(dir)? {
            let file = std::fs::File::open(&path).map_err(Error::io(&path))?;
            // SAFETY: the mapping is read-only; that nobody shortens the file meanwhile is asked of the caller, as every
            // program that maps checkpoints does.
            let map = unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?;
            let tensors = SafeTensors::deserialize(&map).map_err(|e| {
                Error::bad_file(&path, format!("not a safetensors file ({e}); was the download complete?"))
            })?;
            for (name, view) in tensors.iter() {
                let start = view.data().as_ptr() as usize - map.as_ptr() as usize;
                let place = Place {
                    file: mapped.files.len(),
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    bytes: start..start + view.data().len(),
                };
                mapped.places.insert(name.to_owned(), place);
            }
            mapped.files.push((path, map));
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

    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Memory(t) => t.contains_key(name),
            Self::Mapped(m) => m.places.contains_key(name),
        }
    }

    /// Shapes by name.
    pub fn shapes(&self) -> Vec<(&str, &[usize])> {
        match self {
            Self::Memory(t) => t.iter().map(|(k, v)| (k.as_str(), v.dims())).collect(),
            Self::Mapped(m) => m.places.iter().map(|(k, v)| (k.as_str(), v.shape.as_slice())).collect(),
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
    fn read(&self, name: &str, place: &Place) -> Result<Tensor> {
        let (path, map) = &self.files[place.file];
        let bad = |e: String| Error::bad_file(path, format!("tensor `{name}`: {e}"));
        let data = &map[place.bytes.clone()];
        let view = TensorView::new(place.dtype, place.shape.clone(), data).map_err(|e| bad(e.to_string()))?;
        let tensor = view.load(&Device::Cpu).map_err(|e| bad(e.to_string()))?;
        // the copy is what is used from here on: let the system take the file's pages back
        // SAFETY: a read-only mapping of a file, so dropped pages come back from the file unchanged.
        let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, place.bytes.start, data.len()) };
        Ok(tensor)
    }
}

/// Bytes that a tensor takes once it is loaded for inference in float32.
pub fn storage_bytes(name: &str, shape: &[usize], storage: Storage) -> usize {
    let n: usize = shape.iter().product();
    let blocks = storage == Storage::Q8_0
        && shape.len() == 2
        && is_hidden_matrix(name, shape)
        && shape[1].is_multiple_of(Q8_BLOCK);
    if blocks { n / Q8_BLOCK * (Q8_BLOCK + 2) } else { n * 4 }
}

/// Values that share a scale in Q8_0.
pub(crate) const Q8_BLOCK: usize = 32;
