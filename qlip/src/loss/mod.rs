//! Losses of tokenizer training, one a file.

mod contrastive;
mod lpips;

pub use contrastive::{accuracy, info_nce};
pub use lpips::{Lpips, LpipsConfig, Trunk, layer_distance};
