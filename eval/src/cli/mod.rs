//! Commands of the program: parse, measure, print. One file a command.

pub mod nano;
pub mod pictures;
pub mod qlip;
pub mod text;
