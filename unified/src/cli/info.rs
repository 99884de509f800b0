//! `unified info [MODEL]` and `unified export MODEL OUT`

use super::common::Common;
use anyhow::Result;
use candle_core::{DType, Tensor};
use clap::Args;
use std::collections::{BTreeMap, HashMap};
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
        } else if json["model_type"] == "llama" {
            "Llama decoder"
        } else {
            "unknown (config.json names no architecture of this program)"
        };
        let count = |t: &HashMap<String, Tensor>| t.values().map(Tensor::elem_count).sum::<usize>();
        let total: usize = parts.iter().map(|p| count(&p.1)).sum();
        // what `--dtype f32` holds; activations of one picture are small beside it
        let memory = total * 4;
        if common.json {
            let each: serde_json::Map<_, _> = parts.iter().map(|p| (p.0.to_owned(), count(&p.1).into())).collect();
            println!(
                "{}",
                serde_json::json!({
                    "architecture": architecture, "parameters": each, "memory_bytes_f32": memory, "vocabulary": vocabulary,
                })
            );
            return Ok(());
        }
        println!("{architecture}");
        for (name, t) in &parts {
            println!("{name}: {:.2}M parameters in {} tensors", count(t) as f64 / 1e6, t.len());
        }
        println!("memory: {:.0} MiB of weights in f32", memory as f64 / f64::from(1 << 20));
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
            let half: BTreeMap<String, Tensor> = weights
                .into_iter()
                .map(|(k, t)| Ok((k, t.to_dtype(DType::F16)?)))
                .collect::<candle_core::Result<_>>()?;
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
