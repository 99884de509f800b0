//! The QLIP visual tokenizer (arXiv 2502.05178): pixels to binary codes and back, aligned with text; and how that is
//! learned.
//!
//! Data flows one way: [`image::Image`] to [`image::Pixels`] to [`bsq::Latents`] to [`codes::Codes`] and back.

pub mod bsq;
pub mod clip;
pub mod codes;
pub mod config;
pub mod data;
pub mod decoder;
pub mod discriminator;
mod embeddings;
pub mod image;
pub mod loss;
pub mod model;
pub mod resample;
pub mod siglip;
pub mod text;
pub mod tokenizer;
pub mod train;
pub mod vision;
pub mod vq;

pub use codes::Codes;
pub use config::QlipConfig;
pub use image::{Image, Pixels, Preprocess};
pub use model::Qlip;
pub use nn::{Error, Result};
