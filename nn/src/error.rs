//! What can go wrong in this crate, each with the file or tensor it went wrong in.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error that names its file or tensor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{}: {reason}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint lacks a tensor.
    #[error("{origin}: tensor `{name}` is missing (expected shape {shape:?})")]
    MissingTensor {
        /// Where the checkpoint came from.
        origin: String,
        /// Published tensor name.
        name: String,
        /// Shape that the configuration asks for.
        shape: Vec<usize>,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error("{origin}: tensor `{name}` has shape {found:?}, the configuration asks for {expected:?}")]
    WrongShape {
        /// Where the checkpoint came from.
        origin: String,
        /// Published tensor name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that the configuration asks for.
        expected: Vec<usize>,
    },
    /// A request is longer than the model's window.
    #[error("{0}")]
    TooLong(String),
    /// This model, device or build does not do what is asked.
    #[error("{0}")]
    Unsupported(String),
    /// Whoever asked wants no more.
    #[error("cancelled")]
    Cancelled,
    /// A configuration or an argument makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// An error about a file's content.
    pub fn bad_file(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::BadFile { path: path.into(), reason: reason.into() }
    }
    /// An input or output error with its path.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
    /// An error about an argument or a configuration value.
    pub fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid(reason.into())
    }
}
