//! A text model becomes a unified one (UM3 section 4.1): rows for visual tokens and marks, norms of queries and keys, and
//! what it says about text stays as it was.

use crate::head::BitwiseConfig;
use crate::llama::LlamaConfig;
use candle_core::{DType, Tensor};
use nn::{Error, Result, rng};
use std::collections::HashMap;

/// Queries and keys are to pass their new norm almost unchanged: its epsilon is this many times their mean square.
const HEADROOM: f64 = 1e4;

/// The tensors and configuration of a Llama with `rows` vocabulary rows and, if asked, query and key norms.
///
/// Every new row is the mean of the rows that were there. A root-mean-square norm would change a trained model's function
/// at once; here its epsilon lies far above the mean square of queries and keys and its gain is the root of that epsilon,
/// so that it begins as the identity (to about 1 / (2 HEADROOM)) and bounds queries and keys should training blow them up.
pub fn grow(
    mut tensors: HashMap<String, Tensor>,
    config: &LlamaConfig,
    rows: usize,
    qk_norm: bool,
) -> Result<(HashMap<String, Tensor>, LlamaConfig)> {
    let mut grown = config.clone();
    let old = config.vocab_size;
    if rows < old {
        return Err(Error::invalid(format!("a vocabulary of {old} rows cannot grow to {rows}")));
    }
    let heads =
        if config.tie_word_embeddings { &["model.embed_tokens"][..] } else { &["model.embed_tokens", "lm_head"] };
    for name in heads {
        let name = format!("{name}.weight");
        let table = take(&mut tensors, &name)?;
        let mean = table.to_dtype(DType::F32)?.mean_keepdim(0)?.to_dtype(table.dtype())?;
        let new = mean.broadcast_as((rows - old, table.dim(1)?))?;
        tensors.insert(name, Tensor::cat(&[&table, &new.contiguous()?], 0)?);
    }
    grown.vocab_size = rows;
    if qk_norm && !config.qk_norm {
        let mut largest = 0f64;
        for i in 0..config.num_hidden_layers {
            let at = |name: &str| format!("model.layers.{i}.{name}.weight");
            // inputs have a mean square of 1 before their gain
            let gain = get(&tensors, &at("input_layernorm"))?.to_dtype(DType::F32)?;
            for name in ["self_attn.q_proj", "self_attn.k_proj"] {
                let w = get(&tensors, &at(name))?.to_dtype(DType::F32)?.broadcast_mul(&gain)?;
                let square = w.sqr()?.sum(1)?.max_all()?.to_scalar::<f32>()?;
                largest = largest.max(f64::from(square));
            }
        }
        let eps = HEADROOM * largest.max(f64::MIN_POSITIVE);
        let norm = Tensor::full(eps.sqrt() as f32, config.head_width(), &candle_core::Device::Cpu)?;
        for i in 0..config.num_hidden_layers {
            for name in ["q_norm", "k_norm"] {
                tensors.insert(format!("model.layers.{i}.self_attn.{name}.weight"), norm.clone());
            }
        }
        grown.qk_norm = true;
        grown.qk_norm_eps = Some(eps);
    }
    Ok((tensors, grown))
}

/// The tensors of a bitwise head whose tokens have more bits: its first groups read and say what they did, new ones begin as those of a
/// new head do, equally likely, and are read as nothing.
pub fn with_more_bits(
    mut tensors: HashMap<String, Tensor>,
    from: &BitwiseConfig,
    to: &BitwiseConfig,
    seed: u64,
) -> Result<HashMap<String, Tensor>> {
    if from.group_bits != to.group_bits || from.width != to.width || to.bits < from.bits {
        return Err(Error::invalid(format!(
            "a bitwise head of {} bits by {}, width {}, does not grow to {} bits by {}, width {}: groups and width must stay",
            from.bits, from.group_bits, from.width, to.bits, to.group_bits, to.width
        )));
    }
    let groups = to.groups() - from.groups();
    let mut append = |name: &str, dim: usize, n: usize, value: &mut dyn FnMut() -> f32| -> Result<()> {
        let t = take(&mut tensors, name)?.to_dtype(DType::F32)?;
        let mut shape = t.dims().to_vec();
        shape[dim] = n;
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| value()).collect();
        let more = Tensor::from_vec(values, shape, t.device())?;
        tensors.insert(name.to_owned(), Tensor::cat(&[&t, &more], dim)?);
        Ok(())
    };
    let mut zero = || 0f32;
    append("bit_embeddings.weight", 1, to.bits - from.bits, &mut zero)?;
    append("bit_head.known.weight", 1, to.bits - from.bits, &mut zero)?;
    append("bit_head.output.weight", 0, groups << to.group_bits, &mut zero)?;
    let mut stream = rng::keyed(seed, &[rng::name_key("bit_head.place_embedding")]);
    append("bit_head.place_embedding.weight", 0, groups, &mut || rng::normal(&mut stream))?;
    Ok(tensors)
}

fn get<'a>(tensors: &'a HashMap<String, Tensor>, name: &str) -> Result<&'a Tensor> {
    tensors.get(name).ok_or_else(|| Error::invalid(format!("the starting checkpoint has no tensor `{name}`")))
}

fn take(tensors: &mut HashMap<String, Tensor>, name: &str) -> Result<Tensor> {
    tensors.remove(name).ok_or_else(|| Error::invalid(format!("the starting checkpoint has no tensor `{name}`")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::BitwiseHead;
    use candle_core::Device;
    use nn::Params;

    #[test]
    fn a_head_of_more_bits_says_its_first_bits_as_before() {
        let config = |bits| BitwiseConfig { bits, group_bits: 2, width: 8 };
        let p = Params::for_training(HashMap::new(), &[], 3, DType::F32, &Device::Cpu);
        let small = BitwiseHead::new(&p, &config(4), 6, 3).unwrap();
        let table = p.vars()["bit_head.output.weight"].clone();
        let values: Vec<f32> = (0..table.elem_count()).map(|i| (i as f32 * 0.7).sin()).collect();
        table.set(&Tensor::from_vec(values, table.shape(), &Device::Cpu).unwrap()).unwrap();
        let tensors: HashMap<String, Tensor> =
            p.vars().iter().map(|(k, v)| (k.clone(), v.as_tensor().clone())).collect();
        let grown = with_more_bits(tensors.clone(), &config(4), &config(10), 1).unwrap();
        let grown = Params::from_tensors("grown", grown, DType::F32, &Device::Cpu);
        let large = BitwiseHead::new(&grown, &config(10), 6, 3).unwrap();
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        // cell 2, bits 1011, and any bits after them
        let (few, many) = ([2 << 4 | 0b1011], [2 << 10 | 0b1011 << 6 | 0b01_1010]);
        assert_eq!(values(small.embed(&few).unwrap()), values(large.embed(&many).unwrap()));
        let hidden = Tensor::new(&[[0.3f32, -1.0, 0.5, 0.1, 0.9, -0.2]], &Device::Cpu).unwrap();
        for g in 0..2 {
            assert_eq!(
                values(small.logits(&hidden, &few, g).unwrap()),
                values(large.logits(&hidden, &many, g).unwrap()),
            );
        }
        assert!(values(large.logits(&hidden, &many, 4).unwrap()).iter().all(|l| *l == 0.0));
        let wide = BitwiseConfig { width: 9, ..config(10) };
        assert!(with_more_bits(tensors, &config(4), &wide, 1).unwrap_err().to_string().contains("must stay"));
    }
}
