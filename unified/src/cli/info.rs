//! `unified info [MODEL]` and `unified export MODEL OUT`

use super::common::Common;
use anyhow::Result;
use candle_core::{DType, Tensor};
use clap::Args;
use nn::params::Storage;
use nn::stored::{Stored, storage_bytes};
use std::collections::BTreeMap;
use std::path::PathBuf;
use unified::config::UnifiedConfig;
use unified::eyes::load_weights;
use unified::files::ModelFiles;

/// Print a model's architecture, parameters, memory and vocabulary.
#[derive(Args)]
pub struct Info {
    #[command(flatten)]
    common: Common,
    /// Model folder or hub id; the same as --model.
    #[arg(value_name = "MODEL")]
    target: Option<String>,
}

impl Info {
    pub fn run(&self) -> Result<()> {
        let common = Common { model: self.target.clone().or(self.common.model.clone()), ..self.common.clone() };
        let files = common.files()?;
        let json: serde_json::Value = serde_json::from_str(&files.text("config.json")?)?;
        let mut parts = vec![("model", load_weights(&files, "")?)];
        let mut vocabulary = serde_json::Value::Null;
        let architecture = if json["model_type"] == "um3" {
            let config: UnifiedConfig =
                qlip::config::parse_json(&files.path_of("config.json"), &files.text("config.json")?)?;
            let v = &config.vocabulary;
            vocabulary = serde_json::json!({
                "text": [0, v.text], "visual": [v.text, v.rows()], "sub_tokens": v.groups(), "bits_per_code": v.bits,
                "visual_tokens_per_image": v.tokens_per_image(), "begin_image": v.begin_image, "end_image": v.end_image,
            });
            parts[0].0 = "language model";
            parts.push(("image tokenizer", load_weights(&files, &config.image_tokenizer)?));
            "unified: Llama-style decoder over text and visual rows, QLIP image tokenizer"
        } else if json.get("decoder_config").is_some() {
            "QLIP: vision tower, text tower, binary spherical quantizer, pixel decoder"
        } else if json["model_type"] == "llava" || json.get("mm_vision_tower").is_some() {
            "LLaVA: vision tower, two-layer projector, Llama decoder"
        } else if json["model_type"] == "c2i" || json["model_type"] == "t2i" {
            "LlamaGen: Llama-style decoder of picture tokens"
        } else if json.get("codebook_size").is_some() {
            "VQ image tokenizer of LlamaGen"
        } else if json["model_type"] == "classifier" {
            "classifier of pictures: convolutions"
        } else if json["model_type"] == "clip_vision_model" {
            "CLIP vision tower"
        } else if json["model_type"] == "llama" {
            "Llama decoder"
        } else {
            "unknown (config.json names no architecture of this program)"
        };
        let text = json.get("text_config").unwrap_or(&json);
        if let (serde_json::Value::Null, Some(rows)) = (&vocabulary, text["vocab_size"].as_u64()) {
            vocabulary = serde_json::json!({ "rows": rows });
        }
        let count = |t: &Stored| t.shapes().iter().map(|s| s.1.iter().product::<usize>()).sum::<usize>();
        // weights; activations of a conversation are small beside those of a model where memory matters
        let memory = |storage| -> usize {
            parts.iter().flat_map(|p| p.1.shapes()).map(|(name, shape)| storage_bytes(name, shape, storage)).sum()
        };
        let (plain, blocks) = (memory(Storage::Plain), memory(Storage::Q8_0));
        if common.json {
            let each: serde_json::Map<_, _> = parts.iter().map(|p| (p.0.to_owned(), count(&p.1).into())).collect();
            println!(
                "{}",
                serde_json::json!({
                    "architecture": architecture, "parameters": each, "memory_bytes_f32": plain, "memory_bytes_q8_0": blocks, "vocabulary": vocabulary,
                })
            );
            return Ok(());
        }
        println!("{architecture}");
        for (name, t) in &parts {
            println!("{name}: {:.2}M parameters in {} tensors", count(t) as f64 / 1e6, t.shapes().len());
        }
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        println!("memory: {:.0} MiB of weights in f32, {:.0} MiB with --dtype q8_0", mib(plain), mib(blocks));
        if let Some(v) = vocabulary.as_object() {
            for (k, v) in v {
                println!("{}: {v}", k.replace('_', " "));
            }
        }
        Ok(())
    }
}

/// Copy a model without its training state, weights as float16.
#[derive(Args)]
pub struct Export {
    /// Model folder.
    from: PathBuf,
    /// Folder to write.
    to: PathBuf,
}

const FILES: &[&str] =
    &["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "training.toml"];

impl Export {
    pub fn run(&self) -> Result<()> {
        let files = ModelFiles::Dir(self.from.clone());
        let nested = files.has("qlip/config.json");
        for folder in if nested { &["", "qlip"][..] } else { &[""] } {
            let weights = load_weights(&files, folder)?;
            let mut half = BTreeMap::<String, Tensor>::new();
            for (name, _) in weights.shapes() {
                if let Some(t) = weights.get(name)? {
                    half.insert(name.to_owned(), t.to_dtype(DType::F16)?);
                }
            }
            let to = self.to.join(folder);
            super::common::out_dir(&to)?;
            nn::checkpoint::save(&to.join("model.safetensors"), &half, &[])?;
            for name in FILES {
                let from = self.from.join(folder).join(name);
                if from.is_file() {
                    let bytes = std::fs::read(&from).map_err(nn::Error::io(&from))?;
                    nn::checkpoint::write_atomic(&to.join(name), &bytes)?;
                }
            }
        }
        println!("{}", self.to.display());
        Ok(())
    }
}
