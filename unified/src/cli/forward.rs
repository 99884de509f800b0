//! `unified forward MODEL_DIR INPUTS -o OUTPUTS`: stage by stage outputs for people who port checkpoints.

use super::common::Common;
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use clap::Args;
use lm::{Decoding, Llama, LlamaConfig};
use nn::ops::{self, IGNORE, Mask, Positions};
use nn::{Params, checkpoint};
use qlip::config::{QlipConfig, read_json};
use qlip::loss::info_nce;
use qlip::{Pixels, Qlip};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Run a model's parts on given inputs and write every stage (names as in tests/fixtures/README.md).
#[derive(Args)]
pub struct Forward {
    #[command(flatten)]
    common: Common,
    /// Folder with config.json and model.safetensors; the architecture is found from config.json.
    model_dir: PathBuf,
    /// QLIP: pixel_values, input_ids. Llama: input_ids, labels, padded_ids and padded_mask, greedy_prompt.
    inputs: PathBuf,
    /// File for the outputs.
    #[arg(short, long)]
    out: PathBuf,
    /// Tokens to generate after greedy_prompt.
    #[arg(long, default_value_t = 12)]
    max_tokens: usize,
}

type Named = BTreeMap<String, Tensor>;

impl Forward {
    pub fn run(&self) -> Result<()> {
        let device = self.common.device()?;
        let path = self.model_dir.join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let json: serde_json::Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let inputs = Inputs { path: &self.inputs, tensors: checkpoint::load(&self.inputs)?, device: device.clone() };
        let params = || -> Result<Params> { Ok(Params::from_dir(&self.model_dir, self.common.dtype()?, &device)?) };
        let out = if json.get("vision_config").is_some() && json.get("decoder_config").is_some() {
            let config = QlipConfig::from_file(&path)?;
            qlip_outputs(&Qlip::new(&params()?, &config, true)?, &inputs)?
        } else if json["model_type"] == "llama" {
            let config: LlamaConfig = read_json(&path)?;
            llama_outputs(&Llama::new(&params()?, &config)?, &inputs, self.max_tokens)?
        } else {
            bail!("{}: model_type {} is not known here; QLIP and Llama are", path.display(), json["model_type"]);
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
        Ok((t.to_dtype(DType::I64)?.flatten_all()?.to_vec1()?, r, c))
    }
    fn tokens(&self, name: &str) -> Result<(Vec<u32>, usize, usize)> {
        let (v, r, c) = self.ids(name)?;
        let ids = v.iter().map(|&i| u32::try_from(i)).collect::<std::result::Result<_, _>>();
        Ok((ids.with_context(|| format!("{}: `{name}` holds a negative id", self.path.display()))?, r, c))
    }
}

fn qlip_outputs(model: &Qlip, inputs: &Inputs) -> Result<Named> {
    let mut out = Named::new();
    let mut put = |name: &str, t: &Tensor| out.insert(name.to_owned(), t.clone());
    let mut image = None;
    if let Some(pixels) = inputs.find("pixel_values") {
        let pixels = Pixels(pixels.to_device(&inputs.device)?.to_dtype(model.logit_scale.dtype())?);
        let v = model.encode(&pixels)?;
        for (i, h) in v.hidden.iter().enumerate() {
            put(&format!("hidden_{i}"), h);
        }
        put("pooled", &v.pooled);
        put("h", &v.latents.0);
        let codes = model.codes(&v.latents)?;
        let shape = (codes.images(), codes.per_image());
        let whole: Vec<i64> = codes.indices.iter().map(|&c| c as i64).collect();
        put("indices", &Tensor::from_vec(whole, shape, &Device::Cpu)?);
        let groups: Vec<i64> = codes.indices.iter().flat_map(|&c| model.bsq.groups(c)).map(i64::from).collect();
        let per = groups.len() / codes.indices.len().max(1);
        put("group_indices", &Tensor::from_vec(groups, (shape.0, shape.1, per), &Device::Cpu)?);
        let quantized = model.bsq.quantize(&v.latents)?;
        let zhat = model.expand(&quantized)?;
        put("quantized", &quantized);
        put("zhat", &zhat);
        let (recon, hidden) = model.paint(&zhat)?;
        for (i, h) in hidden.iter().enumerate() {
            put(&format!("decoder_hidden_{i}"), h);
        }
        put("recon_mse", &(&recon.0 - &pixels.0)?.sqr()?.mean_all()?);
        put("recon", &recon.0);
        let e = model.bsq.entropies(&v.latents)?;
        put("sample_entropy", &e.sample);
        put("codebook_entropy", &e.codebook);
        put("commit_loss", &model.bsq.commitment(&v.latents)?);
        let embeds = model.embed_image(&v.pooled)?;
        put("image_embeds", &embeds);
        image = Some(embeds);
    }
    if inputs.find("input_ids").is_some() {
        let (ids, rows, tokens) = inputs.tokens("input_ids")?;
        if let Some(tower) = &model.text {
            let t = tower.forward(&ids, tokens)?;
            put("text_hidden", &t.hidden);
            put("text_pooled", &t.pooled);
        }
        let text = model.embed_text(&ids, tokens)?;
        put("text_embeds", &text);
        if let Some(image) = &image {
            put("logits_per_text", &text.matmul(&image.t()?)?.broadcast_mul(&model.logit_scale.exp()?)?);
            if image.dim(0)? == rows {
                let ids: Vec<usize> = (0..rows).collect();
                put("clip_loss", &info_nce(&text, image, &model.logit_scale, &ids)?);
            }
        }
    }
    if out.is_empty() {
        bail!("{}: neither `pixel_values` nor `input_ids`", inputs.path.display());
    }
    Ok(out)
}

fn llama_outputs(model: &Llama, inputs: &Inputs, max_tokens: usize) -> Result<Named> {
    let mut out = Named::new();
    let vocab = 0..model.config.vocab_size;
    let frequencies: Vec<f32> = model.config.inverse_frequencies().iter().map(|&f| f as f32).collect();
    out.insert("inverse_frequencies".into(), Tensor::new(frequencies, &Device::Cpu)?);
    if inputs.find("input_ids").is_some() {
        let (ids, rows, tokens) = inputs.tokens("input_ids")?;
        let logits = model.forward(&ids, rows)?;
        if inputs.find("labels").is_some() {
            let (labels, ..) = inputs.ids("labels")?;
            if labels.len() != ids.len() {
                bail!("{}: `labels` and `input_ids` differ in shape", inputs.path.display());
            }
            let next = |i: usize| {
                if (i + 1).is_multiple_of(tokens) || labels[i + 1] < 0 { IGNORE } else { labels[i + 1] as u32 }
            };
            let targets: Vec<u32> = (0..ids.len()).map(next).collect();
            let n = targets.iter().filter(|&&t| t != IGNORE).count().max(1);
            let loss = ops::cross_entropy(&logits.flatten_to(1)?.to_dtype(DType::F32)?, &targets)?;
            out.insert("loss".into(), (loss.sum_all()? / n as f64)?);
        }
        out.insert("logits".into(), logits);
    }
    if inputs.find("padded_ids").is_some() {
        let (ids, rows, tokens) = inputs.tokens("padded_ids")?;
        let (mask, ..) = inputs.ids("padded_mask")?;
        if mask.len() != ids.len() {
            bail!("{}: `padded_mask` and `padded_ids` differ in shape", inputs.path.display());
        }
        let pads: Vec<usize> = mask.chunks(tokens).map(|m| m.iter().filter(|&&v| v == 0).count()).collect();
        let each = |f: fn(usize, usize) -> usize| -> Vec<u32> {
            pads.iter().flat_map(|&p| (0..tokens).map(move |t| f(p, t) as u32)).collect()
        };
        let positions = Positions::Each(each(|p, t| t.saturating_sub(p)).into());
        let see = Mask::CausalFrom(each(usize::min).into());
        let hidden = model.hidden(&model.embed(&ids, rows)?, &positions, &see, None)?;
        // rows at padding are zero, as in the reference
        let keep = Tensor::from_vec(mask, (rows, tokens, 1), &inputs.device)?.to_dtype(hidden.dtype())?;
        out.insert("padded_logits".into(), model.logits(&hidden, vocab.clone())?.broadcast_mul(&keep)?);
        let contexts = ids.chunks(tokens).zip(&pads).map(|(c, &p)| c[p..].to_vec()).collect();
        out.insert("padded_greedy_tokens".into(), greedy(model, contexts, max_tokens)?);
    }
    if inputs.find("greedy_prompt").is_some() {
        let (ids, _, tokens) = inputs.tokens("greedy_prompt")?;
        let contexts = ids.chunks(tokens).map(<[u32]>::to_vec).collect();
        out.insert("greedy_tokens".into(), greedy(model, contexts, max_tokens)?);
    }
    Ok(out)
}

fn greedy(model: &Llama, contexts: Vec<Vec<u32>>, count: usize) -> Result<Tensor> {
    let rows = contexts.len();
    let mut out = vec![Vec::with_capacity(count); rows];
    let (mut decoding, mut hidden) = Decoding::start(model, &contexts)?;
    for n in 0..count {
        let logits = model.logits(&hidden, 0..model.config.vocab_size)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let next: Vec<u32> = logits.iter().map(|row| lm::sample::argmax(row) as u32).collect();
        for (o, &t) in out.iter_mut().zip(&next) {
            o.push(i64::from(t));
        }
        if n + 1 < count {
            hidden = decoding.advance(&next)?;
        }
    }
    Ok(Tensor::from_vec(out.concat(), (rows, count), &Device::Cpu)?)
}
