//! The commands of `eval`.

mod drawings;
pub mod import;
pub mod run;
pub mod score;
pub mod table;
