//! Chameleon and Anole (Chameleon Team 2024; Chern et al. 2024): one decoder over one vocabulary in which an image tokenizer's codes
//! are entries like words.

mod chat;
mod config;
mod model;
pub mod preprocess;

pub use chat::{ChameleonChat, SCALES};
pub use config::ChameleonConfig;
pub use model::{Chameleon, ours};
