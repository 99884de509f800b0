//! The loss of a VQ tokenizer (Sun et al. 2024, section 2.1): pixels, codebook, commitment, and where asked LPIPS and a
//! discriminator, whose weight can adapt to the gradients (VQGAN, Esser et al. 2021, equation 7).

use super::adversary::AdversaryConfig;
use super::judges::{JudgeWeights, Judges};
use super::{carried, number, own, quality, slope_at};
use crate::image::Pixels;
use crate::loss::Lpips;
use crate::vq::VqTokenizer;
use candle_core::{Tensor, Var};
use nn::train::StepOutput;
use nn::{Error, Params, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Weights of the terms. A term of weight 0 that nothing else needs is not computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct VqLossConfig {
    /// Mean squared error of pixels in -1..1.
    pub reconstruction: f64,
    /// Codebook, commitment and entropy together; the model's config weighs the last two.
    pub codebook: f64,
    /// Distance in the features of a trained network; needs a section [lpips].
    pub lpips: f64,
    /// Against a discriminator, from [adversary]'s `start` on; needs that section.
    pub adversarial: f64,
    /// Whether that weight is times what makes the discriminator's gradient at the decoder's last layer as long as that of the
    /// other terms of pixels (VQGAN). LlamaGen's code has it too and trains without.
    pub adaptive: bool,
}

impl Default for VqLossConfig {
    fn default() -> Self {
        Self { reconstruction: 1.0, codebook: 1.0, lpips: 0.0, adversarial: 0.0, adaptive: false }
    }
}

/// The loss.
pub struct VqObjective {
    model: VqTokenizer,
    w: VqLossConfig,
    judges: Judges,
}

impl VqObjective {
    /// Of a model that is trained on pictures of `side` pixels; the discriminator's tensors come from `p` too.
    pub fn new(
        p: &Params,
        model: VqTokenizer,
        w: &VqLossConfig,
        lpips: Option<Lpips>,
        adversary: Option<&AdversaryConfig>,
        side: usize,
    ) -> Result<Self> {
        for (weight, part, section) in
            [(w.lpips, lpips.is_some(), "lpips"), (w.adversarial, adversary.is_some(), "adversary")]
        {
            if (weight != 0.0) != part {
                let why = format!("a weight in [loss] and a section [{section}] go together; give both or none");
                return Err(Error::invalid(why));
            }
        }
        if w.reconstruction <= 0.0 || w.codebook <= 0.0 {
            return Err(Error::invalid("[loss]: reconstruction and codebook must be above 0"));
        }
        let weights = JudgeWeights { lpips: w.lpips, gram: 0.0 };
        let judges = Judges::new(&own(p), lpips, adversary, side, weights)?;
        Ok(Self { model, w: w.clone(), judges })
    }

    /// Gradients of update `step` on pixels in -1..1.
    pub fn step(&self, step: usize, pixels: &Pixels) -> Result<StepOutput> {
        let w = &self.w;
        let latents = self.model.pre_quant(&self.model.encoder_out(pixels)?)?;
        let q = self.model.quantise(&latents)?;
        let before = self.model.before_conv_out(&q.values)?;
        let painted = self.model.conv_out(&before)?.0;
        // of as many codes as a batch can show
        let most = self.model.config.codebook_size.min(q.indices.len()).max(1);
        let used = q.indices.iter().collect::<HashSet<_>>().len() as f64 / most as f64;
        let mut metrics = vec![("vq", number(&q.vq_loss)?), ("commit", number(&q.commit_loss)?), ("codes_used", used)];
        let mut codebook = (q.vq_loss + q.commit_loss)?;
        if let Some(e) = q.entropy_loss {
            metrics.push(("entropy", number(&e)?));
            codebook = (codebook + e)?;
        }
        // what judges the pixels judges a leaf: the slopes there say how to weigh, and then go on through the decoder as one
        let shown = Var::from_tensor(&painted.detach())?;
        let mse = (shown.as_tensor() - &pixels.0)?.sqr()?.mean_all()?;
        let mut of_pixels = (&mse * w.reconstruction)?;
        metrics.push(("mse", number(&mse)?));
        let judged = self.judges.judge(step, shown.as_tensor(), &pixels.0)?;
        for (name, weight, value) in &judged.features {
            metrics.push((name, number(value)?));
            of_pixels = (of_pixels + (value * *weight)?)?;
        }
        let mut slope = slope_at(&of_pixels, &shown)?;
        let mut loss = ((codebook * w.codebook)? + of_pixels.detach())?;
        if let Some(turn) = &judged.turn {
            if let Some(g) = &turn.generator {
                let of_game = slope_at(g, &shown)?;
                let mut weight = w.adversarial;
                if w.adaptive {
                    let (wanted, found) =
                        (self.last_layer_norm(&before, &slope)?, self.last_layer_norm(&before, &of_game)?);
                    weight *= (wanted / (found + 1e-4)).clamp(0.0, 1e4);
                    metrics.push(("adversarial_weight", weight));
                }
                metrics.push(("adversarial", number(g)?));
                loss = (loss + (g.detach() * weight)?)?;
                slope = (slope + (of_game * weight)?)?;
            }
            metrics.push(("discriminator", number(&turn.discriminator)?));
            metrics.extend(turn.r1.map(|r1| ("r1", r1)));
            loss = (loss + &turn.discriminator)?;
        }
        // the values are in the loss already
        StepOutput::of(&(loss + carried(&painted, &slope)?)?, metrics)
    }

    /// Mean squared error of pixels in -1..1 and the mean PSNR in dB of pictures that are not trained on.
    pub fn validate(&self, pixels: &Pixels) -> Result<(f64, f64)> {
        quality(&self.rebuilt(pixels)?.0, &pixels.0)
    }

    /// Pictures through the tokenizer and back, without a graph.
    pub fn rebuilt(&self, pixels: &Pixels) -> Result<Pixels> {
        let q = self.model.quantise(&self.model.pre_quant(&self.model.encoder_out(pixels)?)?)?;
        Ok(Pixels(self.model.conv_out(&self.model.before_conv_out(&q.values)?)?.0.detach()))
    }

    /// Length of the gradient of the last layer's kernels, where the pixels' is `slope`.
    fn last_layer_norm(&self, before: &Tensor, slope: &Tensor) -> Result<f64> {
        let painted = self.model.conv_out(&before.detach())?.0;
        let grads = (painted * slope)?.sum_all()?.backward()?;
        let missing = || Error::invalid("[loss]: adaptive needs a last layer that is learned");
        let kernels = grads.get(self.model.conv_out_weight()?).ok_or_else(missing)?;
        Ok(number(&kernels.sqr()?.sum_all()?)?.sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discriminator::DiscriminatorConfig;
    use crate::loss::Game;
    use crate::vq::VqConfig;
    use candle_core::{DType, Device};
    use std::collections::HashMap;

    /// Every gradient against whole backward passes of each term by itself.
    #[test]
    fn gradients_are_those_of_the_terms_with_and_without_the_adaptive_weight() {
        for adaptive in [false, true] {
            compare(adaptive);
        }
    }

    fn compare(adaptive: bool) {
        let config = VqConfig::tiny();
        let net = DiscriminatorConfig::Patch { width: 8, layers: 1 };
        let adversary = AdversaryConfig { net, game: Game::Hinge, r1_gamma: 0.0, r1_every: 16, start: 0 };
        let params = Params::for_training(HashMap::new(), &[], 3, DType::F32, &Device::Cpu);
        let model = VqTokenizer::new(&params, &config).unwrap();
        let w = VqLossConfig { adversarial: 0.5, adaptive, ..VqLossConfig::default() };
        let objective = VqObjective::new(&params, model.clone(), &w, None, Some(&adversary), 16).unwrap();
        let mut r = nn::rng::keyed(1, &[]);
        let x: Vec<f32> = (0..2 * 3 * 16 * 16).map(|_| nn::rng::normal(&mut r).clamp(-1.0, 1.0)).collect();
        let x = Pixels(Tensor::from_vec(x, (2, 3, 16, 16), &Device::Cpu).unwrap());
        let got = objective.step(0, &x).unwrap();

        let q = model.quantise(&model.pre_quant(&model.encoder_out(&x).unwrap()).unwrap()).unwrap();
        let painted = model.decode(&q.values).unwrap().0;
        let turn = objective.judges.judge(0, &painted, &x.0).unwrap().turn.unwrap();
        let mse = (&painted - &x.0).unwrap().sqr().unwrap().mean_all().unwrap();
        let game = turn.generator.unwrap();
        let length = |loss: &Tensor| {
            let g = loss.backward().unwrap().get(model.conv_out_weight().unwrap()).unwrap().clone();
            number(&g.sqr().unwrap().sum_all().unwrap()).unwrap().sqrt()
        };
        let weight = if adaptive { 0.5 * length(&mse) / (length(&game) + 1e-4) } else { 0.5 };
        let terms = [mse, (game * weight).unwrap(), q.vq_loss, q.commit_loss, turn.discriminator];
        let mut loss = None;
        terms.into_iter().for_each(|t| nn::ops::add_term(&mut loss, t).unwrap());
        let loss = loss.unwrap();
        assert!((number(&loss).unwrap() - got.loss).abs() < 1e-5);
        let want = loss.backward().unwrap();
        for (name, var) in params.vars() {
            let (Some(a), Some(b)) = (got.grads.get(var.as_tensor()), want.get(var.as_tensor())) else {
                panic!("{name} has no gradient");
            };
            let most = |t: &Tensor| number(&t.abs().unwrap().max_all().unwrap()).unwrap();
            assert!(most(&(a - b).unwrap()) < 1e-4 * (1e-3 + most(b)), "{name}");
        }
    }
}
