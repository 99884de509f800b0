//! config.json of Emu3 as transformers writes it (the authors' is made into one: artifact/authors/emu3.rs).

use crate::code_rows::CodeRows;
use crate::{Error, Result};
use lm::{LlamaConfig, Token};
use qlip::config::parse_json;
use qlip::vq::{Emu3VqConfig, VqConfig};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;

/// What an Emu3 is made of.
#[derive(Debug, Clone)]
pub struct Emu3Config {
    /// The language model.
    pub text: LlamaConfig,
    /// The image tokenizer.
    pub vq: Emu3VqConfig,
    /// Entries of the vocabulary by their writing.
    pub vocabulary: HashMap<String, Token>,
    /// Codes among them.
    pub codes: CodeRows,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Vq {
    double_latent: bool,
    in_channels: usize,
    out_channels: usize,
    num_attention_heads: usize,
    attention_dropout: f32,
    codebook_size: usize,
    embed_dim: usize,
    latent_channels: usize,
    base_channels: usize,
    channel_multiplier: Vec<usize>,
    num_res_blocks: usize,
    attn_resolutions: Vec<usize>,
    hidden_size: usize,
    temporal_downsample_factor: usize,
    model_type: Option<String>,
}

impl Default for Vq {
    fn default() -> Self {
        Self {
            double_latent: false,
            in_channels: 3,
            out_channels: 3,
            num_attention_heads: 1,
            attention_dropout: 0.0,
            codebook_size: 32768,
            embed_dim: 4,
            latent_channels: 4,
            base_channels: 256,
            channel_multiplier: vec![1, 2, 2, 4],
            num_res_blocks: 2,
            attn_resolutions: vec![3],
            hidden_size: 1024,
            temporal_downsample_factor: 4,
            model_type: None,
        }
    }
}

impl Emu3Config {
    /// From the text of a config.json.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let bad = |why: String| Error::bad_file(path, why);
        let mut json: serde_json::Value = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        let mut part = |name: &str| json.as_object_mut().and_then(|root| root.remove(name));
        let vocabulary: HashMap<String, Token> = match part("vocabulary_map") {
            Some(map) => serde_json::from_value(map).map_err(|e| bad(format!("vocabulary_map: {e}")))?,
            None => {
                return Err(bad("vocabulary_map is missing: it says which entries are codes".into()));
            }
        };
        let vq: Vq = serde_json::from_value(part("vq_config").unwrap_or_else(|| serde_json::json!({})))
            .map_err(|e| bad(format!("vq_config: {e}")))?;
        if vq.double_latent || (vq.in_channels, vq.out_channels) != (3, 3) || vq.num_attention_heads != 1 {
            let why = "vq_config: double_latent, channels other than 3 and several attention heads are not known here";
            return Err(bad(why.into()));
        }
        let _ = (vq.attention_dropout, vq.hidden_size, vq.model_type);
        let mut text = part("text_config").ok_or_else(|| bad("text_config is missing".into()))?;
        if let Some(text) = text.as_object_mut() {
            text.insert("model_type".into(), "llama".into());
            // what transformers assumes where the key is missing
            text.entry("rope_theta").or_insert(serde_json::json!(1e6));
            text.entry("rms_norm_eps").or_insert(serde_json::json!(1e-5));
        }
        let text: LlamaConfig = parse_json(path, &text.to_string())?;
        let config = Self {
            vq: Emu3VqConfig {
                net: VqConfig {
                    codebook_size: vq.codebook_size,
                    codebook_embed_dim: vq.embed_dim,
                    codebook_l2_norm: false,
                    encoder_ch_mult: vq.channel_multiplier.clone(),
                    decoder_ch_mult: vq.channel_multiplier,
                    z_channels: vq.latent_channels,
                    ch: vq.base_channels,
                    num_res_blocks: vq.num_res_blocks,
                    attn_levels: Some(vq.attn_resolutions),
                    ..VqConfig::default()
                },
                temporal_downsample_factor: vq.temporal_downsample_factor,
            },
            codes: codes(&vocabulary, vq.codebook_size).map_err(|e| bad(e.to_string()))?,
            vocabulary,
            text,
        };
        config.text.check().and_then(|()| config.vq.net.check()).map_err(|e| bad(e.to_string()))?;
        if config.vocabulary.values().any(|&id| id as usize >= config.text.vocab_size) {
            return Err(bad(format!("vocabulary_map has entries beyond vocab_size {}", config.text.vocab_size)));
        }
        Ok(config)
    }

    /// An entry by its writing.
    pub fn mark(&self, writing: &str) -> Result<Token> {
        let found = self.vocabulary.get(writing).copied();
        found.ok_or_else(|| Error::invalid(format!("vocabulary_map has no entry `{writing}`")))
    }
}

fn codes(vocabulary: &HashMap<String, Token>, count: usize) -> Result<CodeRows> {
    let token = |code: usize| {
        let name = format!("<|visual token {code:06}|>");
        let id = vocabulary.get(&name).copied();
        id.ok_or_else(|| Error::invalid(format!("vocabulary_map has no entry `{name}`")))
    };
    Ok(CodeRows::new((0..count).map(token).collect::<Result<_>>()?))
}
