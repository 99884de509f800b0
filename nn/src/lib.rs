//! Layers with gradients, kernels, optimisers and checkpoint files. Knows no model.
//!
//! Several fused layers of candle cut the gradient without an error (softmax, norms, rope, attention), so everything
//! a model here is built from lives in [`ops`], each with a forward and a backward that are tested together.

pub mod ahead;
pub mod block;
pub mod cache;
pub mod checkpoint;
pub mod dropout;
mod error;
pub mod exec;
pub mod gguf;
pub mod guard;
pub mod linear;
pub mod ops;
pub mod optim;
pub mod parallel;
pub mod params;
pub mod rng;
pub mod stored;
pub mod tensorboard;
mod torch;
pub mod train;
pub mod weight;

pub use error::{Error, Result};
pub use exec::Exec;
pub use ops::WeightType;
pub use params::{Init, Params};
pub use weight::{Packed, Weight};
