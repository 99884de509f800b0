//! How weights lie in memory. Float rows lie as a checkpoint has them, one after the other. Blocks are interleaved in groups
//! of sixteen rows, so that a vector holds the same columns of sixteen rows: no sum across a vector, one load of scales a
//! block. A group is one run of bytes, so that it is read as it lies: for each 256 columns (or what is left of them) the scales,
//! then the integers:
//!
//! | type | scales | integers |
//! |---|---|---|
//! | q8_0 | for each 32 columns a float16 a row | a byte a value, plus 128, four columns a row |
//! | q4_K | d, dmin (float16 a row), 8 scales, 8 minima (a byte a row) | low nibbles: columns 8j to 8j+3, high: 8j+4 to 8j+7 |
//! | q6_K | d (float16 a row), 16 scales (a signed byte a row), 32 bytes of nothing | as q4_K, then two bits a value, four columns of four a byte |
//!
//! The values are those of the GGUF types of the same names (ggml-quants.c); only the order differs.

use candle_core::{Result, bail};
use half::{bf16, f16};

/// Rows of a group.
pub const GROUP: usize = 16;

/// How a weight's values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum WeightType {
    /// 32-bit floats.
    #[serde(rename = "f32")]
    F32,
    /// bfloat16.
    #[serde(rename = "bf16")]
    Bf16,
    /// float16.
    #[serde(rename = "f16")]
    F16,
    /// 8-bit integers, 32 to a float16 scale.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4-bit integers with 6-bit scales and minima of 32, 256 to a pair of float16 factors.
    #[serde(rename = "q4_K")]
    Q4K,
    /// 6-bit integers with 8-bit scales of 16, 256 to a float16 factor.
    #[serde(rename = "q6_K")]
    Q6K,
}

impl WeightType {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::F32, Self::Bf16, Self::F16, Self::Q8_0, Self::Q4K, Self::Q6K];

    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_K",
            Self::Q6K => "q6_K",
        }
    }

    /// The type of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// The type for towers and image tokenizers where this one is asked of a model: blocks are for language models.
    pub fn for_pictures(self) -> Self {
        if self.is_blocks() { Self::F16 } else { self }
    }

    /// Whether values are integers in blocks.
    pub fn is_blocks(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4K | Self::Q6K)
    }

    /// Columns that share scales; the columns of a weight are a multiple of it.
    pub fn block(self) -> usize {
        match self {
            Self::F32 | Self::Bf16 | Self::F16 => 1,
            Self::Q8_0 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Bytes of a row of float values, or of sixteen rows of blocks.
    pub fn unit_bytes(self, cols: usize) -> usize {
        match self {
            Self::F32 => 4 * cols,
            Self::Bf16 | Self::F16 => 2 * cols,
            Self::Q8_0 => cols / 32 * (32 + 512),
            Self::Q4K => cols / 256 * (320 + 2048),
            Self::Q6K => cols / 256 * (320 + 3072),
        }
    }

    /// Bytes of a whole weight; blocks are filled up to whole groups.
    pub fn bytes(self, rows: usize, cols: usize) -> usize {
        let units = if self.is_blocks() { rows.div_ceil(GROUP) } else { rows };
        units * self.unit_bytes(cols)
    }
}

/// Where block `b` of 32 columns lies in a group of `cols` columns: its scales (q8_0) or those of its 256 columns, and its
/// integers.
#[inline(always)]
pub const fn places(ty: WeightType, cols: usize, b: usize) -> (usize, usize) {
    let (run, i) = (b / 8, b % 8);
    match ty {
        WeightType::Q8_0 => {
            let left = cols / 32 - run * 8;
            let blocks = if left < 8 { left } else { 8 };
            let base = run * 8 * 544;
            (base + i * 32, base + blocks * 32 + i * 512)
        }
        WeightType::Q4K => (run * 2368, run * 2368 + 320 + i * 256),
        _ => (run * 3392, run * 3392 + 320 + i * 384),
    }
}

/// Sixteen rows of `cols` values to q8_0: the scale is the largest magnitude / 127, as in GGUF.
pub fn pack_q8(rows: &[&[f32]], cols: usize, out: &mut [u8]) {
    empty_q8(cols, out);
    for (r, row) in rows.iter().enumerate() {
        for (b, x) in row.chunks_exact(32).enumerate() {
            let top = x.iter().fold(0f32, |m, v| m.max(v.abs()));
            // what is no number must not become zero: its whole block shows it
            let d = if x.iter().all(|v| v.is_finite()) { top / 127.0 } else { f32::NAN };
            let inv = if d > 0.0 && (1.0 / d).is_finite() { 1.0 / d } else { 0.0 };
            let (scale, quants) = places(WeightType::Q8_0, cols, b);
            out[scale + r * 2..][..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            for (c, x) in x.chunks_exact(4).enumerate() {
                let at = quants + c * 64 + r * 4;
                for i in 0..4 {
                    out[at + i] = ((x[i] * inv).round() as i32 + 128) as u8;
                }
            }
        }
    }
}

/// Scales and values of zero.
fn empty_q8(cols: usize, out: &mut [u8]) {
    out.fill(128);
    for b in 0..cols / 32 {
        out[places(WeightType::Q8_0, cols, b).0..][..32].fill(0);
    }
}

/// Bytes of a row in GGUF's order.
pub fn gguf_row_bytes(ty: WeightType, cols: usize) -> usize {
    match ty {
        WeightType::Q8_0 => cols / 32 * 34,
        WeightType::Q4K => cols / 256 * 144,
        WeightType::Q6K => cols / 256 * 210,
        float => float.unit_bytes(cols),
    }
}

/// Up to sixteen rows in GGUF's order to a group of ours.
pub fn pack_gguf(ty: WeightType, rows: &[&[u8]], cols: usize, out: &mut [u8]) {
    out.fill(0);
    match ty {
        WeightType::Q8_0 => {
            empty_q8(cols, out);
            for (r, row) in rows.iter().enumerate() {
                for (b, block) in row.chunks_exact(34).enumerate() {
                    let (scale, quants) = places(ty, cols, b);
                    out[scale + r * 2..][..2].copy_from_slice(&block[..2]);
                    for (i, v) in block[2..].iter().enumerate() {
                        out[quants + i / 4 * 64 + r * 4 + i % 4] = v.wrapping_add(128);
                    }
                }
            }
        }
        WeightType::Q4K => {
            for (r, row) in rows.iter().enumerate() {
                for (s, block) in row.chunks_exact(144).enumerate() {
                    let to = &mut out[s * 2368..][..2368];
                    to[r * 2..][..2].copy_from_slice(&block[..2]);
                    to[32 + r * 2..][..2].copy_from_slice(&block[2..4]);
                    for j in 0..8 {
                        let (scale, min) = k_scale(&block[4..16], j);
                        to[64 + j * GROUP + r] = scale;
                        to[192 + j * GROUP + r] = min;
                    }
                    // 64 values share 32 bytes: the first half in the low nibbles
                    let value = |i: usize| {
                        let byte = block[16 + i / 64 * 32 + i % 32];
                        if i % 64 < 32 { byte & 15 } else { byte >> 4 }
                    };
                    for i in 0..256 {
                        let at = 320 + i / 8 * 64 + r * 4 + i % 4;
                        to[at] |= value(i) << (i % 8 / 4 * 4);
                    }
                }
            }
        }
        WeightType::Q6K => {
            for (r, row) in rows.iter().enumerate() {
                for (s, block) in row.chunks_exact(210).enumerate() {
                    let to = &mut out[s * 3392..][..3392];
                    to[r * 2..][..2].copy_from_slice(&block[208..210]);
                    for j in 0..16 {
                        to[32 + j * GROUP + r] = block[192 + j];
                    }
                    // 128 values share 64 bytes of low nibbles and 32 of high bits (ggml's block_q6_K)
                    let value = |i: usize| {
                        let (half, j) = (i / 128, i % 128);
                        let low = block[half * 64 + j % 64] >> (j / 64 * 4) & 15;
                        let high = block[128 + half * 32 + j % 32] >> (j / 32 * 2) & 3;
                        low | high << 4
                    };
                    for i in 0..256 {
                        let (b, c, v) = (i / 32, i % 32 / 4, value(i));
                        let base = 320 + b * 384 + r * 4 + i % 4;
                        to[base + c / 2 * 64] |= (v & 15) << (c % 2 * 4);
                        to[base + 256 + c / 4 * 64] |= (v >> 4) << (c % 4 * 2);
                    }
                }
            }
        }
        _ => {}
    }
}

/// The j-th 6-bit scale and minimum of a q4_K block (ggml's get_scale_min_k4).
fn k_scale(q: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (q[j] & 63, q[j + 4] & 63)
    } else {
        (q[j + 4] & 15 | q[j - 4] >> 6 << 4, q[j + 4] >> 4 | q[j] >> 6 << 4)
    }
}

/// Row `row` as float32.
pub fn unpack_row(ty: WeightType, bytes: &[u8], cols: usize, row: usize, out: &mut [f32]) {
    let unit = ty.unit_bytes(cols);
    let half = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32();
    if !ty.is_blocks() {
        let row = &bytes[row * unit..][..unit];
        match ty {
            WeightType::F32 => out
                .iter_mut()
                .zip(row.chunks_exact(4))
                .for_each(|(o, b)| *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            WeightType::Bf16 => out
                .iter_mut()
                .zip(row.chunks_exact(2))
                .for_each(|(o, b)| *o = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            _ => out.iter_mut().zip(row.chunks_exact(2)).for_each(|(o, b)| *o = half(b)),
        }
        return;
    }
    let group = &bytes[row / GROUP * unit..][..unit];
    let r = row % GROUP;
    match ty {
        WeightType::Q8_0 => {
            for (i, o) in out.iter_mut().enumerate() {
                let (scale, quants) = places(ty, cols, i / 32);
                let d = half(&group[scale + r * 2..]);
                *o = d * (f32::from(group[quants + i % 32 / 4 * 64 + r * 4 + i % 4]) - 128.0);
            }
        }
        WeightType::Q4K => {
            for (i, o) in out.iter_mut().enumerate() {
                let (s, j) = (&group[i / 256 * 2368..], i % 256 / 32);
                let (d, dmin) = (half(&s[r * 2..]), half(&s[32 + r * 2..]));
                let (scale, min) = (f32::from(s[64 + j * GROUP + r]), f32::from(s[192 + j * GROUP + r]));
                let q = s[320 + i % 256 / 8 * 64 + r * 4 + i % 4] >> (i % 8 / 4 * 4) & 15;
                *o = d * scale * f32::from(q) - dmin * min;
            }
        }
        _ => {
            for (i, o) in out.iter_mut().enumerate() {
                let s = &group[i / 256 * 3392..];
                let scale = f32::from(s[32 + i % 256 / 16 * GROUP + r] as i8);
                let (base, c) = (320 + i % 256 / 32 * 384 + r * 4 + i % 4, i % 32 / 4);
                let low = s[base + c / 2 * 64] >> (c % 2 * 4) & 15;
                let high = s[base + 256 + c / 4 * 64] >> (c % 4 * 2) & 3;
                *o = half(&s[r * 2..]) * scale * (f32::from(low | high << 4) - 32.0);
            }
        }
    }
}

/// Checks that this many columns can be kept so.
pub fn check_cols(ty: WeightType, cols: usize) -> Result<()> {
    if !cols.is_multiple_of(ty.block()) {
        bail!("{cols} columns are no multiple of the {} that {} needs", ty.block(), ty.name());
    }
    Ok(())
}
