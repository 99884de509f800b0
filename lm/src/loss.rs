//! Modality-split cross-entropy (UM3 equation 6): each target competes with its own partition only.

use crate::llama::Llama;
use crate::vocab::{MergedVocab, Partition};
use candle_core::Tensor;
use nn::Result;
use nn::ops;

/// Targets of a batch: for each row of hidden states at most one.
#[derive(Debug, Default, Clone)]
pub struct Targets {
    /// Row of the flattened hidden states, and the token id that comes next.
    pub text: Vec<(u32, u32)>,
    /// The same for visual tokens, with the sub-token.
    pub visual: Vec<(u32, u32, usize)>,
}

/// Mean losses in nats a token; a modality without targets is `None`.
pub struct SplitLoss {
    /// Text.
    pub text: Option<Tensor>,
    /// Visual.
    pub visual: Option<Tensor>,
}

/// Losses of hidden states [batch, tokens, width].
pub fn split_loss(model: &Llama, vocab: &MergedVocab, hidden: &Tensor, targets: &Targets) -> Result<SplitLoss> {
    let flat = hidden.flatten_to(1)?;
    let part = |partition: Partition, rows: Vec<u32>, ids: Vec<u32>| -> Result<Option<(Tensor, usize)>> {
        if rows.is_empty() {
            return Ok(None);
        }
        let (n, range) = (rows.len(), vocab.range(partition));
        let ids: Vec<u32> = ids.iter().map(|&t| t - range.start as u32).collect();
        let x = flat.index_select(&Tensor::from_vec(rows, n, flat.device())?, 0)?;
        Ok(Some((ops::cross_entropy(&model.logits(&x, range)?, &ids)?.sum_all()?, n)))
    };
    let (rows, ids) = targets.text.iter().copied().unzip();
    let text = match part(Partition::Text, rows, ids)? {
        Some((sum, n)) => Some((sum / n as f64)?),
        None => None,
    };
    let mut visual: Option<Tensor> = None;
    for sub in 0..vocab.groups() {
        let (rows, ids) = targets.visual.iter().filter(|t| t.2 == sub).map(|t| (t.0, t.1)).unzip();
        if let Some((sum, _)) = part(Partition::Visual(sub), rows, ids)? {
            visual = Some(match visual {
                Some(v) => (v + sum)?,
                None => sum,
            });
        }
    }
    let visual = match visual {
        Some(v) => Some((v / targets.visual.len() as f64)?),
        None => None,
    };
    Ok(SplitLoss { text, visual })
}
