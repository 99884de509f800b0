//! Losses of tokenizer training, one a file.

mod adversarial;
mod contrastive;
mod gram;
mod lpips;

use candle_core::Tensor;
use nn::Result;

pub use adversarial::{Game, r1};
pub use contrastive::{accuracy, info_nce, sigmoid};
pub use gram::gram;
pub use lpips::{Lpips, LpipsConfig, Trunk, layer_distance};

/// Zero where negative; the slope at zero is zero, which candle's is not.
fn relu(x: &Tensor) -> Result<Tensor> {
    Ok((x * x.gt(0f64)?.to_dtype(x.dtype())?)?)
}

/// log(1 + exp x), without overflow.
fn softplus(x: &Tensor) -> Result<Tensor> {
    let rest = (x.abs()?.neg()?.exp()? + 1.0)?.log()?;
    Ok((relu(x)? + rest)?)
}
