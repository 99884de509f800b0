//! Stages of QLIP.

use super::{Inputs, Named};
use ::qlip::Qlip;
use ::qlip::loss::info_nce;
use anyhow::{Result, bail};
use candle_core::{Device, Tensor};

pub fn outputs(model: &Qlip, inputs: &Inputs) -> Result<Named> {
    let mut out = Named::new();
    let mut put = |name: &str, t: &Tensor| out.insert(name.to_owned(), t.clone());
    let mut image = None;
    if inputs.find("pixel_values").is_some() {
        let pixels = inputs.pixels("pixel_values", model.logit_scale.dtype())?;
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
        let ids = lm::vocab::table_rows(&ids)?;
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
