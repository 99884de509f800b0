//! Losses of tokenizer training. Perceptual and adversarial terms join here as files of their own.

mod contrastive;

pub use contrastive::{accuracy, info_nce};
