//! Convolution on the CPU's bfloat16 instructions, without columns in memory ("implicit GEMM"). A picture is rounded once into
//! planes with their padding; a tap of the kernel and a cell of the output are two offsets whose sum is the value's place, so that
//! panels for [`super::gemm_bf16`]'s tiles are packed from the planes themselves. Small convolutions (the three channels of
//! pixels) go this way too: columns in float32 cost more. docs/performance.md has the ratios.
#![allow(unsafe_code)]

use super::conv::Sizes;
use super::gemm_bf16::bf16_available;
use super::gemm_bf16::x86::{MR, NR, PAIRS, Rows, round, tile_at};
use super::linear::Matrix;
use super::vector;
use rayon::prelude::*;

/// Where the values of a product lie in a picture's planes: tap k and cell c at `taps[k] + cells[c]`.
struct Places {
    taps: Vec<usize>,
    cells: Vec<usize>,
    /// Cells that follow each other without a gap, from every multiple of their number on: 32, 16, 8 or 1.
    run: usize,
}

impl Places {
    fn new(taps: Vec<usize>, cells: Vec<usize>) -> Self {
        let follows = |run: usize| cells.chunks(run).all(|c| c.iter().enumerate().all(|(i, &at)| at == c[0] + i));
        let run = [NR, 16, 8].into_iter().find(|&r| follows(r)).unwrap_or(1);
        Self { taps, cells, run }
    }

    fn pairs_of_taps(&self) -> usize {
        self.taps.len().div_ceil(2)
    }

    /// Pairs `p0..p1` of taps for up to 32 cells from `first` on, as [pair][cell]. Beyond an odd end the left matrix is zero.
    #[inline(always)]
    fn pack_cells(&self, planes: &[u16], first: usize, p0: usize, p1: usize, out: &mut [u32]) {
        let cells = &self.cells[first..self.cells.len().min(first + NR)];
        if cells.len() < NR {
            out.fill(0);
        }
        for (p, out) in (p0..p1).zip(out.chunks_exact_mut(NR)) {
            let lo = self.taps[2 * p];
            let hi = self.taps.get(2 * p + 1).copied().unwrap_or(lo);
            match (self.run, cells.len()) {
                (32, NR) => join_runs::<32>(planes, lo, hi, cells, out),
                (16, NR) => join_runs::<16>(planes, lo, hi, cells, out),
                (8, NR) => join_runs::<8>(planes, lo, hi, cells, out),
                _ => {
                    for (o, &c) in out.iter_mut().zip(cells) {
                        *o = join(planes[lo + c], planes[hi + c]);
                    }
                }
            }
        }
    }

    /// Pairs `p0..p1` of cells for up to 32 taps from `first` on, as [pair][tap].
    #[inline(always)]
    fn pack_taps(&self, planes: &[u16], first: usize, p0: usize, p1: usize, out: &mut [u32]) {
        let taps = &self.taps[first..self.taps.len().min(first + NR)];
        if taps.len() < NR {
            out.fill(0);
        }
        for (p, out) in (p0..p1).zip(out.chunks_exact_mut(NR)) {
            let lo = self.cells[2 * p];
            let hi = self.cells.get(2 * p + 1).copied().unwrap_or(lo);
            if hi == lo + 1 {
                for (o, &t) in out.iter_mut().zip(taps) {
                    // one load of two neighbours
                    let two = &planes[t + lo..][..2];
                    *o = join(two[0], two[1]);
                }
            } else {
                for (o, &t) in out.iter_mut().zip(taps) {
                    *o = join(planes[t + lo], planes[t + hi]);
                }
            }
        }
    }
}

#[inline(always)]
fn join(lo: u16, hi: u16) -> u32 {
    u32::from(lo) | u32::from(hi) << 16
}

/// Pairs of two taps for 32 cells that come in runs of R neighbours.
#[inline(always)]
fn join_runs<const R: usize>(planes: &[u16], lo: usize, hi: usize, cells: &[usize], out: &mut [u32]) {
    for (out, cells) in out.chunks_exact_mut(R).zip(cells.chunks_exact(R)) {
        let (a, b) = (&planes[lo + cells[0]..][..R], &planes[hi + cells[0]..][..R]);
        for i in 0..R {
            out[i] = join(a[i], b[i]);
        }
    }
}

/// Planes [channels, height + 2 around, width + 2 around] with zeros around.
#[derive(Clone, Copy)]
struct Frame {
    h: usize,
    w: usize,
    around: usize,
}

impl Frame {
    fn row(&self) -> usize {
        self.w + 2 * self.around
    }
    fn plane(&self) -> usize {
        (self.h + 2 * self.around) * self.row()
    }

    /// Rounds a picture into planes whose zeros are there already.
    #[inline(always)]
    fn fill(&self, picture: &[f32], planes: &mut [u16]) {
        for (x, plane) in picture.chunks_exact(self.h * self.w).zip(planes.chunks_exact_mut(self.plane())) {
            let inner = &mut plane[self.around * self.row()..];
            for (x, row) in x.chunks_exact(self.w).zip(inner.chunks_mut(self.row())) {
                for (o, v) in row[self.around..].iter_mut().zip(x) {
                    *o = round(*v) as u16;
                }
            }
        }
    }
}

/// out [rows, cells] = left [rows, taps] times the values at places [taps, cells].
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
fn multiply(left: &Rows, planes: &[u16], at: &Places, panel: &mut Vec<u32>, out: &mut [f32]) {
    let (n, pairs) = (at.cells.len(), at.pairs_of_taps());
    panel.resize(PAIRS * NR, 0);
    for first in (0..n).step_by(NR) {
        for p0 in (0..pairs).step_by(PAIRS) {
            let p1 = pairs.min(p0 + PAIRS);
            let panel = &mut panel[..(p1 - p0) * NR];
            at.pack_cells(planes, first, p0, p1, panel);
            for r in 0..left.panels() {
                let corner = &mut out[r * MR * n + first..];
                tile_at(left.words(r, p0, p1), panel, corner, n, left.lines(r), NR.min(n - first), p0 > 0);
            }
        }
    }
}

/// out [rows, taps] += left [rows, cells] times the values at places [taps, cells], transposed.
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
fn accumulate(left: &Rows, planes: &[u16], at: &Places, panel: &mut Vec<u32>, out: &mut [f32]) {
    let (n, pairs) = (at.taps.len(), at.cells.len().div_ceil(2));
    panel.resize(PAIRS * NR, 0);
    for p0 in (0..pairs).step_by(PAIRS) {
        let p1 = pairs.min(p0 + PAIRS);
        let panel = &mut panel[..(p1 - p0) * NR];
        for first in (0..n).step_by(NR) {
            at.pack_taps(planes, first, p0, p1, panel);
            for r in 0..left.panels() {
                let corner = &mut out[r * MR * n + first..];
                tile_at(left.words(r, p0, p1), panel, corner, n, left.lines(r), NR.min(n - first), true);
            }
        }
    }
}

/// The input's planes, and where a kernel's taps and the output's cells lie in them.
fn of_input(s: &Sizes) -> (Frame, Places) {
    let frame = Frame { h: s.h, w: s.w, around: s.padding };
    let taps = (0..s.patch()).map(|k| {
        let (channel, dy, dx) = (k / (s.kh * s.kw), k / s.kw % s.kh, k % s.kw);
        channel * frame.plane() + dy * frame.row() + dx
    });
    let cells = (0..s.cells()).map(|c| s.stride * (c / s.ow * frame.row() + c % s.ow));
    (frame, Places::new(taps.collect(), cells.collect()))
}

/// [batch, out, cells]; see [`super::conv2d`].
pub(super) fn forward(s: &Sizes, x: &[f32], weight: &[f32]) -> Vec<f32> {
    assert!(bf16_available());
    let (frame, places) = of_input(s);
    // SAFETY: as just asserted.
    let kernels = unsafe { Rows::pack(Matrix::rows(weight, s.patch()), s.output, s.patch()) };
    let mut y = vector::zeros(s.batch * s.output * s.cells());
    let task = y.par_chunks_mut(s.output * s.cells()).zip(x.par_chunks(s.image()));
    task.for_each_init(
        || (vec![0u16; s.input * frame.plane()], Vec::new()),
        |(planes, panel), (y, x)| {
            frame.fill(x, planes);
            // SAFETY: bf16_available(), as asserted above.
            unsafe { multiply(&kernels, planes, &places, panel, y) };
        },
    );
    y
}

/// [out, in, kh, kw] from the gradient g [batch, out, cells].
pub(super) fn weight_gradient(s: &Sizes, x: &[f32], g: &[f32]) -> Vec<f32> {
    assert!(bf16_available());
    let (frame, places) = of_input(s);
    let (image, grid) = (s.image(), s.output * s.cells());
    let each = s.batch.div_ceil(rayon::current_num_threads()).max(1);
    let sums: Vec<Vec<f32>> = (x.par_chunks(each * image).zip(g.par_chunks(each * grid)))
        .map(|(x, g)| {
            let mut sum = vec![0f32; s.output * s.patch()];
            let (mut planes, mut panel) = (vec![0u16; s.input * frame.plane()], Vec::new());
            for (x, g) in x.chunks_exact(image).zip(g.chunks_exact(grid)) {
                frame.fill(x, &mut planes);
                // SAFETY: bf16_available(), as asserted above.
                unsafe {
                    let rows = Rows::pack(Matrix::rows(g, s.cells()), s.output, s.cells());
                    accumulate(&rows, &planes, &places, &mut panel, &mut sum);
                }
            }
            sum
        })
        .collect();
    let mut sums = sums.into_iter();
    let mut all = sums.next().unwrap_or_else(|| vec![0f32; s.output * s.patch()]);
    for sum in sums {
        all.iter_mut().zip(sum).for_each(|(a, b)| *a += b);
    }
    all
}

/// Input pixels that meet the same taps of the kernel: those whose row and column, padding counted, leave the same remainders
/// by the stride. For them the gradient is a convolution of stride 1 over g.
struct Phase {
    /// First row and column of theirs, and how many.
    at: (usize, usize),
    rows: usize,
    columns: usize,
    /// [in, out * taps]
    kernels: Rows,
    places: Places,
}

impl Phase {
    /// None where no pixel, or no tap that meets one.
    fn new(s: &Sizes, weight: &[f32], frame: Frame, at: (usize, usize)) -> Option<Self> {
        let of = |at: usize, size: usize, kernel: usize| -> Option<(usize, usize, Vec<usize>)> {
            let count = size.checked_sub(at).filter(|&n| n > 0)?.div_ceil(s.stride);
            let (first, rest) = ((at + s.padding) / s.stride, (at + s.padding) % s.stride);
            let taps: Vec<usize> = (rest..kernel).step_by(s.stride).collect();
            if taps.is_empty() { None } else { Some((count, first, taps)) }
        };
        let (rows, top, dys) = of(at.0, s.h, s.kh)?;
        let (columns, left, dxs) = of(at.1, s.w, s.kw)?;
        // output row of pixel row q and the n-th tap: q + top - n, in planes with `around` rows before the first
        let mut taps = Vec::with_capacity(s.output * dys.len() * dxs.len());
        for channel in 0..s.output {
            for y in 0..dys.len() {
                for x in 0..dxs.len() {
                    let (y, x) = (top + frame.around - y, left + frame.around - x);
                    taps.push(channel * frame.plane() + y * frame.row() + x);
                }
            }
        }
        let mut kernels = Vec::with_capacity(s.input * taps.len());
        for i in 0..s.input {
            for o in 0..s.output {
                let kernel = &weight[(o * s.input + i) * s.kh * s.kw..];
                kernels.extend(dys.iter().flat_map(|dy| dxs.iter().map(move |dx| kernel[dy * s.kw + dx])));
            }
        }
        let cells = (0..rows * columns).map(|c| c / columns * frame.row() + c % columns).collect();
        // SAFETY: bf16_available(), as input_gradient asserts.
        let kernels = unsafe { Rows::pack(Matrix::rows(&kernels, taps.len()), s.input, taps.len()) };
        Some(Self { at, rows, columns, kernels, places: Places::new(taps, cells) })
    }
}

/// [batch, in, h, w] from the gradient g [batch, out, cells].
pub(super) fn input_gradient(s: &Sizes, weight: &[f32], g: &[f32]) -> Vec<f32> {
    assert!(bf16_available());
    // as far as a tap reaches beyond the output for a pixel at the edge, or for one that the stride leaves over
    let frame = Frame { h: s.oh, w: s.ow, around: (s.kh.max(s.kw) - 1).div_ceil(s.stride) };
    let starts = (0..s.stride).flat_map(|y| (0..s.stride).map(move |x| (y, x)));
    let phases: Vec<Phase> = starts.filter_map(|at| Phase::new(s, weight, frame, at)).collect();
    let mut dx = vector::zeros(s.batch * s.image());
    dx.par_chunks_mut(s.image()).zip(g.par_chunks(s.output * s.cells())).for_each_init(
        || (vec![0u16; s.output * frame.plane()], Vec::new(), Vec::new()),
        |(planes, panel, part), (dx, g)| {
            frame.fill(g, planes);
            for phase in &phases {
                if s.stride == 1 {
                    // SAFETY: bf16_available(), as asserted above.
                    unsafe { multiply(&phase.kernels, planes, &phase.places, panel, dx) };
                    continue;
                }
                part.resize(s.input * phase.rows * phase.columns, 0f32);
                // SAFETY: as above.
                unsafe { multiply(&phase.kernels, planes, &phase.places, panel, part) };
                for (dx, part) in dx.chunks_exact_mut(s.h * s.w).zip(part.chunks_exact(phase.rows * phase.columns)) {
                    for (n, row) in part.chunks_exact(phase.columns).enumerate() {
                        let to = &mut dx[(phase.at.0 + n * s.stride) * s.w + phase.at.1..];
                        to.iter_mut().step_by(s.stride).zip(row).for_each(|(d, v)| *d = *v);
                    }
                }
            }
        },
    );
    dx
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, key: u64) -> Vec<f32> {
        let mut r = crate::rng::keyed(key, &[]);
        // rounded already, so that plain loops in float64 have the same factors
        (0..n).map(|_| f32::from_bits(round(crate::rng::normal(&mut r)) << 16)).collect()
    }

    fn near(name: &str, got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(*g) - w).abs() < 1e-4 * (1.0 + w.abs()), "{name}, value {i}: {g} for {w}");
        }
    }

    #[test]
    fn equals_plain_loops() {
        if !bf16_available() {
            return;
        }
        // batch, in, height, width, out, kernel rows and columns, padding, stride
        let cases = [
            [2, 3, 8, 8, 16, 3, 3, 1, 1],
            [3, 20, 32, 32, 13, 3, 3, 1, 1],
            [1, 4, 5, 70, 3, 3, 3, 1, 1],
            [2, 16, 16, 16, 30, 1, 1, 0, 1],
            [2, 5, 9, 7, 12, 4, 4, 1, 2],
            [2, 3, 10, 11, 4, 3, 3, 0, 2],
            [1, 2, 23, 27, 3, 11, 11, 2, 4],
            [1, 1, 3, 3, 1, 5, 5, 4, 3],
            [1, 2, 6, 6, 2, 1, 3, 1, 2],
            // more taps than one pass holds, both ways
            [1, 48, 8, 8, 48, 3, 3, 1, 1],
        ];
        for [batch, input, h, w, output, kh, kw, padding, stride] in cases {
            let (oh, ow) = ((h + 2 * padding - kh) / stride + 1, (w + 2 * padding - kw) / stride + 1);
            let s = Sizes { batch, input, h, w, output, kh, kw, oh, ow, padding, stride };
            let x = noise(batch * s.image(), 1);
            let kernels = noise(output * s.patch(), 2);
            let g = noise(batch * output * s.cells(), 3);
            let mut y = vec![0f64; g.len()];
            let mut dw = vec![0f64; kernels.len()];
            let mut dx = vec![0f64; x.len()];
            for b in 0..batch {
                for o in 0..output {
                    for cell in 0..s.cells() {
                        for k in 0..s.patch() {
                            let (i, ky, kx) = (k / (kh * kw), k / kw % kh, k % kw);
                            let (row, column) = (cell / ow * stride + ky, cell % ow * stride + kx);
                            let inside = |v: usize, n: usize| v >= padding && v < padding + n;
                            if !inside(row, h) || !inside(column, w) {
                                continue;
                            }
                            let at = ((b * input + i) * h + row - padding) * w + column - padding;
                            let (out, kernel) = ((b * output + o) * s.cells() + cell, o * s.patch() + k);
                            y[out] += f64::from(x[at]) * f64::from(kernels[kernel]);
                            dw[kernel] += f64::from(x[at]) * f64::from(g[out]);
                            dx[at] += f64::from(kernels[kernel]) * f64::from(g[out]);
                        }
                    }
                }
            }
            let name = |what: &str| format!("{what} of {x:?} with {k}x{kw}", x = (batch, input, h, w), k = kh);
            near(&name("output"), &forward(&s, &x, &kernels), &y);
            near(&name("kernels' gradient"), &weight_gradient(&s, &x, &g), &dw);
            near(&name("input's gradient"), &input_gradient(&s, &kernels, &g), &dx);
        }
    }
}
