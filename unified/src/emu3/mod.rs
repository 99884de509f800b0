//! Emu3 (Wang et al. 2024): a Llama whose vocabulary holds the codes of an image tokenizer, drawn row by row with marks that the
//! place forces.

mod config;
mod model;

pub use config::Emu3Config;
pub use model::{Emu3, ours, resized};
