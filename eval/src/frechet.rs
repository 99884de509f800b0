//! Fréchet distance of two sets of feature vectors, each taken as a normal distribution. Which features they are names the
//! metric: with Inception's it would be FID, and with nothing else.

use crate::{Error, Result};
use nalgebra::{DMatrix, DVector, SymmetricEigen};

/// Mean and covariance (n - 1) of feature vectors, in float64.
pub struct Gaussian {
    mean: DVector<f64>,
    covariance: DMatrix<f64>,
    /// Vectors that it was made of; 0 where nobody said.
    pub n: usize,
}

impl Gaussian {
    /// Of two or more vectors of one width.
    pub fn of<T: Copy + Into<f64>>(vectors: &[Vec<T>]) -> Result<Self> {
        let (n, width) = (vectors.len(), vectors.first().map_or(0, Vec::len));
        if n < 2 || width == 0 || vectors.iter().any(|v| v.len() != width) {
            return Err(Error::invalid(format!("statistics of {n} feature vectors; needs two or more of one width")));
        }
        let values = vectors.iter().flatten().map(|v| (*v).into());
        // a column a vector
        let mut all = DMatrix::from_iterator(width, n, values);
        let mean = all.column_mean();
        all.column_iter_mut().for_each(|mut c| c -= &mean);
        let covariance = &all * all.transpose() / (n - 1) as f64;
        Ok(Self { mean, covariance, n })
    }

    /// Of a mean and a covariance that somebody computed.
    pub fn from_statistics(mean: &[f64], covariance: &[Vec<f64>]) -> Result<Self> {
        let width = mean.len();
        if width == 0 || covariance.len() != width || covariance.iter().any(|r| r.len() != width) {
            return Err(Error::invalid(format!(
                "a mean of width {width} and a covariance of {} rows",
                covariance.len()
            )));
        }
        let covariance = DMatrix::from_row_iterator(width, width, covariance.iter().flatten().copied());
        Ok(Self { mean: DVector::from_column_slice(mean), covariance, n: 0 })
    }

    /// Mean and covariance, row by row.
    pub fn statistics(&self) -> (Vec<f64>, Vec<f64>) {
        (self.mean.iter().copied().collect(), self.covariance.transpose().iter().copied().collect())
    }

    /// |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), the last trace by symmetric matrices alone: with R = S1^(1/2) it
    /// is the sum of the roots of the eigenvalues of R S2 R.
    pub fn distance(&self, other: &Self) -> Result<f64> {
        if self.mean.len() != other.mean.len() {
            let (a, b) = (self.mean.len(), other.mean.len());
            return Err(Error::invalid(format!("features of width {a} against width {b}")));
        }
        let eigen = SymmetricEigen::new(self.covariance.clone());
        let roots = eigen.eigenvalues.map(|v| v.max(0.0).sqrt());
        let root = &eigen.eigenvectors * DMatrix::from_diagonal(&roots) * eigen.eigenvectors.transpose();
        let inner = &root * &other.covariance * &root;
        let trace: f64 = inner.symmetric_eigenvalues().iter().map(|v| v.max(0.0).sqrt()).sum();
        let apart = (&self.mean - &other.mean).norm_squared();
        Ok(apart + self.covariance.trace() + other.covariance.trace() - 2.0 * trace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nn::rng;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-7 * b.abs().max(1e-12), "{a} against {b}");
    }

    fn vectors(n: usize, width: usize, key: u64) -> Vec<Vec<f32>> {
        let mut r = rng::keyed(5, &[key]);
        (0..n).map(|_| (0..width).map(|d| rng::normal(&mut r) * (1.0 + d as f32) + key as f32).collect()).collect()
    }

    #[test]
    fn diagonal_covariances_have_a_closed_form() {
        let gaussian = |mean: &[f64], variance: &[f64]| Gaussian {
            mean: DVector::from_column_slice(mean),
            covariance: DMatrix::from_diagonal(&DVector::from_column_slice(variance)),
            n: 9,
        };
        let (m1, v1, m2, v2) = ([0.0f64, 1.0, -2.0], [1.0, 4.0, 0.25], [1.0, 1.5, 2.0], [9.0, 0.0, 0.3]);
        let want: f64 = (0..3).map(|i| (m1[i] - m2[i]).powi(2) + (f64::sqrt(v1[i]) - f64::sqrt(v2[i])).powi(2)).sum();
        close(gaussian(&m1, &v1).distance(&gaussian(&m2, &v2)).unwrap(), want);
    }

    /// The trace is the sum of the singular values of A^T B for centred vectors A, B: another way to the same number.
    #[test]
    fn fewer_vectors_than_dimensions() {
        let (a, b) = (vectors(5, 12, 1), vectors(7, 12, 2));
        let (p, q) = (Gaussian::of(&a).unwrap(), Gaussian::of(&b).unwrap());
        let centred = |v: &[Vec<f32>], g: &Gaussian| {
            let mut m = DMatrix::from_iterator(12, v.len(), v.iter().flatten().map(|x| f64::from(*x)));
            m.column_iter_mut().for_each(|mut c| c -= &g.mean);
            m / ((v.len() - 1) as f64).sqrt()
        };
        let trace: f64 = (centred(&a, &p).transpose() * centred(&b, &q)).singular_values().sum();
        let want = (&p.mean - &q.mean).norm_squared() + p.covariance.trace() + q.covariance.trace() - 2.0 * trace;
        close(p.distance(&q).unwrap(), want);
        assert!(p.distance(&p).unwrap().abs() < 1e-7 * p.covariance.trace());
    }

    #[test]
    fn what_has_no_covariance_is_refused() {
        assert!(Gaussian::of(&vectors(1, 3, 0)).is_err());
        assert!(Gaussian::of(&[vec![1.0], vec![1.0, 2.0]]).is_err());
        let (a, b) = (Gaussian::of(&vectors(3, 3, 0)).unwrap(), Gaussian::of(&vectors(3, 4, 0)).unwrap());
        assert!(a.distance(&b).is_err());
    }
}
