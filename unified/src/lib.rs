//! The mixed-modality runner: one model that understands, draws and chats, and how it is trained.

pub mod artifact;
mod assets;
pub mod captions;
pub mod chameleon;
pub mod chat;
pub mod classifier;
mod code_rows;
pub mod config;
pub mod conversation;
pub mod corpus;
pub mod documents;
mod draw;
pub mod emu3;
pub mod eyes;
pub mod generation;
pub mod grammar;
pub mod janus;
pub mod llama;
pub mod llamagen;
pub mod llava;
pub mod mixture;
pub mod photos;
pub mod process;
pub mod runner;
mod say;
pub mod scenes;
mod seen;
pub mod sequence;
pub mod template;
pub mod train;
pub mod visual;
pub mod words;

pub use nn::{Error, Result};
