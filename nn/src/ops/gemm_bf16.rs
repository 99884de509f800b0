//! Matrix product on the CPU's bfloat16 instructions, with float32 inputs, sums and outputs: AVX-512 BF16 here, AMX where there is more.
//!
//! Both inputs are rounded to bfloat16 while they are packed into panels: two neighbours along the summed dimension
//! share one 32-bit word, which is what `vdpbf16ps` eats. The library products reach about half of this, because
//! float32 multiply-adds do half the work an instruction (docs/performance.md has the ratio).
#![allow(unsafe_code)]

use super::linear::Matrix;

/// Whether this processor has the instructions.
pub fn bf16_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn gemm_bf16(_m: usize, _n: usize, _k: usize, _a: Matrix, _b: Matrix, _c: &mut [f32], _add: bool) {
    unreachable!("bf16_available() is false here, so no caller comes this way")
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::gemm_bf16;

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use super::Matrix;
    use crate::ops::gemm_amx;
    use rayon::prelude::*;
    use std::arch::x86_64::*;
    use std::cell::RefCell;

    /// Rows and columns of the tile that stays in registers: 12 x 2 sums, two columns, one broadcast.
    pub const MR: usize = 12;
    pub const NR: usize = 32;
    /// Panels of rows that a task packs at once.
    const ROW_PANELS: usize = 8;
    /// Pairs along the summed dimension in one pass: a column panel of 192 x 32 words is 24 KiB.
    pub const PAIRS: usize = 192;

    thread_local! {
        static ROWS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    }

    /// The nearest bfloat16, in the lower half of a word.
    #[inline(always)]
    pub fn round(x: f32) -> u32 {
        let u = x.to_bits();
        (u + 0x7fff + ((u >> 16) & 1)) >> 16
    }

    #[inline(always)]
    fn pair(lo: f32, hi: f32) -> u32 {
        round(lo) | (round(hi) << 16)
    }

    /// Packs up to W lines (rows of the left or columns of the right matrix) from `line0` on, pairs `p0..p1` along the
    /// summed dimension, as [pair][line]; missing lines and the odd end are zero.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn pack<const W: usize>(
        src: &[f32],
        line_stride: usize,
        sum_stride: usize,
        line0: usize,
        lines: usize,
        sum_len: usize,
        p0: usize,
        p1: usize,
        out: &mut [u32],
    ) {
        if lines < W {
            out.fill(0);
        }
        if sum_stride == 1 {
            // rounded 16 pairs at a time in vector registers, then scattered to their lines
            const STEP: usize = 16;
            for l in 0..lines {
                let row = &src[(line0 + l) * line_stride..][..sum_len];
                let whole = p1.min(sum_len / 2);
                let mut p = p0;
                while p + STEP <= whole {
                    let mut words = [0u32; STEP];
                    for (w, x) in words.iter_mut().zip(row[2 * p..2 * (p + STEP)].chunks_exact(2)) {
                        *w = pair(x[0], x[1]);
                    }
                    for (o, w) in out[(p - p0) * W..(p - p0 + STEP) * W].chunks_exact_mut(W).zip(words) {
                        o[l] = w;
                    }
                    p += STEP;
                }
                for p in p..whole {
                    out[(p - p0) * W + l] = pair(row[2 * p], row[2 * p + 1]);
                }
                if whole < p1 {
                    out[(whole - p0) * W + l] = round(row[sum_len - 1]);
                }
            }
            return;
        }
        for p in p0..p1 {
            let dst = &mut out[(p - p0) * W..(p - p0 + 1) * W];
            let a = &src[2 * p * sum_stride + line0 * line_stride..];
            if 2 * p + 1 == sum_len {
                for l in 0..lines {
                    dst[l] = round(a[l * line_stride]);
                }
                continue;
            }
            let b = &src[(2 * p + 1) * sum_stride + line0 * line_stride..];
            match (line_stride, a.first_chunk::<W>(), b.first_chunk::<W>()) {
                // a whole panel of neighbours: its length is known, so this is a few vector instructions
                (1, Some(a), Some(b)) if lines == W => {
                    for l in 0..W {
                        dst[l] = pair(a[l], b[l]);
                    }
                }
                _ => {
                    for l in 0..lines {
                        dst[l] = pair(a[l * line_stride], b[l * line_stride]);
                    }
                }
            }
        }
    }

    /// One tile: c (MR x NR at row stride `ldc`) = or += the packed panels' product over `pairs`.
    ///
    /// # Safety
    /// `a` holds pairs * MR words, `b` pairs * NR words, `c` is valid for MR rows of NR values at stride `ldc`.
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
    unsafe fn tile(pairs: usize, a: *const u32, b: *const u32, c: *mut f32, ldc: usize, add: bool) {
        let mut acc = [[_mm512_setzero_ps(); 2]; MR];
        for p in 0..pairs {
            // SAFETY: inside the panels, as the caller promises; the casts only rename 512 bits.
            unsafe {
                let b0: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.add(p * NR).cast()));
                let b1: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.add(p * NR + 16).cast()));
                for r in 0..MR {
                    let ar: __m512bh = std::mem::transmute(_mm512_set1_epi32(*a.add(p * MR + r) as i32));
                    acc[r][0] = _mm512_dpbf16_ps(acc[r][0], ar, b0);
                    acc[r][1] = _mm512_dpbf16_ps(acc[r][1], ar, b1);
                }
            }
        }
        for (r, [x, y]) in acc.into_iter().enumerate() {
            // SAFETY: the caller promises MR rows of NR values.
            unsafe {
                let row = c.add(r * ldc);
                if add {
                    _mm512_storeu_ps(row, _mm512_add_ps(x, _mm512_loadu_ps(row)));
                    _mm512_storeu_ps(row.add(16), _mm512_add_ps(y, _mm512_loadu_ps(row.add(16))));
                } else {
                    _mm512_storeu_ps(row, x);
                    _mm512_storeu_ps(row.add(16), y);
                }
            }
        }
    }

    /// [`tile`] for a corner of c, of which `lines` rows of `cols` values are written.
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
    pub fn tile_at(a: &[u32], b: &[u32], c: &mut [f32], ldc: usize, lines: usize, cols: usize, add: bool) {
        let pairs = a.len() / MR;
        assert!(b.len() >= pairs * NR && lines <= MR && cols <= NR);
        if lines == MR && cols == NR {
            assert!(c.len() >= (MR - 1) * ldc + NR);
            // SAFETY: the assertions bound both panels and the corner.
            unsafe { tile(pairs, a.as_ptr(), b.as_ptr(), c.as_mut_ptr(), ldc, add) };
            return;
        }
        let mut edge = [0f32; MR * NR];
        // SAFETY: as above, and `edge` is a whole tile.
        unsafe { tile(pairs, a.as_ptr(), b.as_ptr(), edge.as_mut_ptr(), NR, false) };
        for l in 0..lines {
            for (d, e) in c[l * ldc..][..cols].iter_mut().zip(&edge[l * NR..]) {
                *d = if add { *d + e } else { *e };
            }
        }
    }

    /// All rows of a left matrix in panels.
    pub struct Rows {
        words: Vec<u32>,
        rows: usize,
        pairs: usize,
    }

    impl Rows {
        /// Of a matrix [rows, sum].
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        pub fn pack(m: Matrix, rows: usize, sum: usize) -> Self {
            let pairs = sum.div_ceil(2);
            let mut words = vec![0u32; rows.div_ceil(MR) * pairs * MR];
            for (r, out) in words.chunks_exact_mut((pairs * MR).max(1)).enumerate() {
                let lines = MR.min(rows - r * MR);
                pack::<MR>(m.data, m.row_stride, m.col_stride, r * MR, lines, sum, 0, pairs, out);
            }
            Self { words, rows, pairs }
        }

        /// Panels.
        pub fn panels(&self) -> usize {
            self.rows.div_ceil(MR)
        }
        /// Rows of a panel.
        pub fn lines(&self, panel: usize) -> usize {
            MR.min(self.rows - panel * MR)
        }
        /// Pairs `p0..p1` of a panel.
        pub fn words(&self, panel: usize, p0: usize, p1: usize) -> &[u32] {
            &self.words[(panel * self.pairs + p0) * MR..(panel * self.pairs + p1) * MR]
        }
    }

    /// c [m, n] = (or +=) a [m, k] b [k, n]. The caller has checked [`super::bf16_available`] and the lengths.
    pub fn gemm_bf16(m: usize, n: usize, k: usize, a: Matrix, b: Matrix, c: &mut [f32], add: bool) {
        if gemm_amx::available() {
            return gemm_amx::gemm_amx(m, n, k, a, b, c, add);
        }
        gemm_avx512(m, n, k, a, b, c, add);
    }

    fn gemm_avx512(m: usize, n: usize, k: usize, a: Matrix, b: Matrix, c: &mut [f32], add: bool) {
        let pairs = k.div_ceil(2);
        let col_panels = n.div_ceil(NR);
        let mut packed = vec![0u32; col_panels * pairs * NR];
        packed.par_chunks_mut(pairs * NR).enumerate().for_each(|(j, out)| {
            let lines = NR.min(n - j * NR);
            // SAFETY: bf16_available() was true, so the instructions exist.
            unsafe { pack::<NR>(b.data, b.col_stride, b.row_stride, j * NR, lines, k, 0, pairs, out) };
        });
        let threads = rayon::current_num_threads();
        let block = (ROW_PANELS * MR).min(m.div_ceil(threads).div_ceil(MR) * MR);
        c.par_chunks_mut(block * n).enumerate().for_each(|(i, c)| {
            let row0 = i * block;
            let rows = c.len() / n;
            ROWS.with_borrow_mut(|buf| {
                buf.resize(block * PAIRS, 0);
                for p0 in (0..pairs).step_by(PAIRS) {
                    let p1 = (p0 + PAIRS).min(pairs);
                    let np = p1 - p0;
                    let add = add || p0 > 0;
                    for (r, out) in buf.chunks_exact_mut(MR * PAIRS).enumerate() {
                        if r * MR < rows {
                            let lines = MR.min(rows - r * MR);
                            let out = &mut out[..np * MR];
                            // SAFETY: as above.
                            unsafe {
                                pack::<MR>(a.data, a.row_stride, a.col_stride, row0 + r * MR, lines, k, p0, p1, out);
                            }
                        }
                    }
                    for j in 0..col_panels {
                        let panel = &packed[(j * pairs + p0) * NR..(j * pairs + p1) * NR];
                        let cols = NR.min(n - j * NR);
                        for r in 0..rows.div_ceil(MR) {
                            let words = &buf[r * MR * PAIRS..][..np * MR];
                            let corner = &mut c[r * MR * n + j * NR..];
                            // SAFETY: bf16_available() was true, so the instructions exist.
                            unsafe { tile_at(words, panel, corner, n, MR.min(rows - r * MR), cols, add) };
                        }
                    }
                }
            });
        });
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        type Gemm = fn(usize, usize, usize, Matrix, Matrix, &mut [f32], bool);

        #[test]
        fn equals_the_product_of_rounded_inputs() {
            match super::super::bf16_available() {
                true => check(gemm_avx512),
                false => eprintln!("skipped: no AVX-512 BF16 on this processor"),
            }
            match gemm_amx::available() {
                true => check(gemm_amx::gemm_amx),
                false => eprintln!("skipped: no AMX on this processor"),
            }
        }

        fn check(gemm: Gemm) {
            let mut seed = 1u64;
            let mut next = || {
                seed = crate::rng::mix(seed.wrapping_add(0x9E37_79B9_7F4A_7C15));
                (seed >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            };
            for (m, n, k) in [
                (16, 16, 16),
                (37, 45, 129),
                (100, 64, 401),
                (192, 33, 1000),
                (13, 96, 17),
                (64, 64, 64),
                (300, 48, 1090),
            ] {
                let a: Vec<f32> = (0..m * k).map(|_| next()).collect();
                let b: Vec<f32> = (0..k * n).map(|_| next()).collect();
                let r = |x: f32| f64::from(f32::from_bits(round(x) << 16));
                for (a_t, b_t) in [(false, false), (true, false), (false, true), (true, true)] {
                    let (ars, acs) = if a_t { (1, m) } else { (k, 1) };
                    let (brs, bcs) = if b_t { (1, k) } else { (n, 1) };
                    let mut c = vec![7f32; m * n];
                    let at = Matrix { data: &a, row_stride: ars, col_stride: acs };
                    let bt = Matrix { data: &b, row_stride: brs, col_stride: bcs };
                    gemm(m, n, k, at, bt, &mut c, false);
                    gemm(m, n, k, at, bt, &mut c, true);
                    for i in 0..m {
                        for j in 0..n {
                            let want: f64 =
                                2.0 * (0..k).map(|p| r(a[i * ars + p * acs]) * r(b[p * brs + j * bcs])).sum::<f64>();
                            let got = f64::from(c[i * n + j]);
                            assert!((want - got).abs() < 1e-4, "{m}x{n}x{k} at {i},{j}: {got} for {want}");
                        }
                    }
                }
            }
        }
    }
}
