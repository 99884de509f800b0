//! Janus and Janus-Pro (Wu et al. 2024; Chen et al. 2025): one language model that sees through SigLIP and draws LlamaGen's
//! codes through a table and a head of their own.

mod chat;
mod config;
mod model;
mod names;
mod preprocess;

pub use chat::{JanusChat, SYSTEM, prompt};
pub use config::JanusConfig;
pub use model::{CODES, Janus};
pub use names::published_name;
pub use preprocess::JanusPreprocess;
