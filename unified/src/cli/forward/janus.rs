//! Stages of Janus: what it sees, what it says of it, what it draws.

use super::{Inputs, Named, llama, llamagen};
use anyhow::{Context as _, Result, bail};
use candle_core::{DType, Device, Tensor};
use lm::vocab::table_rows;
use lm::{Context, Part, SampleSettings, Shared, Source, Token};
use nn::ops::cross_entropy;
use std::sync::Arc;
use unified::janus::Janus;

/// Tokens of a greedy answer where nothing is asked.
const ANSWER: usize = 10;

pub fn outputs(model: &Arc<Janus>, inputs: &Inputs, max_tokens: Option<usize>) -> Result<Named> {
    let mut out = Named::new();
    let mut features = None;
    if inputs.find("pixel_values").is_some() {
        let (hidden, last) = model.see(&inputs.pixels("pixel_values", DType::F32)?)?;
        for (i, h) in hidden.into_iter().enumerate() {
            out.insert(format!("vision_hidden_{i}"), h);
        }
        let projected = model.project(&last)?;
        out.insert("vision_last_hidden_state".into(), last);
        out.insert("image_features".into(), projected.clone());
        features = Some(projected);
    }
    let see = Seeing { model, features, inputs };
    if inputs.find("input_ids").is_some() {
        see.answers("input_ids", max_tokens, &mut out)?;
    }
    if inputs.find("two_images_ids").is_some() {
        let (ids, _, tokens) = inputs.tokens("two_images_ids")?;
        let (x, _) = see.embed(&ids, tokens, &mut 0)?;
        let hidden = model.lm.hidden_padded(&x.unsqueeze(0)?, &[0])?;
        out.insert("two_images_logits".into(), model.lm.logits(&hidden, 0..model.config.text.vocab_size)?);
    }
    if inputs.find("drawing_ids").is_some() {
        drawing(model, inputs, &mut out)?;
    } else if inputs.find("drawing_tokens").is_some() {
        out.insert("drawing_embeddings".into(), embeddings(model, inputs)?);
    }
    if inputs.find("vq_pixels").is_some() {
        out.extend(llamagen::tokenizer_stages(&model.vq, &inputs.pixels("vq_pixels", DType::F32)?)?);
    }
    Ok(out)
}

struct Seeing<'a> {
    model: &'a Arc<Janus>,
    features: Option<Tensor>,
    inputs: &'a Inputs<'a>,
}

impl Seeing<'_> {
    /// Embeddings [tokens, width] of a row whose placeholders are filled with the next pictures, with a key each.
    fn embed(&self, ids: &[Token], tokens: usize, next: &mut usize) -> Result<(Tensor, Vec<u64>)> {
        let per = self.model.tokens_per_picture();
        let Some(image) = self.model.config.image_token.or_else(|| longest_run(ids, per)) else {
            bail!(
                "{}: config.json has no image_token_id and no token is there {per} times in a row",
                self.inputs.path.display()
            );
        };
        let mut parts = Vec::new();
        for run in ids.chunk_by(|a, b| (*a == image) == (*b == image)) {
            if run[0] != image {
                parts.push(self.model.lm.embed(run, 1)?.squeeze(0)?);
                continue;
            }
            let Some(features) = self.features.as_ref().filter(|f| *next + run.len() / per <= f.dim(0).unwrap_or(0))
            else {
                bail!("{}: more placeholders than `pixel_values` has pictures", self.inputs.path.display());
            };
            if !run.len().is_multiple_of(per) {
                bail!("{}: {} placeholders in a row; a picture takes {per}", self.inputs.path.display(), run.len());
            }
            parts.push(features.narrow(0, *next, run.len() / per)?.flatten_to(1)?);
            *next += run.len() / per;
        }
        Ok((Tensor::cat(&parts, 0)?, vec![0; tokens]))
    }

    fn answers(&self, name: &str, max_tokens: Option<usize>, out: &mut Named) -> Result<()> {
        let (model, inputs) = (self.model, self.inputs);
        let (ids, rows, tokens) = inputs.tokens(name)?;
        let pads = inputs.pads("attention_mask", rows, tokens)?;
        let mut next = 0;
        let embedded = ids.chunks(tokens).map(|row| Ok(self.embed(row, tokens, &mut next)?.0));
        let x = Tensor::stack(&embedded.collect::<Result<Vec<_>>>()?, 0)?;
        let hidden = model.lm.hidden_padded(&x, &pads)?;
        let keep: Vec<f32> = pads.iter().flat_map(|&p| (0..tokens).map(move |t| f32::from(t >= p))).collect();
        let keep = Tensor::from_vec(keep, (rows, tokens, 1), &Device::Cpu)?.to_dtype(hidden.dtype())?;
        let logits = model.lm.logits(&hidden, 0..model.config.text.vocab_size)?.broadcast_mul(&keep)?;
        if inputs.find("labels").is_some() {
            out.insert("loss".into(), llama::loss(&logits, inputs, "labels", ids.len(), tokens)?);
        }
        out.insert("logits".into(), logits);
        let mut contexts = Vec::new();
        for (row, &pad) in pads.iter().enumerate() {
            let x = x.get(row)?.narrow(0, pad, tokens - pad)?.contiguous()?;
            contexts.push(Context::new(vec![Part::Embedded(x, vec![0; tokens - pad])]));
        }
        let count = max_tokens.unwrap_or(ANSWER);
        let source = Source::rows(0..model.config.text.vocab_size);
        let said = lm::generate::likeliest(model.clone(), contexts, source, count)?;
        out.insert("greedy_tokens".into(), super::integers(&said.concat(), (rows, count))?);
        Ok(())
    }
}

/// The token that stands `per` times in a row.
fn longest_run(ids: &[Token], per: usize) -> Option<Token> {
    ids.chunk_by(|a, b| a == b).find(|run| run.len() >= per && run.len().is_multiple_of(per)).map(|run| run[0])
}

fn embeddings(model: &Janus, inputs: &Inputs) -> Result<Tensor> {
    let (codes, rows, per) = inputs.tokens("drawing_tokens")?;
    if per != model.codes_per_picture() {
        bail!("{}: `drawing_tokens` must be [pictures, {}]", inputs.path.display(), model.codes_per_picture());
    }
    Ok(model.embed_codes(&codes)?.reshape((rows, per, ()))?)
}

/// Rows padded at their beginning, as the tokens that count.
fn unpadded(ids: &[Token], pads: &[usize]) -> Vec<Vec<Token>> {
    let tokens = ids.len() / pads.len().max(1);
    ids.chunks(tokens.max(1)).zip(pads).map(|(row, &p)| row[p..].to_vec()).collect()
}

fn drawing(model: &Arc<Janus>, inputs: &Inputs, out: &mut Named) -> Result<()> {
    let (ids, rows, tokens) = inputs.tokens("drawing_ids")?;
    let pads = inputs.pads("drawing_mask", rows, tokens)?;
    let prompts = unpadded(&ids, &pads);
    let uncond = match inputs.find("drawing_uncond_ids") {
        Some(_) => {
            let (ids, r, t) = inputs.tokens("drawing_uncond_ids")?;
            if (r, t) != (rows, tokens) {
                bail!("{}: `drawing_uncond_ids` and `drawing_ids` differ in shape", inputs.path.display());
            }
            Some(unpadded(&ids, &pads))
        }
        None => None,
    };
    let count = model.codes_per_picture();
    if inputs.find("drawing_tokens").is_some() {
        let (codes, ..) = inputs.tokens("drawing_tokens")?;
        let embedded = embeddings(model, inputs)?;
        if embedded.dim(0)? != rows {
            bail!("{}: `drawing_tokens` must have {rows} rows as `drawing_ids`", inputs.path.display());
        }
        let logits = |prompts: &[Vec<Token>]| -> Result<Tensor> {
            let mut all = Vec::new();
            for (row, prompt) in prompts.iter().enumerate() {
                let prompt = model.lm.embed(prompt, 1)?;
                let before = embedded.narrow(0, row, 1)?.narrow(1, 0, count - 1)?;
                let from = prompt.dim(1)? - 1;
                let hidden = model.lm.hidden_padded(&Tensor::cat(&[&prompt, &before], 1)?, &[0])?;
                all.push(model.code_logits(&hidden.narrow(1, from, count)?.contiguous()?)?);
            }
            Ok(Tensor::cat(&all, 0)?)
        };
        let cond = logits(&prompts)?;
        let loss = cross_entropy(&cond.flatten_to(1)?, &table_rows(&codes)?)?.mean_all()?;
        out.insert("drawing_loss".into(), loss);
        out.insert("drawing_logits_cond".into(), cond);
        if let Some(u) = &uncond {
            out.insert("drawing_logits_uncond".into(), logits(u)?);
        }
        out.insert("drawing_embeddings".into(), embedded);
    }
    let engine = Shared::new(model.clone());
    for (name, scale) in [("greedy_scale1", 1.0), ("greedy_scale5", 5.0)] {
        let mut requests = Vec::new();
        for (i, prompt) in prompts.iter().enumerate() {
            let mut request = model.drawing(prompt, 0, 1.0, SampleSettings::greedy(), (0, i as u64));
            match (&uncond, scale != 1.0) {
                (Some(u), true) => {
                    request = request.guided(Context::new(vec![Part::tokens(u[i].clone())]), move |_| Some(scale));
                }
                (None, true) => continue,
                (_, false) => {}
            }
            requests.push(request);
        }
        if requests.is_empty() {
            continue;
        }
        let done = engine.run(requests, &mut |_, _, _| true).context(name)?;
        let codes = done.into_iter().flat_map(|d| d.tokens).collect::<Vec<_>>();
        if scale != 1.0 {
            let grid = model.config.grid;
            let pixels = model.vq.decode(&model.vq.look_up(&table_rows(&codes)?, grid, grid)?)?;
            out.insert(format!("{name}_pixels"), pixels.0);
        }
        out.insert(name.into(), super::integers(&codes, (rows, count))?);
    }
    Ok(())
}
