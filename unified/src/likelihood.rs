//! How likely a model finds continuations of a text, as lm-evaluation-harness asks it.

use crate::words::Words;
use crate::{Error, Result};
use candle_core::DType;
use lm::Llama;
use std::ops::Range;

/// Sum of the log-probabilities of each continuation's tokens after the context, among the vocabulary rows of words. A context's blanks
/// at its end belong to the continuation, and both are encoded together, as the harness does.
pub fn likelihoods(
    lm: &Llama,
    rows: Range<usize>,
    words: &Words,
    begin: Option<u32>,
    context: &str,
    continuations: &[String],
) -> Result<Vec<f64>> {
    let kept = context.trim_end();
    let mut out = Vec::with_capacity(continuations.len());
    for c in continuations {
        let whole = format!("{kept}{}{c}", &context[kept.len()..]);
        let start = words.encode(kept)?.len();
        let mut ids: Vec<u32> = begin.into_iter().collect();
        let first = ids.len() + start;
        ids.extend(words.encode(&whole)?);
        if ids.len() > lm.max_positions() {
            let (n, most) = (ids.len(), lm.max_positions());
            return Err(Error::TooLong(format!("{n} tokens are more than the {most} the model can hold")));
        }
        // the first token of all has nothing before it
        let first = first.max(1).min(ids.len());
        let hidden = lm.hidden(&lm.embed(&ids, 1)?, &nn::ops::Positions::From(0), &nn::ops::Mask::Causal)?;
        let n = ids.len() - first;
        if n == 0 {
            return Err(Error::invalid(format!("`{c}` adds no token to its context")));
        }
        let logits = lm.logits(&hidden.narrow(1, first - 1, n)?.squeeze(0)?, rows.clone())?;
        let targets: Vec<u32> = ids[first..].iter().map(|&t| t - rows.start as u32).collect();
        let losses = nn::ops::cross_entropy(&logits.to_dtype(DType::F32)?, &targets)?;
        out.push(losses.flatten_all()?.to_vec1::<f32>()?.into_iter().map(|l| -f64::from(l)).sum());
    }
    Ok(out)
}
