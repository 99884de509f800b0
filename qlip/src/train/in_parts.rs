//! The gradient of a batch, at once or in parts.
//!
//! What looks at the whole batch (alignment, the entropies) needs only embeddings and latents, which are small. A batch
//! in parts therefore runs twice (Gao et al. 2021, "GradCache"): once to collect them, a part's graph at a time, then, with
//! their gradients known, once more. The result is the gradient of the whole batch, not an approximation; the exception is
//! a discriminator, which looks at a part's statistics.

use super::balance::Balance;
use super::objective::{Objective, PairBatch, Seen};
use super::term::{Metrics, Term};
use super::{carried, number, slope_in};
use candle_core::{Tensor, Var};
use nn::ops::add_term;
use nn::parallel::World;
use nn::train::{Accumulator, StepOutput};
use nn::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;

/// Ids of the captions of all processes' rows, in sixteen bits at a time, which a float32 holds.
fn captions(batch: &PairBatch, world: &World, all: usize) -> Result<Vec<usize>> {
    if world.size() == 1 {
        return Ok(batch.caption_of.clone());
    }
    const PARTS: usize = usize::BITS as usize / 16;
    let words = |id: &usize| (0..PARTS).map(|i| (id >> (16 * i) & 0xffff) as f32).collect::<Vec<_>>();
    let flat: Vec<f32> = batch.caption_of.iter().flat_map(words).collect();
    let n = batch.caption_of.len();
    let rows = world.gather(&Tensor::from_vec(flat, (n, PARTS), &candle_core::Device::Cpu)?, all)?.to_vec2::<f32>()?;
    Ok(rows.iter().map(|r| r.iter().rev().fold(0, |id, part| id << 16 | *part as usize)).collect())
}

impl Objective {
    pub(super) fn at_once(
        &self,
        step: usize,
        batch: &PairBatch,
        vars: &BTreeMap<String, Var>,
        factor: f64,
        numbers: &mut BTreeMap<String, f64>,
    ) -> Result<StepOutput> {
        let n = batch.pixels.0.dim(0)?;
        let (seen, mut own) = self.part(step, batch, &(0..n), factor)?;
        if let Some(seen) = &seen {
            let whole = self.whole(seen, &batch.caption_of)?;
            if self.w.balance == Balance::Gradient && step.is_multiple_of(Balance::EVERY) {
                self.measure(&whole, &own, vars, numbers)?;
            }
            own.metrics.extend(whole.metrics);
            if let Some(l) = whole.loss {
                add_term(&mut own.loss, l)?;
            }
        }
        let loss = own.loss.ok_or_else(|| Error::invalid("[loss]: every weight is 0"))?;
        StepOutput::of(&loss, own.metrics.into_iter().collect())
    }

    pub(super) fn in_parts(
        &self,
        step: usize,
        batch: &PairBatch,
        size: usize,
        vars: &BTreeMap<String, Var>,
        factor: f64,
        world: &World,
    ) -> Result<StepOutput> {
        let n = batch.pixels.0.dim(0)?;
        let mut all = [n as f64];
        world.sum_numbers(&mut all);
        let all = all[0] as usize;
        let mine = world.rows(all);
        let parts: Vec<Range<usize>> = (0..n).step_by(size).map(|a| a..(a + size).min(n)).collect();
        let mut sum = Accumulator::default();
        let mut metrics = Metrics::new();
        let mut pulls: Vec<Tensor> = Vec::new();
        // one part alone keeps its graph for the second pass
        let mut kept = match parts.as_slice() {
            [all] => Some(self.part(step, batch, all, factor)?),
            _ => None,
        };
        if self.stage == 1 {
            let mut rows: Vec<Vec<Tensor>> = Vec::new();
            let detached = |seen: &Seen| seen.fields().into_iter().map(Tensor::detach).collect();
            match &kept {
                Some((seen, _)) => rows.extend(seen.as_ref().map(detached)),
                None => {
                    for r in &parts {
                        rows.push(detached(&self.look(step, batch, &batch.part(r)?, r)?.0));
                    }
                }
            }
            let columns = (0..rows[0].len()).map(|f| {
                let own: Vec<&Tensor> = rows.iter().map(|r| &r[f]).collect();
                Ok(Var::from_tensor(&world.gather(&Tensor::cat(&own, 0)?, all)?)?)
            });
            let columns: Vec<Var> = columns.collect::<Result<_>>()?;
            let whole = self.whole(
                &Seen::from_fields(columns.iter().map(|v| v.as_tensor().clone()).collect())?,
                &captions(batch, world, all)?,
            )?;
            // every process computes it; one counts it
            let counted = if world.is_first() { 1.0 } else { 0.0 };
            metrics.extend(whole.metrics.into_iter().map(|(k, v)| (k, v * counted)));
            if let Some(loss) = whole.loss {
                let grads = loss.backward()?;
                for c in &columns {
                    pulls.push(slope_in(&grads, c)?.narrow(0, mine.start, mine.len())?);
                }
                if world.is_first() {
                    sum.add(&loss, vars)?;
                }
            }
        }
        for r in &parts {
            let share = r.len() as f64 / all as f64;
            let (seen, own) = match kept.take() {
                Some(part) => part,
                None => self.part(step, batch, r, factor)?,
            };
            for (k, v) in own.metrics {
                *metrics.entry(k).or_default() += v * share;
            }
            let mut pull: Option<Tensor> = own.loss.map(|l| l * share).transpose()?;
            for (field, g) in seen.iter().flat_map(Seen::fields).zip(&pulls) {
                add_term(&mut pull, carried(field, &g.narrow(0, r.start, r.len())?)?)?;
            }
            sum.add(&pull.ok_or_else(|| Error::invalid("[loss]: every weight is 0"))?, vars)?;
        }
        sum.finish(metrics.into_iter().collect())?.over(world)
    }

    /// Norms of both terms' gradients at the vision tower's last linear layer.
    fn measure(
        &self,
        whole: &Term,
        own: &Term,
        vars: &BTreeMap<String, Var>,
        numbers: &mut BTreeMap<String, f64>,
    ) -> Result<()> {
        let last = self.model.config.vision_config.num_hidden_layers - 1;
        let layer = format!("vision_model.encoder.layers.{last}.mlp.");
        let at: Vec<&Var> = ["w3", "fc2"].iter().filter_map(|n| vars.get(&format!("{layer}{n}.weight"))).collect();
        let norm = |t: &Term| -> Result<f64> {
            let Some(loss) = &t.balanced else { return Ok(0.0) };
            let grads = loss.backward()?;
            let mut sum = 0.0;
            for v in &at {
                if let Some(g) = grads.get(v.as_tensor()) {
                    sum += number(&g.sqr()?.sum_all()?)?;
                }
            }
            Ok(sum.sqrt())
        };
        let (align, pixels) = (norm(whole)?, norm(own)?);
        // a term that is not there is not weighed
        if align > 0.0 && pixels > 0.0 {
            Balance::note(numbers, "balance.align_grad", align);
            Balance::note(numbers, "balance.pixels_grad", pixels);
        }
        Ok(())
    }
}
