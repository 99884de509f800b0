//! LLaVA-1.5: understanding of pictures by a language model with CLIP's or QLIP's eyes.

mod chat;
mod config;
mod model;
mod names;

pub use chat::{LlavaChat, VICUNA_V1};
pub use config::{LlavaConfig, Select, VisionConfig, VisionFeature};
pub use model::Llava;
pub use names::published_name;
