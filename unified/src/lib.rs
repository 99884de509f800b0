//! The mixed-modality runner: one model that understands, draws and chats, and how it is trained.

pub mod corpus;
pub mod photos;
pub mod scenes;
pub mod train;

pub use nn::{Error, Result};
