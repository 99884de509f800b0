//! Where pictures for training and measuring come from.

mod parquet;

pub use self::parquet::{LabelledImages, read_parquet};
