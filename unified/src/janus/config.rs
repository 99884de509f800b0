//! config.json of Janus: as transformers writes it, and the authors'.

use crate::{Error, Result};
use lm::{LlamaConfig, Token};
use nn::stored::Stored;
use qlip::config::{one_spelling, parse_json};
use qlip::siglip::SiglipConfig;
use qlip::vq::VqConfig;
use serde::Deserialize;
use std::path::Path;

/// What a Janus is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct JanusConfig {
    /// The language model.
    pub text: LlamaConfig,
    /// The tower that sees.
    pub vision: SiglipConfig,
    /// Linear layers from the tower to the language model.
    pub aligner_depth: usize,
    /// Linear layers from a code's vector to the language model.
    pub gen_aligner_depth: usize,
    /// Inner width of the head of codes.
    pub gen_head_width: usize,
    /// The image tokenizer.
    pub vq: VqConfig,
    /// Cells along a drawn picture's side.
    pub grid: usize,
    /// The token that stands where a picture's features go, where the config says.
    pub image_token: Option<Token>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Root {
    text_config: LlamaConfig,
    vision_config: Vision,
    vq_config: Vq,
    image_token_id: Option<Token>,
    #[serde(rename = "model_type")]
    _model_type: serde::de::IgnoredAny,
    #[serde(default)]
    tie_word_embeddings: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Vision {
    attention_bias: bool,
    attention_dropout: f32,
    depth: usize,
    hidden_act: String,
    hidden_dropout_rate: f32,
    num_channels: usize,
    num_image_tokens: usize,
    projection_dim: usize,
    projection_dropout: f32,
    use_qk_norm: bool,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    patch_size: usize,
    image_size: usize,
    mlp_ratio: f64,
    layer_norm_eps: f64,
    use_vision_head: Option<bool>,
    initializer_range: Option<f32>,
}

impl Default for Vision {
    fn default() -> Self {
        Self {
            attention_bias: true,
            attention_dropout: 0.0,
            depth: 2,
            hidden_act: "gelu".into(),
            hidden_dropout_rate: 0.0,
            num_channels: 3,
            num_image_tokens: 576,
            projection_dim: 2048,
            projection_dropout: 0.0,
            use_qk_norm: false,
            hidden_size: 1024,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            patch_size: 16,
            image_size: 384,
            mlp_ratio: 4.0,
            layer_norm_eps: 1e-6,
            use_vision_head: None,
            initializer_range: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Vq {
    double_latent: bool,
    dropout: f32,
    hidden_act: String,
    image_token_embed_dim: usize,
    in_channels: usize,
    out_channels: usize,
    num_hidden_layers: usize,
    num_patches: usize,
    projection_dim: usize,
    embed_dim: usize,
    num_embeddings: usize,
    base_channels: usize,
    channel_multiplier: Vec<usize>,
    num_res_blocks: usize,
    latent_channels: usize,
    initializer_range: Option<f32>,
}

impl Default for Vq {
    fn default() -> Self {
        Self {
            double_latent: false,
            dropout: 0.0,
            hidden_act: "gelu".into(),
            image_token_embed_dim: 2048,
            in_channels: 3,
            out_channels: 3,
            num_hidden_layers: 2,
            num_patches: 32,
            projection_dim: 2048,
            embed_dim: 8,
            num_embeddings: 16384,
            base_channels: 128,
            channel_multiplier: vec![1, 1, 2, 2, 4],
            num_res_blocks: 2,
            latent_channels: 256,
            initializer_range: None,
        }
    }
}

impl JanusConfig {
    /// From the text of a config.json of either layout; where the authors' names a class and not its sizes, `stored` (under our
    /// names) tells them.
    pub fn parse(path: &Path, text: &str, stored: &Stored) -> Result<Self> {
        let bad = |e: Error| Error::bad_file(path, e.to_string());
        let json: serde_json::Value = serde_json::from_str(text).map_err(|e| Error::bad_file(path, e.to_string()))?;
        let config = if json["model_type"] == "multi_modality" {
            match Self::of_authors(&json, stored) {
                Ok(c) => c,
                // small copies of both layouts keep transformers' config one folder up
                Err(e) => match path.parent().and_then(Path::parent).map(|p| p.join("config.json")) {
                    Some(above) if above.is_file() => {
                        let text = std::fs::read_to_string(&above).map_err(Error::io(&above))?;
                        Self::of_transformers(&above, &text).map_err(|_| bad(e))?
                    }
                    _ => return Err(bad(e)),
                },
            }
        } else {
            Self::of_transformers(path, text)?
        };
        config.text.check().and_then(|()| config.vision.check()).and_then(|()| config.vq.check()).map_err(bad)?;
        Ok(config)
    }

    fn of_transformers(path: &Path, text: &str) -> Result<Self> {
        let Root { text_config, vision_config: v, vq_config: q, image_token_id, tie_word_embeddings, .. } =
            parse_json(path, text)?;
        let refuse = |what: &str| Err(Error::bad_file(path, format!("{what} is not known here")));
        if v.use_qk_norm {
            return refuse("vision_config.use_qk_norm = true");
        }
        if !v.attention_bias || v.hidden_act != "gelu" || v.num_channels != 3 {
            return refuse(
                "a vision_config without attention_bias, with another hidden_act than gelu or other num_channels than 3",
            );
        }
        if q.double_latent || q.hidden_act != "gelu" || (q.in_channels, q.out_channels) != (3, 3) {
            return refuse("a vq_config with double_latent, another hidden_act than gelu or other channels than 3");
        }
        let vision = SiglipConfig {
            hidden_size: v.hidden_size,
            intermediate_size: (v.hidden_size as f64 * v.mlp_ratio) as usize,
            num_hidden_layers: v.num_hidden_layers,
            num_attention_heads: v.num_attention_heads,
            image_size: v.image_size,
            patch_size: v.patch_size,
            layer_norm_eps: v.layer_norm_eps,
        };
        let width = text_config.hidden_size;
        for (what, found) in
            [("vision_config.projection_dim", v.projection_dim), ("vq_config.projection_dim", q.projection_dim)]
        {
            if found != width {
                return refuse(&format!("{what} {found} beside a language model of width {width}"));
            }
        }
        // dropout is a training's; the number of tokens follows from the sizes
        let _ = (v.attention_dropout, v.hidden_dropout_rate, v.projection_dropout, q.dropout, v.use_vision_head);
        let _ = (v.num_image_tokens, v.initializer_range, q.initializer_range);
        Ok(Self {
            text: LlamaConfig {
                tie_word_embeddings: tie_word_embeddings || text_config.tie_word_embeddings,
                ..text_config
            },
            vision,
            aligner_depth: v.depth,
            gen_aligner_depth: q.num_hidden_layers,
            gen_head_width: q.image_token_embed_dim,
            vq: VqConfig {
                codebook_size: q.num_embeddings,
                codebook_embed_dim: q.embed_dim,
                encoder_ch_mult: q.channel_multiplier.clone(),
                decoder_ch_mult: q.channel_multiplier,
                z_channels: q.latent_channels,
                ch: q.base_channels,
                num_res_blocks: q.num_res_blocks,
                ..VqConfig::default()
            },
            grid: q.num_patches,
            image_token: image_token_id,
        })
    }

    fn of_authors(json: &serde_json::Value, stored: &Stored) -> Result<Self> {
        let class = |part: &str| json[part]["cls"].as_str().unwrap_or_default().to_owned();
        if class("gen_head_config") != "vision_head" || class("gen_vision_config") != "VQ-16" {
            let why = "gen_vision_config is not VQ-16: this is a relative that draws another way (JanusFlow?), which is not known here";
            return Err(Error::invalid(why));
        }
        for part in ["aligner_config", "gen_aligner_config"] {
            let kind = json[part]["params"]["projector_type"].as_str();
            if kind != Some("mlp_gelu") {
                return Err(Error::invalid(format!(
                    "{part}.params.projector_type {kind:?} is not known; use mlp_gelu"
                )));
            }
        }
        let mut text = json["language_config"].as_object().cloned().unwrap_or_default();
        for key in ["_attn_implementation", "torch_dtype", "architectures", "model_type"] {
            text.remove(key);
        }
        one_spelling(&mut text);
        let text: LlamaConfig =
            serde_json::from_value(text.into()).map_err(|e| Error::invalid(format!("language_config: {e}")))?;
        let depth = |part: &str| json[part]["params"]["depth"].as_u64().unwrap_or(2) as usize;
        let shapes: std::collections::HashMap<&str, &[usize]> = stored.shapes().into_iter().collect();
        let tower = SiglipConfig::large_384();
        let params = &json["vision_config"]["params"];
        let name = params["model_name"].as_str().unwrap_or_default();
        let fits =
            shapes.get("vision_model.embeddings.patch_embedding.weight").is_none_or(|d| d[0] == tower.hidden_size);
        if name != "siglip_large_patch16_384" || !fits {
            return Err(Error::invalid(format!(
                "vision_config.params.model_name `{name}`: its sizes are known for siglip_large_patch16_384 alone, which does not fit this file"
            )));
        }
        let vq = VqConfig::of_tensors(stored, "gen_vision_model.", true)?;
        Ok(Self {
            vision: SiglipConfig { image_size: params["image_size"].as_u64().unwrap_or(384) as usize, ..tower },
            aligner_depth: depth("aligner_config"),
            gen_aligner_depth: depth("gen_aligner_config"),
            gen_head_width: json["gen_head_config"]["params"]["image_token_embed"].as_u64().unwrap_or(2048) as usize,
            grid: params["image_size"].as_u64().unwrap_or(384) as usize / vq.stride(),
            vq,
            text,
            image_token: None,
        })
    }
}
