//! `unified forward MODEL_DIR INPUTS -o OUTPUTS`: stage by stage outputs for people who port checkpoints.

mod chameleon;
mod emu3;
mod janus;
mod llama;
mod llamagen;
mod llava;
mod qlip;

use super::common::Common;
use crate::cli::output::say;
use ::qlip::clip::ClipTower;
use ::qlip::vq::VqTokenizer;
use ::qlip::{Pixels, Qlip};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use clap::Args;
use lm::{Llama, LlamaConfig, Token};
use nn::checkpoint;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use unified::artifact::{Architecture, Artifact};
use unified::chameleon::Chameleon;
use unified::emu3::Emu3;
use unified::janus::Janus;
use unified::llamagen::decoder;
use unified::llava::Llava;

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
        let artifact = Artifact::open(&self.model_dir.to_string_lossy())?;
        let at = self.common.placement()?;
        let inputs = Inputs { path: &self.inputs, tensors: checkpoint::load(&self.inputs)?, device: at.device.clone() };
        let n = self.max_tokens;
        let out = match artifact.architecture {
            Architecture::Qlip => {
                qlip::outputs(&Qlip::new(&artifact.params(&at)?, &artifact.config()?, true)?, &inputs)?
            }
            Architecture::Llama => {
                let config: LlamaConfig = artifact.config()?;
                config.check().with_context(|| artifact.files.path_of("config.json").display().to_string())?;
                llama::outputs(&Arc::new(Llama::new(&artifact.params(&at)?, &config)?), &inputs, n.unwrap_or(12))?
            }
            Architecture::LlamaGen => llamagen::outputs(&decoder(&artifact, &at)?, &inputs)?,
            Architecture::Vq => {
                llamagen::tokenizer_outputs(&VqTokenizer::new(&artifact.params(&at)?, &artifact.config()?)?, &inputs)?
            }
            Architecture::ClipVision => {
                let params = artifact.params(&at)?;
                // transformers 5 writes the tower without its inner name
                let inner = !params.contains("embeddings.class_embedding");
                let params = if inner { params.at("vision_model") } else { params };
                llava::tower_outputs(&ClipTower::new(&params, &artifact.config()?)?, &inputs)?
            }
            Architecture::Llava => llava::outputs(&Llava::load(&artifact, &at)?, &inputs, n.unwrap_or(8))?,
            Architecture::Janus => janus::outputs(&Arc::new(Janus::load(&artifact, &at)?), &inputs, n)?,
            Architecture::Chameleon => chameleon::outputs(&Chameleon::load(&artifact, &at)?, &inputs, n)?,
            Architecture::Emu3 => emu3::outputs(&Emu3::load(&artifact, &at)?, &inputs, n)?,
            other @ (Architecture::Unified | Architecture::Classifier | Architecture::T5) => {
                bail!("{}: forward has no stages for a {}", self.model_dir.display(), other.says())
            }
        };
        checkpoint::save(&self.out, &out, &[])?;
        if self.common.json {
            crate::cli::output::json(
                serde_json::json!({"out": crate::cli::output::path(&self.out), "tensors": out.keys().collect::<Vec<_>>()}),
            )?;
        } else {
            say!("{}", self.out.display());
        }
        Ok(())
    }
}

/// Numbers as the reference files hold them.
fn integers(values: &[impl Copy + Into<Token>], shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    let values: Vec<i64> = values.iter().map(|&v| v.into() as i64).collect();
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
    fn tokens(&self, name: &str) -> Result<(Vec<Token>, usize, usize)> {
        let (v, r, c) = self.ids(name)?;
        let ids = v.iter().map(|&i| Token::try_from(i)).collect::<std::result::Result<_, _>>();
        Ok((ids.with_context(|| format!("{}: `{name}` holds a negative id", self.path.display()))?, r, c))
    }
}
