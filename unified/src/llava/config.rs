//! config.json of LLaVA checkpoints: the llava-hf layout and the first release's.

use crate::{Error, Result};
use lm::{LlamaConfig, Token};
use nn::ops::Activation;
use qlip::clip::ClipVisionConfig;
use qlip::config::{TowerConfig, parse_json};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Root of config.json in the llava-hf layout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "published field names")]
pub struct LlavaConfig {
    pub model_type: String,
    pub vision_config: VisionConfig,
    pub text_config: LlamaConfig,
    /// Token that stands where a picture's features go.
    #[serde(alias = "image_token_id")]
    pub image_token_index: Token,
    /// Index into the tower's hidden states, from the end when negative.
    #[serde(default = "minus_two")]
    pub vision_feature_layer: i64,
    /// "default" leaves the class token out, "full" keeps it.
    #[serde(default)]
    pub vision_feature_select_strategy: Select,
    #[serde(default = "gelu")]
    pub projector_hidden_act: Activation,
    #[serde(default = "yes")]
    pub multimodal_projector_bias: bool,
    /// With a QLIP tower: which of its stages is shown to the language model.
    #[serde(default)]
    pub vision_feature: VisionFeature,
    #[serde(default)]
    pub image_seq_length: Option<usize>,
    #[serde(default)]
    pub ignore_index: Option<i64>,
    #[serde(default)]
    pub pad_token_id: Option<Token>,
    #[serde(default)]
    pub vocab_size: Option<usize>,
    #[serde(default)]
    pub tie_word_embeddings: bool,
    #[serde(default)]
    pub image_grid_pinpoints: Option<serde_json::Value>,
}

fn minus_two() -> i64 {
    -2
}
fn gelu() -> Activation {
    Activation::Gelu
}
fn yes() -> bool {
    true
}

/// The tower that sees: QLIP's where the config names a quantizer, else CLIP's.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum VisionConfig {
    /// CLIP.
    Clip(ClipVisionConfig),
    /// QLIP.
    Qlip(Box<TowerConfig>),
}

impl<'de> Deserialize<'de> for VisionConfig {
    // by hand, so that an error names the key and not "no variant matched"
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        use serde::de::Error as _;
        let json = serde_json::Value::deserialize(d)?;
        let bad = |e: serde_json::Error| D::Error::custom(format!("vision_config: {e}"));
        if json.get("quantizer_cfg").is_some() {
            return Ok(Self::Qlip(serde_json::from_value(json).map_err(bad)?));
        }
        Ok(Self::Clip(serde_json::from_value(json).map_err(bad)?))
    }
}

/// Which tokens of the tower become features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Select {
    /// Patches.
    #[default]
    Default,
    /// Class token and patches.
    Full,
}

/// Stage of a QLIP tower that becomes features (QLIP section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum VisionFeature {
    /// Hidden states of `vision_feature_layer`.
    #[default]
    Hidden,
    /// Unit latents, before the signs are taken.
    Latents,
    /// The quantised codes, as plus and minus 1 / sqrt(bits).
    Codes,
}

impl LlavaConfig {
    /// From the text of a config.json of either layout.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let json: serde_json::Value = serde_json::from_str(text).map_err(|e| Error::bad_file(path, e.to_string()))?;
        let config = if json.get("mm_vision_tower").is_some() {
            Self::from_original(path, &json)?
        } else {
            parse_json(path, text)?
        };
        config.check().map_err(|e| Error::bad_file(path, e.to_string()))?;
        Ok(config)
    }

    /// The first release keeps the language model's fields at the root and names the tower by its hub id.
    fn from_original(path: &Path, json: &serde_json::Value) -> Result<Self> {
        let bad = |why: String| Error::bad_file(path, why);
        let tower = json["mm_vision_tower"].as_str().unwrap_or_default();
        if !tower.contains("clip-vit-large-patch14-336") {
            return Err(bad(format!("mm_vision_tower `{tower}` is not known; use clip-vit-large-patch14-336")));
        }
        match json["mm_projector_type"].as_str() {
            Some("mlp2x_gelu") => {}
            other => return Err(bad(format!("mm_projector_type {other:?} is not known; use mlp2x_gelu"))),
        }
        if !json["quantization_config"].is_null() {
            return Err(bad("quantization_config is not known here; use the model's unquantised files".into()));
        }
        const TEXT: [&str; 15] = [
            "rope_scaling",
            "rope_parameters",
            "attention_bias",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
            "rms_norm_eps",
            "max_position_embeddings",
            "rope_theta",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
        ];
        let mut text: serde_json::Map<_, _> =
            TEXT.iter().filter_map(|k| Some(((*k).to_owned(), json.get(*k)?.clone()))).collect();
        qlip::config::one_spelling(&mut text);
        let text_config: LlamaConfig = serde_json::from_value(text.into()).map_err(|e| bad(e.to_string()))?;
        let select = match json["mm_vision_select_feature"].as_str() {
            Some("cls_patch") => Select::Full,
            _ => Select::Default,
        };
        Ok(Self {
            model_type: "llava".into(),
            vision_config: VisionConfig::Clip(ClipVisionConfig::large_336()),
            // the first release marks pictures with -200 outside the vocabulary; one id past it is ours
            image_token_index: text_config.vocab_size as Token,
            text_config,
            vision_feature_layer: json["mm_vision_select_layer"].as_i64().unwrap_or(-2),
            vision_feature_select_strategy: select,
            projector_hidden_act: Activation::Gelu,
            multimodal_projector_bias: true,
            vision_feature: VisionFeature::Hidden,
            image_seq_length: None,
            ignore_index: None,
            pad_token_id: None,
            vocab_size: None,
            tie_word_embeddings: false,
            image_grid_pinpoints: None,
        })
    }

    /// Whether the parts fit together.
    pub fn check(&self) -> Result<()> {
        self.text_config.check()?;
        let layers = match &self.vision_config {
            VisionConfig::Clip(c) => {
                c.check()?;
                c.num_hidden_layers
            }
            VisionConfig::Qlip(c) => {
                c.check("vision_config")?;
                if self.vision_feature != VisionFeature::Hidden {
                    c.check_quantizer()?;
                }
                c.num_hidden_layers
            }
        };
        if matches!(self.vision_config, VisionConfig::Clip(_)) && self.vision_feature != VisionFeature::Hidden {
            return Err(Error::invalid("vision_feature: a CLIP tower has no codes; use \"hidden\""));
        }
        self.layer_index(layers)?;
        Ok(())
    }

    /// Index of the feature layer among `layers` + 1 hidden states.
    fn layer_index(&self, layers: usize) -> Result<usize> {
        let at = self.vision_feature_layer + if self.vision_feature_layer < 0 { layers as i64 + 1 } else { 0 };
        usize::try_from(at).ok().filter(|&i| i <= layers).ok_or_else(|| {
            Error::invalid(format!("vision_feature_layer {} of a tower of {layers} layers", self.vision_feature_layer))
        })
    }

    /// Index of the feature layer among the tower's hidden states.
    pub(super) fn feature_layer(&self) -> Result<usize> {
        match &self.vision_config {
            VisionConfig::Clip(c) => self.layer_index(c.num_hidden_layers),
            VisionConfig::Qlip(c) => self.layer_index(c.num_hidden_layers),
        }
    }

    /// Width of what the tower gives the projector.
    pub fn feature_width(&self) -> usize {
        match (&self.vision_config, self.vision_feature) {
            (VisionConfig::Clip(c), _) => c.hidden_size,
            (VisionConfig::Qlip(c), VisionFeature::Hidden) => c.hidden_size,
            (VisionConfig::Qlip(c), _) => c.quantizer_cfg.embed_dim,
        }
    }
}
