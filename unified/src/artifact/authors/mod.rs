//! Layouts in which authors published before transformers had the model, given the files that a folder of transformers would have.

mod chameleon;
mod emu3;
mod tiktoken;

use super::files::ModelFiles;
use crate::Result;
use nn::stored::Stored;
use std::path::{Path, PathBuf};

/// Where the tensors of such a layout are.
#[derive(Debug)]
pub enum Layout {
    /// Chameleon's: the decoder's file, the image tokenizer's, heads of queries and of keys.
    Chameleon {
        /// consolidated.pth.
        decoder: PathBuf,
        /// vqgan.ckpt.
        tokenizer: PathBuf,
        /// Of queries, of keys.
        heads: (usize, usize),
    },
    /// Emu3's: the decoder's folder, the image tokenizer's.
    Emu3 {
        /// Emu3-Chat, Emu3-Gen or Emu3-Stage1.
        decoder: PathBuf,
        /// Emu3-VisionTokenizer.
        tokenizer: PathBuf,
    },
}

impl Layout {
    /// The tensors under transformers' names.
    pub fn tensors(&self) -> Result<Stored> {
        match self {
            Self::Chameleon { decoder, tokenizer, heads } => chameleon::tensors(decoder, tokenizer, *heads),
            Self::Emu3 { decoder, tokenizer } => emu3::tensors(decoder, tokenizer),
        }
    }

    /// The files that hold them.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        match self {
            Self::Chameleon { decoder, tokenizer, .. } => Ok(vec![decoder.clone(), tokenizer.clone()]),
            Self::Emu3 { decoder, tokenizer } => {
                let mut all = nn::checkpoint::files_of(decoder)?;
                all.extend(nn::checkpoint::files_of(tokenizer)?);
                Ok(all)
            }
        }
    }
}

/// A folder in such a layout, as a folder of transformers would be; nothing where it is another.
pub fn files(dir: &Path) -> Result<Option<ModelFiles>> {
    match chameleon::files(dir)? {
        Some(made) => Ok(Some(made)),
        None => emu3::files(dir),
    }
}
