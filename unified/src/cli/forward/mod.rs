//! `unified forward MODEL_DIR INPUTS -o OUTPUTS`: stage by stage outputs for people who port checkpoints.

mod chameleon;
mod emu3;
mod janus;
mod llama;
mod llamagen;
mod llava;
mod qlip;

use super::common::Common;
use ::qlip::clip::{ClipTower, ClipVisionConfig};
use ::qlip::config::{QlipConfig, read_json};
use ::qlip::vq::{VqConfig, VqTokenizer};
use ::qlip::{Pixels, Qlip};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use clap::Args;
use lm::llamagen::{LlamaGen, LlamaGenConfig};
use lm::{Llama, LlamaConfig};
use nn::stored::Stored;
use nn::{Params, checkpoint};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use unified::chameleon::Chameleon;
use unified::emu3::Emu3;
use unified::files::{ModelFiles, Placement};
use unified::janus::Janus;
use unified::llava::{Llava, LlavaConfig, published_name};

/// Run a model's parts on given inputs and write every stage (names as in tests/fixtures/README.md).
#[derive(Args)]
pub struct Forward {
    #[command(flatten)]
    common: Common,
    /// Folder with config.json and model.safetensors; the architecture is found from config.json.
    model_dir: PathBuf,
    /// QLIP: pixel_values, input_ids. Llama: input_ids, labels, padded_ids and padded_mask, greedy_prompt. CLIP vision:
    /// pixel_values. LLaVA: pixel_values, input_ids, labels, two_images_ids, greedy_prompt. LlamaGen: condition,
    /// condition_drop, tokens, padded_condition and padded_mask. Its tokenizer: pixels in -1..1. Janus, Chameleon, Emu3: any of
    /// the inputs of their reference files.
    inputs: PathBuf,
    /// File for the outputs.
    #[arg(short, long)]
    out: PathBuf,
    /// Tokens to generate after greedy_prompt; 12 for Llama and 8 for LLaVA if not given, as in the reference files.
    #[arg(long)]
    max_tokens: Option<usize>,
}

type Named = BTreeMap<String, Tensor>;

impl Forward {
    pub fn run(&self) -> Result<()> {
        let device = self.common.device()?;
        let path = self.model_dir.join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let json: serde_json::Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let inputs = Inputs { path: &self.inputs, tensors: checkpoint::load(&self.inputs)?, device: device.clone() };
        let params = || -> Result<Params> {
            let params = Params::from_dir(&self.model_dir, self.common.dtype()?, &device)?;
            Ok(params.stored_as(self.common.dtype.weights()))
        };
        let out = if json.get("vision_config").is_some() && json.get("decoder_config").is_some() {
            let config = QlipConfig::from_file(&path)?;
            qlip::outputs(&Qlip::new(&params()?, &config, true)?, &inputs)?
        } else if json["model_type"] == "llama" {
            let config: LlamaConfig = read_json(&path)?;
            config.check().with_context(|| path.display().to_string())?;
            llama::outputs(
                &std::sync::Arc::new(Llama::new(&params()?, &config)?),
                &inputs,
                self.max_tokens.unwrap_or(12),
            )?
        } else if json["model_type"] == "c2i" || json["model_type"] == "t2i" {
            let config: LlamaGenConfig = read_json(&path)?;
            llamagen::outputs(&std::sync::Arc::new(LlamaGen::new(&params()?, &config)?), &inputs)?
        } else if json.get("codebook_size").is_some() {
            let config: VqConfig = read_json(&path)?;
            llamagen::tokenizer_outputs(&VqTokenizer::new(&params()?, &config)?, &inputs)?
        } else if json["model_type"] == "clip_vision_model" {
            let params = params()?;
            // transformers 5 writes the tower without its inner name
            let inner = !params.contains("embeddings.class_embedding");
            let params = if inner { params.at("vision_model") } else { params };
            let tower = ClipTower::new(&params, &read_json::<ClipVisionConfig>(&path)?)?;
            llava::tower_outputs(&tower, &inputs)?
        } else if json["model_type"] == "llava" || json.get("mm_vision_tower").is_some() {
            let config = LlavaConfig::parse(&path, &text)?;
            let tensors = Stored::map_dir(&self.model_dir)?.renamed(published_name);
            let origin = self.model_dir.display().to_string();
            let params = Params::from_tensors(origin, tensors, self.common.dtype()?, &device);
            llava::outputs(&Llava::new(&params, &config)?, &inputs, self.max_tokens.unwrap_or(8))?
        } else if json["model_type"] == "chameleon" || json["model_type"] == "emu3" {
            let files = ModelFiles::Dir(self.model_dir.clone());
            let placement = Placement { dtype: self.common.dtype()?, weights: self.common.dtype.weights(), device };
            if json["model_type"] == "emu3" {
                emu3::outputs(&Emu3::load(&files, &placement)?, &inputs, self.max_tokens)?
            } else {
                chameleon::outputs(&Chameleon::load(&files, &placement)?, &inputs, self.max_tokens)?
            }
        } else if json["model_type"] == "janus" || json["model_type"] == "multi_modality" {
            let files = ModelFiles::Dir(self.model_dir.clone());
            let placement = Placement { dtype: self.common.dtype()?, weights: self.common.dtype.weights(), device };
            janus::outputs(&Arc::new(Janus::load(&files, &placement)?), &inputs, self.max_tokens)?
        } else {
            bail!(
                "{}: model_type {} is not known here; QLIP, Llama, CLIP vision, LLaVA, LlamaGen and its tokenizer, Janus, Chameleon and Emu3 are",
                path.display(),
                json["model_type"]
            );
        };
        checkpoint::save(&self.out, &out, &[])?;
        if self.common.json {
            println!("{}", serde_json::json!({"out": self.out, "tensors": out.keys().collect::<Vec<_>>()}));
        } else {
            println!("{}", self.out.display());
        }
        Ok(())
    }
}

/// Numbers as the reference files hold them.
fn integers(values: &[u32], shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    let values: Vec<i64> = values.iter().map(|&v| i64::from(v)).collect();
    Ok(Tensor::from_vec(values, shape.into(), &Device::Cpu)?)
}

/// Pixels in -1..1 as bytes: (x + 1) / 2 x 255, clipped, truncated.
fn bytes(pixels: &Pixels) -> Result<Tensor> {
    Ok(Tensor::from_vec(pixels.to_bytes()?, pixels.0.shape(), &Device::Cpu)?)
}

struct Inputs<'a> {
    path: &'a Path,
    tensors: HashMap<String, Tensor>,
    device: Device,
}

impl Inputs<'_> {
    fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }
    /// Two-dimensional integers as [rows, columns].
    fn ids(&self, name: &str) -> Result<(Vec<i64>, usize, usize)> {
        let t = self.find(name).with_context(|| format!("{}: no tensor `{name}`", self.path.display()))?;
        let (r, c) = t.dims2().with_context(|| format!("{}: `{name}` must be [batch, tokens]", self.path.display()))?;
        if r == 0 || c == 0 {
            bail!("{}: `{name}` is empty", self.path.display());
        }
        Ok((t.to_dtype(DType::I64)?.flatten_all()?.to_vec1()?, r, c))
    }
    /// Pictures as the model's type.
    fn pixels(&self, name: &str, dtype: DType) -> Result<Pixels> {
        let t = self.find(name).with_context(|| format!("{}: no tensor `{name}`", self.path.display()))?;
        t.dims4().with_context(|| format!("{}: `{name}` must be [batch, 3, height, width]", self.path.display()))?;
        Ok(Pixels(t.to_device(&self.device)?.to_dtype(dtype)?))
    }
    /// How many tokens at the beginning of each row a mask hides; none where there is no such mask.
    fn pads(&self, name: &str, rows: usize, tokens: usize) -> Result<Vec<usize>> {
        if self.find(name).is_none() {
            return Ok(vec![0; rows]);
        }
        let (mask, r, t) = self.ids(name)?;
        if (r, t) != (rows, tokens) {
            bail!("{}: `{name}` must be [{rows}, {tokens}]", self.path.display());
        }
        let pads: Vec<usize> = mask.chunks(t).map(|m| m.iter().take_while(|&&v| v == 0).count()).collect();
        if mask.chunks(t).zip(&pads).any(|(m, &p)| p == t || m[p..].contains(&0)) {
            bail!("{}: `{name}` must hide the first tokens of a row and no others", self.path.display());
        }
        Ok(pads)
    }
    fn tokens(&self, name: &str) -> Result<(Vec<u32>, usize, usize)> {
        let (v, r, c) = self.ids(name)?;
        let ids = v.iter().map(|&i| u32::try_from(i)).collect::<std::result::Result<_, _>>();
        Ok((ids.with_context(|| format!("{}: `{name}` holds a negative id", self.path.display()))?, r, c))
    }
}
