//! LlamaGen's published model arguments and sizes, and the rotary table that they give.

use crate::head::BitwiseConfig;
use nn::block::{BlockConfig, MlpKind, NormKind};
use nn::ops::{Rope, RopeStyle};
use nn::{Error, Result};
use serde::{Deserialize, Serialize};

/// What a picture is drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ModelType {
    /// A class.
    C2i,
    /// Features of a caption.
    T2i,
}

/// The published model arguments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "published field names")]
pub struct LlamaGenConfig {
    pub model_type: ModelType,
    pub dim: usize,
    pub n_layer: usize,
    pub n_head: usize,
    pub n_kv_head: Option<usize>,
    pub multiple_of: usize,
    pub ffn_dim_multiplier: Option<f64>,
    pub rope_base: f64,
    pub norm_eps: f64,
    pub initializer_range: f32,
    pub vocab_size: usize,
    /// Tokens of a picture: `sub_tokens` for each cell of a square grid.
    pub block_size: usize,
    /// Tokens that share a cell and its position, each with a table of `vocab_size` rows of its own; 1 as published.
    #[serde(skip_serializing_if = "is_one")]
    pub sub_tokens: usize,
    /// Whether the tokens of a cell share one table of `vocab_size` rows instead.
    #[serde(skip_serializing_if = "is_false")]
    pub shared_table: bool,
    /// Tokens as bits, one a cell, instead of rows of a table; `vocab_size` is not read then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitwise: Option<BitwiseConfig>,
    /// Positions that the condition takes: 1 for a class, 120 for a caption.
    pub cls_token_num: usize,
    pub num_classes: usize,
    pub caption_dim: usize,
    pub class_dropout_prob: f64,
}

impl Default for LlamaGenConfig {
    fn default() -> Self {
        Self {
            model_type: ModelType::C2i,
            dim: 4096,
            n_layer: 32,
            n_head: 32,
            n_kv_head: None,
            multiple_of: 256,
            ffn_dim_multiplier: None,
            rope_base: 10000.0,
            norm_eps: 1e-5,
            initializer_range: 0.02,
            vocab_size: 16384,
            block_size: 256,
            sub_tokens: 1,
            shared_table: false,
            bitwise: None,
            cls_token_num: 1,
            num_classes: 1000,
            caption_dim: 2048,
            class_dropout_prob: 0.1,
        }
    }
}

fn is_one(n: &usize) -> bool {
    *n == 1
}
fn is_false(b: &bool) -> bool {
    !b
}

/// Published sizes: name, layers, heads, width.
pub const PRESETS: [(&str, usize, usize, usize); 8] = [
    ("B", 12, 12, 768),
    ("L", 24, 16, 1024),
    ("XL", 36, 20, 1280),
    ("XXL", 48, 24, 1536),
    ("XXXL", 48, 40, 2560),
    ("1B", 22, 32, 2048),
    ("3B", 24, 32, 3200),
    ("7B", 32, 32, 4096),
];

impl LlamaGenConfig {
    /// A published size ("B" to "7B") for a grid of `grid` x `grid` tokens.
    pub fn preset(name: &str, model_type: ModelType, grid: usize) -> Result<Self> {
        let (_, n_layer, n_head, dim) = PRESETS.into_iter().find(|p| p.0 == name).ok_or_else(|| {
            let names: Vec<&str> = PRESETS.iter().map(|p| p.0).collect();
            Error::invalid(format!("no LlamaGen size `{name}`; there are {}", names.join(", ")))
        })?;
        let cls_token_num = if model_type == ModelType::T2i { 120 } else { 1 };
        Ok(Self { model_type, dim, n_layer, n_head, block_size: grid * grid, cls_token_num, ..Self::default() })
    }

    /// Tokens a side.
    pub fn grid(&self) -> usize {
        (self.block_size / self.sub_tokens.max(1)).isqrt()
    }

    /// Inner width of the feed-forward network.
    pub fn ffn_dim(&self) -> usize {
        let hidden = 2 * 4 * self.dim / 3;
        let hidden = self.ffn_dim_multiplier.map_or(hidden, |m| (m * hidden as f64) as usize);
        hidden.div_ceil(self.multiple_of.max(1)) * self.multiple_of.max(1)
    }

    /// Whether the numbers fit together.
    pub fn check(&self) -> Result<()> {
        let bad = |why: String| Err(Error::invalid(format!("LlamaGen: {why}")));
        let (heads, kv) = (self.n_head, self.n_kv_head.unwrap_or(self.n_head));
        if heads == 0 || kv == 0 || !heads.is_multiple_of(kv) || !self.dim.is_multiple_of(4 * heads) {
            return bad(format!("width {} does not divide into {heads} heads ({kv} of keys) of fours", self.dim));
        }
        if self.grid() * self.grid() * self.sub_tokens != self.block_size || self.block_size == 0 {
            let per = self.sub_tokens;
            return bad(format!("block_size {} is not a square of cells with {per} tokens each", self.block_size));
        }
        if self.cls_token_num == 0 || (self.model_type == ModelType::C2i && self.cls_token_num != 1) {
            return bad(format!("cls_token_num {} does not fit {:?}", self.cls_token_num, self.model_type));
        }
        match &self.bitwise {
            Some(_) if self.sub_tokens != 1 => {
                bad("a bitwise head takes one token a cell; write sub_tokens = 1".into())
            }
            Some(b) => b.check(),
            None => Ok(()),
        }
    }

    /// Rows of the table of tokens.
    pub(super) fn rows(&self) -> usize {
        self.vocab_size * if self.shared_table { 1 } else { self.sub_tokens }
    }

    pub(super) fn block(&self) -> BlockConfig {
        BlockConfig {
            width: self.dim,
            mlp_width: self.ffn_dim(),
            heads: self.n_head,
            kv_heads: self.n_kv_head.unwrap_or(self.n_head),
            head_dim: self.dim / self.n_head,
            norm: NormKind::Rms,
            eps: self.norm_eps,
            mlp: MlpKind::SwiGlu,
            bias: [false; 5],
            sub_norm: false,
            qk_norm: None,
            norm_after: false,
            init_std: self.initializer_range,
            residual_std: self.initializer_range,
        }
    }

    /// The rotary table: condition rows with cosine and sine zero (published so: their queries and keys vanish), then a
    /// row a token, half of the pairs turning with its cell's row and half with its column.
    pub fn rope(&self) -> Rope {
        let half = self.dim / self.n_head / 2;
        let grid = self.grid();
        let mut cos = vec![0f32; self.cls_token_num * half];
        let mut sin = cos.clone();
        for cell in (0..self.block_size).map(|token| token / self.sub_tokens.max(1)) {
            for at in [cell / grid, cell % grid] {
                for j in 0..half / 2 {
                    let angle = at as f64 * self.rope_base.powf(-2.0 * j as f64 / half as f64);
                    cos.push(angle.cos() as f32);
                    sin.push(angle.sin() as f32);
                }
            }
        }
        Rope::new(cos, sin, 2 * half, RopeStyle::Interleaved)
    }
}
