//! The commands of `eval`.

pub mod compare;
mod drawings;
pub mod import;
pub mod run;
pub mod scenes;
pub mod score;
pub mod table;
pub mod tasks;
