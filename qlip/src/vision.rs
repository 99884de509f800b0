//! Vision tower: patches with a class token through pre-norm blocks; rope turns patches only; the class token's
//! post-norm is the image feature, and the bottleneck's down half gives the latents (QLIP section 3, figure 2).

use crate::bsq::{Bsq, Latents};
use crate::config::TowerConfig;
use crate::embeddings::{PatchConfig, PatchEmbeddings};
use crate::image::Pixels;
use candle_core::Tensor;
use nn::block::{Block, BlockContext, CLIP_NAMES, Linear, Norm, NormKind};
use nn::ops::{Activation, Mask, Positions, Rope, RopeStyle};
use nn::{Params, Result};

/// Two linear layers with GELU between.
#[derive(Debug, Clone)]
pub struct Bottleneck {
    c_fc: Linear,
    c_proj: Linear,
}

impl Bottleneck {
    pub(crate) fn new(p: &Params, input: usize, hidden: usize, output: usize, std: f32) -> Result<Self> {
        Ok(Self {
            c_fc: Linear::new(&p.at("c_fc"), input, hidden, true, std)?,
            c_proj: Linear::new(&p.at("c_proj"), hidden, output, true, std)?,
        })
    }
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.c_proj.forward(&Activation::Gelu.forward(&self.c_fc.forward(x)?)?)
    }
}

/// Rotary table of a grid whose positions are scaled to a 16-cell grid, after `skip` tokens that do not turn.
pub(crate) fn grid_rope(grid: usize, head_dim: usize, skip: usize) -> Rope {
    let half = head_dim / 2;
    let mut angles = vec![0f64; skip * half];
    for r in 0..grid {
        for c in 0..grid {
            for at in [r, c] {
                let position = at as f64 * 16.0 / grid as f64;
                // head_dim / 4 pairs an axis; 10000^(-2j / half)
                angles.extend((0..half / 2).map(|j| position * 10000f64.powf(-2.0 * j as f64 / half as f64)));
            }
        }
    }
    Rope::from_angles(&angles, head_dim, RopeStyle::Interleaved)
}

/// What the tower computes.
pub struct VisionOutput {
    /// Embeddings, then the output of every layer, [batch, 1 + patches, width] each.
    pub hidden: Vec<Tensor>,
    /// Post-norm of the class token [batch, width].
    pub pooled: Tensor,
    /// Unit latents of the patches.
    pub latents: Latents,
}

/// The tower.
#[derive(Debug, Clone)]
pub struct VisionTower {
    embeddings: PatchEmbeddings,
    layers: Vec<Block>,
    post_norm: Norm,
    quant_embed: Option<Bottleneck>,
    /// Earlier layers that the bottleneck reads too, each through a linear layer of its own.
    levels: Vec<(usize, Linear)>,
    bsq: Bsq,
    l2: bool,
    rope: Option<Rope>,
}

impl VisionTower {
    /// Tensors below `vision_model`.
    pub fn new(p: &Params, c: &TowerConfig) -> Result<Self> {
        let d = c.hidden_size;
        let std = c.initializer_range;
        let block = c.block();
        let layers = (0..c.num_hidden_layers)
            .map(|i| Block::new(&p.at("encoder.layers").at(i), &block, &CLIP_NAMES))
            .collect::<Result<_>>()?;
        let quant_embed = if c.quantizer_embed_type == "mlp" {
            Some(Bottleneck::new(&p.at("quant_embed"), d, d, c.quantizer_cfg.embed_dim, std)?)
        } else {
            None
        };
        let level = |&l: &usize| Ok((l, Linear::new(&p.at("quant_levels").at(l), d, d, false, std)?));
        let levels = c.quantizer_levels.iter().map(level).collect::<Result<_>>()?;
        let patches = PatchConfig {
            width: d,
            channels: c.num_channels,
            image_size: c.image_size,
            patch_size: c.patch_size,
            bias: true,
            class: true,
            init_std: std,
        };
        Ok(Self {
            embeddings: PatchEmbeddings::new(&p.at("embeddings"), &patches)?,
            layers,
            post_norm: Norm::new(&p.at("post_layernorm"), NormKind::Layer, d, c.layer_norm_eps)?,
            quant_embed,
            levels,
            bsq: Bsq::new(&c.quantizer_cfg),
            l2: c.quantizer_l2_norm,
            rope: c.rope.then(|| grid_rope(c.grid(), d / c.num_attention_heads, 1)),
        })
    }

    /// Pixels to features and latents.
    pub fn forward(&self, pixels: &Pixels) -> Result<VisionOutput> {
        let mut x = self.embeddings.forward(pixels)?;
        let mut hidden = vec![x.clone()];
        let at = Positions::From(0);
        let ctx = BlockContext { rope: self.rope.as_ref().map(|r| (r, &at)), mask: &Mask::Full };
        for layer in &self.layers {
            x = layer.forward(&x, &ctx)?;
            hidden.push(x.clone());
        }
        let pooled = self.post_norm.forward(&x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?)?;
        let of_patches = |x: &Tensor| x.narrow(1, 1, x.dim(1)? - 1)?.contiguous();
        let mut patches = of_patches(&x)?;
        for (level, linear) in &self.levels {
            patches = (patches + linear.forward(&of_patches(&hidden[*level])?)?)?;
        }
        let z = match &self.quant_embed {
            Some(mlp) => mlp.forward(&patches)?,
            None => patches,
        };
        let latents = if self.l2 { self.bsq.normalise(&z)? } else { Latents(z) };
        Ok(VisionOutput { hidden, pooled, latents })
    }
}
