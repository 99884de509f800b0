//! Helpers of the cross-crate tests: golden files and comparisons at the tolerances of fixtures/README.md.

use candle_core::{DType, Tensor};
use std::collections::HashMap;
use std::path::PathBuf;

/// A file or folder under tests/fixtures.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// All tensors of a golden file.
pub fn golden(name: &str) -> HashMap<String, Tensor> {
    nn::checkpoint::load(&fixture(name)).expect("a golden file")
}

/// Values in float64.
pub fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().and_then(|t| t.to_dtype(DType::F64)).and_then(|t| t.to_vec1()).expect("values")
}

/// Values as integers.
pub fn integers(t: &Tensor) -> Vec<i64> {
    t.flatten_all().and_then(|t| t.to_dtype(DType::I64)).and_then(|t| t.to_vec1()).expect("integers")
}

/// Asserts |got - want| <= tolerance * max(1, largest |want|) everywhere.
pub fn close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "{what}: shape");
    close_values(what, &values(got), &values(want), tolerance, 1.0);
}

/// Asserts |got - want| <= tolerance * largest |want| (at least `floor`).
pub fn close_values(what: &str, got: &[f64], want: &[f64], tolerance: f64, floor: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let scale = want.iter().fold(floor, |m, v| m.max(v.abs()));
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst <= tolerance * scale && worst.is_finite(), "{what}: off by {worst:e}, largest value {scale}");
}
