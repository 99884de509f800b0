//! The same product as [`super::gemm_bf16`] on AMX (Intel, Sapphire Rapids and later): a tile instruction multiplies sixteen rows of
//! thirty-two bfloat16 with sixteen columns, eight to sixteen times the work of a vector instruction.
//!
//! The left matrix is rounded into rows of words (two neighbours along the summed dimension share one), the right one into panels of
//! 32 columns, [pair][column]: that is how the instruction reads them (Intel's Software Developer's Manual, `TDPBF16PS`). Tiles have no
//! intrinsics in stable Rust, so their few instructions are written as assembly.

use super::linear::Matrix;
use rayon::prelude::*;
use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::sync::OnceLock;

/// Rows and columns of the block that stays in tiles: 2 x 2 tiles of 16 x 16 sums.
const BLOCK: usize = 32;
/// Words of a tile's row.
const STEP: usize = 16;
/// Words along the summed dimension in one pass: a column panel of 256 x 32 words is 32 KiB.
const WORDS: usize = 256;
/// Blocks of rows that a task packs at once.
const ROW_BLOCKS: usize = 8;

/// Whether this processor has the instructions, the system lets this process use them, and `UNIFIED_KERNELS` names no other set.
pub fn available() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| match std::env::var("UNIFIED_KERNELS") {
        Ok(set) if !set.is_empty() && set != "amx" => false,
        _ => allowed(),
    })
}

/// The processor's part of it.
fn allowed() -> bool {
    const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
    if !is_x86_feature_detected!("avx512bf16") || !is_x86_feature_detected!("avx512bw") {
        return false;
    }
    if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & BF16_AND_TILES != BF16_AND_TILES {
        return false;
    }
    #[cfg(target_os = "linux")]
    {
        // Linux gives the tiles' 8 KiB of state to a process that asks (arch_prctl(2))
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: two numbers go in, nothing is pointed at.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    {
        false
    }
}

/// Shapes of the eight tiles: sixteen rows of 64 bytes each.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// The tiles of this thread in this shape, as long as it lives.
struct Tiles;

impl Tiles {
    fn new() -> Self {
        // SAFETY: available() was true, and the configuration is a whole one.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
        Self
    }

    /// c (32 x 32 at row stride `ldc`) = or += a (32 rows of `steps` x 16 words at stride `lda`) times b (`steps` x 16 pairs of 32 words).
    ///
    /// # Safety
    /// All three lie within their memory; strides count values of four bytes; `steps` is not 0.
    unsafe fn multiply(
        &self,
        steps: usize,
        a: *const u32,
        lda: usize,
        b: *const u32,
        c: *mut f32,
        ldc: usize,
        add: bool,
    ) {
        // SAFETY: the caller's promise; tiles are configured as long as `self` is there.
        unsafe {
            asm!(
                "test {add:e}, {add:e}",
                "jz 2f",
                "tileloadd tmm0, [{c} + {ldc}]",
                "tileloadd tmm1, [{c} + {ldc} + 64]",
                "tileloadd tmm2, [{c2} + {ldc}]",
                "tileloadd tmm3, [{c2} + {ldc} + 64]",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "tileloadd tmm4, [{a} + {lda}]",
                "tileloadd tmm6, [{b} + {ldb}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {ldb} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a2} + {lda}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 64",
                "add {a2}, 64",
                "add {b}, 2048",
                "dec {steps}",
                "jnz 3b",
                "tilestored [{c} + {ldc}], tmm0",
                "tilestored [{c} + {ldc} + 64], tmm1",
                "tilestored [{c2} + {ldc}], tmm2",
                "tilestored [{c2} + {ldc} + 64], tmm3",
                add = in(reg) usize::from(add),
                steps = inout(reg) steps => _,
                a = inout(reg) a => _,
                a2 = inout(reg) a.add(16 * lda) => _,
                lda = in(reg) lda * 4,
                b = inout(reg) b => _,
                ldb = in(reg) BLOCK * 4,
                c = in(reg) c,
                c2 = in(reg) c.add(16 * ldc),
                ldc = in(reg) ldc * 4,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: they are configured.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Lines of a matrix (rows of the left one, columns of the right one) and what is summed along them.
#[derive(Clone, Copy)]
struct Lines<'a> {
    data: &'a [f32],
    line_stride: usize,
    sum_stride: usize,
    lines: usize,
    sum: usize,
}

impl Lines<'_> {
    /// Sixteen words of each of sixteen lines: `out[l]` holds line `line0 + l`, its pairs from `pair0` on; zero beyond the matrix.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn block(&self, line0: usize, pair0: usize, out: &mut [__m512i; 16]) {
        let lines = self.lines.saturating_sub(line0).min(16);
        let whole = 2 * pair0 + 32 <= self.sum;
        if whole && self.sum_stride == 1 {
            for (l, words) in out.iter_mut().enumerate() {
                *words = _mm512_setzero_si512();
                if l < lines {
                    let row = &self.data[(line0 + l) * self.line_stride + 2 * pair0..][..32];
                    // SAFETY: 32 values lie there.
                    let (lo, hi) = unsafe { (_mm512_loadu_ps(row.as_ptr()), _mm512_loadu_ps(row[16..].as_ptr())) };
                    *words = rounded(lo, hi);
                }
            }
            return;
        }
        if whole && self.line_stride == 1 && lines == 16 {
            // pairs of sixteen neighbouring lines, turned round
            for (p, words) in out.iter_mut().enumerate() {
                let at = |sum: usize| &self.data[sum * self.sum_stride + line0..][..16];
                let (even, odd) = (at(2 * (pair0 + p)), at(2 * (pair0 + p) + 1));
                // SAFETY: 16 values lie in each.
                let (even, odd) = unsafe { (_mm512_loadu_ps(even.as_ptr()), _mm512_loadu_ps(odd.as_ptr())) };
                *words = paired(even, odd);
            }
            transpose(out);
            return;
        }
        let mut words = [[0u32; 16]; 16];
        for (l, words) in words.iter_mut().enumerate().take(lines) {
            let at = |sum: usize| match sum < self.sum {
                true => super::gemm_bf16::x86::round(self.data[(line0 + l) * self.line_stride + sum * self.sum_stride]),
                false => 0,
            };
            for (p, word) in words.iter_mut().enumerate() {
                let first = 2 * (pair0 + p);
                *word = at(first) | at(first + 1) << 16;
            }
        }
        for (out, words) in out.iter_mut().zip(&words) {
            // SAFETY: sixteen words lie there.
            *out = unsafe { _mm512_loadu_si512(words.as_ptr().cast()) };
        }
    }

    /// Rows [`BLOCK` x blocks][words] from line `line0` and word `word0` on, `words` a multiple of 16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn rows(&self, line0: usize, word0: usize, words: usize, out: &mut [u32]) {
        let mut block = [_mm512_setzero_si512(); 16];
        for (g, sixteen) in out.chunks_exact_mut(16 * words).enumerate() {
            for w in (0..words).step_by(STEP) {
                self.block(line0 + 16 * g, word0 + w, &mut block);
                for (row, v) in sixteen.chunks_exact_mut(words).zip(block) {
                    // SAFETY: a row has 16 words from w on.
                    unsafe { _mm512_storeu_si512(row[w..w + STEP].as_mut_ptr().cast(), v) };
                }
            }
        }
    }

    /// A panel [words][32] of the lines from `line0` on.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn panel(&self, line0: usize, out: &mut [u32]) {
        let mut block = [_mm512_setzero_si512(); 16];
        for (w, sixteen) in out.chunks_exact_mut(STEP * BLOCK).enumerate() {
            for half in 0..2 {
                let line = line0 + 16 * half;
                if 2 * STEP * (w + 1) <= self.sum && self.line_stride == 1 && line + 16 <= self.lines {
                    for (p, row) in sixteen.chunks_exact_mut(BLOCK).enumerate() {
                        let at = |sum: usize| &self.data[sum * self.sum_stride + line..][..16];
                        let (even, odd) = (at(2 * (STEP * w + p)), at(2 * (STEP * w + p) + 1));
                        // SAFETY: sixteen values lie in each, and sixteen words in a half row.
                        unsafe {
                            let words = paired(_mm512_loadu_ps(even.as_ptr()), _mm512_loadu_ps(odd.as_ptr()));
                            _mm512_storeu_si512(row[16 * half..16 * half + 16].as_mut_ptr().cast(), words);
                        }
                    }
                    continue;
                }
                self.block(line, STEP * w, &mut block);
                transpose(&mut block);
                for (row, v) in sixteen.chunks_exact_mut(BLOCK).zip(block) {
                    // SAFETY: as above.
                    unsafe { _mm512_storeu_si512(row[16 * half..16 * half + 16].as_mut_ptr().cast(), v) };
                }
            }
        }
    }
}

/// 32 neighbours as words of two.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(lo: __m512, hi: __m512) -> __m512i {
    // SAFETY: only renames 512 bits.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(hi, lo)) }
}

/// Word l of value l of each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn paired(even: __m512, odd: __m512) -> __m512i {
    // both rounded, the odd ones' halves between the even ones'
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 16 {
            order[2 * i] = i as u16;
            order[2 * i + 1] = 16 + i as u16;
            i += 1;
        }
        order
    };
    // SAFETY: 32 indices lie there.
    let order = unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) };
    _mm512_permutexvar_epi16(order, rounded(even, odd))
}

/// Sixteen rows of sixteen words, turned round.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(r: &mut [__m512i; 16]) {
    let mut t = [_mm512_setzero_si512(); 16];
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for i in 0..4 {
        for j in 0..2 {
            let (a, b) = (t[4 * i + j], t[4 * i + 2 + j]);
            r[4 * i + 2 * j] = _mm512_unpacklo_epi64(a, b);
            r[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(a, b);
        }
    }
    for i in 0..4 {
        t[i] = _mm512_shuffle_i32x4::<0x88>(r[i], r[4 + i]);
        t[4 + i] = _mm512_shuffle_i32x4::<0xdd>(r[i], r[4 + i]);
        t[8 + i] = _mm512_shuffle_i32x4::<0x88>(r[8 + i], r[12 + i]);
        t[12 + i] = _mm512_shuffle_i32x4::<0xdd>(r[8 + i], r[12 + i]);
    }
    for i in 0..4 {
        r[i] = _mm512_shuffle_i32x4::<0x88>(t[i], t[8 + i]);
        r[4 + i] = _mm512_shuffle_i32x4::<0x88>(t[4 + i], t[12 + i]);
        r[8 + i] = _mm512_shuffle_i32x4::<0xdd>(t[i], t[8 + i]);
        r[12 + i] = _mm512_shuffle_i32x4::<0xdd>(t[4 + i], t[12 + i]);
    }
}

thread_local! {
    static ROWS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// c [m, n] = (or +=) a [m, k] b [k, n]. The caller has checked [`available`] and the lengths.
pub fn gemm_amx(m: usize, n: usize, k: usize, a: Matrix, b: Matrix, c: &mut [f32], add: bool) {
    let words = k.div_ceil(2 * STEP) * STEP;
    let panels = n.div_ceil(BLOCK);
    let left = Lines { data: a.data, line_stride: a.row_stride, sum_stride: a.col_stride, lines: m, sum: k };
    let right = Lines { data: b.data, line_stride: b.col_stride, sum_stride: b.row_stride, lines: n, sum: k };
    let mut packed = vec![0u32; panels * words * BLOCK];
    packed.par_chunks_mut(words * BLOCK).enumerate().for_each(|(j, out)| {
        // SAFETY: available() was true, so the instructions exist.
        unsafe { right.panel(j * BLOCK, out) };
    });
    let share = m.div_ceil(rayon::current_num_threads()).div_ceil(BLOCK);
    let block = ROW_BLOCKS.min(share) * BLOCK;
    c.par_chunks_mut(block * n).enumerate().for_each(|(i, c)| {
        let (row0, rows) = (i * block, c.len() / n);
        let tiles = Tiles::new();
        ROWS.with_borrow_mut(|buf| {
            buf.resize(block * WORDS, 0);
            for w0 in (0..words).step_by(WORDS) {
                let w = WORDS.min(words - w0);
                let add = add || w0 > 0;
                let buf = &mut buf[..rows.div_ceil(BLOCK) * BLOCK * w];
                // SAFETY: as above.
                unsafe { left.rows(row0, w0, w, buf) };
                for j in 0..panels {
                    let panel = &packed[(j * words + w0) * BLOCK..][..w * BLOCK];
                    let cols = BLOCK.min(n - j * BLOCK);
                    for r in (0..rows).step_by(BLOCK) {
                        let a = &buf[r * w..][..BLOCK * w];
                        let corner = &mut c[r * n + j * BLOCK..];
                        product(&tiles, a, panel, corner, n, (BLOCK.min(rows - r), cols), add);
                    }
                }
            }
        });
    });
}

/// A block of c, of which `shape` rows and columns exist: a (32 rows of words) times a panel (words of 32 columns).
fn product(tiles: &Tiles, a: &[u32], panel: &[u32], c: &mut [f32], ldc: usize, shape: (usize, usize), add: bool) {
    let w = a.len() / BLOCK;
    assert!(w > 0 && w.is_multiple_of(STEP) && panel.len() == w * BLOCK);
    let (lines, cols) = shape;
    if shape == (BLOCK, BLOCK) {
        assert!(c.len() >= (BLOCK - 1) * ldc + BLOCK);
        // SAFETY: the assertions bound rows, panel and corner.
        unsafe { tiles.multiply(w / STEP, a.as_ptr(), w, panel.as_ptr(), c.as_mut_ptr(), ldc, add) };
        return;
    }
    let mut edge = [0f32; BLOCK * BLOCK];
    // SAFETY: as above, and `edge` is a whole block.
    unsafe { tiles.multiply(w / STEP, a.as_ptr(), w, panel.as_ptr(), edge.as_mut_ptr(), BLOCK, false) };
    for l in 0..lines {
        for (d, e) in c[l * ldc..][..cols].iter_mut().zip(&edge[l * BLOCK..]) {
            *d = if add { *d + e } else { *e };
        }
    }
}
