//! More bits a token than a trained tokenizer has, without beginning anew: its bits become the first ones.

use crate::config::{QlipConfig, QuantizerConfig};
use candle_core::{DType, Tensor};
use nn::{Error, Result, rng};
use std::collections::HashMap;

/// The rows that make latents of features [bits, width], and the columns that read corners [width, bits].
const DOWN: &str = "vision_model.quant_embed.c_proj";
const UP: &str = "vision_model.quant_embed_post.c_fc.weight";

/// The configuration and tensors of a tokenizer with another quantizer. Where that has more bits, a picture's codes keep their first
/// bits and its reconstruction stays as it was: new rows are random and as large as the old ones, new columns zero, and the old columns
/// make up for corners of plus or minus 1 / sqrt(bits).
pub fn with_quantizer(
    mut tensors: HashMap<String, Tensor>,
    config: &QlipConfig,
    quantizer: &QuantizerConfig,
    seed: u64,
) -> Result<(QlipConfig, HashMap<String, Tensor>)> {
    let mut grown = config.clone();
    grown.vision_config.quantizer_cfg = quantizer.clone();
    grown.check()?;
    let (from, to) = (config.vision_config.quantizer_cfg.embed_dim, quantizer.embed_dim);
    if from == to {
        return Ok((grown, tensors));
    }
    if to < from || config.vision_config.quantizer_embed_type != "mlp" {
        return Err(Error::invalid(format!(
            "quantizer: a tokenizer of {from} bits becomes one of more, by its layers quant_embed; {to} bits it cannot have"
        )));
    }
    let mut take = |name: &str| {
        let t = tensors.remove(name).ok_or_else(|| Error::invalid(format!("`start` has no tensor `{name}`")));
        t.and_then(|t| Ok(t.to_dtype(DType::F32)?))
    };
    let (weight, bias, up) = (take(&format!("{DOWN}.weight"))?, take(&format!("{DOWN}.bias"))?, take(UP)?);
    let (width, device) = (weight.dim(1)?, weight.device().clone());
    let spread = weight.sqr()?.mean_all()?.to_scalar::<f32>()?.sqrt();
    let mut stream = rng::keyed(seed, &[rng::name_key(DOWN)]);
    let rows: Vec<f32> = (0..(to - from) * width).map(|_| spread * rng::normal(&mut stream)).collect();
    let rows = Tensor::from_vec(rows, (to - from, width), &device)?;
    let none = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &device);
    let kept = (up * (to as f64 / from as f64).sqrt())?;
    let columns = none(&[kept.dim(0)?, to - from])?;
    tensors.insert(format!("{DOWN}.weight"), Tensor::cat(&[&weight, &rows], 0)?);
    tensors.insert(format!("{DOWN}.bias"), Tensor::cat(&[bias, none(&[to - from])?], 0)?);
    tensors.insert(UP.into(), Tensor::cat(&[kept, columns], 1)?);
    Ok((grown, tensors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Pixels, Qlip};
    use candle_core::Device;
    use nn::Params;

    #[test]
    fn the_first_bits_and_the_picture_stay() {
        let config: QlipConfig = serde_json::from_value(serde_json::json!({
            "projection_dim": 8, "vision_projection_bias": true, "text_projection_bias": false,
            "text_config": {"vocab_size": 9, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                "num_attention_heads": 2, "projection_dim": 8, "max_position_embeddings": 4, "pad_token_id": 1,
                "bos_token_id": 0, "eos_token_id": 1},
            "vision_config": {"hidden_size": 16, "intermediate_size": 24, "projection_dim": 8, "num_hidden_layers": 1,
                "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "rope": true, "swiglu": true,
                "quantizer_cfg": {"embed_dim": 6, "group_size": 3}},
            "decoder_config": {"hidden_size": 16, "intermediate_size": 24, "projection_dim": 8, "num_hidden_layers": 1,
                "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "rope": true, "swiglu": true, "quantizer": "none"}
        }))
        .unwrap();
        let params = Params::for_training(HashMap::new(), &[], 4, DType::F32, &Device::Cpu);
        let small = Qlip::new(&params, &config, false).unwrap();
        let tensors = params.vars().iter().map(|(k, v)| (k.clone(), v.as_tensor().clone())).collect();
        let wanted = QuantizerConfig { embed_dim: 10, group_size: 5, ..config.vision_config.quantizer_cfg.clone() };
        let (grown, tensors) = with_quantizer(tensors, &config, &wanted, 1).unwrap();
        let large =
            Qlip::new(&Params::from_tensors("grown", tensors, DType::F32, &Device::Cpu), &grown, false).unwrap();
        let pixels = Pixels(Tensor::rand(-1f32, 1f32, (3, 3, 16, 16), &Device::Cpu).unwrap());
        let both = [&small, &large].map(|m| {
            let latents = m.encode(&pixels).unwrap().latents;
            let painted = m.paint(&m.expand(&m.bsq.quantize(&latents).unwrap()).unwrap()).unwrap().0;
            (m.bsq.indices(&latents).unwrap(), painted.0.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        });
        assert_eq!(both[0].0, both[1].0.iter().map(|code| code >> 4).collect::<Vec<_>>());
        assert!(both[1].0.iter().any(|code| code & 15 != both[1].0[0] & 15), "new bits say something");
        assert!(both[0].1.iter().zip(&both[1].1).all(|(a, b)| (a - b).abs() < 1e-5));
        let fewer = QuantizerConfig { embed_dim: 4, group_size: 2, ..wanted };
        let refused = with_quantizer(HashMap::new(), &config, &fewer, 1).unwrap_err().to_string();
        assert!(refused.contains("of 6 bits becomes one of more"), "{refused}");
    }
}
