//! Emu3 (Wang et al. 2024): a Llama whose vocabulary holds the codes of an image tokenizer, drawn row by row with marks that the
//! place forces.

mod chat;
mod config;
mod model;

pub use chat::Emu3Chat;
pub use config::Emu3Config;
pub use model::{Emu3, fitted, ours, resized};
