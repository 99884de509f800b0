//! CLIP's vision tower in the published layout: the eyes of LLaVA-1.5.

use crate::config::plain_block;
use crate::embeddings::{PatchConfig, PatchEmbeddings};
use crate::image::Pixels;
use candle_core::Tensor;
use nn::block::{Block, BlockContext, CLIP_NAMES, MlpKind, Norm, NormKind};
use nn::ops::{Activation, Mask};
use nn::{Error, Params, Result};
use serde::{Deserialize, Serialize};

/// config.json of a `clip_vision_model`; what it leaves out has the value that transformers gives it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "published field names")]
pub struct ClipVisionConfig {
    pub model_type: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub projection_dim: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_channels: usize,
    pub image_size: usize,
    pub patch_size: usize,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
    pub attention_dropout: f32,
    pub dropout: f32,
    pub initializer_range: f32,
    /// Left over from the joint config; means nothing here.
    pub vocab_size: Option<usize>,
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        Self {
            model_type: "clip_vision_model".into(),
            hidden_size: 768,
            intermediate_size: 3072,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            attention_dropout: 0.0,
            dropout: 0.0,
            initializer_range: 0.02,
            vocab_size: None,
        }
    }
}

impl ClipVisionConfig {
    /// ViT-L/14 at 336 pixels, the tower of every LLaVA-1.5.
    pub fn large_336() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            projection_dim: 768,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            image_size: 336,
            patch_size: 14,
            ..Self::default()
        }
    }

    /// Patches a side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Whether the numbers fit together.
    pub fn check(&self) -> Result<()> {
        if self.patch_size == 0 || self.image_size == 0 || !self.image_size.is_multiple_of(self.patch_size) {
            return Err(Error::invalid("vision_config: image_size must be a positive multiple of patch_size"));
        }
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(Error::invalid(format!(
                "vision_config: hidden_size {} does not divide into {} heads",
                self.hidden_size, self.num_attention_heads
            )));
        }
        Ok(())
    }
}

/// The tower.
#[derive(Debug, Clone)]
pub struct ClipTower {
    embeddings: PatchEmbeddings,
    pre_norm: Norm,
    layers: Vec<Block>,
    post_norm: Norm,
}

/// What the tower computes.
pub struct ClipOutput {
    /// After the norm of the embeddings, then after every layer, [batch, 1 + patches, width] each.
    pub hidden: Vec<Tensor>,
    /// Post-norm of the class token [batch, width].
    pub pooled: Tensor,
}

impl ClipTower {
    /// Tensors below `vision_model`.
    pub fn new(p: &Params, c: &ClipVisionConfig) -> Result<Self> {
        c.check()?;
        let (d, std) = (c.hidden_size, c.initializer_range);
        let patches = PatchConfig {
            width: d,
            channels: c.num_channels,
            image_size: c.image_size,
            patch_size: c.patch_size,
            bias: false,
            class: true,
            init_std: std,
        };
        let block = plain_block(
            (d, c.intermediate_size, c.num_attention_heads, c.num_hidden_layers),
            c.layer_norm_eps,
            MlpKind::Plain(c.hidden_act),
            std,
        );
        let norm = |name: &str| Norm::new(&p.at(name), NormKind::Layer, d, c.layer_norm_eps);
        let layer = |i| Block::new(&p.at("encoder.layers").at(i), &block, &CLIP_NAMES);
        Ok(Self {
            embeddings: PatchEmbeddings::new(&p.at("embeddings"), &patches)?,
            // the published spelling
            pre_norm: norm("pre_layrnorm")?,
            layers: (0..c.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            post_norm: norm("post_layernorm")?,
        })
    }

    /// All hidden states of pixels [batch, 3, side, side].
    pub fn forward(&self, pixels: &Pixels) -> Result<ClipOutput> {
        let mut x = self.pre_norm.forward(&self.embeddings.forward(pixels)?)?;
        let mut hidden = vec![x.clone()];
        let ctx = BlockContext { rope: None, mask: &Mask::Full };
        for layer in &self.layers {
            x = layer.forward(&x, &ctx)?;
            hidden.push(x.clone());
        }
        let class = x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
        Ok(ClipOutput { hidden, pooled: self.post_norm.forward(&class)? })
    }
}
