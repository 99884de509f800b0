//! Losses of tokenizer training, one a file.

mod adversarial;
mod contrastive;
mod gram;
mod lpips;

pub use adversarial::{Game, r1};
pub use contrastive::{accuracy, info_nce, sigmoid};
pub use gram::gram;
pub use lpips::{Lpips, LpipsConfig, Trunk, layer_distance};
