//! The blocks of a decoder with their norm and rotary table: embeddings in, hidden states out. Llama and LlamaGen are a trunk
//! with tables of their own.

use candle_core::Tensor;
use nn::block::{Block, BlockContext, Norm};
use nn::cache::{CacheShape, Slot, StepCache};
use nn::ops::{Mask, Positions, Rope};
use nn::{Error, Params, Result};
use std::sync::Arc;

/// Blocks, last norm, rotary table.
#[derive(Debug, Clone)]
pub struct Trunk {
    pub(crate) layers: Vec<Block>,
    pub(crate) norm: Norm,
    pub(crate) rope: Rope,
    shape: Arc<CacheShape>,
    width: usize,
}

impl Trunk {
    /// From its parts; `kv` are the heads of keys and their width.
    pub(crate) fn new(
        p: &Params,
        layers: Vec<Block>,
        norm: Norm,
        rope: Rope,
        kv: (usize, usize),
        width: usize,
    ) -> Self {
        let shape = CacheShape {
            layers: layers.len(),
            kv_heads: kv.0,
            head_dim: kv.1,
            device: p.device().clone(),
            dtype: p.dtype(),
        };
        Self { layers, norm, rope, shape: Arc::new(shape), width }
    }

    /// Width of embeddings and hidden states.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Positions that it can be given.
    pub fn max_positions(&self) -> usize {
        self.rope.rows()
    }

    /// What its caches hold.
    pub fn cache_shape(&self) -> &CacheShape {
        &self.shape
    }

    /// An empty cache.
    pub fn slot(&self) -> Slot {
        Slot::new(&self.shape)
    }

    /// Embeddings [batch, tokens, width] to final hidden states of the same shape, without a cache.
    pub fn hidden(&self, x: &Tensor, positions: &Positions, mask: &Mask) -> Result<Tensor> {
        let ctx = BlockContext { rope: Some((&self.rope, positions)), mask };
        let mut x = x.clone();
        for layer in &self.layers {
            x = layer.forward(&x, &ctx)?;
        }
        self.norm.forward(&x)
    }

    /// The next tokens of several sequences: embeddings [tokens, width] with a position each, whose sequences are given in
    /// order with how many of the tokens are theirs. Returns hidden states [tokens, width].
    pub fn step(&self, x: &Tensor, positions: Vec<u32>, parts: Vec<(&mut Slot, usize)>) -> Result<Tensor> {
        let tokens: usize = parts.iter().map(|p| p.1).sum();
        if x.dims() != [tokens, self.width] || positions.len() != tokens {
            let (found, n) = (x.dims(), positions.len());
            return Err(Error::invalid(format!("a step of {tokens} tokens given embeddings {found:?}, {n} positions")));
        }
        let positions = Positions::Each(positions.into());
        let mut cache = StepCache::new(parts)?;
        let mut x = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.step(&x, Some((&self.rope, &positions)), &mut cache, i)?;
        }
        self.norm.forward(&x)
    }
}
