//! The operations that models are made of, each with forward and backward.
//!
//! On the CPU in float32 they are single passes over memory, written here. On other devices and types the same
//! formula is composed of candle operations that are known to have right gradients, which is also what the tests
//! compare against in float64.

mod activation;
mod attend;
mod attention;
mod branch;
mod conv;
#[cfg(target_arch = "x86_64")]
mod conv_bf16;
mod cross_entropy;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod gemm_amx;
mod gemm_bf16;
mod group_norm;
mod linear;
mod norm;
mod pool;
mod resolution;
mod rope;
mod rows;
mod vector;

pub use activation::{Activation, gated_silu};
pub(crate) use attend::{MAX_HEAD, PAGE, PageShape, Sequence, attend_pages, write_token};
pub use attention::{Mask, attention};
pub(crate) use branch::linear_held;
pub use branch::{AttentionBranch, Flat, LinearAt, MlpBranch, NormAt, branch};
pub use conv::{conv2d, conv2d_biased, max_pool2d};
pub use cross_entropy::{IGNORE, cross_entropy};
pub use gemm_bf16::bf16_available;
pub use group_norm::group_norm;

pub use linear::linear;
pub(crate) use linear::{Matrix, product};
pub use norm::{layer_norm, rms_norm};
pub use pool::run as parallel;
pub use resolution::{double, halve};
pub use rope::{Positions, Rope, RopeStyle};

pub(crate) use rows::{GROUP, Product, Stored, check_cols, gguf_row_bytes, pack_gguf, pack_q8, products, unpack_row};
pub use rows::{WeightType, kernels};
pub use vector::softmax_weights;

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor};

/// Adds a term to a sum that may not have begun.
pub fn add_term(sum: &mut Option<Tensor>, term: Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        Some(s) => (s + term)?,
        None => term,
    });
    Ok(())
}

/// Whether the kernels of this module run on this tensor.
pub fn is_fused(t: &Tensor) -> bool {
    t.device().is_cpu() && t.dtype() == DType::F32
}

/// The values of a contiguous float32 storage, as custom operations receive it.
fn values<'a>(s: &'a CpuStorage, l: &Layout) -> Result<&'a [f32]> {
    match (s, l.contiguous_offsets()) {
        (CpuStorage::F32(v), Some((a, b))) => Ok(&v[a..b]),
        _ => candle_core::bail!("a fused operation needs contiguous float32 values"),
    }
}

/// Calls `f` with the values of contiguous float32 CPU tensors.
pub(crate) fn with_values<const N: usize, R>(tensors: [&Tensor; N], f: impl FnOnce([&[f32]; N]) -> R) -> Result<R> {
    let guards = tensors.map(|t| t.storage_and_layout());
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slot, (storage, layout)) in slices.iter_mut().zip(guards.iter()) {
        *slot = match &**storage {
            Storage::Cpu(cpu) => values(cpu, layout)?,
            _ => candle_core::bail!("a fused operation needs a CPU tensor"),
        };
    }
    Ok(f(slices))
}

/// Calls `f` with parts of `len` values of y and x. A single part stays on this thread: waking others costs more than the norm
/// of one token.
fn in_parts(y: &mut [f32], x: &[f32], len: usize, f: impl Fn(&mut [f32], &[f32]) + Sync) {
    use rayon::prelude::*;
    if y.len() <= len {
        return f(y, x);
    }
    y.par_chunks_mut(len).zip(x.par_chunks(len)).for_each(|(y, x)| f(y, x));
}

/// Rows of a batch that one task works on, so that small tensors stay on one thread.
fn rows_per_task(rows: usize, row_len: usize) -> usize {
    let min_rows = (16 * 1024 / row_len.max(1)).max(1);
    rows.div_ceil(2 * rayon::current_num_threads()).max(min_rows)
}
