//! A Llama-style decoder over merged text and visual vocabularies: tokens to logits to tokens.

pub mod draw;
pub mod engine;
pub mod generate;
pub mod grow;
pub mod head;
pub mod llama;
pub mod llamagen;
pub mod loss;
pub mod sample;
pub mod shared_bits;
pub mod trunk;
pub mod vocab;

pub use engine::{Context, Part, Request, Shared, Source};
pub use llama::{Llama, LlamaConfig};
pub use nn::{Error, Result};
pub use sample::{SampleSettings, Sampler};
pub use vocab::{MergedVocab, Partition, Token};
