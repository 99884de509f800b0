//! Llama: RMS norm, rotary positions (with the llama3 scaling), grouped key-value heads, SwiGLU, tied or untied output;
//! optionally a norm of each head's queries and keys (UM3 section 4.1). Published tensor names.

use crate::engine::{Choose, Model, Source};
use crate::head::BitwiseHead;
use crate::trunk::Trunk;
use crate::vocab::{MergedVocab, Token, table_rows};
use candle_core::Tensor;
use nn::block::{Block, BlockConfig, LLAMA_NAMES, MlpKind, Norm, NormKind, QkNorm};
use nn::ops::{Mask, Positions, Rope, RopeStyle};
use nn::{Error, Init, Params, Result, Weight};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// config.json of a Llama checkpoint, with the published field names; what it leaves out has the value that transformers
/// gives it (LLaVA's text_config names little else than the vocabulary).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "published field names")]
pub struct LlamaConfig {
    #[serde(default = "llama")]
    pub model_type: String,
    #[serde(default = "w4096")]
    pub hidden_size: usize,
    #[serde(default = "w11008")]
    pub intermediate_size: usize,
    #[serde(default = "n32")]
    pub num_hidden_layers: usize,
    #[serde(default = "n32")]
    pub num_attention_heads: usize,
    #[serde(default)]
    pub num_key_value_heads: Option<usize>,
    #[serde(default)]
    pub head_dim: Option<usize>,
    #[serde(default = "v32000")]
    pub vocab_size: usize,
    #[serde(default = "silu")]
    pub hidden_act: String,
    #[serde(default = "range")]
    pub initializer_range: f32,
    #[serde(default = "eps")]
    pub rms_norm_eps: f64,
    #[serde(default = "w2048")]
    pub max_position_embeddings: usize,
    #[serde(default)]
    pub tie_word_embeddings: bool,
    #[serde(default)]
    pub attention_bias: bool,
    #[serde(default)]
    pub mlp_bias: bool,
    #[serde(default)]
    pub attention_dropout: f32,
    #[serde(default)]
    pub bos_token_id: Option<TokenIds>,
    #[serde(default)]
    pub eos_token_id: Option<TokenIds>,
    #[serde(default)]
    pub pad_token_id: Option<TokenIds>,
    #[serde(default = "theta")]
    pub rope_theta: f64,
    #[serde(default)]
    pub rope_scaling: Option<RopeScaling>,
    /// Norm of each head's queries and keys before rope, under `self_attn.{q,k}_norm.weight`.
    #[serde(default)]
    pub qk_norm: bool,
    /// Epsilon of that norm; `rms_norm_eps` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qk_norm_eps: Option<f64>,
}

/// One id or several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum TokenIds {
    /// One.
    One(Token),
    /// Several.
    Many(Vec<Token>),
}

/// How positions beyond the trained ones are reached: all slowed down by a factor (linear), or long wavelengths (llama3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "published field names")]
pub struct RopeScaling {
    pub rope_type: String,
    pub factor: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_freq_factor: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_freq_factor: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<usize>,
}

fn llama() -> String {
    "llama".into()
}
fn w4096() -> usize {
    4096
}
fn w11008() -> usize {
    11008
}
fn n32() -> usize {
    32
}
fn v32000() -> usize {
    32000
}
fn eps() -> f64 {
    1e-6
}
fn w2048() -> usize {
    2048
}
fn silu() -> String {
    "silu".into()
}
fn range() -> f32 {
    0.02
}
fn theta() -> f64 {
    10000.0
}

/// Longest rotary table that is made; a config may promise more positions than anybody uses.
const MAX_TABLE: usize = 32_768;

impl LlamaConfig {
    /// Width of a head.
    pub fn head_width(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Key-value heads.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Whether the numbers fit together.
    pub fn check(&self) -> Result<()> {
        let bad = |why: String| Err(Error::invalid(format!("language model: {why}")));
        if self.num_attention_heads == 0
            || self.kv_heads() == 0
            || !self.num_attention_heads.is_multiple_of(self.kv_heads())
        {
            return bad(format!(
                "{} heads do not divide into {} key-value heads",
                self.num_attention_heads,
                self.kv_heads()
            ));
        }
        if !self.head_width().is_multiple_of(2) || self.head_width() == 0 {
            return bad(format!("head_dim {} is not even", self.head_width()));
        }
        if self.hidden_act != "silu" {
            return bad(format!("hidden_act `{}` is not known; use `silu`", self.hidden_act));
        }
        if let Some(s) = &self.rope_scaling {
            let whole = s.low_freq_factor.is_some() && s.high_freq_factor.is_some();
            match s.rope_type.as_str() {
                "linear" => {}
                "llama3" if whole && s.original_max_position_embeddings.is_some() => {}
                "llama3" => {
                    return bad("rope_scaling of type llama3 needs low_freq_factor, high_freq_factor and \
                                original_max_position_embeddings"
                        .into());
                }
                other => return bad(format!("rope_type `{other}` is not known; use `linear` or `llama3`")),
            }
            if !(s.factor.is_finite() && s.factor > 0.0) {
                return bad(format!("rope_scaling.factor {} is not positive", s.factor));
            }
        }
        Ok(())
    }

    /// Inverse frequencies of the head_dim / 2 pairs.
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        let d = self.head_width();
        let base = (0..d / 2).map(|i| self.rope_theta.powf(-2.0 * i as f64 / d as f64));
        let Some(s) = &self.rope_scaling else { return base.collect() };
        let (Some(original), Some(low), Some(high)) =
            (s.original_max_position_embeddings, s.low_freq_factor, s.high_freq_factor)
        else {
            return base.map(|f| f / s.factor).collect();
        };
        if s.rope_type == "linear" {
            return base.map(|f| f / s.factor).collect();
        }
        let original = original as f64;
        base.map(|f| {
            let wavelength = std::f64::consts::TAU / f;
            let (short, long) = (original / high, original / low);
            if wavelength < short {
                f
            } else if wavelength > long {
                f / s.factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * f / s.factor + smooth * f
            }
        })
        .collect()
    }

    /// Its blocks, for a relative that changes something about them.
    pub fn block(&self) -> BlockConfig {
        let (a, m) = (self.attention_bias, self.mlp_bias);
        BlockConfig {
            width: self.hidden_size,
            mlp_width: self.intermediate_size,
            heads: self.num_attention_heads,
            kv_heads: self.kv_heads(),
            head_dim: self.head_width(),
            norm: NormKind::Rms,
            eps: self.rms_norm_eps,
            mlp: MlpKind::SwiGlu,
            bias: [a, a, a, a, m],
            sub_norm: false,
            qk_norm: self.qk_norm.then(|| QkNorm::Rms(self.qk_norm_eps.unwrap_or(self.rms_norm_eps))),
            norm_after: false,
            init_std: self.initializer_range,
            residual_std: self.initializer_range / (2.0 * self.num_hidden_layers as f32).sqrt(),
        }
    }
}

/// The decoder.
#[derive(Debug, Clone)]
pub struct Llama {
    /// Its configuration.
    pub config: LlamaConfig,
    embed: Weight,
    trunk: Trunk,
    head: Weight,
    /// Visual tokens as bits, and the token of code 0.
    bits: Option<(Token, Arc<BitwiseHead>)>,
}

impl Llama {
    /// Takes the model's tensors, those of a bitwise head among them where the vocabulary has one.
    pub fn of_vocab(p: &Params, config: &LlamaConfig, vocab: &MergedVocab) -> Result<Self> {
        let mut model = Self::new(p, config)?;
        if let Some(b) = &vocab.bitwise {
            let head = BitwiseHead::new(&p.clone().adapted(None), b, config.hidden_size, vocab.positions())?;
            model.bits = Some((vocab.text as Token, Arc::new(head)));
        }
        Ok(model)
    }

    /// The bitwise head of visual tokens, where there is one.
    pub fn bitwise(&self) -> Option<&BitwiseHead> {
        self.bits.as_ref().map(|b| &*b.1)
    }

    /// Takes the model's tensors.
    pub fn new(p: &Params, config: &LlamaConfig) -> Result<Self> {
        Self::of_blocks(p, config, &config.block())
    }

    /// The same with blocks that differ from a Llama's.
    pub fn of_blocks(p: &Params, config: &LlamaConfig, block: &BlockConfig) -> Result<Self> {
        config.check()?;
        let (v, d) = (config.vocab_size, config.hidden_size);
        let init = Init::Normal(config.initializer_range);
        // adapters belong to the blocks
        let tables = p.clone().adapted(None);
        // a tied file may hold its one table under either name
        let only_head = config.tie_word_embeddings
            && !tables.contains("model.embed_tokens.weight")
            && tables.contains("lm_head.weight");
        let table = if only_head { "lm_head" } else { "model.embed_tokens" };
        let embed = tables.at(table).weight((v, d), "weight", init)?;
        let layers = (0..config.num_hidden_layers)
            .map(|i| Block::new(&p.at("model.layers").at(i), block, &LLAMA_NAMES))
            .collect::<Result<_>>()?;
        let head = if config.tie_word_embeddings {
            embed.clone()
        } else {
            tables.at("lm_head").weight((v, d), "weight", init)?
        };
        let frequencies = config.inverse_frequencies();
        let rows = config.max_position_embeddings.min(MAX_TABLE);
        let angles: Vec<f64> = (0..rows).flat_map(|t| frequencies.iter().map(move |f| t as f64 * f)).collect();
        let norm = Norm::new(&p.at("model.norm"), NormKind::Rms, d, config.rms_norm_eps)?;
        let rope = Rope::from_angles(&angles, config.head_width(), RopeStyle::Halves);
        Ok(Self {
            config: config.clone(),
            embed,
            trunk: Trunk::new(p, layers, norm, rope, (config.kv_heads(), config.head_width()), d),
            head,
            bits: None,
        })
    }

    /// The same model with another table [vocabulary, width] of a tied model, read and written by it.
    pub fn with_table(&self, table: Tensor) -> Result<Self> {
        let (rows, cols) = self.embed.shape()?;
        if !self.config.tie_word_embeddings || table.dims() != [rows, cols] {
            return Err(Error::invalid("another table needs tie_word_embeddings and the same shape"));
        }
        Ok(Self { embed: Weight::Dense(table.clone()), head: Weight::Dense(table), ..self.clone() })
    }

    /// Positions the model can be given.
    pub fn max_positions(&self) -> usize {
        self.trunk.max_positions()
    }

    /// Embeddings of token ids: `ids` holds `batch` sequences of equal length; returns [batch, tokens, width].
    pub fn embed(&self, ids: &[Token], batch: usize) -> Result<Tensor> {
        let (v, d) = self.embed.shape()?;
        if let Some((first, head)) = self.bits.as_ref().filter(|b| ids.iter().any(|&i| i >= b.0)) {
            // words first, then codes, then each in its place
            let (mut words, mut codes) = (Vec::new(), Vec::new());
            ids.iter().for_each(|&i| if i < *first { words.push(i) } else { codes.push(i - first) });
            let (mut word, mut code) = (0, words.len() as u32);
            let order: Vec<u32> = ids
                .iter()
                .map(|i| {
                    let next = if i < first { &mut word } else { &mut code };
                    *next += 1;
                    *next - 1
                })
                .collect();
            let codes = head.embed(&codes)?;
            let all = if words.is_empty() {
                codes
            } else {
                Tensor::cat(&[self.embed.rows(&table_rows(&words)?)?, codes], 0)?
            };
            let order = Tensor::from_vec(order, ids.len(), all.device())?;
            return Ok(all.index_select(&order, 0)?.reshape((batch, ids.len() / batch.max(1), d))?);
        }
        if let Some(bad) = ids.iter().find(|&&i| i as usize >= v) {
            return Err(Error::invalid(format!("token {bad} is outside the vocabulary of {v}")));
        }
        Ok(self.embed.rows(&table_rows(ids)?)?.reshape((batch, ids.len() / batch.max(1), d))?)
    }

    /// Embeddings [batch, tokens, width] to final hidden states of the same shape.
    pub fn hidden(&self, x: &Tensor, positions: &Positions, mask: &Mask) -> Result<Tensor> {
        self.trunk.hidden(x, positions, mask)
    }

    /// The same of rows whose first `pads` tokens are padding: positions count from the first real one, which sees no padding.
    pub fn hidden_padded(&self, x: &Tensor, pads: &[usize]) -> Result<Tensor> {
        let tokens = x.dim(1)?;
        let each = |f: fn(usize, usize) -> usize| -> Vec<u32> {
            pads.iter().flat_map(|&p| (0..tokens).map(move |t| f(p, t) as u32)).collect()
        };
        let positions = Positions::Each(each(|p, t| t.saturating_sub(p)).into());
        self.hidden(x, &positions, &Mask::CausalFrom(each(usize::min).into()))
    }

    /// Logits [.., rows] of a range of vocabulary rows from hidden states [.., width].
    pub fn logits(&self, hidden: &Tensor, rows: Range<usize>) -> Result<Tensor> {
        self.head.product(hidden, rows)
    }

    /// Logits [batch, tokens, vocabulary] of whole sequences from position 0.
    pub fn forward(&self, ids: &[Token], batch: usize) -> Result<Tensor> {
        let x = self.embed(ids, batch)?;
        let hidden = self.hidden(&x, &Positions::From(0), &Mask::Causal)?;
        self.logits(&hidden, 0..self.config.vocab_size)
    }
}

impl Model for Llama {
    fn trunk(&self) -> &Trunk {
        &self.trunk
    }
    fn embed(&self, _head: u8, tokens: &[Token]) -> Result<Tensor> {
        Ok(Llama::embed(self, tokens, 1)?.squeeze(0)?)
    }
    fn next(&self, source: Source, hidden: &Tensor, choose: &mut Choose) -> Result<Vec<Token>> {
        if source.head == 1 {
            let (_, head) = self.bits.as_ref().ok_or_else(|| Error::invalid("this model has no bitwise head"))?;
            return Ok(head.draw(hidden, choose)?.into_iter().map(|code| source.start + code).collect());
        }
        let from = source.start as usize;
        let chosen = choose(&self.logits(hidden, from..from + source.rows as usize)?)?;
        Ok(chosen.into_iter().map(|i| source.start + Token::from(i)).collect())
    }
}
