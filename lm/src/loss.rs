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
    /// What the target of each row of the flattened hidden states counts in the means; empty where all count alike.
    pub weights: Vec<f32>,
}

impl Targets {
    /// What a row's target counts.
    fn weight(&self, row: u32) -> f32 {
        self.weights.get(row as usize).copied().unwrap_or(1.0)
    }

    /// Sum of what the targets of these rows count.
    fn weigh(&self, rows: impl Iterator<Item = u32>) -> f64 {
        rows.map(|row| f64::from(self.weight(row))).sum()
    }
}

/// What means are over, the sum of the targets' weights: those of a batch whose parts are computed one by one, or by several processes.
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
        self.text += targets.weigh(targets.text.iter().map(|t| t.0));
        self.visual += targets.weigh(targets.visual.iter().map(|t| t.0));
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

/// Losses in nats a token, each the weighed sum over a part's targets divided by the whole batch's weights; a modality without targets is
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
        let weights: Option<Vec<f32>> =
            (!targets.weights.is_empty()).then(|| rows.iter().map(|&row| targets.weight(row)).collect());
        let weighed = |losses: Tensor| -> Result<Tensor> {
            let Some(weights) = &weights else { return Ok(losses.sum_all()?) };
            let weights = Tensor::from_slice(weights, n, flat.device())?.to_dtype(losses.dtype())?;
            Ok((losses * weights)?.sum_all()?)
        };
        let x = flat.index_select(&Tensor::from_vec(rows, n, flat.device())?, 0)?;
        if let (Partition::Visual(_), Some(head)) = (partition, model.bitwise()) {
            return add(sum, weighed(head.losses(&x, &ids)?)?);
        }
        let ids = table_rows(&ids)?;
        let logits = model.logits(&x, range)?;
        let losses = ops::cross_entropy(&logits, &ids)?;
        if with_z {
            // the loss is log sum exp less the target's logit
            let picked = logits.gather(&Tensor::from_vec(ids, (n, 1), flat.device())?, 1)?.squeeze(1)?;
            add(&mut z, weighed((&losses + picked.to_dtype(losses.dtype())?)?.sqr()?)?)?;
        }
        add(sum, weighed(losses)?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::BitwiseConfig;
    use candle_core::{DType, Device};
    use nn::Params;

    /// (row, token, sub-token) of the visual targets, (row, token) of the text's.
    fn losses(bitwise: bool, text: &[(u32, Token)], visual: &[(u32, Token, usize)], weights: &[f32]) -> [f64; 3] {
        let vocab = MergedVocab {
            text: 10,
            bits: 4,
            group_bits: if bitwise { 4 } else { 2 },
            shared_table: false,
            grid: 2,
            bitwise: bitwise.then_some(BitwiseConfig { bits: 4, group_bits: 2, width: 8 }),
            cell_positions: false,
            begin_image: 2,
            end_image: 3,
        };
        let config = format!(
            r#"{{"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": {},
            "tie_word_embeddings": true}}"#,
            vocab.rows()
        );
        let params = Params::for_training(Default::default(), &[], 5, DType::F32, &Device::Cpu);
        let model = Llama::of_vocab(&params, &serde_json::from_str(&config).unwrap(), &vocab).unwrap();
        let values: Vec<f32> = (0..5 * 8).map(|i| (i as f32 * 0.9).sin() * 20.0).collect();
        let hidden = Tensor::from_vec(values, (1, 5, 8), &Device::Cpu).unwrap();
        let targets = Targets { text: text.to_vec(), visual: visual.to_vec(), weights: weights.to_vec() };
        let mut totals = Totals::default();
        totals.add(&targets);
        let all = split_loss(&model, &vocab, &hidden, &targets, &totals, true).unwrap();
        [all.text, all.visual, all.z].map(|t| t.map_or(0.0, |t| f64::from(t.to_scalar::<f32>().unwrap())))
    }

    #[test]
    fn a_weighed_mean_is_of_each_target_by_its_weight() {
        for bitwise in [false, true] {
            let (text, visual) =
                ([(0, 4), (3, 9)], [(1, 11, 0), (2, if bitwise { 20 } else { 16 }, usize::from(!bitwise))]);
            let weights = [2.0, 0.1, 1.0, 0.5, 7.0];
            let [t, v, z] = losses(bitwise, &text, &visual, &weights);
            let alone: Vec<[f64; 3]> = (text.iter().map(|t| losses(bitwise, &[*t], &[], &[])))
                .chain(visual.iter().map(|v| losses(bitwise, &[], &[*v], &[])))
                .collect();
            assert!((t - (2.0 * alone[0][0] + 0.5 * alone[1][0]) / 2.5).abs() < 1e-5, "{t} of {alone:?}");
            assert!((v - (0.1 * alone[2][1] + alone[3][1]) / 1.1).abs() < 1e-5, "{v} of {alone:?}");
            let weighed = 2.0 * alone[0][2] + 0.5 * alone[1][2] + 0.1 * alone[2][2] + alone[3][2];
            assert!((z - weighed / 3.6).abs() < 1e-5 * z.max(1.0), "{z} of {alone:?}");
            assert_eq!(losses(bitwise, &text, &visual, &[1.0; 5]), losses(bitwise, &text, &visual, &[]));
        }
    }
}
