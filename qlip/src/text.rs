//! Text tower: CLIP's causal transformer, pooled at the end-of-text token.

use crate::config::TextConfig;
use candle_core::Tensor;
use nn::block::{Block, BlockContext, CLIP_NAMES, Norm, NormKind};
use nn::ops::Mask;
use nn::{Error, Init, Params, Result};

/// What the tower computes.
pub struct TextOutput {
    /// After the final norm, [batch, tokens, width].
    pub hidden: Tensor,
    /// At the end-of-text token, [batch, width].
    pub pooled: Tensor,
}

/// The tower.
#[derive(Debug, Clone)]
pub struct TextTower {
    tokens: Tensor,
    positions: Tensor,
    layers: Vec<Block>,
    final_norm: Norm,
    eos: u32,
}

impl TextTower {
    /// Tensors below `text_model`.
    pub fn new(p: &Params, c: &TextConfig) -> Result<Self> {
        let (d, e, block) = (c.hidden_size, p.at("embeddings"), c.block());
        let layers = (0..c.num_hidden_layers)
            .map(|i| Block::new(&p.at("encoder.layers").at(i), &block, &CLIP_NAMES))
            .collect::<Result<_>>()?;
        let init = Init::Normal(c.initializer_range);
        Ok(Self {
            tokens: e.at("token_embedding").get((c.vocab_size, d), "weight", init)?,
            positions: e.at("position_embedding").get((c.max_position_embeddings, d), "weight", init)?,
            layers,
            final_norm: Norm::new(&p.at("final_layer_norm"), NormKind::Layer, d, c.layer_norm_eps)?,
            eos: c.eos_token_id,
        })
    }

    /// Token ids, `tokens` a text (padding after the end token does not matter).
    pub fn forward(&self, ids: &[u32], tokens: usize) -> Result<TextOutput> {
        let b = ids.len() / tokens.max(1);
        let (vocab, d) = self.tokens.dims2()?;
        if let Some(bad) = ids.iter().find(|&&i| i as usize >= vocab) {
            return Err(Error::invalid(format!("text token {bad} is outside the vocabulary of {vocab}")));
        }
        if tokens > self.positions.dim(0)? {
            return Err(Error::invalid(format!(
                "a text of {tokens} tokens; the text tower takes {}",
                self.positions.dim(0)?
            )));
        }
        let index = Tensor::from_slice(ids, b * tokens, self.tokens.device())?;
        let x = self.tokens.index_select(&index, 0)?.reshape((b, tokens, d))?;
        let mut x = x.broadcast_add(&self.positions.narrow(0, 0, tokens)?)?;
        let ctx = BlockContext { rope: None, mask: &Mask::Causal };
        for layer in &self.layers {
            x = layer.forward(&x, &ctx)?;
        }
        let hidden = self.final_norm.forward(&x)?;
        let rows: Vec<u32> =
            ids.chunks_exact(tokens).enumerate().map(|(i, t)| (i * tokens + self.pool_at(t)) as u32).collect();
        let rows = Tensor::from_vec(rows, b, hidden.device())?;
        let pooled = hidden.reshape((b * tokens, d))?.index_select(&rows, 0)?;
        Ok(TextOutput { hidden, pooled })
    }

    /// The first end token; configs that say 2 come from before the id was right, and pool at the largest id.
    fn pool_at(&self, ids: &[u32]) -> usize {
        if self.eos == 2 {
            let largest = ids.iter().max();
            return ids.iter().position(|i| Some(i) == largest).unwrap_or(0);
        }
        ids.iter().position(|&i| i == self.eos).unwrap_or(0)
    }
}
