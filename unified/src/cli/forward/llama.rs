//! Logits, loss and greedy continuations of a language model.

use super::{Inputs, Named};
use anyhow::{Result, bail};
use candle_core::{DType, Device, Tensor};
use lm::generate::likeliest;
use lm::{Context, Llama, Part, Source};
use nn::ops::{self, IGNORE};
use std::sync::Arc;

pub fn outputs(model: &Arc<Llama>, inputs: &Inputs, max_tokens: usize) -> Result<Named> {
    let mut out = Named::new();
    let vocab = 0..model.config.vocab_size;
    let frequencies: Vec<f32> = model.config.inverse_frequencies().iter().map(|&f| f as f32).collect();
    out.insert("inverse_frequencies".into(), Tensor::new(frequencies, &Device::Cpu)?);
    if inputs.find("input_ids").is_some() {
        let (ids, rows, tokens) = inputs.tokens("input_ids")?;
        let logits = model.forward(&ids, rows)?;
        if inputs.find("labels").is_some() {
            out.insert("loss".into(), loss(&logits, inputs, "labels", ids.len(), tokens)?);
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
        let hidden = model.hidden_padded(&model.embed(&ids, rows)?, &pads)?;
        // rows at padding are zero, as in the reference
        let keep = Tensor::from_vec(mask, (rows, tokens, 1), &inputs.device)?.to_dtype(hidden.dtype())?;
        out.insert("padded_logits".into(), model.logits(&hidden, vocab.clone())?.broadcast_mul(&keep)?);
        let contexts = ids.chunks(tokens).zip(&pads).map(|(c, &p)| Part::tokens(&c[p..])).collect();
        out.insert("padded_greedy_tokens".into(), greedy(model, contexts, max_tokens)?);
    }
    if inputs.find("greedy_prompt").is_some() {
        let (ids, _, tokens) = inputs.tokens("greedy_prompt")?;
        let contexts = ids.chunks(tokens).map(Part::tokens).collect();
        out.insert("greedy_tokens".into(), greedy(model, contexts, max_tokens)?);
    }
    Ok(out)
}

/// The likeliest `count` tokens after each context, [contexts, count].
pub fn greedy(model: &Arc<Llama>, contexts: Vec<Part>, count: usize) -> Result<Tensor> {
    let rows = Source::rows(0..model.config.vocab_size);
    let n = contexts.len();
    let contexts = contexts.into_iter().map(|c| Context::new(vec![c])).collect();
    let tokens = likeliest(model.clone(), contexts, rows, count)?;
    let ids: Vec<i64> = tokens.concat().into_iter().map(|t| t as i64).collect();
    Ok(Tensor::from_vec(ids, (n, count), &Device::Cpu)?)
}

/// Mean cross-entropy of the next token, over labels that are not negative.
pub fn loss(logits: &Tensor, inputs: &Inputs, name: &str, count: usize, tokens: usize) -> Result<Tensor> {
    loss_of(logits, inputs, name, (count, tokens), &|_| true)
}

/// The same over those of them that count.
pub fn loss_of(
    logits: &Tensor,
    inputs: &Inputs,
    name: &str,
    (count, tokens): (usize, usize),
    counts: &dyn Fn(i64) -> bool,
) -> Result<Tensor> {
    let (labels, ..) = inputs.ids(name)?;
    if labels.len() != count {
        bail!("{}: `{name}` and `input_ids` differ in shape", inputs.path.display());
    }
    let next = |i: usize| match labels.get(i + 1) {
        Some(&label) if !(i + 1).is_multiple_of(tokens) && label >= 0 && counts(label) => label as u32,
        _ => IGNORE,
    };
    let targets: Vec<u32> = (0..count).map(next).collect();
    let n = targets.iter().filter(|&&t| t != IGNORE).count().max(1);
    let loss = ops::cross_entropy(&logits.flatten_to(1)?.to_dtype(DType::F32)?, &targets)?;
    Ok((loss.sum_all()? / n as f64)?)
}
