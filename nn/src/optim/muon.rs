//! Orthogonalised momentum for weight matrices (Jordan et al. 2024, "Muon").
//!
//! Adam gives every entry of a matrix a step of the same length; Muon gives every singular direction one. Directions
//! with small gradients, such as the fine detail of a picture, are then learned as fast as the large ones.

use crate::ops::{Matrix, product};

/// Coefficients of the quintic iteration: steep at zero, so that five passes bring singular values from 0.01 up to 1.
const QUINTIC: (f32, f32, f32) = (3.4445, -4.7750, 2.0315);
const PASSES: usize = 5;
/// Root mean square of an update's entries, as Adam's is in practice, so that one learning rate serves both
/// (Liu et al. 2025, "Muon is scalable", equation 4).
const RMS: f32 = 0.2;

/// The nearest (semi-)orthogonal matrix to `m` [rows, cols], approximately: singular values end between 0.68 and 1.13.
/// Scaled so that its entries have a root mean square near [`RMS`].
pub(super) fn orthogonalise(m: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let norm = m.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let scale = (1.0 / (norm + 1e-7)) as f32;
    let mut x: Vec<f32> = m.iter().map(|v| v * scale).collect();
    // the small side's Gram matrix is the cheaper one; for tall matrices the same memory is read as its transpose
    let (short, long) = (rows.min(cols), rows.max(cols));
    let wide = rows <= cols;
    let (a, b, c) = QUINTIC;
    let (mut gram, mut poly) = (vec![0f32; short * short], vec![0f32; short * short]);
    let mut next = vec![0f32; x.len()];
    for _ in 0..PASSES {
        let view = Matrix::rows(&x, cols);
        let view = if wide { view } else { view.t() };
        product(short, short, long, view, view.t(), &mut gram, false);
        let g = Matrix::rows(&gram, short);
        product(short, short, short, g, g, &mut poly, false);
        for (p, g) in poly.iter_mut().zip(&gram) {
            *p = c * *p + b * g;
        }
        let p = Matrix::rows(&poly, short);
        if wide {
            product(rows, cols, short, p, Matrix::rows(&x, cols), &mut next, false);
        } else {
            product(rows, cols, short, Matrix::rows(&x, cols), p, &mut next, false);
        }
        for (x, n) in x.iter_mut().zip(&next) {
            *x = a * *x + n;
        }
    }
    let scale = RMS * (long as f32).sqrt();
    x.iter_mut().for_each(|v| *v *= scale);
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same iteration in float64, written as the paper writes it.
    fn reference(m: &[f32], rows: usize, cols: usize) -> Vec<f64> {
        let norm = m.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let mut x: Vec<f64> = m.iter().map(|v| f64::from(*v) / (norm + 1e-7)).collect();
        let (a, b, c) = (f64::from(QUINTIC.0), f64::from(QUINTIC.1), f64::from(QUINTIC.2));
        for _ in 0..PASSES {
            let gram: Vec<f64> = (0..rows * rows)
                .map(|i| (0..cols).map(|k| x[i / rows * cols + k] * x[i % rows * cols + k]).sum())
                .collect();
            let poly: Vec<f64> = (0..rows * rows)
                .map(|i| {
                    let square: f64 = (0..rows).map(|k| gram[i / rows * rows + k] * gram[k * rows + i % rows]).sum();
                    b * gram[i] + c * square
                })
                .collect();
            x = (0..rows * cols)
                .map(|i| {
                    let product: f64 = (0..rows).map(|k| poly[i / cols * rows + k] * x[k * cols + i % cols]).sum();
                    a * x[i] + product
                })
                .collect();
        }
        x.iter().map(|v| v * f64::from(RMS) * (rows.max(cols) as f64).sqrt()).collect()
    }

    fn random(n: usize) -> Vec<f32> {
        (0..n as u64).map(|i| (crate::rng::mix(i + 7) >> 40) as f32 / (1 << 24) as f32 - 0.5).collect()
    }

    #[test]
    fn follows_the_float64_iteration() {
        for (rows, cols) in [(8, 8), (8, 24), (24, 8), (20, 33)] {
            let m = random(rows * cols);
            let want = reference(&m, rows, cols);
            for (g, w) in orthogonalise(&m, rows, cols).iter().zip(want) {
                assert!((f64::from(*g) - w).abs() < 2e-5, "{rows}x{cols}: {g} against {w}");
            }
        }
    }

    #[test]
    fn rows_become_orthogonal() {
        let (rows, cols) = (6, 40);
        let o = orthogonalise(&random(rows * cols), rows, cols);
        let unit = RMS * (cols as f32).sqrt();
        for i in 0..rows {
            for j in 0..rows {
                let dot: f32 = (0..cols).map(|k| o[i * cols + k] * o[j * cols + k]).sum::<f32>() / (unit * unit);
                let (low, high) = if i == j { (0.4, 1.4) } else { (-0.4, 0.4) };
                assert!((low..high).contains(&dot), "rows {i}, {j}: {dot}");
            }
        }
    }
}
