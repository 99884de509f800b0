//! LlamaGen with the image tokenizer that it draws through.

use crate::artifact::{Architecture, Artifact, Placement};
use crate::visual::VisualTokenizer;
use crate::{Error, Result};
use lm::llamagen::{LlamaGen, LlamaGenConfig};
use std::sync::Arc;

/// The decoder of a LlamaGen.
pub fn decoder(artifact: &Artifact, at: &Placement) -> Result<Arc<LlamaGen>> {
    artifact.must("draw classes or captions", artifact.architecture == Architecture::LlamaGen)?;
    let config: LlamaGenConfig = artifact.config()?;
    Ok(Arc::new(LlamaGen::new(&artifact.params(at)?, &config)?))
}

/// An image tokenizer, as a model with this configuration reads it.
pub fn tokenizer_of(c: &LlamaGenConfig, tokenizer: &Artifact, at: &Placement) -> Result<VisualTokenizer> {
    let group_bits = match &c.bitwise {
        Some(b) => Some(b.bits),
        None => (c.sub_tokens > 1).then(|| c.vocab_size.max(1).ilog2() as usize),
    };
    let visual = VisualTokenizer::load(tokenizer, group_bits, Some(c.grid()), at)?;
    let codes = c.bitwise.map_or(c.vocab_size, |b| 1 << b.bits);
    if (visual.vocab(), visual.sub_tokens(), visual.grid()) != (codes, c.sub_tokens, c.grid()) {
        let (n, sub, grid) = (visual.vocab(), visual.sub_tokens(), visual.grid());
        let why = format!(
            "a codebook of {n}, {sub} tokens a cell, {grid} cells a side, for a model of {codes} codes, {}, {}; give its own tokenizer",
            c.sub_tokens,
            c.grid()
        );
        return Err(Error::bad_file(tokenizer.files.folder(), why));
    }
    Ok(visual)
}
