//! The two stages of tokenizer training (QLIP section 4, table 8) and what the paper left out: what is trained, frozen and
//! dropped in each, the terms of the loss, and batches that are larger than memory.
//!
//! Stage 1 trains everything on alignment, pixels and the quantizer's terms. Stage 2 freezes the vision tower and the
//! way down to the bits, drops the text tower, and trains the way up and the decoder on pixels alone.

mod adversary;
mod balance;
mod in_parts;
mod judges;
mod loss_config;
mod more_bits;
mod objective;
mod pixel_loss;
mod probes;
mod steady;
mod teacher;
mod term;
mod vq;
mod warm;

pub use adversary::AdversaryConfig;
pub use balance::Balance;
pub use loss_config::{Alignment, LossConfig};
pub use more_bits::with_quantizer;
pub use objective::{Objective, PairBatch, Parts};
pub use teacher::Teacher;
pub use vq::{VqLossConfig, VqObjective};
pub use warm::{WarmStart, warm_tensors};

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use std::collections::BTreeMap;

/// Names that stage 2 leaves as they are.
pub const STAGE2_FROZEN: &[&str] = &[
    "vision_model.embeddings",
    "vision_model.encoder",
    "vision_model.post_layernorm",
    "vision_model.quant_embed.",
    "vision_model.quant_levels",
    "visual_projection",
    "text_projection",
    "text_model",
    "logit_scale",
];

/// Where training keeps tensors of its own, which are saved with its state and never exported.
pub const TRAINING_ONLY: &str = "training.";

/// The place of those tensors.
fn own(p: &nn::Params) -> nn::Params {
    p.at(TRAINING_ONLY.trim_end_matches('.'))
}

/// The weights that are exported: all but the training's own.
pub fn exported(weights: &BTreeMap<String, Tensor>) -> impl Iterator<Item = (String, Tensor)> {
    weights.iter().filter(|(name, _)| !name.starts_with(TRAINING_ONLY)).map(|(k, v)| (k.clone(), v.clone()))
}

/// A scalar for the log.
fn number(t: &Tensor) -> nn::Result<f64> {
    Ok(t.to_dtype(DType::F64)?.to_scalar::<f64>()?)
}

/// Mean squared error, and the mean over pictures of the PSNR in dB, of painted pixels in -1..1; painted values are cut to that range.
fn quality(painted: &Tensor, pixels: &Tensor) -> nn::Result<(f64, f64)> {
    let square = (painted.clamp(-1f32, 1f32)? - pixels)?.sqr()?.flatten_from(1)?.mean(1)?;
    let errors = square.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let n = errors.len().max(1) as f64;
    // a range of 2, whose square is 4
    let psnr = errors.iter().map(|e| 10.0 * (4.0 / e.max(1e-10)).log10()).sum::<f64>() / n;
    Ok((errors.iter().sum::<f64>() / n, psnr))
}

/// The gradient at a leaf of a loss; zero where the loss does not reach it.
fn slope_at(loss: &Tensor, leaf: &Var) -> nn::Result<Tensor> {
    slope_in(&loss.backward()?, leaf)
}

/// The same, of a backward pass that was made already.
fn slope_in(grads: &GradStore, leaf: &Var) -> nn::Result<Tensor> {
    Ok(match grads.get(leaf.as_tensor()) {
        Some(slope) => slope.detach(),
        None => leaf.zeros_like()?,
    })
}

/// A scalar of value 0 whose gradient at `t` is `slope`: how a gradient that is known goes on through a graph.
fn carried(t: &Tensor, slope: &Tensor) -> nn::Result<Tensor> {
    let value = (t * slope)?.sum_all()?;
    Ok((&value - value.detach())?)
}

/// Names whose gradients are clipped apart from the model's.
pub const CLIPPED_APART: &[&str] = &["training.discriminator."];
