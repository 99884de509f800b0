//! Modality-split cross-entropy (UM3 equation 6): each target competes with its own partition only.

use crate::llama::Llama;
use crate::vocab::{MergedVocab, Partition, Token, table_rows};
use candle_core::Tensor;
use nn::Result;
use nn::ops;
use nn::parallel::World;

/// Targets of a batch: for each row of hidden states at most one.
#[derive(Debug, Default, Clone)]
pub struct Targets {
    /// Row of the flattened hidden states, and the token id that comes next.
    pub text: Vec<(u32, Token)>,
    /// The same for visual tokens, with the sub-token.
    pub visual: Vec<(u32, Token, usize)>,
}

/// Numbers of targets that means are over: those of a batch whose parts are computed one by one, or by several processes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// Text.
    pub text: f64,
    /// Visual.
    pub visual: f64,
}

impl Totals {
    /// Counts a part's targets too.
    pub fn add(&mut self, targets: &Targets) {
        self.text += targets.text.len() as f64;
        self.visual += targets.visual.len() as f64;
    }

    /// The sum over all processes.
    pub fn over(self, world: &World) -> Self {
        let mut all = [self.text, self.visual];
        world.sum_numbers(&mut all);
        Self { text: all[0], visual: all[1] }
    }

    /// Whether there is nothing to learn.
    pub fn is_empty(&self) -> bool {
        self.text + self.visual == 0.0
    }
}

/// Losses in nats a token, each the sum over a part's targets divided by the whole batch's number of them; a modality without targets is
/// `None`.
pub struct SplitLoss {
    /// Text.
    pub text: Option<Tensor>,
    /// Visual.
    pub visual: Option<Tensor>,
    /// Mean of (log sum exp of the logits)^2 over all targets, which keeps logits from drifting (z-loss, PaLM section 5);
    /// `None` where it was not asked for.
    pub z: Option<Tensor>,
}

/// Losses of hidden states [batch, tokens, width].
pub fn split_loss(
    model: &Llama,
    vocab: &MergedVocab,
    hidden: &Tensor,
    targets: &Targets,
    totals: &Totals,
    with_z: bool,
) -> Result<SplitLoss> {
    let flat = hidden.flatten_to(1)?;
    let (mut text, mut visual, mut z) = (None, None, None);
    let mut part = |partition: Partition, rows: Vec<u32>, ids: Vec<Token>, sum: &mut Option<Tensor>| -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let (n, range) = (rows.len(), vocab.range(partition));
        let ids: Vec<Token> = ids.iter().map(|&t| t - range.start as Token).collect();
        let x = flat.index_select(&Tensor::from_vec(rows, n, flat.device())?, 0)?;
        if let (Partition::Visual(_), Some(head)) = (partition, model.bitwise()) {
            return add(sum, (head.loss(&x, &ids)? * n as f64)?);
        }
        let ids = table_rows(&ids)?;
        let logits = model.logits(&x, range)?;
        let losses = ops::cross_entropy(&logits, &ids)?;
        if with_z {
            // the loss is log sum exp less the target's logit
            let picked = logits.gather(&Tensor::from_vec(ids, (n, 1), flat.device())?, 1)?.squeeze(1)?;
            add(&mut z, (&losses + picked.to_dtype(losses.dtype())?)?.sqr()?.sum_all()?)?;
        }
        add(sum, losses.sum_all()?)
    };
    let (rows, ids) = targets.text.iter().copied().unzip();
    part(Partition::Text, rows, ids, &mut text)?;
    for sub in 0..vocab.groups() {
        let (rows, ids) = targets.visual.iter().filter(|t| t.2 == sub).map(|t| (t.0, t.1)).unzip();
        part(Partition::Visual(sub), rows, ids, &mut visual)?;
    }
    let mean = |sum: Option<Tensor>, n: f64| sum.map(|s| s / n).transpose();
    Ok(SplitLoss {
        text: mean(text, totals.text)?,
        visual: mean(visual, totals.visual)?,
        z: mean(z, totals.text + totals.visual)?,
    })
}

fn add(sum: &mut Option<Tensor>, more: Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        Some(s) => (s + more)?,
        None => more,
    });
    Ok(())
}
