//! Hidden states of CLIP's tower; picture features, logits, loss and greedy answers of LLaVA.

use super::{Inputs, Named, llama};
use ::qlip::clip::ClipTower;
use anyhow::{Context, Result, bail};
use candle_core::{DType, Tensor};
use lm::{Part, Token};
use unified::llava::Llava;

pub fn tower_outputs(tower: &ClipTower, inputs: &Inputs) -> Result<Named> {
    let out = tower.forward(&inputs.pixels("pixel_values", DType::F32)?)?;
    let mut named: Named = out.hidden.iter().enumerate().map(|(i, h)| (format!("hidden_{i}"), h.clone())).collect();
    if let Some(last) = out.hidden.last() {
        named.insert("last_hidden_state".into(), last.clone());
    }
    named.insert("pooler_output".into(), out.pooled);
    Ok(named)
}

/// Row i of `input_ids` sees picture i; `two_images_ids` sees all pictures; `greedy_prompt` begins with picture 0.
pub fn outputs(model: &Llava, inputs: &Inputs, max_tokens: usize) -> Result<Named> {
    let mut out = Named::new();
    let features = match inputs.find("pixel_values") {
        Some(_) => Some(model.project(&model.see(&inputs.pixels("pixel_values", DType::F32)?)?)?),
        None => None,
    };
    // pictures `from..` as rows of features, as many as the ids have places for
    let rows = |ids: &[Token], from: usize| -> Result<Option<Tensor>> {
        let places = ids.iter().filter(|&&i| i == model.config.image_token_index).count();
        let Some(f) = features.as_ref().filter(|_| places > 0) else { return Ok(None) };
        let (pictures, per, _) = f.dims3()?;
        let count = places / per;
        if !places.is_multiple_of(per) || from + count > pictures {
            bail!("{}: {places} image tokens do not fit {pictures} pictures of {per}", inputs.path.display());
        }
        Ok(Some(f.narrow(0, from, count)?.flatten_to(1)?))
    };
    let embed = |ids: &[Token], from: usize| -> Result<Tensor> { Ok(model.embed(ids, rows(ids, from)?.as_ref())?) };
    if inputs.find("input_ids").is_some() {
        let (ids, _, tokens) = inputs.tokens("input_ids")?;
        let mut from = 0;
        let mut embedded = Vec::new();
        for row in ids.chunks(tokens.max(1)) {
            let r = rows(row, from)?;
            if let (Some(r), Some(f)) = (&r, &features) {
                from += r.dim(0)? / f.dim(1)?;
            }
            embedded.push(model.embed(row, r.as_ref())?);
        }
        let logits = model.logits(&Tensor::stack(&embedded, 0)?)?;
        if inputs.find("labels").is_some() {
            out.insert("loss".into(), llama::loss(&logits, inputs, "labels", ids.len(), tokens)?);
        }
        out.insert("logits".into(), logits);
    }
    if inputs.find("two_images_ids").is_some() {
        let (ids, ..) = inputs.tokens("two_images_ids")?;
        out.insert("two_images_logits".into(), model.logits(&embed(&ids, 0)?.unsqueeze(0)?)?);
    }
    if inputs.find("greedy_prompt").is_some() {
        let (ids, _, tokens) = inputs.tokens("greedy_prompt")?;
        let context = |row: &[Token]| -> Result<Part> { Ok(Part::Embedded(embed(row, 0)?, vec![0; row.len()])) };
        let contexts = ids.chunks(tokens.max(1)).map(context).collect::<Result<Vec<_>>>()?;
        out.insert("greedy_tokens".into(), llama::greedy(&model.lm, contexts, max_tokens).context("greedy_prompt")?);
    }
    if let Some(f) = features {
        out.insert("image_features".into(), f);
    }
    Ok(out)
}
