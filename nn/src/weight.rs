//! The weight of a linear layer, a table or an output head: trained, or held as it is stored.

use crate::ops::{self, GROUP, Product, Stored as Kept, WeightType};
use crate::params::Lora;
use crate::{Error, Result};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use memmap2::{Mmap, MmapMut};
use std::ops::Range;
use std::sync::Arc;

/// Bytes that nobody changes.
#[derive(Clone)]
pub(crate) enum Bytes {
    /// In memory.
    Owned(Arc<Vec<u8>>),
    /// A part of a mapped file.
    Mapped(Arc<Mmap>, Range<usize>),
}

/// Bytes from which memory of its own pays.
const LARGE: usize = 4 << 20;

impl Bytes {
    /// `len` bytes that `write` fills: of a large weight in large pages where the system has them, because a token reads all of it
    /// and a page of 4 KiB at a time is a look-up in the page tables each.
    pub fn filled(len: usize, write: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Self> {
        if len >= LARGE
            && let Ok(mut map) = MmapMut::map_anon(len)
        {
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            write(&mut map)?;
            let map = map.make_read_only().map_err(Error::io("(memory of a weight)"))?;
            return Ok(Self::Mapped(Arc::new(map), 0..len));
        }
        let mut bytes = vec![0u8; len];
        write(&mut bytes)?;
        Ok(Self::Owned(Arc::new(bytes)))
    }

    pub fn all(&self) -> &[u8] {
        match self {
            Self::Owned(b) => b,
            Self::Mapped(map, r) => &map[r.clone()],
        }
    }
}

/// A weight [rows, cols] that is only read, in the order of [`crate::ops`]'s kernels.
#[derive(Clone)]
pub struct Packed {
    ty: WeightType,
    bytes: Bytes,
    rows: usize,
    cols: usize,
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [{}, {}]", self.ty.name(), self.rows, self.cols)
    }
}

impl Packed {
    /// Bytes that are laid out so already.
    pub(crate) fn new(ty: WeightType, bytes: Bytes, rows: usize, cols: usize) -> Result<Self> {
        ops::check_cols(ty, cols)?;
        if bytes.all().len() != ty.bytes(rows, cols) {
            let (have, want) = (bytes.all().len(), ty.bytes(rows, cols));
            return Err(Error::invalid(format!("{have} bytes for a {} weight [{rows}, {cols}] of {want}", ty.name())));
        }
        Ok(Self { ty, bytes, rows, cols })
    }

    /// From values, a row at a time: `row(i, out)` writes row i.
    pub fn from_rows(ty: WeightType, rows: usize, cols: usize, row: impl Fn(usize, &mut [f32]) + Sync) -> Result<Self> {
        ops::check_cols(ty, cols)?;
        if !ty.is_blocks() {
            let per = ty.unit_bytes(cols);
            let one = |i: usize, out: &mut [u8]| {
                let mut values = vec![0f32; cols];
                row(i, &mut values);
                match ty {
                    WeightType::F32 => {
                        out.chunks_exact_mut(4).zip(&values).for_each(|(o, v)| o.copy_from_slice(&v.to_le_bytes()))
                    }
                    WeightType::Bf16 => out
                        .chunks_exact_mut(2)
                        .zip(&values)
                        .for_each(|(o, v)| o.copy_from_slice(&half::bf16::from_f32(*v).to_le_bytes())),
                    _ => out
                        .chunks_exact_mut(2)
                        .zip(&values)
                        .for_each(|(o, v)| o.copy_from_slice(&half::f16::from_f32(*v).to_le_bytes())),
                }
                Ok(())
            };
            let bytes = Bytes::filled(ty.bytes(rows, cols), |all| write_in_parts(all, per, one))?;
            return Self::new(ty, bytes, rows, cols);
        }
        Self::by_groups(ty, rows, cols, |group, out| {
            let count = GROUP.min(rows - group * GROUP);
            let mut values = vec![0f32; count * cols];
            values.chunks_exact_mut(cols).enumerate().for_each(|(i, v)| row(group * GROUP + i, v));
            if ty == WeightType::Q8_0 {
                let all: Vec<&[f32]> = values.chunks_exact(cols).collect();
                ops::pack_q8(&all, cols, out);
                return Ok(());
            }
            // the library's search for scales, which is llama.cpp's
            let kind = if ty == WeightType::Q4K { GgmlDType::Q4K } else { GgmlDType::Q6K };
            let blocks = QTensor::quantize(&Tensor::from_vec(values, (count, cols), &Device::Cpu)?, kind)?;
            let data = blocks.data()?;
            let all: Vec<&[u8]> = data.chunks_exact(ops::gguf_row_bytes(ty, cols)).collect();
            ops::pack_gguf(ty, &all, cols, out);
            Ok(())
        })
    }

    /// From rows in GGUF's order; row i is the file's row `from(i)`.
    pub(crate) fn from_gguf(
        ty: WeightType,
        rows: usize,
        cols: usize,
        data: &[u8],
        from: impl Fn(usize) -> usize + Sync,
    ) -> Result<Self> {
        ops::check_cols(ty, cols)?;
        let per = ops::gguf_row_bytes(ty, cols);
        let row = |i: usize| &data[from(i) * per..][..per];
        if !ty.is_blocks() {
            let one = |i: usize, out: &mut [u8]| {
                out.copy_from_slice(row(i));
                Ok(())
            };
            let bytes = Bytes::filled(ty.bytes(rows, cols), |all| write_in_parts(all, per, one))?;
            return Self::new(ty, bytes, rows, cols);
        }
        Self::by_groups(ty, rows, cols, |group, out| {
            let count = GROUP.min(rows - group * GROUP);
            let all: Vec<&[u8]> = (0..count).map(|i| row(group * GROUP + i)).collect();
            ops::pack_gguf(ty, &all, cols, out);
            Ok(())
        })
    }

    /// Small random values, made quickly: what speed and memory are measured with.
    pub fn random(ty: WeightType, rows: usize, cols: usize, seed: u64) -> Result<Self> {
        let pool: Vec<f32> = (0..(1 << 16) + cols as u64)
            .map(|i| ((crate::rng::mix(i ^ seed) >> 40) as f32 / (1 << 23) as f32 - 1.0) * 0.03)
            .collect();
        // some rows, again and again: a search for scales takes longer than what is measured
        let some = Self::from_rows(ty, rows.min(256), cols, |i, out| {
            let from = (crate::rng::mix(i as u64 ^ seed << 1) & 0xffff) as usize;
            out.copy_from_slice(&pool[from..from + cols]);
        })?;
        let per = some.bytes().len();
        let one = |_: usize, part: &mut [u8]| {
            part.copy_from_slice(&some.bytes()[..part.len()]);
            Ok(())
        };
        let bytes = Bytes::filled(ty.bytes(rows, cols), |all| write_in_parts(all, per, one))?;
        Self::new(ty, bytes, rows, cols)
    }

    fn by_groups(
        ty: WeightType,
        rows: usize,
        cols: usize,
        write: impl Fn(usize, &mut [u8]) -> Result<()> + Sync,
    ) -> Result<Self> {
        let bytes = Bytes::filled(ty.bytes(rows, cols), |all| write_in_parts(all, ty.unit_bytes(cols), write))?;
        Self::new(ty, bytes, rows, cols)
    }

    /// The same in memory of its own.
    pub fn copy(&self) -> Result<Self> {
        let bytes = Bytes::filled(self.bytes().len(), |out| {
            out.copy_from_slice(self.bytes());
            Ok(())
        })?;
        Self::new(self.ty, bytes, self.rows, self.cols)
    }

    /// How it is kept.
    pub fn ty(&self) -> WeightType {
        self.ty
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Its bytes, as a file holds them.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.all()
    }

    pub(crate) fn kept(&self) -> Kept<'_> {
        Kept { ty: self.ty, bytes: self.bytes.all(), rows: self.rows, cols: self.cols }
    }

    /// Row `i` as float32.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        ops::unpack_row(self.ty, self.bytes.all(), self.cols, i, out);
    }

    /// All values as float32, row-major.
    pub fn values(&self) -> Vec<f32> {
        let mut out = vec![0f32; self.rows * self.cols];
        let cols = self.cols.max(1);
        write_in_parts(&mut out, cols, |i, row| {
            self.row(i, row);
            Ok(())
        })
        .unwrap_or_default();
        out
    }
}

/// Calls `write(i, part)` for every `per` elements, on all threads.
fn write_in_parts<T: Send>(
    all: &mut [T],
    per: usize,
    write: impl Fn(usize, &mut [T]) -> Result<()> + Sync,
) -> Result<()> {
    use rayon::prelude::*;
    all.par_chunks_mut(per.max(1)).enumerate().try_for_each(|(i, part)| write(i, part))
}

/// A weight [rows, cols].
#[derive(Debug, Clone)]
pub enum Weight {
    /// A tensor of the activations' type, trained or on a device.
    Dense(Tensor),
    /// Read as it is stored, with float32 activations, on the CPU.
    Packed(Packed),
    /// W + scale B A: W is held and has no gradient, A [rank, cols] and B [rows, rank] are trained (Hu et al. 2021).
    Adapted {
        /// W.
        held: Packed,
        /// A.
        a: Tensor,
        /// B.
        b: Tensor,
        /// alpha / rank.
        scale: f64,
    },
}

impl Weight {
    /// Rows and columns.
    pub fn shape(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(t) => Ok(t.dims2()?),
            Self::Packed(p) | Self::Adapted { held: p, .. } => Ok(p.shape()),
        }
    }

    /// Whether a training follows it.
    pub fn is_trained(&self) -> bool {
        match self {
            Self::Dense(t) => t.track_op(),
            Self::Packed(_) => false,
            Self::Adapted { a, .. } => a.track_op(),
        }
    }

    /// The same with adapters beside it.
    pub(crate) fn adapted(held: Packed, a: Tensor, b: Tensor, lora: Lora) -> Self {
        Self::Adapted { held, a, b, scale: lora.scale() }
    }

    /// Rows `ids` as a tensor [ids, cols] of the activations' type: a table's entries.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        let (rows, cols) = self.shape()?;
        if let Some(bad) = ids.iter().find(|&&i| i as usize >= rows) {
            return Err(Error::invalid(format!("row {bad} of a table of {rows}")));
        }
        match self {
            Self::Dense(t) => Ok(t.index_select(&Tensor::from_slice(ids, ids.len(), t.device())?, 0)?),
            Self::Packed(p) | Self::Adapted { held: p, .. } => {
                let mut out = vec![0f32; ids.len() * cols];
                out.chunks_exact_mut(cols.max(1)).zip(ids).for_each(|(o, &i)| p.row(i as usize, o));
                Ok(Tensor::from_vec(out, (ids.len(), cols), &Device::Cpu)?)
            }
        }
    }

    /// x [.., cols] times the transpose of some rows: [.., rows]. A row of x has the same result whatever else is in the
    /// batch, where the weight is packed.
    pub fn product(&self, x: &Tensor, rows: Range<usize>) -> Result<Tensor> {
        match self {
            Self::Dense(t) => Ok(ops::linear(x, &t.narrow(0, rows.start, rows.len())?, None)?),
            Self::Packed(p) => {
                let [y] = packed_products(x, [(p, rows)])?;
                Ok(y)
            }
            Self::Adapted { held, a, b, scale } => {
                let y = if x.track_op() || !x.device().is_cpu() {
                    // a held weight has no gradient, but what goes into it has
                    let w = Tensor::from_vec(held.values(), held.shape(), &Device::Cpu)?;
                    let w = w.narrow(0, rows.start, rows.len())?.to_device(x.device())?.to_dtype(x.dtype())?;
                    ops::linear(x, &w, None)?
                } else {
                    let [y] = packed_products(x, [(held, rows.clone())])?;
                    y
                };
                let low = ops::linear(&ops::linear(x, a, None)?, &b.narrow(0, rows.start, rows.len())?, None)?;
                Ok((y + (low * *scale)?)?)
            }
        }
    }
}

/// Products of the same inputs with several weights at once, so that small ones share one dispatch.
pub(crate) fn packed_products<const N: usize>(
    x: &Tensor,
    weights: [(&Packed, Range<usize>); N],
) -> Result<[Tensor; N]> {
    let dims = x.dims().to_vec();
    let k = dims.last().copied().unwrap_or(0);
    let m: usize = dims.iter().rev().skip(1).product();
    for (w, rows) in &weights {
        if w.cols != k || rows.end > w.rows {
            let shape = w.shape();
            return Err(Error::invalid(format!("a weight {shape:?}, rows {rows:?}, given an input of shape {dims:?}")));
        }
    }
    let mut outs: Vec<Vec<f32>> = weights.iter().map(|(_, rows)| vec![0f32; m * rows.len()]).collect();
    let x = x.to_dtype(DType::F32)?.contiguous()?;
    ops::with_values([&x], |[x]| {
        let mut wanted: Vec<Product> = weights
            .iter()
            .zip(&mut outs)
            .map(|((w, rows), out)| Product { weight: w.kept(), rows: rows.clone(), out })
            .collect();
        ops::products(x, m, k, &mut wanted);
    })?;
    let mut tensors = Vec::with_capacity(N);
    for ((_, rows), out) in weights.iter().zip(outs) {
        let mut shape = dims.clone();
        if let Some(last) = shape.last_mut() {
            *last = rows.len();
        }
        tensors.push(Tensor::from_vec(out, shape, &Device::Cpu)?);
    }
    tensors.try_into().map_err(|_| Error::invalid("products"))
}
