//! Stages of Emu3: pictures and videos as codes, logits and losses, answers, guided pictures.

use super::{Inputs, Named, bytes, integers, llama};
use anyhow::{Result, bail};
use candle_core::{DType, Device, Tensor};
use lm::{Context, Part, SampleSettings, Shared, Source, Token};
use unified::emu3::Emu3;

/// Tokens of a greedy answer where nothing is asked.
const ANSWER: usize = 8;

pub fn outputs(model: &Emu3, inputs: &Inputs, max_tokens: Option<usize>) -> Result<Named> {
    let mut out = Named::new();
    let mut pictures = Vec::new();
    if inputs.find("pixel_values").is_some() {
        let pixels = inputs.pixels("pixel_values", DType::F32)?;
        let encoded = model.vq.encoder_out(&model.vq.frames(&pixels)?)?;
        let pre = model.vq.pre_quant(&encoded)?;
        let (n, _, _, rows, columns) = pre.dims5()?;
        let codes = model.vq.codes(&pre)?;
        pictures = model.tokens(&codes, columns)?;
        let decoded = model.vq.pictures(&codes, rows, columns)?;
        out.insert("image_ids".into(), integers(&pictures, (n, rows * (columns + 1)))?);
        out.insert("vq_indices".into(), integers(&codes, (n, rows, columns))?);
        out.insert("vq_decoded_bytes".into(), bytes(&decoded)?);
        out.insert("vq_decoded".into(), decoded.0);
        out.insert("vq_encoder_out".into(), encoded);
        out.insert("vq_pre_quant".into(), pre);
    }
    if let Some(video) = inputs.find("vq_video_pixels") {
        if video.rank() != 5 {
            bail!("{}: `vq_video_pixels` must be [videos, frames, 3, height, width]", inputs.path.display());
        }
        let pre =
            model.vq.pre_quant(&model.vq.encoder_out(&video.to_device(&inputs.device)?.to_dtype(DType::F32)?)?)?;
        let (n, time, _, rows, columns) = pre.dims5()?;
        let codes = model.vq.codes(&pre)?;
        out.insert("vq_video_indices".into(), integers(&codes, (n, time, rows, columns))?);
        out.insert("vq_video_decoded".into(), model.vq.decode(&codes, (time, rows, columns))?);
    }
    if inputs.find("input_ids").is_some() {
        let (mut ids, rows, tokens) = inputs.tokens("input_ids")?;
        let pads = inputs.pads("attention_mask", rows, tokens)?;
        let places = ids.iter().filter(|&&t| t == model.image).count();
        if places != 0 && places != pictures.len() {
            let (n, p) = (pictures.len(), inputs.path.display());
            bail!("{p}: {places} image tokens for pictures of {n} tokens in `pixel_values`");
        }
        let mut next = pictures.iter();
        ids.iter_mut().filter(|t| **t == model.image).for_each(|t| *t = next.next().copied().unwrap_or_default());
        out.insert("expanded_ids".into(), integers(&ids, (rows, tokens))?);
        let vocab = model.config.text.vocab_size;
        let hidden = model.lm.hidden_padded(&model.lm.embed(&ids, rows)?, &pads)?;
        let keep: Vec<f32> = pads.iter().flat_map(|&p| (0..tokens).map(move |t| f32::from(t >= p))).collect();
        let keep = Tensor::from_vec(keep, (rows, tokens, 1), &Device::Cpu)?;
        let logits = model.lm.logits(&hidden, 0..vocab)?.broadcast_mul(&keep)?;
        if inputs.find("labels").is_some() {
            out.insert("loss".into(), llama::loss(&logits, inputs, "labels", ids.len(), tokens)?);
            let code = |id: i64| Token::try_from(id).is_ok_and(|t| model.config.codes.code(t).is_some());
            out.insert("picture_loss".into(), llama::loss_of(&logits, inputs, "labels", (ids.len(), tokens), &code)?);
        }
        out.insert("logits".into(), logits);
        let count = max_tokens.unwrap_or(ANSWER);
        let context = |(row, &pad): (&[Token], &usize)| Context::new(vec![Part::tokens(&row[pad..])]);
        let contexts = ids.chunks(tokens).zip(&pads).map(context).collect();
        let said = lm::generate::likeliest(model.lm.clone(), contexts, Source::rows(0..vocab), count)?;
        out.insert("greedy_tokens".into(), integers(&said.concat(), (rows, count))?);
    }
    if inputs.find("drawing_prompt").is_some() {
        let (prompt, rows, _) = inputs.tokens("drawing_prompt")?;
        if rows != 1 {
            bail!("{}: `drawing_prompt` must be one row", inputs.path.display());
        }
        let negative = match inputs.find("drawing_negative_prompt") {
            Some(_) => Some(inputs.tokens("drawing_negative_prompt")?.0),
            None => None,
        };
        let size = model.asked(&prompt)?;
        let engine = Shared::new(model.lm.clone());
        for (name, scale) in [("drawing_scale1", 1.0), ("drawing_scale3", 3.0)] {
            let negative = negative.as_deref().map(|n| (n, scale));
            if scale != 1.0 && negative.is_none() {
                continue;
            }
            let request = model.drawing(&prompt, negative, size, SampleSettings::greedy(), (0, 0));
            let drawn: Vec<Token> =
                engine.run(vec![request], &mut |_, _, _| true)?.into_iter().flat_map(|d| d.tokens).collect();
            if scale != 1.0 {
                let codes: Vec<u32> = drawn.iter().filter_map(|&t| model.config.codes.code(t)).collect();
                out.insert(format!("{name}_pixels"), model.vq.pictures(&codes, size.0, size.1)?.0);
            }
            out.insert(name.into(), integers(&drawn, (1, drawn.len()))?);
        }
    }
    Ok(out)
}
