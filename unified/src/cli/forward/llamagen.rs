//! Rotary table, condition embeddings, logits, losses and greedy drawings of LlamaGen; every stage of its tokenizer.

use super::{Inputs, Named};
use ::qlip::vq::VqTokenizer;
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use lm::Token;
use lm::draw::{DrawSettings, draw};
use lm::llamagen::{Condition, LlamaGen, ModelType};
use lm::sample::SampleSettings;
use lm::vocab::table_rows;
use nn::ops::cross_entropy;
use std::sync::Arc;

/// Rows of the condition's embedding that the reference keeps.
const SHOWN: usize = 8;

pub fn outputs(model: &Arc<LlamaGen>, inputs: &Inputs) -> Result<Named> {
    let mut out = Named::new();
    let c = &model.config;
    let half = c.dim / c.n_head / 2;
    let rope = c.rope();
    out.insert("rope_table".into(), Tensor::from_vec(rope.table(), (rope.rows(), half, 2), &Device::Cpu)?);
    let condition = condition(model, inputs, "condition", None)?;
    let n = condition.len();
    let shown = |t: Tensor| -> Result<Tensor> { Ok(t.narrow(1, 0, SHOWN.min(c.cls_token_num))?) };
    let keep = vec![false; n];
    let embedded = model.condition(&condition, &keep)?;
    out.insert("condition_embedding".into(), shown(embedded.clone())?);
    if let Some(drop) = inputs.find("condition_drop") {
        let drop: Vec<bool> = drop.to_dtype(DType::I64)?.to_vec1::<i64>()?.into_iter().map(|d| d == 1).collect();
        out.insert("condition_drop_embedding".into(), shown(model.condition(&condition, &drop)?)?);
    }
    if inputs.find("tokens").is_some() {
        let (tokens, rows, per) = inputs.tokens("tokens")?;
        if rows != n || per != c.block_size {
            bail!("{}: `tokens` must be [{n}, {}]", inputs.path.display(), c.block_size);
        }
        let before: Vec<Token> = tokens.chunks(per).flat_map(|t| t[..per - 1].iter().copied()).collect();
        let x = Tensor::cat(&[&embedded, &model.embed(&before, n, 0)?], 1)?;
        let all = model.forward(&x, &vec![0; n])?;
        // from three condition rows before the one that predicts the first token, as the reference keeps them
        let from = c.cls_token_num - 1 - 3.min(c.cls_token_num - 1);
        out.insert("eval_logits".into(), all.narrow(1, from, all.dim(1)? - from)?.contiguous()?);
        let logits = model.train_logits(&condition, &keep, &tokens)?;
        out.insert("train_loss".into(), cross_entropy(&logits.flatten_to(1)?, &table_rows(&tokens)?)?.mean_all()?);
        out.insert("train_logits".into(), logits);
        if let Some(padded) = padded(model, inputs)? {
            let logits = model.train_logits(&padded, &keep, &tokens)?;
            let losses = cross_entropy(&logits.flatten_to(1)?, &table_rows(&tokens)?)?
                .reshape((n, per))?
                .mean(1)?
                .to_vec1::<f32>()?;
            let valid = match inputs.find("padded_valid") {
                Some(v) => v.to_dtype(DType::I64)?.to_vec1::<i64>()?,
                None => vec![1; n],
            };
            let counted: Vec<f32> = losses.iter().zip(valid).filter(|(_, v)| *v != 0).map(|(l, _)| *l).collect();
            let loss = counted.iter().sum::<f32>() / counted.len().max(1) as f32;
            out.insert("padded_train_loss".into(), Tensor::new(loss, &Device::Cpu)?);
            out.insert("padded_eval_logits".into(), logits.clone());
            out.insert("padded_train_logits".into(), logits);
        }
    }
    for (scale, interval) in [(1.0, -1), (4.0, -1), (4.0, 2)] {
        let name = format!("scale{scale}_interval{interval}");
        out.insert(format!("greedy_{name}"), greedy(model, &condition, scale, interval)?);
        if let Some(padded) = padded(model, inputs)? {
            out.insert(format!("greedy_padded_{name}"), greedy(model, &padded, scale, interval)?);
        }
    }
    Ok(out)
}

fn greedy(model: &Arc<LlamaGen>, condition: &Condition, guidance_scale: f32, guidance_interval: i64) -> Result<Tensor> {
    let sample = SampleSettings::greedy();
    let settings = DrawSettings { guidance_interval, ..DrawSettings::constant(sample, guidance_scale) };
    let tokens = draw(model, condition, &vec![0; condition.len()], &settings, &mut |_| true)?;
    let ids: Vec<i64> = tokens.concat().into_iter().map(|t| t as i64).collect();
    Ok(Tensor::from_vec(ids, (tokens.len(), model.config.block_size), &Device::Cpu)?)
}

fn condition(model: &Arc<LlamaGen>, inputs: &Inputs, name: &str, mask: Option<&str>) -> Result<Condition> {
    let t = inputs.find(name).with_context(|| format!("{}: no tensor `{name}`", inputs.path.display()))?;
    if model.config.model_type == ModelType::C2i {
        let ids = t.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
        let ids = ids.into_iter().map(u32::try_from).collect::<std::result::Result<_, _>>();
        return Ok(Condition::Classes(
            ids.with_context(|| format!("{}: `{name}` holds a negative class", inputs.path.display()))?,
        ));
    }
    let pads = match mask {
        Some(mask) => {
            let (values, _, positions) = inputs.ids(mask)?;
            let rows = values.chunks(positions.max(1));
            let pads: Vec<usize> = rows.clone().map(|m| m.iter().take_while(|&&v| v == 0).count()).collect();
            if rows.zip(&pads).any(|(m, &p)| m[p..].contains(&0)) {
                bail!("{}: `{mask}` must hide the first positions and no others", inputs.path.display());
            }
            pads
        }
        None => vec![0; t.dim(0)?],
    };
    Ok(Condition::Captions(t.to_device(&inputs.device)?, pads))
}

fn padded(model: &Arc<LlamaGen>, inputs: &Inputs) -> Result<Option<Condition>> {
    if inputs.find("padded_condition").is_none() {
        return Ok(None);
    }
    condition(model, inputs, "padded_condition", Some("padded_mask")).map(Some)
}

/// Stages of the tokenizer inside a unified model; what goes back to pictures where the file holds that half.
pub fn tokenizer_stages(model: &VqTokenizer, pixels: &::qlip::Pixels) -> Result<Named> {
    let encoded = model.encoder_out(pixels)?;
    let pre = model.pre_quant(&encoded)?;
    let (b, _, h, w) = pre.dims4()?;
    let indices = model.quantise(&pre)?.indices;
    let entries = model.look_up(&indices, h, w)?;
    let mut out = Named::from([("vq_encoder_out".into(), encoded), ("vq_pre_quant".into(), pre)]);
    out.insert("vq_indices".into(), super::integers(&indices, (b, h * w))?);
    if model.paints() {
        let pixels = model.decode(&entries)?;
        out.insert("vq_decoded_bytes".into(), super::bytes(&pixels)?);
        out.insert("vq_decoded".into(), pixels.0);
    }
    out.insert("vq_entries".into(), entries);
    Ok(out)
}

pub fn tokenizer_outputs(model: &VqTokenizer, inputs: &Inputs) -> Result<Named> {
    let pixels = inputs.pixels("pixels", DType::F32)?;
    let encoded = model.encoder_out(&pixels)?;
    let pre = model.pre_quant(&encoded)?;
    let (b, _, h, w) = pre.dims4()?;
    let q = model.quantise(&pre)?;
    let indices: Vec<i64> = q.indices.iter().map(|&i| i64::from(i)).collect();
    let entries = model.look_up(&q.indices, h, w)?;
    Ok(Named::from([
        ("encoder_out".into(), encoded),
        ("pre_quant".into(), pre),
        ("indices".into(), Tensor::from_vec(indices, (b, h * w), &Device::Cpu)?),
        ("decoded".into(), model.decode(&q.values)?.0),
        ("decoded_from_code".into(), model.decode(&entries)?.0),
        ("quantized".into(), q.values),
        ("codebook_entries".into(), entries),
        ("vq_loss".into(), q.vq_loss),
        ("commit_loss".into(), q.commit_loss),
    ]))
}
