//! Measures models: metrics with named variants, the embedded scene benchmark, photographs.

pub mod bench;
pub mod frechet;
pub mod image;
pub mod metrics;
pub mod pictures;
pub mod probe;
pub mod visual;

pub use nn::{Error, Result};
