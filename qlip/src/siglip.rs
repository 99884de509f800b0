//! SigLIP's vision tower as Janus uses it: patches without a class token, learned positions, the last norm over every token
//! (Zhai et al. 2023; Janus, section 3.1). Tensor names as transformers writes them.

use crate::config::plain_block;
use crate::embeddings::{PatchConfig, PatchEmbeddings};
use crate::image::Pixels;
use candle_core::Tensor;
use nn::block::{Block, BlockContext, CLIP_NAMES, MlpKind, Norm, NormKind};
use nn::ops::{Activation, Mask};
use nn::{Error, Params, Result};

/// Sizes of a tower; the published ones are SigLIP-L/16's at 384 pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct SiglipConfig {
    /// Width.
    pub hidden_size: usize,
    /// Width of the feed-forward networks.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Pixels along a picture's side.
    pub image_size: usize,
    /// Pixels along a patch's side.
    pub patch_size: usize,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
}

impl SiglipConfig {
    /// SigLIP-L/16 at 384 pixels.
    pub fn large_384() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            image_size: 384,
            patch_size: 16,
            layer_norm_eps: 1e-6,
        }
    }

    /// Tokens of a picture.
    pub fn tokens(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Whether the numbers fit together.
    pub fn check(&self) -> Result<()> {
        if self.patch_size == 0 || self.image_size == 0 || !self.image_size.is_multiple_of(self.patch_size) {
            return Err(Error::invalid("vision_config: image_size must be a positive multiple of patch_size"));
        }
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let (d, n) = (self.hidden_size, self.num_attention_heads);
            return Err(Error::invalid(format!("vision_config: hidden_size {d} does not divide into {n} heads")));
        }
        Ok(())
    }
}

/// The tower.
#[derive(Debug, Clone)]
pub struct SiglipTower {
    embeddings: PatchEmbeddings,
    layers: Vec<Block>,
    post_norm: Norm,
}

impl SiglipTower {
    /// Tensors below `vision_model`.
    pub fn new(p: &Params, c: &SiglipConfig) -> Result<Self> {
        c.check()?;
        let (d, std) = (c.hidden_size, 0.02);
        let patches = PatchConfig {
            width: d,
            channels: 3,
            image_size: c.image_size,
            patch_size: c.patch_size,
            bias: true,
            class: false,
            init_std: std,
        };
        let shape = (d, c.intermediate_size, c.num_attention_heads, c.num_hidden_layers);
        // the exact GELU; SigLIP's own is the tanh form
        let block = plain_block(shape, c.layer_norm_eps, MlpKind::Plain(Activation::Gelu), std);
        let layer = |i| Block::new(&p.at("encoder.layers").at(i), &block, &CLIP_NAMES);
        Ok(Self {
            embeddings: PatchEmbeddings::new(&p.at("embeddings"), &patches)?,
            layers: (0..c.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            post_norm: Norm::new(&p.at("post_layernorm"), NormKind::Layer, d, c.layer_norm_eps)?,
        })
    }

    /// Hidden states [pictures, tokens, width] of pixels [pictures, 3, side, side]: the embeddings, then after every layer;
    /// and the last one after the tower's norm.
    pub fn forward(&self, pixels: &Pixels) -> Result<(Vec<Tensor>, Tensor)> {
        let mut x = self.embeddings.forward(pixels)?;
        let mut hidden = vec![x.clone()];
        let ctx = BlockContext { rope: None, mask: &Mask::Full };
        for layer in &self.layers {
            x = layer.forward(&x, &ctx)?;
            hidden.push(x.clone());
        }
        Ok((hidden, self.post_norm.forward(&x)?))
    }
}
