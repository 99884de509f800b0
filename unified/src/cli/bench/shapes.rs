//! Shapes of published models, made in place with random weights.

use anyhow::{Context, Result, bail};
use lm::LlamaConfig;
use lm::llamagen::{LlamaGenConfig, ModelType};
use qlip::QlipConfig;
use std::path::Path;
use unified::llava::LlavaConfig;

/// Names on offer.
pub const NAMES: [&str; 8] =
    ["qlip-b16", "qlip-b8", "qlip-l14", "llama-3.2-1b", "llava-7b", "llamagen-b", "janus-1b", "nano"];

/// A shape.
pub enum Shape {
    Qlip(Box<QlipConfig>),
    Llama(Box<LlamaConfig>),
    Llava(Box<LlavaConfig>),
    LlamaGen(Box<LlamaGenConfig>),
    /// The embedded model, which has its own weights.
    Nano,
}

impl Shape {
    pub fn of(name: &str) -> Result<Self> {
        let qlip = |text| -> Result<Self> { Ok(Self::Qlip(Box::new(serde_json::from_str(text)?))) };
        let llama = |text| -> Result<Self> { Ok(Self::Llama(Box::new(serde_json::from_str(text)?))) };
        match name {
            "qlip-b16" => qlip(include_str!("../../../../configs/shapes/qlip-b16.json")),
            "qlip-b8" => qlip(include_str!("../../../../configs/shapes/qlip-b8.json")),
            "qlip-l14" => qlip(include_str!("../../../../configs/shapes/qlip-l14.json")),
            "llama-3.2-1b" => llama(include_str!("../../../../configs/shapes/llama-3.2-1b.json")),
            // its language model
            "janus-1b" => llama(include_str!("../../../../configs/shapes/janus-1b.json")),
            "llava-7b" => {
                let text = include_str!("../../../../configs/llava/7b.json");
                let config = LlavaConfig::parse(Path::new("configs/llava/7b.json"), text).context("llava-7b")?;
                Ok(Self::Llava(Box::new(config)))
            }
            "llamagen-b" => Ok(Self::LlamaGen(Box::new(LlamaGenConfig::preset("B", ModelType::C2i, 16)?))),
            "nano" => Ok(Self::Nano),
            other => bail!("no shape `{other}`; there are {}", NAMES.join(", ")),
        }
    }

    /// The language model of the shape.
    pub fn llama(&self) -> Option<&LlamaConfig> {
        match self {
            Self::Llama(c) => Some(c),
            Self::Llava(c) => Some(&c.text_config),
            _ => None,
        }
    }
}

/// Parameters of a Llama that a token is multiplied with, its head included.
pub fn llama_weights(c: &LlamaConfig) -> usize {
    let (d, f, h) = (c.hidden_size, c.intermediate_size, c.head_width());
    let block = d * h * (2 * c.num_attention_heads + 2 * c.kv_heads()) + 3 * d * f;
    c.num_hidden_layers * block + d * c.vocab_size
}

/// Names, rows and columns of a Llama's weights.
pub fn llama_tensors(c: &LlamaConfig) -> Vec<(String, usize, usize)> {
    let (d, f, h) = (c.hidden_size, c.intermediate_size, c.head_width());
    let (q, kv) = (c.num_attention_heads * h, c.kv_heads() * h);
    let mut all = vec![("model.embed_tokens.weight".to_owned(), c.vocab_size, d)];
    if !c.tie_word_embeddings {
        all.push(("lm_head.weight".to_owned(), c.vocab_size, d));
    }
    for i in 0..c.num_hidden_layers {
        for (name, rows, cols) in [
            ("self_attn.q_proj", q, d),
            ("self_attn.k_proj", kv, d),
            ("self_attn.v_proj", kv, d),
            ("self_attn.o_proj", d, q),
            ("mlp.gate_proj", f, d),
            ("mlp.up_proj", f, d),
            ("mlp.down_proj", d, f),
        ] {
            all.push((format!("model.layers.{i}.{name}.weight"), rows, cols));
        }
    }
    all
}

/// Names of its norms.
pub fn llama_norms(c: &LlamaConfig) -> Vec<String> {
    let each = |i| ["input_layernorm", "post_attention_layernorm"].map(|n| format!("model.layers.{i}.{n}.weight"));
    (0..c.num_hidden_layers).flat_map(each).chain(["model.norm.weight".to_owned()]).collect()
}
