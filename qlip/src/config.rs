//! config.json of a QLIP checkpoint, with the published field names.

use nn::block::{BlockConfig, MlpKind, NormKind};
use nn::ops::Activation;
use nn::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Root of config.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct QlipConfig {
    /// "clip", as published.
    #[serde(default = "clip")]
    pub model_type: String,
    /// Text tower.
    pub text_config: TextConfig,
    /// Vision tower and quantizer.
    pub vision_config: TowerConfig,
    /// Pixel decoder.
    pub decoder_config: TowerConfig,
    /// Width of the shared embedding.
    #[serde(default = "w512")]
    pub projection_dim: usize,
    /// First value of the logarithm of the similarity's scale.
    #[serde(default = "logit_scale")]
    pub logit_scale_init_value: f32,
    /// Whether the image projection has a bias.
    pub vision_projection_bias: bool,
    /// Whether the text projection has a bias.
    pub text_projection_bias: bool,
}

fn clip() -> String {
    "clip".into()
}
fn w512() -> usize {
    512
}
fn logit_scale() -> f32 {
    2.6592
}
fn yes() -> bool {
    true
}
fn eps() -> f64 {
    1e-5
}
fn gelu() -> Activation {
    Activation::Gelu
}
fn range() -> f32 {
    0.02
}
fn channels() -> usize {
    3
}
fn bsq() -> String {
    "bsq".into()
}
fn mlp() -> String {
    "mlp".into()
}

/// The text tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "published field names")]
pub struct TextConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    #[serde(default = "w512")]
    pub projection_dim: usize,
    pub max_position_embeddings: usize,
    #[serde(default = "gelu")]
    pub hidden_act: Activation,
    #[serde(default = "eps")]
    pub layer_norm_eps: f64,
    #[serde(default)]
    pub attention_dropout: f32,
    #[serde(default = "range")]
    pub initializer_range: f32,
    #[serde(default = "yes")]
    pub q_bias: bool,
    #[serde(default = "yes")]
    pub k_bias: bool,
    #[serde(default = "yes")]
    pub v_bias: bool,
    #[serde(default)]
    pub subln: bool,
    #[serde(default)]
    pub swiglu: bool,
    #[serde(default)]
    pub rope: bool,
    #[serde(default)]
    pub post_layernorm: bool,
    pub pad_token_id: u32,
    pub bos_token_id: u32,
    pub eos_token_id: u32,
}

/// The vision tower or the pixel decoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "published field names")]
pub struct TowerConfig {
    #[serde(default = "channels")]
    pub num_channels: usize,
    #[serde(default = "gelu")]
    pub hidden_act: Activation,
    #[serde(default = "eps")]
    pub layer_norm_eps: f64,
    #[serde(default)]
    pub attention_dropout: f32,
    #[serde(default = "range")]
    pub initializer_range: f32,
    #[serde(default = "yes")]
    pub q_bias: bool,
    #[serde(default = "yes")]
    pub k_bias: bool,
    #[serde(default = "yes")]
    pub v_bias: bool,
    #[serde(default)]
    pub subln: bool,
    #[serde(default)]
    pub swiglu: bool,
    #[serde(default)]
    pub rope: bool,
    #[serde(default)]
    pub post_layernorm: bool,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    #[serde(default = "w512")]
    pub projection_dim: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub image_size: usize,
    pub patch_size: usize,
    #[serde(default = "bsq")]
    pub quantizer: String,
    #[serde(default = "yes")]
    pub quantizer_l2_norm: bool,
    #[serde(default = "mlp")]
    pub quantizer_embed_type: String,
    #[serde(default)]
    pub hidden_size_post_q: Option<usize>,
    #[serde(default)]
    pub quantizer_cfg: QuantizerConfig,
    /// Layers below the last (1 is the first) whose outputs the bottleneck reads too; none as published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quantizer_levels: Vec<usize>,
}

/// Arguments of the quantizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "published field names")]
pub struct QuantizerConfig {
    pub embed_dim: usize,
    pub group_size: usize,
    pub soft_entropy: bool,
    pub beta: f64,
    pub gamma_0: f64,
    pub gamma_1: f64,
    pub input_format: String,
    pub persample_entropy_compute: EntropyMode,
    pub l2_norm: bool,
    pub inv_temperature: f64,
}

impl Default for QuantizerConfig {
    fn default() -> Self {
        Self {
            embed_dim: 18,
            group_size: 9,
            soft_entropy: true,
            beta: 0.0,
            gamma_0: 1.0,
            gamma_1: 1.0,
            input_format: "blc".into(),
            persample_entropy_compute: EntropyMode::Group,
            l2_norm: true,
            inv_temperature: 100.0,
        }
    }
}

/// How the soft entropies are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum EntropyMode {
    /// Over the 2^c corners of each group.
    Group,
    /// Bit by bit.
    Analytical,
    /// As `group`, from the probabilities of each half of a group and their products: nothing of size 2^c a token, and no
    /// epsilon of 1e-8. Ours; written to a model's folder as `group`, which is what a training from that folder has.
    Factorised,
}

impl TowerConfig {
    /// Patches along one side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Width of the latents after the quantizer.
    pub fn width_after_quantizer(&self) -> usize {
        self.hidden_size_post_q.unwrap_or(self.hidden_size)
    }

    pub(crate) fn block(&self) -> BlockConfig {
        let mlp = if self.swiglu { MlpKind::SwiGlu } else { MlpKind::Plain(self.hidden_act) };
        let bias = [self.q_bias, self.k_bias, self.v_bias, true, true];
        block(
            self.hidden_size,
            self.intermediate_size,
            self.num_attention_heads,
            self.num_hidden_layers,
            self.layer_norm_eps,
            mlp,
            bias,
            self.subln,
            self.initializer_range,
        )
    }

    /// Whether its numbers fit together; `what` names it.
    pub fn check(&self, what: &str) -> Result<()> {
        let bad = |why: &str| Err(Error::invalid(format!("{what}: {why}")));
        if self.patch_size == 0 || self.image_size == 0 || !self.image_size.is_multiple_of(self.patch_size) {
            return bad("image_size must be a positive multiple of patch_size");
        }
        check_heads(what, self.hidden_size, self.num_attention_heads, self.rope)
    }

    /// Whether a vision tower's quantizer is one that this program knows.
    pub fn check_quantizer(&self) -> Result<()> {
        let q = &self.quantizer_cfg;
        if self.quantizer != "bsq" {
            return Err(Error::invalid(format!(
                "vision_config: quantizer `{}` is not known; use `bsq`",
                self.quantizer
            )));
        }
        if let Some(l) = self.quantizer_levels.iter().find(|&&l| l == 0 || l >= self.num_hidden_layers) {
            let last = self.num_hidden_layers.saturating_sub(1);
            return Err(Error::invalid(format!("quantizer_levels: layer {l}; write layers from 1 to {last}")));
        }
        if q.embed_dim == 0
            || q.embed_dim > 128
            || q.group_size == 0
            || !q.embed_dim.is_multiple_of(q.group_size)
            || q.group_size > 24
        {
            return Err(Error::invalid("quantizer_cfg: embed_dim must be 1 to 128 bits in equal groups of at most 24"));
        }
        Ok(())
    }
}

impl TextConfig {
    pub(crate) fn block(&self) -> BlockConfig {
        let mlp = if self.swiglu { MlpKind::SwiGlu } else { MlpKind::Plain(self.hidden_act) };
        let bias = [self.q_bias, self.k_bias, self.v_bias, true, true];
        block(
            self.hidden_size,
            self.intermediate_size,
            self.num_attention_heads,
            self.num_hidden_layers,
            self.layer_norm_eps,
            mlp,
            bias,
            self.subln,
            self.initializer_range,
        )
    }
}

fn check_heads(what: &str, width: usize, heads: usize, rope: bool) -> Result<()> {
    if heads == 0 || !width.is_multiple_of(heads) || (rope && !(width / heads).is_multiple_of(4)) {
        return Err(Error::invalid(format!("{what}: hidden_size {width} does not divide into {heads} heads")));
    }
    Ok(())
}

fn block(
    width: usize,
    mlp_width: usize,
    heads: usize,
    layers: usize,
    eps: f64,
    mlp: MlpKind,
    bias: [bool; 5],
    sub_norm: bool,
    std: f32,
) -> BlockConfig {
    BlockConfig {
        width,
        mlp_width,
        heads,
        kv_heads: heads,
        head_dim: width / heads,
        norm: NormKind::Layer,
        eps,
        mlp,
        bias,
        sub_norm,
        qk_norm: None,
        norm_after: false,
        init_std: std,
        residual_std: std / (2.0 * layers as f32).sqrt(),
    }
}

/// The block of a tower without rope, gates or inner norms (CLIP): (width, mlp width, heads, layers).
pub(crate) fn plain_block(shape: (usize, usize, usize, usize), eps: f64, mlp: MlpKind, std: f32) -> BlockConfig {
    let (width, mlp_width, heads, layers) = shape;
    block(width, mlp_width, heads, layers, eps, mlp, [true; 5], false, std)
}

impl QlipConfig {
    /// As a model's folder has it: with the published names alone.
    pub fn published(&self) -> Self {
        let mut c = self.clone();
        for q in [&mut c.vision_config.quantizer_cfg, &mut c.decoder_config.quantizer_cfg] {
            if q.persample_entropy_compute == EntropyMode::Factorised {
                q.persample_entropy_compute = EntropyMode::Group;
            }
        }
        c
    }

    /// Reads config.json.
    pub fn from_file(path: &Path) -> Result<Self> {
        let config: Self = read_json(path)?;
        config.check().map_err(|e| Error::bad_file(path, e.to_string()))?;
        Ok(config)
    }

    /// Whether the parts fit together.
    pub fn check(&self) -> Result<()> {
        self.vision_config.check("vision_config")?;
        self.vision_config.check_quantizer()?;
        self.decoder_config.check("decoder_config")?;
        check_heads("text_config", self.text_config.hidden_size, self.text_config.num_attention_heads, false)?;
        if self.decoder_config.grid() != self.vision_config.grid() {
            return Err(Error::invalid("the decoder's grid differs from the vision tower's"));
        }
        if self.vision_config.width_after_quantizer() != self.decoder_config.hidden_size {
            return Err(Error::invalid("hidden_size_post_q differs from the decoder's hidden_size"));
        }
        Ok(())
    }
}

/// Keys that the transformers library writes into every config and that say nothing about the model.
const BOOKKEEPING: &[&str] = &[
    "_name_or_path",
    "_commit_hash",
    "architectures",
    "auto_map",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    "torchscript",
    "use_bfloat16",
    "tf_legacy_loss",
    "pruned_heads",
    "is_encoder_decoder",
    "is_decoder",
    "cross_attention_hidden_size",
    "add_cross_attention",
    "tie_encoder_decoder",
    "chunk_size_feed_forward",
    "id2label",
    "label2id",
    "finetuning_task",
    "problem_type",
    "tokenizer_class",
    "prefix",
    "sep_token_id",
    "decoder_start_token_id",
    "task_specific_params",
    "max_length",
    "min_length",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "num_return_sequences",
    "output_scores",
    "return_dict_in_generate",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "use_cache",
    "pretraining_tp",
    "initializer_factor",
    "_attn_implementation_autoset",
    "_attn_implementation",
    "unsloth_version",
    "unsloth_fixed",
    "mlp_only_layers",
];

/// Reads a config.json into a struct that refuses unknown keys; transformers' bookkeeping keys are dropped first.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    parse_json(path, &text)
}

/// As [`read_json`], from text; `origin` names it in errors.
pub fn parse_json<T: DeserializeOwned>(origin: &Path, text: &str) -> Result<T> {
    let bad = |e: serde_json::Error| Error::bad_file(origin, e.to_string());
    let mut json: serde_json::Value = serde_json::from_str(text).map_err(bad)?;
    strip(&mut json);
    serde_json::from_value(json).map_err(bad)
}

/// Writes what transformers 5 and older versions spell in several ways as the one spelling that the structs read, where that
/// changes no result.
pub fn one_spelling(map: &mut serde_json::Map<String, serde_json::Value>) {
    use serde_json::Value;
    // transformers 5 keeps all of rope in one place
    if let Some(Value::Object(mut rope)) = map.remove("rope_parameters") {
        if let Some(theta) = rope.remove("rope_theta") {
            map.insert("rope_theta".into(), theta);
        }
        rope.remove("partial_rotary_factor")
            .filter(|f| *f != serde_json::json!(1.0))
            .map(|f| rope.insert("partial_rotary_factor".into(), f));
        map.insert("rope_scaling".into(), Value::Object(rope));
    }
    if let Some(Value::Object(rope)) = map.get_mut("rope_scaling") {
        if let Some(kind) = rope.remove("type") {
            rope.entry("rope_type").or_insert(kind);
        }
        if rope.get("rope_type").is_some_and(|t| t == "default") && rope.len() == 1 {
            map.remove("rope_scaling");
        }
    }
    // every layer attends to everything, which is all that there is
    let full = |v: &Value| v.as_array().is_some_and(|a| a.iter().all(|t| t == "full_attention"));
    if map.get("layer_types").is_some_and(full) {
        map.remove("layer_types");
    }
    if map.get("pad_token_id").is_some_and(|p| p.as_i64() == Some(-1)) {
        map.remove("pad_token_id");
    }
    for key in ["sliding_window", "quantization_config", "rope_scaling", "attention_chunk_size"] {
        if map.get(key).is_some_and(Value::is_null) {
            map.remove(key);
        }
    }
}

fn strip(json: &mut serde_json::Value) {
    if let Some(map) = json.as_object_mut() {
        map.retain(|k, _| !BOOKKEEPING.contains(&k.as_str()));
        one_spelling(map);
        for (key, value) in map.iter_mut() {
            if key.ends_with("_config") {
                strip(value);
                // the towers repeat the family's name, which the root has already
                if let Some(tower) = value.as_object_mut() {
                    tower.remove("model_type");
                    if key == "vision_config" {
                        // text's, left over from the joint config
                        for k in ["bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"] {
                            tower.remove(k);
                        }
                    }
                }
            }
        }
    }
}
