//! A text model becomes a unified one (UM3 section 4.1): rows for visual tokens and marks, norms of queries and keys, and
//! what it says about text stays as it was.

use crate::llama::LlamaConfig;
use candle_core::{DType, Tensor};
use nn::{Error, Result};
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

fn get<'a>(tensors: &'a HashMap<String, Tensor>, name: &str) -> Result<&'a Tensor> {
    tensors.get(name).ok_or_else(|| Error::invalid(format!("the starting checkpoint has no tensor `{name}`")))
}

fn take(tensors: &mut HashMap<String, Tensor>, name: &str) -> Result<Tensor> {
    tensors.remove(name).ok_or_else(|| Error::invalid(format!("the starting checkpoint has no tensor `{name}`")))
}
