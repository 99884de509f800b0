//! Writes a class-conditional LlamaGen of a published size and its VQ-16 tokenizer with random weights, in the published
//! layout, for measuring memory and speed: `cargo run --release --example random_llamagen -- B DIR`.

use candle_core::{DType, Device};
use lm::llamagen::{LlamaGen, LlamaGenConfig, ModelType};
use nn::{Params, checkpoint};
use qlip::vq::{VqConfig, VqTokenizer};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Tokens along a side of a picture of 256 pixels.
const GRID: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(size), Some(out)) = (args.next(), args.next().map(PathBuf::from)) else {
        return Err("usage: random_llamagen SIZE DIR".into());
    };
    let params = || Params::for_training(HashMap::new(), &[], 1, DType::F32, &Device::Cpu);
    let decoder = params();
    let config = LlamaGenConfig::preset(&size, ModelType::C2i, GRID)?;
    LlamaGen::new(&decoder, &config)?;
    write(&out, &serde_json::to_string_pretty(&config)?, &decoder)?;
    let tokenizer = params();
    let config = VqConfig::default();
    VqTokenizer::new(&tokenizer, &config)?;
    write(&out.join("vq"), &serde_json::to_string_pretty(&config)?, &tokenizer)?;
    println!("{}", out.display());
    Ok(())
}

fn write(dir: &Path, config: &str, params: &Params) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("config.json"), config)?;
    let tensors: BTreeMap<_, _> = params.vars().into_iter().map(|(k, v)| (k, v.as_detached_tensor())).collect();
    checkpoint::save(&dir.join("model.safetensors"), &tensors, &[])?;
    Ok(())
}
