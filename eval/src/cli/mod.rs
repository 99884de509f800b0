//! The commands of `eval`.

pub mod import;
pub mod run;
pub mod score;
pub mod table;
