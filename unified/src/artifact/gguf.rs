//! llama.cpp's files: a Llama with its text tokenizer and chat template in one file, as a model's folder would be.

use super::files::{Made, ModelFiles, Weights};
use super::sentencepiece::{self, Kind, Piece};
use crate::{Error, Result};
use nn::gguf::{Head, Value};
use nn::stored::Stored;
use serde_json::json;
use std::path::Path;

/// A file as a model's folder would be.
pub fn files(path: &Path) -> Result<ModelFiles> {
    let (head, factors) = nn::gguf::head_and(path, ROPE_FREQS)?;
    let made = Llama { head: &head, factors }.files().map_err(|why| Error::bad_file(path, why))?;
    let heads = made.1;
    Ok(ModelFiles::made(Made { origin: path.to_path_buf(), files: made.0, weights: Weights::Gguf { heads } }))
}

/// Its tensors under transformers' names and in transformers' order of rows.
pub fn tensors(path: &Path, (heads, kv_heads): (usize, usize)) -> Result<Stored> {
    let mut stored = Stored::map_files(vec![path.to_path_buf()])?.renamed(ours);
    let names: Vec<String> = stored.shapes().iter().map(|s| s.0.to_owned()).collect();
    for name in names {
        if name.ends_with("self_attn.q_proj.weight") {
            stored.part_pairs(&name, heads)?;
        } else if name.ends_with("self_attn.k_proj.weight") {
            stored.part_pairs(&name, kv_heads)?;
        }
    }
    Ok(stored.filtered(|name| name != ROPE_FREQS))
}

const ROPE_FREQS: &str = "rope_freqs.weight";

fn ours(name: &str) -> String {
    let fixed = [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
    ];
    let layer = [
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    super::decoder_name(name, &fixed, "blk.", &layer)
}

struct Llama<'a> {
    head: &'a Head,
    /// What each rotary pair's frequency is divided by.
    factors: Option<Vec<f32>>,
}

type Files = std::collections::BTreeMap<String, Vec<u8>>;

impl Llama<'_> {
    fn get(&self, name: &str) -> Option<&Value> {
        self.head.settings.get(name)
    }
    fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::text)
    }
    fn index(&self, name: &str) -> std::result::Result<usize, String> {
        self.get(name).and_then(Value::index).ok_or_else(|| format!("no setting {name}"))
    }

    /// The folder's files, and heads of queries and of keys.
    fn files(&self) -> std::result::Result<(Files, (usize, usize)), String> {
        match self.text("general.architecture") {
            Some("llama") => {}
            Some(other) => return Err(format!("general.architecture {other} is not known here; llama is")),
            None => return Err("no setting general.architecture".into()),
        }
        if self.index("llama.expert_count").is_ok_and(|n| n > 0) {
            return Err("llama.expert_count: mixtures of experts are not known here".into());
        }
        let tokens = self.get("tokenizer.ggml.tokens").map(Value::list).unwrap_or_default();
        if tokens.is_empty() {
            return Err("no tokenizer.ggml.tokens: the file has no text tokenizer".into());
        }
        let heads = self.index("llama.attention.head_count")?;
        let kv_heads = self.index("llama.attention.head_count_kv").unwrap_or(heads);
        let width = self.index("llama.embedding_length")?;
        let head_dim = self.index("llama.attention.key_length").unwrap_or(width / heads.max(1));
        if self.index("llama.rope.dimension_count").is_ok_and(|n| n != head_dim) {
            return Err("llama.rope.dimension_count differs from the width of a head, which is not known here".into());
        }
        let number = |name: &str, or: f64| self.get(name).and_then(Value::number).unwrap_or(or);
        let special =
            |name: &str| self.index(&format!("tokenizer.ggml.{name}_token_id")).ok().filter(|&i| i < tokens.len());
        let (bos, eos, eot) = (special("bos"), special("eos"), special("eot"));
        let mut ends: Vec<usize> = eos.into_iter().chain(eot).collect();
        ends.dedup();
        let mut config = json!({
            "model_type": "llama", "hidden_size": width, "intermediate_size": self.index("llama.feed_forward_length")?,
            "num_hidden_layers": self.index("llama.block_count")?, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim,
            "max_position_embeddings": self.index("llama.context_length")?, "vocab_size": tokens.len(),
            "rms_norm_eps": number("llama.attention.layer_norm_rms_epsilon", 1e-5),
            "rope_theta": number("llama.rope.freq_base", 10000.0), "bos_token_id": bos, "eos_token_id": ends,
            "tie_word_embeddings": !self.head.contains("output.weight"),
        });
        if let Some(scaling) = self.scaling(&config)? {
            config["rope_scaling"] = scaling;
        }
        let token = |i: Option<usize>| i.and_then(|i| tokens[i].text());
        let about = json!({
            "bos_token": token(bos), "eos_token": token(eos), "chat_template": self.text("tokenizer.chat_template"),
        });
        let files =
            [("config.json", config), ("tokenizer.json", self.tokenizer(tokens)?), ("tokenizer_config.json", about)];
        Ok((files.into_iter().map(|(n, v)| (n.to_owned(), v.to_string().into_bytes())).collect(), (heads, kv_heads)))
    }

    /// How positions are stretched: said by name, or by a factor for each rotary pair (Llama 3's).
    fn scaling(&self, config: &serde_json::Value) -> std::result::Result<Option<serde_json::Value>, String> {
        match self.text("llama.rope.scaling.type") {
            None | Some("none") => {}
            Some("linear") => {
                let factor = self.get("llama.rope.scaling.factor").and_then(Value::number).unwrap_or(1.0);
                return Ok(Some(json!({"rope_type": "linear", "factor": factor})));
            }
            Some(other) => return Err(format!("llama.rope.scaling.type {other} is not known; linear is")),
        }
        if !self.head.contains(ROPE_FREQS) {
            return Ok(None);
        }
        // the factors are computed from four numbers of which the file keeps none: the published ones are tried
        let found = self.factors.as_ref().ok_or("rope_freqs.weight is not float32")?;
        for factor in [8.0, 32.0, 4.0, 16.0] {
            let scaling = json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192});
            let with = |s: serde_json::Value| -> Option<Vec<f64>> {
                let mut c = config.clone();
                c["rope_scaling"] = s;
                let c: lm::LlamaConfig = serde_json::from_value(c).ok()?;
                c.check().ok()?;
                Some(c.inverse_frequencies())
            };
            let (Some(plain), Some(scaled)) = (with(serde_json::Value::Null), with(scaling.clone())) else { continue };
            let fits = |((p, s), f): ((&f64, &f64), &f32)| (p / s - f64::from(*f)).abs() <= 1e-3 * p / s;
            if plain.len() == found.len() && plain.iter().zip(&scaled).zip(found).all(fits) {
                return Ok(Some(scaling));
            }
        }
        Err("rope_freqs.weight holds factors that are not Llama 3's; they are not known here".into())
    }

    fn tokenizer(&self, tokens: &[Value]) -> std::result::Result<serde_json::Value, String> {
        let kinds = self.get("tokenizer.ggml.token_type").map(Value::list).unwrap_or_default();
        let scores = self.get("tokenizer.ggml.scores").map(Value::list).unwrap_or_default();
        let piece = |(i, t): (usize, &Value)| {
            Some(Piece {
                text: t.text()?.to_owned(),
                score: scores.get(i).and_then(Value::number).unwrap_or(0.0) as f32,
                kind: Kind::of(kinds.get(i).and_then(Value::index).unwrap_or(1) as u64),
            })
        };
        let pieces: Option<Vec<Piece>> = tokens.iter().enumerate().map(piece).collect();
        let pieces = pieces.ok_or("tokenizer.ggml.tokens holds what is no text")?;
        match self.text("tokenizer.ggml.model") {
            Some("llama") => {
                let prefix = self.get("tokenizer.ggml.add_space_prefix") != Some(&Value::Bool(false));
                Ok(sentencepiece::bpe_json(&pieces, prefix))
            }
            Some("gpt2") => self.byte_level(&pieces),
            other => {
                Err(format!("tokenizer.ggml.model {} is not known; llama and gpt2 are", other.unwrap_or("(none)")))
            }
        }
    }

    /// Byte pairs over bytes written as letters; how words are cut first goes by name.
    fn byte_level(&self, pieces: &[Piece]) -> std::result::Result<serde_json::Value, String> {
        let merges: Option<Vec<(&str, &str)>> = self
            .get("tokenizer.ggml.merges")
            .map(Value::list)
            .unwrap_or_default()
            .iter()
            .map(|m| m.text()?.split_once(' '))
            .collect();
        let merges = merges.ok_or("tokenizer.ggml.merges holds what is no pair")?;
        let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let pre = self.text("tokenizer.ggml.pre").unwrap_or("default");
        let cut = match pre {
            "llama-bpe" | "llama3" | "llama-v3" => vec![split(llama3), bytes(false)],
            "default" | "gpt-2" => vec![bytes(true)],
            "smollm" => vec![json!({"type": "Digits", "individual_digits": true}), bytes(true)],
            other => return Err(format!("tokenizer.ggml.pre {other} is not known; llama-bpe, gpt-2 and smollm are")),
        };
        let vocab: serde_json::Map<String, serde_json::Value> =
            pieces.iter().enumerate().map(|(i, p)| (p.text.clone(), i.into())).collect();
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": sentencepiece::added(pieces),
            "normalizer": null, "pre_tokenizer": {"type": "Sequence", "pretokenizers": cut}, "post_processor": null,
            "decoder": bytes(true),
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": pre.starts_with("llama"), "vocab": vocab,
                "merges": merges.iter().map(|m| json!([m.0, m.1])).collect::<Vec<_>>(),
            },
        }))
    }
}
