//! Products of rows of inputs with weights that are read as they are stored: y [m, n] = x [m, k] w^T, w [n, k] of any
//! [`WeightType`], activations float32. For inference: there is no backward.
//!
//! Float weights are widened in registers, so a product is exact up to the order of its sum; for blocks the inputs are
//! rounded to 8-bit integers, 32 to a scale, as llama.cpp does. The order of every sum is the same whatever else is in the
//! batch and however many threads work, so a token does not depend on its neighbours.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod float;
mod inputs;
mod layout;
mod portable;

use super::pool;
use inputs::Tile;
pub use layout::{GROUP, WeightType, check_cols, gguf_row_bytes, pack_gguf, pack_q8, unpack_row};
use std::ops::Range;
use std::sync::OnceLock;

/// The functions of an instruction set.
pub struct Kernels {
    /// Its name, for `UNIFIED_KERNELS` and for reports.
    pub name: &'static str,
    /// Most rows of inputs in a tile of `blocks`.
    tile: usize,
    /// (type, up to 4 rows, their number, inputs [m, k], m, k, sums [m, 4])
    float: unsafe fn(WeightType, *const u8, usize, *const f32, usize, usize, *mut f32),
    /// (type, a group, k, a tile of inputs, sums [tile, 16])
    blocks: unsafe fn(WeightType, *const u8, usize, &Tile, *mut f32),
}

static PORTABLE: Kernels =
    Kernels { name: "portable", tile: portable::TILE, float: portable::float_rows, blocks: portable::blocks };
#[cfg(target_arch = "x86_64")]
static AVX2: Kernels = Kernels { name: "avx2", tile: avx2::TILE, float: avx2::float_rows, blocks: avx2::blocks };
#[cfg(target_arch = "x86_64")]
static AVX512: Kernels =
    Kernels { name: "avx512", tile: avx512::TILE, float: avx512::float_rows, blocks: avx512::blocks };

/// Every set that this processor has, the fastest first.
pub fn available() -> Vec<&'static Kernels> {
    let mut all = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
        {
            all.push(&AVX512);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            all.push(&AVX2);
        }
    }
    all.push(&PORTABLE);
    all
}

/// The set in use: the fastest, or the one that the environment variable `UNIFIED_KERNELS` names.
pub fn kernels() -> &'static Kernels {
    static CHOSEN: OnceLock<&Kernels> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let all = available();
        let asked = std::env::var("UNIFIED_KERNELS").unwrap_or_default();
        all.iter().find(|k| k.name == asked).copied().unwrap_or(all[0])
    })
}

/// A weight [rows, cols] as it lies in memory.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// How values are kept.
    pub ty: WeightType,
    /// The values; see [`layout`].
    pub bytes: &'a [u8],
    /// Rows, outputs of a layer.
    pub rows: usize,
    /// Columns, inputs of a layer.
    pub cols: usize,
}

/// Bytes as float32 values, where they are aligned so and the machine is little-endian.
pub fn as_floats(bytes: &[u8]) -> Option<&[f32]> {
    // SAFETY: every pattern of bits is a float32; a part that is not aligned is not used.
    let (before, floats, after) = unsafe { bytes.align_to::<f32>() };
    (before.is_empty() && after.is_empty() && cfg!(target_endian = "little")).then_some(floats)
}

/// A product that is wanted: some rows of a weight, and where they go, [m, rows].
pub struct Product<'a> {
    /// The weight.
    pub weight: Stored<'a>,
    /// Which of its rows.
    pub rows: Range<usize>,
    /// Results, row-major.
    pub out: &'a mut [f32],
}

/// Rows of inputs that stay in the second-level cache while a weight goes past them: bytes.
const INPUT_BYTES: usize = 384 << 10;

/// Smallest piece of a weight that a thread takes: bytes.
const PIECE: usize = 32 << 10;

#[derive(Clone, Copy)]
struct Out(*mut f32);
// SAFETY: pieces write to different columns.
unsafe impl Send for Out {}
unsafe impl Sync for Out {}

/// All products with the same inputs x [m, k].
pub fn products(x: &[f32], m: usize, k: usize, wanted: &mut [Product]) {
    products_with(kernels(), x, m, k, wanted);
}

pub(super) fn products_with(kernels: &Kernels, x: &[f32], m: usize, k: usize, wanted: &mut [Product]) {
    assert_eq!(x.len(), m * k, "inputs of a product");
    for p in wanted.iter() {
        let w = &p.weight;
        assert!(w.cols == k && k.is_multiple_of(w.ty.block()), "columns of a product");
        assert!(w.bytes.len() >= w.ty.bytes(w.rows, k), "bytes of a weight");
        assert!(p.rows.end <= w.rows && p.out.len() == m * p.rows.len(), "rows of a product");
    }
    if m == 0 {
        return;
    }
    let tiles =
        if wanted.iter().any(|p| p.weight.ty.is_blocks()) { inputs::tiles(x, m, k, kernels.tile) } else { Vec::new() };
    // units of sixteen rows, in pieces that are worth a thread's while
    let unit_bytes = |w: &Stored| w.ty.bytes(GROUP, k);
    let units = |p: &Product| p.rows.start / GROUP..p.rows.end.div_ceil(GROUP).max(p.rows.start / GROUP);
    let total: usize = wanted.iter().map(|p| units(p).len() * unit_bytes(&p.weight)).sum();
    let piece = (PIECE / m.div_ceil(4)).max(total / (pool::threads() * 24)).min(1 << 20);
    let mut pieces = Vec::new();
    for (i, p) in wanted.iter_mut().enumerate() {
        let (all, out) = (units(p), Out(p.out.as_mut_ptr()));
        let step = (piece / unit_bytes(&p.weight).max(1)).max(1);
        pieces.extend(all.clone().step_by(step).map(|u| (i, u..(u + step).min(all.end), out)));
    }
    let plan: Vec<(Stored, Range<usize>)> = wanted.iter().map(|p| (p.weight, p.rows.clone())).collect();
    pool::run(pieces.len(), |n| {
        let (i, units, out) = &pieces[n];
        let (w, rows) = &plan[*i];
        // SAFETY: the assertions above bound weights, inputs and results; pieces have different rows.
        unsafe {
            match w.ty.is_blocks() {
                true => block_units(kernels, w, rows, units.clone(), &tiles, out.0),
                false => float_units(kernels, w, rows, units.clone(), x, m, out.0),
            }
        }
    });
}

/// # Safety
/// As in [`products`], whose assertions must hold; `out` is the result [m, rows].
unsafe fn block_units(
    kernels: &Kernels,
    w: &Stored,
    rows: &Range<usize>,
    units: Range<usize>,
    tiles: &[Tile],
    out: *mut f32,
) {
    let (bytes, n) = (w.ty.unit_bytes(w.cols), rows.len());
    let mut sums = [0f32; 16 * GROUP];
    let per_tile = tiles.first().map_or(1, |t| t.m * w.cols);
    for tiles in tiles.chunks((INPUT_BYTES / per_tile.max(1)).max(1)) {
        for u in units.clone() {
            let group = &w.bytes[u * bytes..(u + 1) * bytes];
            let (from, to) = ((u * GROUP).max(rows.start), ((u + 1) * GROUP).min(rows.end));
            for t in tiles {
                // SAFETY: a whole group, a tile of as many columns, and room for 16 rows of sums.
                unsafe {
                    (kernels.blocks)(w.ty, group.as_ptr(), w.cols, t, sums.as_mut_ptr());
                    for i in 0..t.m {
                        let to_row = out.add((t.from + i) * n + from - rows.start);
                        let sums = sums.as_ptr().add(i * GROUP + from - u * GROUP);
                        std::ptr::copy_nonoverlapping(sums, to_row, to - from);
                    }
                }
            }
        }
    }
}

/// # Safety
/// As [`block_units`].
unsafe fn float_units(
    kernels: &Kernels,
    w: &Stored,
    rows: &Range<usize>,
    units: Range<usize>,
    x: &[f32],
    m: usize,
    out: *mut f32,
) {
    let (bytes, n, k) = (w.ty.unit_bytes(w.cols), rows.len(), w.cols);
    let (from, to) = ((units.start * GROUP).max(rows.start), (units.end * GROUP).min(rows.end));
    let at_once = (INPUT_BYTES / (4 * k.max(1))).clamp(6, 384) / 6 * 6;
    let mut sums = vec![0f32; 4 * at_once.min(m)];
    for first in (0..m).step_by(at_once) {
        let m = at_once.min(m - first);
        let mut row = from;
        while row < to {
            // whole fours where they are, counted from the weight's first row, so that narrowing changes no sum
            let count = if row.is_multiple_of(4) && row + 4 <= to { 4 } else { (4 - row % 4).min(to - row) };
            let at = &w.bytes[row * bytes..(row + count) * bytes];
            // SAFETY: `count` whole rows, m rows of inputs and room for 4 sums each.
            unsafe {
                (kernels.float)(w.ty, at.as_ptr(), count, x.as_ptr().add(first * k), m, k, sums.as_mut_ptr());
                for i in 0..m {
                    let to_row = out.add((first + i) * n + row - rows.start);
                    std::ptr::copy_nonoverlapping(sums.as_ptr().add(i * 4), to_row, count);
                }
            }
            row += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};
    use half::{bf16, f16};

    fn random(n: usize, key: u64) -> Vec<f32> {
        (0..n as u64).map(|i| (crate::rng::mix(i ^ key << 32) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// A weight of the type, and its values.
    fn weight(ty: WeightType, rows: usize, cols: usize) -> (Vec<u8>, Vec<f32>) {
        let w = random(rows * cols, 1);
        let bytes = match ty {
            WeightType::F32 => w.iter().flat_map(|v| v.to_le_bytes()).collect(),
            WeightType::Bf16 => w.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            WeightType::F16 => w.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            _ => {
                let kind = match ty {
                    WeightType::Q8_0 => GgmlDType::Q8_0,
                    WeightType::Q4K => GgmlDType::Q4K,
                    _ => GgmlDType::Q6K,
                };
                let t = Tensor::from_vec(w, (rows, cols), &Device::Cpu).unwrap();
                let q = QTensor::quantize(&t, kind).unwrap();
                let gguf = q.data().unwrap().into_owned();
                let per = gguf_row_bytes(ty, cols);
                let mut out = vec![0; ty.bytes(rows, cols)];
                let all: Vec<&[u8]> = gguf.chunks_exact(per).collect();
                for (rows, out) in all.chunks(GROUP).zip(out.chunks_exact_mut(ty.unit_bytes(cols))) {
                    pack_gguf(ty, rows, cols, out);
                }
                // the library reads its own blocks as we read ours
                let theirs = q.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let mut ours = vec![0f32; rows * cols];
                for r in 0..rows {
                    unpack_row(ty, &out, cols, r, &mut ours[r * cols..(r + 1) * cols]);
                }
                let off = theirs.iter().zip(&ours).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                assert!(off < 1e-6, "{ty:?} read differently: {off}");
                return (out, ours);
            }
        };
        let bytes: Vec<u8> = bytes;
        let mut values = vec![0f32; rows * cols];
        for r in 0..rows {
            unpack_row(ty, &bytes, cols, r, &mut values[r * cols..(r + 1) * cols]);
        }
        (bytes, values)
    }

    /// Every type on every instruction set that this processor has, against float64; and the sets that it lacks are said.
    #[test]
    fn products_are_right_on_every_instruction_set() {
        let have: Vec<&str> = available().iter().map(|k| k.name).collect();
        for name in ["avx512", "avx2"] {
            if !have.contains(&name) {
                eprintln!("skipped: no {name} on this processor");
            }
        }
        for ty in WeightType::ALL {
            // an odd number of columns where the type allows it
            let k = match ty {
                WeightType::Q8_0 => 352,
                WeightType::Q4K | WeightType::Q6K => 512,
                _ => 531,
            };
            let n = 37;
            let (bytes, values) = weight(ty, n, k);
            let stored = Stored { ty, bytes: &bytes, rows: n, cols: k };
            for m in [1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 29] {
                let x = random(m * k, 7);
                let mut alone: Option<Vec<f32>> = None;
                for kernels in available() {
                    let mut y = vec![0f32; m * n];
                    products_with(kernels, &x, m, k, &mut [Product { weight: stored, rows: 0..n, out: &mut y }]);
                    for i in 0..m {
                        for r in 0..n {
                            let (x, w) = (&x[i * k..(i + 1) * k], &values[r * k..(r + 1) * k]);
                            let want: f64 = x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                            let near = if ty.is_blocks() { 0.15 } else { 2e-4 };
                            let got = f64::from(y[i * n + r]);
                            assert!((got - want).abs() < near, "{} {ty:?} {m} rows: {got} for {want}", kernels.name);
                        }
                    }
                    // integers are exact: sets differ by the last float operation alone
                    if ty.is_blocks() {
                        let first = alone.get_or_insert_with(|| y.clone());
                        let off = first.iter().zip(&y).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                        assert!(off < 2e-5, "{} {ty:?}: {off} from {}", kernels.name, available()[0].name);
                    }
                    // a row's results are the same bits alone, and for some rows of the weight
                    let i = m / 2;
                    let mut one = vec![0f32; 21];
                    let part = Product { weight: stored, rows: 9..30, out: &mut one };
                    products_with(kernels, &x[i * k..(i + 1) * k], 1, k, &mut [part]);
                    assert_eq!(one, y[i * n + 9..i * n + 30], "{} {ty:?} {m}", kernels.name);
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        for ty in WeightType::ALL {
            let (n, k) = (16, 512);
            let (bytes, _) = weight(ty, n, k);
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = random(k, 3);
                x[77] = bad;
                for kernels in available() {
                    let mut y = vec![0f32; n];
                    let stored = Stored { ty, bytes: &bytes, rows: n, cols: k };
                    products_with(kernels, &x, 1, k, &mut [Product { weight: stored, rows: 0..n, out: &mut y }]);
                    assert!(y.iter().all(|v| !v.is_finite()), "{} {ty:?}", kernels.name);
                }
            }
        }
    }

    #[test]
    fn eight_bits_round_to_the_nearest() {
        let rows: Vec<Vec<f32>> = (0..5).map(|r| random(64, r)).collect();
        let all: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let mut out = vec![0; WeightType::Q8_0.unit_bytes(64)];
        pack_q8(&all, 64, &mut out);
        for (r, row) in rows.iter().enumerate() {
            let mut back = vec![0f32; 64];
            unpack_row(WeightType::Q8_0, &out, 64, r, &mut back);
            let off = row.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(off < 1.0 / 127.0, "{off}");
        }
    }
}
