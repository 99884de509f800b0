//! Stages of Chameleon: pictures as tokens, logits and losses, words, guided pictures, both in turn.

use super::{Inputs, Named, integers, llama, llamagen};
use anyhow::{Result, bail};
use candle_core::{DType, Device, Tensor};
use lm::{Context, Part, Request, SampleSettings, Shared, Source, Token};
use unified::chameleon::{Chameleon, SCALES};

/// Tokens of greedy continuations where nothing is asked, as in the reference files: without codes, words alone, and words after
/// the picture of an interleaved answer.
const FREE: usize = 10;
const WORDS: usize = 6;
const AFTER: usize = 4;

pub fn outputs(model: &Chameleon, inputs: &Inputs, max_tokens: Option<usize>) -> Result<Named> {
    let mut out = Named::new();
    let per = model.codes_per_picture();
    let engine = Shared::new(model.lm.clone());
    let run = |request: Request| -> Result<Vec<Token>> {
        let done = engine.run(vec![request], &mut |_, _, _| true)?;
        Ok(done.into_iter().flat_map(|d| d.tokens).collect())
    };
    let greedy = SampleSettings::greedy();
    let mut pictures = Vec::new();
    if inputs.find("pixel_values").is_some() {
        let pixels = inputs.pixels("pixel_values", DType::F32)?;
        pictures = model.read(&pixels)?;
        out.insert("image_ids".into(), integers(&pictures, (pictures.len() / per, per))?);
        out.extend(llamagen::tokenizer_stages(&model.vq, &pixels)?);
        out.remove("vq_entries");
    }
    if inputs.find("input_ids").is_some() {
        let (mut ids, rows, tokens) = inputs.tokens("input_ids")?;
        let pads = inputs.pads("attention_mask", rows, tokens)?;
        let places = ids.iter().filter(|&&t| t == model.image).count();
        if places != 0 && places != pictures.len() {
            let (n, p) = (pictures.len() / per, inputs.path.display());
            bail!("{p}: {places} image tokens for {n} pictures of {per} codes in `pixel_values`");
        }
        let mut next = pictures.iter();
        ids.iter_mut().filter(|t| **t == model.image).for_each(|t| *t = next.next().copied().unwrap_or_default());
        out.insert("expanded_ids".into(), integers(&ids, (rows, tokens))?);
        let hidden = model.lm.hidden_padded(&model.lm.embed(&ids, rows)?, &pads)?;
        let keep: Vec<f32> = pads.iter().flat_map(|&p| (0..tokens).map(move |t| f32::from(t >= p))).collect();
        let keep = Tensor::from_vec(keep, (rows, tokens, 1), &Device::Cpu)?;
        let logits = model.lm.logits(&hidden, 0..model.config.text.vocab_size)?.broadcast_mul(&keep)?;
        if inputs.find("labels").is_some() {
            out.insert("loss".into(), llama::loss(&logits, inputs, "labels", ids.len(), tokens)?);
        }
        if inputs.find("text_labels").is_some() {
            let mut mask = vec![0f32; model.config.text.vocab_size];
            model.config.codes.tokens().iter().for_each(|&t| mask[t as usize] = -1e30);
            let masked = logits.broadcast_add(&Tensor::new(mask, &Device::Cpu)?)?;
            let loss = llama::loss(&masked, inputs, "text_labels", ids.len(), tokens)?;
            out.insert("text_loss_without_codes".into(), loss);
        }
        out.insert("logits".into(), logits);
        let mut free = Vec::new();
        let mut words = Vec::new();
        let (free_count, word_count) = (max_tokens.unwrap_or(FREE), max_tokens.unwrap_or(WORDS));
        for (row, &pad) in ids.chunks(tokens).zip(&pads) {
            let context = Context::new(vec![Part::tokens(&row[pad..])]);
            let rows = Source::rows(0..model.config.text.vocab_size);
            let mut request = Request::new(context, greedy, (0, 0), lm::engine::in_turn(vec![rows; free_count]));
            request.banned = model.config.codes.tokens().to_vec();
            free.extend(run(request)?);
            let mut said = run(model.words(row[pad..].to_vec(), false, word_count, greedy, (0, 0)))?;
            // an answer that ended is filled up with its end
            said.resize(word_count, model.eos);
            words.extend(said);
        }
        out.insert("greedy_tokens".into(), integers(&free, (rows, free_count))?);
        out.insert("greedy_words".into(), integers(&words, (rows, word_count))?);
    }
    for (prompt, scales, name) in [
        ("drawing_prompt", Some(SCALES), "drawing_guided"),
        ("drawing_prompt", None, "drawing_unguided"),
        ("words_prompt", Some(SCALES), "words_guided"),
    ] {
        if inputs.find(prompt).is_none() {
            continue;
        }
        let (ids, rows, tokens) = inputs.tokens(prompt)?;
        let mut all = Vec::new();
        for row in ids.chunks(tokens) {
            all.extend(run(model.drawing(row.to_vec(), scales, greedy, (0, 0)))?);
        }
        if name == "drawing_guided" {
            let codes: Vec<u32> = all.iter().filter_map(|&t| model.config.codes.code(t)).collect();
            out.insert("drawing_guided_indices".into(), integers(&codes, (rows, per))?);
            if model.vq.paints() {
                out.insert("drawing_guided_pixels".into(), model.paint(&all)?.0);
            }
        }
        out.insert(name.into(), integers(&all, (rows, per))?);
    }
    if inputs.find("interleaved_prompt").is_some() {
        let (ids, rows, tokens) = inputs.tokens("interleaved_prompt")?;
        if rows != 1 {
            bail!("{}: `interleaved_prompt` must be one row", inputs.path.display());
        }
        let mut said: Vec<Token> = Vec::new();
        let mut drawn = false;
        // a picture may be as long as all words: the answer ends some words after it, or where was asked
        let most = max_tokens.unwrap_or(model.lm.max_positions().saturating_sub(tokens));
        loop {
            let left = most.saturating_sub(said.len());
            let left = if drawn && max_tokens.is_none() { AFTER.min(left) } else { left };
            let context = [&ids[..], &said].concat();
            let words = run(model.words(context, !drawn || max_tokens.is_some(), left, greedy, (0, 0)))?;
            said.extend(&words);
            if words.last() != Some(&model.begin) || said.len() >= most {
                break;
            }
            said.extend(run(model.drawing([&ids[..], &said].concat(), Some(SCALES), greedy, (0, 0)))?);
            said.push(model.end);
            drawn = true;
        }
        said.truncate(most);
        out.insert("interleaved_tokens".into(), integers(&said, (1, said.len()))?);
    }
    Ok(out)
}
