//! How likely a model finds continuations of a text, as lm-evaluation-harness asks it.

use crate::words::Words;
use crate::{Error, Result};
use candle_core::DType;
use lm::vocab::table_rows;
use lm::{Llama, Token};
use std::ops::Range;

/// Sum of the log-probabilities of each continuation's tokens after the context, among the vocabulary rows of words. A context's blanks
/// at its end belong to the continuation, and both are encoded together, as the harness does.
pub fn likelihoods(
    lm: &Llama,
    rows: Range<usize>,
    words: &Words,
    begin: Option<Token>,
    context: &str,
    continuations: &[String],
) -> Result<Vec<f64>> {
    let kept = context.trim_end();
    let mut out = Vec::with_capacity(continuations.len());
    for c in continuations {
        let whole = format!("{kept}{}{c}", &context[kept.len()..]);
        let start = words.encode(kept)?.len();
        let mut ids: Vec<Token> = begin.into_iter().collect();
        let first = ids.len() + start;
        ids.extend(words.encode(&whole)?);
        if ids.len() > lm.max_positions() {
            let (n, most) = (ids.len(), lm.max_positions());
            return Err(Error::TooLong(format!("{n} tokens are more than the {most} the model can hold")));
        }
        // the first token of all has nothing before it
        let first = first.max(1).min(ids.len());
        if first == ids.len() {
            return Err(Error::invalid(format!("`{c}` adds no token to its context")));
        }
        out.push(-nats(lm, &rows, &ids, first)?);
    }
    Ok(out)
}

/// Negative log-probabilities of the tokens from the `first` on (1 or more), each after those before it, summed. The last token is read by nobody.
fn nats(lm: &Llama, rows: &Range<usize>, ids: &[Token], first: usize) -> Result<f64> {
    let read = lm.embed(&ids[..ids.len() - 1], 1)?;
    let hidden = lm.hidden(&read, &nn::ops::Positions::From(0), &nn::ops::Mask::Causal)?;
    let logits = lm.logits(&hidden.narrow(1, first - 1, ids.len() - first)?.squeeze(0)?, rows.clone())?;
    let targets: Vec<Token> = ids[first..].iter().map(|&t| t - rows.start as Token).collect();
    let losses = nn::ops::cross_entropy(&logits.to_dtype(DType::F32)?, &table_rows(&targets)?)?;
    Ok(losses.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).sum())
}

/// How likely a text is: the sum of its tokens' negative log-probabilities, and how many were predicted.
#[derive(Debug, Clone, Copy, Default)]
pub struct TextLoss {
    /// In nats.
    pub nats: f64,
    /// Tokens that were predicted.
    pub tokens: usize,
}

/// Windows of a text of `n` tokens: (from, predicted from, to). The first of all has the prefix token before it.
fn windows(n: usize, length: usize, rolling: bool) -> Vec<(usize, usize, usize)> {
    if !rolling {
        return (0..n).step_by(length).map(|from| (from, from, (from + length).min(n))).collect();
    }
    // lm_eval.utils.get_rolling_token_windows with context_len = 1: each window but the first sees as much as it can hold
    let mut out = vec![(0, 0, n.min(length))];
    let mut done = n.min(length);
    while done < n {
        let to = (done + length).min(n);
        out.push((to.saturating_sub(length + 1), done, to));
        done = to;
    }
    out
}

/// The loss of a text in windows of `length` tokens (as many as the model can hold if 0). `rolling` are lm-evaluation-harness's windows after
/// `prefix`; otherwise windows see nothing of each other, and the first token of each has nothing to be predicted from.
pub fn text_loss(
    lm: &Llama,
    rows: Range<usize>,
    words: &Words,
    prefix: Option<Token>,
    text: &str,
    (length, rolling): (usize, bool),
) -> Result<TextLoss> {
    let most = lm.max_positions();
    let length = if length == 0 { most } else { length };
    if length < 2 || length > most {
        return Err(Error::invalid(format!("windows of {length} tokens: 2 to {most} for this model")));
    }
    let ids = words.encode(text)?;
    let prefix = prefix.filter(|_| rolling);
    let mut out = TextLoss::default();
    for (from, predicted, to) in windows(ids.len(), length, rolling) {
        let mut seen: Vec<Token> = prefix.filter(|_| from == 0 && predicted == 0).into_iter().collect();
        let before = seen.len();
        seen.extend(&ids[from..to]);
        let first = (before + predicted - from).max(1);
        if first >= seen.len() {
            continue;
        }
        out.nats += nats(lm, &rows, &seen, first)?;
        out.tokens += seen.len() - first;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of lm_eval 0.4.9's get_rolling_token_windows(range(n), prefix, max_seq_len=length, context_len=1), whose inputs begin one token earlier.
    #[test]
    fn rolling_windows_are_lm_evaluation_harness_s() {
        assert_eq!(windows(10, 4, true), [(0, 0, 4), (3, 4, 8), (5, 8, 10)]);
        assert_eq!(windows(3, 4, true), [(0, 0, 3)]);
        assert_eq!(windows(8, 4, true), [(0, 0, 4), (3, 4, 8)]);
        assert_eq!(windows(10, 4, false), [(0, 0, 4), (4, 4, 8), (8, 8, 10)]);
    }
}
