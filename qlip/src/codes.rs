//! Codes: one integer a patch, with their grid, and the safetensors file that `tokenize` writes.

use candle_core::{DType, Device, Tensor};
use nn::{Error, Result, checkpoint};
use std::collections::BTreeMap;
use std::path::Path;

/// Integer codes of pictures, row-major [images, rows * columns].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Codes {
    /// Bits a code.
    pub bits: usize,
    /// Patches along the side of the square grid.
    pub grid: usize,
    /// All codes.
    pub indices: Vec<u64>,
}

/// Most bits of a code that a signed integer of 64 bits holds.
const MOST_BITS: usize = 63;

impl Codes {
    /// Codes a picture.
    pub fn per_image(&self) -> usize {
        self.grid * self.grid
    }

    /// Number of pictures.
    pub fn images(&self) -> usize {
        self.indices.len() / self.per_image()
    }

    /// One picture's codes.
    pub fn image(&self, i: usize) -> &[u64] {
        &self.indices[i * self.per_image()..(i + 1) * self.per_image()]
    }

    /// Writes `codes` [images, tokens] (u32, or i64 above 32 bits) and `grid` [2]; bits and file names are metadata.
    pub fn save(&self, path: &Path, names: &[String]) -> Result<()> {
        if self.bits > MOST_BITS {
            let bits = self.bits;
            return Err(Error::invalid(format!("codes of {bits} bits: a file of codes holds up to {MOST_BITS}")));
        }
        let shape = (self.images(), self.per_image());
        let codes = if self.bits <= 32 {
            Tensor::from_vec(self.indices.iter().map(|&c| c as u32).collect::<Vec<_>>(), shape, &Device::Cpu)?
        } else {
            Tensor::from_vec(self.indices.iter().map(|&c| c as i64).collect::<Vec<_>>(), shape, &Device::Cpu)?
        };
        let grid = Tensor::new(&[self.grid as u32, self.grid as u32], &Device::Cpu)?;
        let tensors = BTreeMap::from([("codes".to_owned(), codes), ("grid".to_owned(), grid)]);
        let names = serde_json::Value::from(names.to_vec()).to_string();
        checkpoint::save(path, &tensors, &[("bits", self.bits.to_string()), ("files", names)])
    }

    /// Reads what [`Self::save`] writes, for a tokenizer of `bits` and `grid`; returns the codes and the pictures' names.
    pub fn load(path: &Path, bits: usize, grid: usize) -> Result<(Self, Vec<String>)> {
        if bits > MOST_BITS {
            return Err(Error::invalid(format!("codes of {bits} bits: a file of codes holds up to {MOST_BITS}")));
        }
        let tensors = checkpoint::load(path)?;
        let bad = |why: String| Error::bad_file(path, why);
        let codes =
            tensors.get("codes").ok_or_else(|| bad("no tensor `codes`: not a file that `tokenize` wrote".into()))?;
        let (images, tokens) =
            codes.dims2().map_err(|_| bad(format!("`codes` has shape {:?}, not [images, tokens]", codes.dims())))?;
        if tokens != grid * grid {
            return Err(bad(format!("{tokens} codes a picture, the model has {}", grid * grid)));
        }
        if !codes.dtype().is_int() {
            return Err(bad(format!("`codes` holds {:?}, not integers", codes.dtype())));
        }
        let values = codes.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
        if let Some(&v) = values.iter().find(|&&v| v < 0 || v >> bits != 0) {
            return Err(bad(format!("code {v} does not fit the model's {bits} bits")));
        }
        let names =
            checkpoint::metadata(path)?.get("files").and_then(|f| serde_json::from_str(f).ok()).unwrap_or_default();
        let mut names: Vec<String> = names;
        names.resize_with(images, String::new);
        Ok((Self { bits, grid, indices: values.into_iter().map(|v| v as u64).collect() }, names))
    }
}
