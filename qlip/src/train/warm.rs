//! First values of the towers from published weights: OpenAI's CLIP (transformers' layout), OpenCLIP, EVA-02 and EVA-CLIP.
//!
//! Names are mapped onto ours; the patch kernel and the grid of positions are resampled where their sizes differ. What has
//! no counterpart (CLIP's norm before the first layer) is left out, what the file lacks keeps its random value.

use crate::config::QlipConfig;
use candle_core::{DType, Tensor};
use nn::{Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// What was taken.
pub struct WarmStart {
    /// Tensors under our names, in our shapes.
    pub tensors: HashMap<String, Tensor>,
    /// Names in the file that were left out, with the reason.
    pub left_out: Vec<String>,
}

/// Maps a checkpoint's tensors onto the towers of a model.
pub fn warm_tensors(origin: &Path, file: HashMap<String, Tensor>, config: &QlipConfig) -> Result<WarmStart> {
    let mut out = WarmStart { tensors: HashMap::new(), left_out: Vec::new() };
    let mut names: Vec<&String> = file.keys().collect();
    names.sort();
    for name in names {
        for (to, tensor) in renamed(name, &file[name])? {
            match fitted(&to, &tensor.to_dtype(DType::F32)?, config)? {
                Some(t) => drop(out.tensors.insert(to, t)),
                None => out.left_out.push(format!("{name}: {to} {:?} has no place in this model", tensor.dims())),
            }
        }
    }
    if !out.tensors.keys().any(|k| k.starts_with("vision_model.encoder.")) {
        return Err(Error::bad_file(origin, "no layer of a CLIP, OpenCLIP or EVA vision tower of this width"));
    }
    Ok(out)
}

/// Our name and value of a tensor; several where one holds several (joined projections).
fn renamed(name: &str, t: &Tensor) -> Result<Vec<(String, Tensor)>> {
    let one = |to: String| Ok(vec![(to, t.clone())]);
    // transformers' names are ours
    if name.starts_with("vision_model.") || name.starts_with("text_model.") || name.ends_with("_projection.weight") {
        return one(name.to_owned());
    }
    if name == "logit_scale" {
        return one(name.to_owned());
    }
    let vision = name.strip_prefix("visual.");
    let bare =
        vision.is_none() && (name.starts_with("blocks.") || name.starts_with("patch_embed.") || is_eva_root(name));
    match vision.or(bare.then_some(name)) {
        Some(rest) => vision_name(rest, t),
        None => text_name(name.strip_prefix("text.").unwrap_or(name), t),
    }
}

fn is_eva_root(name: &str) -> bool {
    ["cls_token", "pos_embed", "norm.weight", "norm.bias", "head.weight", "head.bias"].contains(&name)
}

fn vision_name(name: &str, t: &Tensor) -> Result<Vec<(String, Tensor)>> {
    let ours = |to: &str| format!("vision_model.{to}");
    let flat = || t.flatten_all();
    Ok(match name {
        "class_embedding" | "cls_token" => vec![(ours("embeddings.class_embedding"), flat()?)],
        "positional_embedding" => vec![(ours("embeddings.position_embedding.weight"), t.clone())],
        "pos_embed" => vec![(ours("embeddings.position_embedding.weight"), t.squeeze(0)?)],
        "conv1.weight" | "patch_embed.proj.weight" => vec![(ours("embeddings.patch_embedding.weight"), t.clone())],
        "patch_embed.proj.bias" => vec![(ours("embeddings.patch_embedding.bias"), t.clone())],
        "ln_post.weight" | "norm.weight" => vec![(ours("post_layernorm.weight"), t.clone())],
        "ln_post.bias" | "norm.bias" => vec![(ours("post_layernorm.bias"), t.clone())],
        "proj" => vec![("visual_projection.weight".into(), t.t()?.contiguous()?)],
        "head.weight" => vec![("visual_projection.weight".into(), t.clone())],
        "head.bias" => vec![("visual_projection.bias".into(), t.clone())],
        _ => layer_name("vision_model", name, t)?,
    })
}

fn text_name(name: &str, t: &Tensor) -> Result<Vec<(String, Tensor)>> {
    Ok(match name {
        "token_embedding.weight" => vec![("text_model.embeddings.token_embedding.weight".into(), t.clone())],
        "positional_embedding" => vec![("text_model.embeddings.position_embedding.weight".into(), t.clone())],
        "ln_final.weight" => vec![("text_model.final_layer_norm.weight".into(), t.clone())],
        "ln_final.bias" => vec![("text_model.final_layer_norm.bias".into(), t.clone())],
        "text_projection" => vec![("text_projection.weight".into(), t.t()?.contiguous()?)],
        _ => layer_name("text_model", name, t)?,
    })
}

/// `transformer.resblocks.3.ln_1.weight` (OpenCLIP) and `blocks.3.attn.q_bias` (EVA).
fn layer_name(tower: &str, name: &str, t: &Tensor) -> Result<Vec<(String, Tensor)>> {
    let rest = name.strip_prefix("transformer.resblocks.").or_else(|| name.strip_prefix("blocks."));
    let Some((layer, inner)) = rest.and_then(|r| r.split_once('.')) else {
        return Ok(vec![(name.to_owned(), t.clone())]);
    };
    let at = |to: &str| format!("{tower}.encoder.layers.{layer}.{to}");
    if let Some(kind) = inner.strip_prefix("attn.in_proj_") {
        let width = t.dim(0)? / 3;
        let part =
            |(i, p): (usize, &str)| Ok((at(&format!("self_attn.{p}_proj.{kind}")), t.narrow(0, i * width, width)?));
        return ["q", "k", "v"].into_iter().enumerate().map(part).collect();
    }
    const PIECES: [(&str, &str); 12] = [
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("norm1.", "layer_norm1."),
        ("norm2.", "layer_norm2."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
        ("attn.out_proj.", "self_attn.out_proj."),
        ("attn.proj.", "self_attn.out_proj."),
        ("attn.inner_attn_ln.", "self_attn.inner_attn_ln."),
        ("attn.q_proj.", "self_attn.q_proj."),
        ("attn.k_proj.", "self_attn.k_proj."),
        ("attn.v_proj.", "self_attn.v_proj."),
    ];
    let to = match inner {
        "attn.q_bias" => "self_attn.q_proj.bias".to_owned(),
        "attn.v_bias" => "self_attn.v_proj.bias".to_owned(),
        _ => PIECES
            .iter()
            .find_map(|(from, to)| inner.strip_prefix(from).map(|r| format!("{to}{r}")))
            .unwrap_or_else(|| inner.to_owned()),
    };
    Ok(vec![(at(&to), t.clone())])
}

/// The tensor in the model's shape, where it has a place.
fn fitted(name: &str, t: &Tensor, c: &QlipConfig) -> Result<Option<Tensor>> {
    let (v, x) = (&c.vision_config, &c.text_config);
    let (d, f, p, grid) = (v.hidden_size, v.intermediate_size, v.patch_size, v.grid());
    if name == "vision_model.embeddings.patch_embedding.weight" {
        let &[rows, 3, kernel, _] = t.dims() else { return Ok(None) };
        return if rows == d { Ok(Some(resample(t, 2, kernel, p)?)) } else { Ok(None) };
    }
    if name == "vision_model.embeddings.position_embedding.weight" {
        let &[rows, width] = t.dims() else { return Ok(None) };
        let side = (rows.saturating_sub(1)).isqrt();
        if width != d || side == 0 || side * side + 1 != rows {
            return Ok(None);
        }
        let cells = t.narrow(0, 1, rows - 1)?.reshape((1, side, side, width))?.permute((0, 3, 1, 2))?.contiguous()?;
        let cells =
            resample(&cells, 2, side, grid)?.permute((0, 2, 3, 1))?.contiguous()?.reshape((grid * grid, width))?;
        return Ok(Some(Tensor::cat(&[&t.narrow(0, 0, 1)?, &cells], 0)?));
    }
    let (tower, width, inner, layers) = match name.split_once('.') {
        Some(("vision_model", rest)) => (rest, d, f, v.num_hidden_layers),
        Some(("text_model", rest)) => (rest, x.hidden_size, x.intermediate_size, x.num_hidden_layers),
        _ => {
            let e = c.projection_dim;
            let fits = match (name, t.dims()) {
                ("visual_projection.weight", [a, b]) => (*a, *b) == (e, d),
                ("visual_projection.bias", [a]) => *a == e && c.vision_projection_bias,
                ("text_projection.weight", [a, b]) => (*a, *b) == (e, x.hidden_size),
                ("logit_scale", dims) => dims.is_empty(),
                _ => false,
            };
            return Ok(fits.then(|| t.clone()));
        }
    };
    let dims = t.dims();
    let fits = match tower.strip_prefix("encoder.layers.").and_then(|r| r.split_once('.')) {
        Some((layer, part)) => {
            let in_range = layer.parse::<usize>().is_ok_and(|l| l < layers);
            let (swiglu, subln) = if name.starts_with("vision") { (v.swiglu, v.subln) } else { (x.swiglu, x.subln) };
            in_range
                && match part {
                    "mlp.w1.weight" | "mlp.w2.weight" => swiglu && dims == [inner, width],
                    "mlp.w3.weight" => swiglu && dims == [width, inner],
                    "mlp.w1.bias" | "mlp.w2.bias" => swiglu && dims == [inner],
                    "mlp.w3.bias" => swiglu && dims == [width],
                    "mlp.fc1.weight" => !swiglu && dims == [inner, width],
                    "mlp.fc2.weight" => !swiglu && dims == [width, inner],
                    "mlp.fc1.bias" => !swiglu && dims == [inner],
                    "mlp.fc2.bias" => !swiglu && dims == [width],
                    "mlp.ffn_ln.weight" | "mlp.ffn_ln.bias" => subln && dims == [inner],
                    "self_attn.inner_attn_ln.weight" | "self_attn.inner_attn_ln.bias" => subln && dims == [width],
                    "self_attn.k_proj.bias" => {
                        (if name.starts_with("vision") { v.k_bias } else { x.k_bias }) && dims == [width]
                    }
                    p if p.starts_with("self_attn.") && p.ends_with("_proj.weight") => dims == [width, width],
                    p if p.starts_with("self_attn.") && p.ends_with("_proj.bias") => dims == [width],
                    "layer_norm1.weight" | "layer_norm1.bias" | "layer_norm2.weight" | "layer_norm2.bias" => {
                        dims == [width]
                    }
                    _ => false,
                }
        }
        None => match tower {
            "embeddings.token_embedding.weight" => dims == [x.vocab_size, width],
            "embeddings.position_embedding.weight" => dims == [x.max_position_embeddings, width],
            "embeddings.class_embedding" | "embeddings.patch_embedding.bias" => dims == [width],
            "post_layernorm.weight" | "post_layernorm.bias" => name.starts_with("vision") && dims == [width],
            "final_layer_norm.weight" | "final_layer_norm.bias" => name.starts_with("text") && dims == [width],
            _ => false,
        },
    };
    Ok(fits.then(|| t.clone()))
}

/// Cubic convolution (a = -0.75, as torch's bicubic interpolation) of the last two dimensions from `from` to `to`.
fn resample(t: &Tensor, first: usize, from: usize, to: usize) -> Result<Tensor> {
    if from == to {
        return Ok(t.clone());
    }
    let weight = |x: f64| {
        let (a, x) = (-0.75, x.abs());
        match x {
            x if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            x if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
            _ => 0.0,
        }
    };
    let mut matrix = vec![0f32; to * from];
    for i in 0..to {
        let centre = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let base = centre.floor() as i64;
        for k in base - 1..=base + 2 {
            matrix[i * from + k.clamp(0, from as i64 - 1) as usize] += weight(centre - k as f64) as f32;
        }
    }
    let m = Tensor::from_vec(matrix, (to, from), t.device())?;
    let &[a, b, h, w] = t.dims() else { return Err(Error::invalid("a grid to resample has four dimensions")) };
    debug_assert_eq!((first, h, w), (2, from, from));
    // rows, then columns
    let rows = t.reshape((a * b, h, w))?.transpose(1, 2)?.contiguous()?.reshape((a * b * w, h))?.matmul(&m.t()?)?;
    let rows = rows.reshape((a * b, w, to))?.transpose(1, 2)?.contiguous()?.reshape((a * b * to, w))?;
    Ok(rows.matmul(&m.t()?)?.reshape((a, b, to, to))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn resampling_is_torchs_bicubic_interpolation() {
        // torch's weights a quarter of a pixel beyond the middle: -0.03515625, 0.26171875, 0.87890625, -0.10546875
        let v: Vec<f32> = (0..64).map(|i| (i / 8) as f32 + 0.5 * (i % 8) as f32).collect();
        let at = 2.0 * -0.035_156_25 + 3.0 * 0.261_718_75 + 4.0 * 0.878_906_25 + 5.0 * -0.105_468_75;
        let t = Tensor::from_vec(v, (1, 1, 8, 8), &Device::Cpu).unwrap();
        let up = resample(&t, 2, 8, 16).unwrap().reshape((16, 16)).unwrap().to_vec2::<f32>().unwrap();
        assert!((up[8][8] - 1.5 * at).abs() < 1e-5, "{}", up[8][8]);
        let ones = Tensor::ones((2, 3, 14, 14), DType::F32, &Device::Cpu).unwrap();
        let all = resample(&ones, 2, 14, 16).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(all.iter().all(|v| (v - 1.0).abs() < 1e-5));
    }

    #[test]
    fn published_names_find_their_places() {
        let t = Tensor::zeros((6, 2), DType::F32, &Device::Cpu).unwrap();
        let to = |name: &str| renamed(name, &t).unwrap().into_iter().map(|(n, _)| n).collect::<Vec<_>>();
        let layer = |tower: &str, part: &str| format!("{tower}.encoder.layers.3.{part}");
        assert_eq!(
            to("visual.transformer.resblocks.3.attn.in_proj_weight"),
            ["q", "k", "v"].map(|p| layer("vision_model", &format!("self_attn.{p}_proj.weight")))
        );
        assert_eq!(to("visual.blocks.3.attn.q_bias"), [layer("vision_model", "self_attn.q_proj.bias")]);
        assert_eq!(to("blocks.3.mlp.ffn_ln.weight"), [layer("vision_model", "mlp.ffn_ln.weight")]);
        assert_eq!(to("text.transformer.resblocks.3.mlp.c_fc.bias"), [layer("text_model", "mlp.fc1.bias")]);
        assert_eq!(to("transformer.resblocks.3.ln_2.weight"), [layer("text_model", "layer_norm2.weight")]);
        assert_eq!(to("visual.proj"), ["visual_projection.weight"]);
        assert_eq!(to("vision_model.encoder.layers.3.mlp.fc1.weight"), [layer("vision_model", "mlp.fc1.weight")]);
    }
}
