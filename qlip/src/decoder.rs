//! Pixel decoder: latents with positions through blocks, then a two-layer head that paints each patch.

use crate::config::TowerConfig;
use crate::image::Pixels;
use crate::vision::grid_rope;
use candle_core::Tensor;
use nn::block::{Block, BlockContext, CLIP_NAMES, Linear, Norm, NormKind};
use nn::ops::{Activation, Mask, Positions, Rope};
use nn::{Init, Params, Result};

/// The decoder.
#[derive(Debug, Clone)]
pub struct PixelDecoder {
    grid: usize,
    patch: usize,
    channels: usize,
    positions: Tensor,
    layers: Vec<Block>,
    norm: Norm,
    ffn: Linear,
    conv_out: Linear,
    rope: Option<Rope>,
}

impl PixelDecoder {
    /// Tensors below `vision_decoder`.
    pub fn new(p: &Params, c: &TowerConfig) -> Result<Self> {
        let (d, n, std) = (c.hidden_size, c.grid() * c.grid(), c.initializer_range);
        let (block, paint) = (c.block(), c.num_channels * c.patch_size * c.patch_size);
        let layers = (0..c.num_hidden_layers)
            .map(|i| Block::new(&p.at("encoder.layers").at(i), &block, &CLIP_NAMES))
            .collect::<Result<_>>()?;
        Ok(Self {
            grid: c.grid(),
            patch: c.patch_size,
            channels: c.num_channels,
            positions: p.get((1, n, d), "position_embeddings", Init::Normal(std))?,
            layers,
            norm: Norm::new(&p.at("norm"), NormKind::Layer, d, c.layer_norm_eps)?,
            ffn: Linear::new(&p.at("ffn.0"), d, c.intermediate_size, true, std)?,
            conv_out: Linear::new(&p.at("conv_out"), c.intermediate_size, paint, true, std)?,
            rope: c.rope.then(|| grid_rope(c.grid(), d / c.num_attention_heads, 0)),
        })
    }

    /// Latents after the bottleneck [batch, patches, width] to pixels, and every layer's input and output.
    pub fn forward(&self, zhat: &Tensor) -> Result<(Pixels, Vec<Tensor>)> {
        let mut x = zhat.broadcast_add(&self.positions)?;
        let mut hidden = vec![x.clone()];
        let at = Positions::From(0);
        let ctx = BlockContext { rope: self.rope.as_ref().map(|r| (r, &at)), mask: &Mask::Full };
        for layer in &self.layers {
            x = layer.forward(&x, &ctx)?;
            hidden.push(x.clone());
        }
        let x = Activation::Tanh.forward(&self.ffn.forward(&self.norm.forward(&x)?)?)?;
        let x = self.conv_out.forward(&x)?;
        let (b, g, p, ch) = (x.dim(0)?, self.grid, self.patch, self.channels);
        let x = x.reshape((b, g, g, ch, p, p))?.permute((0, 3, 1, 4, 2, 5))?.contiguous()?;
        Ok((Pixels(x.reshape((b, ch, g * p, g * p))?), hidden))
    }
}
