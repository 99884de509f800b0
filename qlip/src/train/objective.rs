//! The loss of one update: its terms, of a part of the batch and of the whole ([`super::in_parts`] puts them together).

use super::adversary::AdversaryConfig;
use super::balance::Balance;
use super::judges::{JudgeWeights, Judges};
use super::loss_config::{Alignment, LossConfig};
use super::pixel_loss::log_mse;
use super::probes::{Imitation, Pool};
use super::steady::{self, Stayed};
use super::teacher::Teacher;
use super::term::{Term, idle};
use super::{number, own, quality};
use crate::bsq::Latents;
use crate::image::{Pixels, Preprocess};
use crate::loss::{Lpips, accuracy, info_nce, sigmoid};
use crate::model::Qlip;
use candle_core::{Tensor, Var};
use nn::parallel::World;
use nn::train::StepOutput;
use nn::{Error, Init, Params, Result};
use std::collections::BTreeMap;
use std::ops::Range;

/// Pictures with their captions.
pub struct PairBatch {
    /// Pixels [batch, 3, size, size].
    pub pixels: Pixels,
    /// Token ids of the captions, padded, `text_tokens` each; empty in stage 2.
    pub text_ids: Vec<u32>,
    /// Tokens a caption.
    pub text_tokens: usize,
    /// An id a caption, the same in every process; equal captions share one.
    pub caption_of: Vec<usize>,
}

impl PairBatch {
    /// Pixels of some of the pictures.
    pub(super) fn part(&self, rows: &Range<usize>) -> Result<Pixels> {
        Ok(Pixels(self.pixels.0.narrow(0, rows.start, rows.len())?.contiguous()?))
    }
}

/// What an objective is made of besides the model.
#[derive(Default)]
pub struct Parts {
    /// For `lpips` and `gram`.
    pub lpips: Option<Lpips>,
    /// For `adversarial`.
    pub adversary: Option<AdversaryConfig>,
    /// For the distillation terms.
    pub teacher: Option<Teacher>,
    /// The tokenizer as it was, for `kept_bits`.
    pub before: Option<Qlip>,
    /// Pictures whose graph is in memory at once; the whole batch if absent.
    pub micro_batch: Option<usize>,
}

/// The loss.
pub struct Objective {
    pub(super) model: Qlip,
    pub(super) stage: u8,
    pub(super) w: LossConfig,
    judges: Judges,
    teacher: Option<Teacher>,
    before: Option<Qlip>,
    micro_batch: Option<usize>,
    /// Pixels come normalised by these; LPIPS and discriminators take -1..1.
    preprocess: Preprocess,
    pool: Option<Pool>,
    imitation: Option<Imitation>,
    patch_imitation: Option<Imitation>,
    logit_bias: Option<Tensor>,
}

/// What the terms over the whole batch look at, one row a picture.
pub(super) struct Seen {
    image: Tensor,
    text: Tensor,
    latents: Tensor,
    quantized: Option<Tensor>,
}

impl Seen {
    pub(super) fn fields(&self) -> Vec<&Tensor> {
        [&self.image, &self.text, &self.latents].into_iter().chain(&self.quantized).collect()
    }

    pub(super) fn from_fields(mut fields: Vec<Tensor>) -> Result<Self> {
        let quantized = if fields.len() > 3 { fields.pop() } else { None };
        match <[Tensor; 3]>::try_from(fields) {
            Ok([image, text, latents]) => Ok(Self { image, text, latents, quantized }),
            Err(_) => Err(Error::invalid("what a batch is seen as has three or four fields")),
        }
    }
}

impl Objective {
    /// For a model in training; heads and discriminator take their tensors below [`super::TRAINING_ONLY`].
    pub fn new(
        p: &Params,
        model: Qlip,
        stage: u8,
        w: &LossConfig,
        preprocess: &Preprocess,
        parts: Parts,
    ) -> Result<Self> {
        let need = |is: bool, what: &str| if is { Ok(()) } else { Err(Error::invalid(format!("[loss]: {what}"))) };
        need(parts.lpips.is_some() || w.lpips == 0.0 && w.gram == 0.0, "lpips and gram need a section [lpips]")?;
        need(parts.adversary.is_some() || w.adversarial == 0.0, "adversarial needs a section [adversary]")?;
        let distils = w.distillation != 0.0 || w.quantized_distillation != 0.0;
        need(parts.teacher.is_some() || !distils, "distillation needs `teacher`, a folder of a CLIP or QLIP")?;
        let v = &model.config.vision_config;
        let fits = parts.before.as_ref().map_or(w.kept_bits == 0.0, |b| {
            b.bsq.bits <= model.bsq.bits
                && b.config.vision_config.image_size == v.image_size
                && b.grid() == model.grid()
        });
        need(fits, "kept_bits needs `start`, whose bits they are, of the same pictures and cells")?;
        if let Some(t) = &parts.teacher {
            need(t.side() == v.image_size, "the teacher takes pictures of another size")?;
            let fits = w.quantized_distillation == 0.0 || t.patches() == v.grid() * v.grid();
            need(fits, "quantized_distillation needs a teacher with the same grid of patches")?;
        }
        let split = parts.micro_batch.is_some();
        need(
            !split || w.balance != Balance::Gradient,
            "balance = \"gradient\" works on whole batches: leave out micro_batch",
        )?;
        let own = own(p);
        let (width, after) = (v.hidden_size, v.width_after_quantizer());
        let imitate = |weight: f64, name: &str, from: usize, to: usize| -> Result<Option<Imitation>> {
            if weight == 0.0 || stage != 1 { Ok(None) } else { Ok(Some(Imitation::new(&own.at(name), from, to)?)) }
        };
        let (pooled, patches) = parts.teacher.as_ref().map_or((0, 0), Teacher::widths);
        let adversary = parts.adversary.as_ref().filter(|_| w.adversarial != 0.0);
        let weights = JudgeWeights { lpips: w.lpips, gram: w.gram };
        let judges = Judges::new(&own, parts.lpips, adversary, v.image_size, weights)?;
        Ok(Self {
            imitation: imitate(w.distillation, "imitation", width, pooled)?,
            patch_imitation: imitate(w.quantized_distillation, "patch_imitation", after, patches)?,
            pool: match w.quantized_alignment {
                w if w == 0.0 || stage != 1 => None,
                _ => Some(Pool::new(&own.at("quantized_pool"), after, model.config.projection_dim)?),
            },
            logit_bias: match w.alignment_loss {
                Alignment::Sigmoid if stage == 1 && (w.alignment != 0.0 || w.quantized_alignment != 0.0) => {
                    Some(own.get((), "logit_bias", Init::Const(-10.0))?)
                }
                _ => None,
            },
            judges,
            teacher: parts.teacher,
            before: parts.before,
            micro_batch: parts.micro_batch,
            preprocess: preprocess.clone(),
            w: w.clone(),
            stage,
            model,
        })
    }

    /// The model.
    pub fn model(&self) -> &Qlip {
        &self.model
    }

    /// Gradients of update `step`, of this process's rows; alignment and entropies see those of all processes.
    pub fn step(
        &self,
        step: usize,
        batch: &PairBatch,
        vars: &BTreeMap<String, Var>,
        numbers: &mut BTreeMap<String, f64>,
        world: &World,
    ) -> Result<StepOutput> {
        let n = batch.pixels.0.dim(0)?;
        if world.size() > 1 && self.w.balance == Balance::Gradient {
            return Err(Error::invalid("balance = \"gradient\" works on whole batches: train with one process"));
        }
        let factor = self.w.balance.factor(numbers);
        let out = match self.micro_batch {
            Some(size) if size > 0 && size < n => self.in_parts(step, batch, size, vars, factor, world)?,
            _ if world.size() > 1 => self.in_parts(step, batch, n, vars, factor, world)?,
            _ => self.at_once(step, batch, vars, factor, numbers)?,
        };
        for (name, metric) in [("balance.align", "align"), ("balance.pixels", "mse")] {
            if let Some((_, v)) = out.metrics.iter().find(|m| m.0 == metric) {
                Balance::note(numbers, name, *v);
            }
        }
        Ok(out)
    }

    /// Losses of pairs that are not trained on, each a mean: what is painted, and (stage 1) how pictures and words find each other; `loss` is of
    /// the pixels' errors and InfoNCE at the training's weights, without judges and entropies.
    pub fn validate(&self, batch: &PairBatch) -> Result<Vec<(&'static str, f64)>> {
        let out = nn::Exec::exact(|| self.model.encode(&batch.pixels))?;
        let painted = self.model.paint(&self.model.expand(&self.model.bsq.quantize(&out.latents)?)?)?.0.0;
        let (_, psnr) = quality(&self.half(&painted)?, &self.half(&batch.pixels.0)?)?;
        let difference = (&painted - &batch.pixels.0)?;
        let (mse, l1) = (number(&difference.sqr()?.mean_all()?)?, number(&difference.abs()?.mean_all()?)?);
        let mut found = vec![("mse", mse), ("l1", l1), ("psnr", psnr)];
        let mut loss = mse * self.w.reconstruction + l1 * self.w.l1;
        if self.w.log_mse != 0.0 {
            let log_mse = number(&log_mse(&difference)?)?;
            loss += log_mse * self.w.log_mse;
            found.push(("log_mse", log_mse));
        }
        if self.stage == 1 && self.w.alignment != 0.0 {
            let text = self.model.embed_text(&batch.text_ids, batch.text_tokens)?;
            let image = self.model.embed_image(&out.pooled)?;
            let align = number(&info_nce(&text, &image, &self.model.logit_scale, &batch.caption_of)?)?;
            loss += align * self.w.alignment;
            found.extend([("align", align), ("align_accuracy", accuracy(&text, &image, &batch.caption_of)?)]);
        }
        found.push(("loss", loss));
        Ok(found)
    }

    /// A part of the batch, with a graph: what the whole-batch terms look at (stage 1), and its own terms.
    pub(super) fn part(
        &self,
        step: usize,
        batch: &PairBatch,
        rows: &Range<usize>,
        factor: f64,
    ) -> Result<(Option<Seen>, Term)> {
        let pixels = batch.part(rows)?;
        if self.stage == 2 {
            let latents = nn::Exec::exact(|| self.model.encode(&pixels))?.latents;
            let zhat = self.model.expand(&self.model.bsq.quantize(&latents)?.detach())?;
            return Ok((None, self.pixel_terms(step, &zhat, &pixels, 1.0)?));
        }
        let (seen, zhat, pooled) = self.look(step, batch, &pixels, rows)?;
        let mut own = self.pixel_terms(step, &zhat, &pixels, factor)?;
        if let Some(teacher) = &self.teacher {
            let t = teacher.see(&pixels)?;
            if let Some(head) = &self.imitation {
                own.add("distillation", self.w.distillation, &head.loss(&pooled, &t.pooled)?)?;
            }
            if let Some(head) = &self.patch_imitation {
                own.add("quantized_distillation", self.w.quantized_distillation, &head.loss(&zhat, &t.patches)?)?;
            }
        }
        let mut add = |name, same, weight, s: Stayed| {
            own.metrics.insert(same, s.same);
            own.add(name, weight, &s.loss)
        };
        if let Some(before) = self.before.as_ref().filter(|_| self.w.kept_bits != 0.0) {
            add("kept_bits", "kept_code", self.w.kept_bits, steady::kept(before, &pixels, &seen.latents)?)?;
        }
        if self.w.consistency != 0.0 {
            let stayed = steady::consistency(&self.model, step, &pixels, &seen.latents)?;
            add("consistency", "same_code", self.w.consistency, stayed)?;
        }
        Ok((Some(seen), own))
    }

    /// Embeddings and latents of a part, the decoder's input, and the class token's feature.
    pub(super) fn look(
        &self,
        step: usize,
        batch: &PairBatch,
        pixels: &Pixels,
        rows: &Range<usize>,
    ) -> Result<(Seen, Tensor, Tensor)> {
        let out = self.model.encode(pixels)?;
        let zhat = self.model.expand(&self.corners(step, &out.latents)?)?;
        let t = batch.text_tokens;
        let text = self.model.embed_text(&batch.text_ids[rows.start * t..rows.end * t], t)?;
        let quantized = self.pool.as_ref().map(|p| p.forward(&zhat)).transpose()?;
        let image = self.model.embed_image(&out.pooled)?;
        Ok((Seen { image, text, latents: out.latents.0, quantized }, zhat, out.pooled))
    }

    /// Corners of latents; in the proximal steps the latents themselves, then a mixture.
    fn corners(&self, step: usize, latents: &Latents) -> Result<Tensor> {
        let w = &self.w;
        let corners = self.model.bsq.quantize(latents)?;
        let share = match step < w.proximal_steps {
            true => 0.0,
            false => ((step - w.proximal_steps + 1) as f64 / (w.proximal_ramp + 1) as f64).min(1.0),
        };
        if w.proximal_steps == 0 || share >= 1.0 {
            return Ok(corners);
        }
        Ok(((corners * share)? + (&latents.0 * (1.0 - share))?)?)
    }

    /// Terms of the painted pixels.
    fn pixel_terms(&self, step: usize, zhat: &Tensor, pixels: &Pixels, factor: f64) -> Result<Term> {
        let w = &self.w;
        let mut out = Term::new();
        let painted = self.model.paint(zhat)?.0.0;
        let difference = (&painted - &pixels.0)?;
        out.add_balanced("mse", w.reconstruction, factor, &difference.sqr()?.mean_all()?)?;
        if w.l1 != 0.0 {
            out.add_balanced("l1", w.l1, factor, &difference.abs()?.mean_all()?)?;
        }
        if w.log_mse != 0.0 {
            out.add_balanced("log_mse", w.log_mse, factor, &log_mse(&difference)?)?;
        }
        if out.loss.is_none() {
            // the decoder stays in the graph, at no weight
            out.loss = Some(idle(&painted.sum_all()?)?);
        }
        if self.judges.is_empty() {
            return Ok(out);
        }
        let (fake, real) = (self.half(&painted)?, self.half(&pixels.0)?);
        let judged = self.judges.judge(step, &fake, &real)?;
        for (name, weight, value) in &judged.features {
            out.add(name, *weight, value)?;
        }
        if let Some(turn) = &judged.turn {
            if let Some(g) = &turn.generator {
                out.add("adversarial", self.w.adversarial, g)?;
            }
            out.add("discriminator", 1.0, &turn.discriminator)?;
            out.metrics.extend(turn.r1.map(|r1| ("r1", r1)));
        }
        Ok(out)
    }

    /// Normalised pixels to -1..1.
    fn half(&self, pixels: &Tensor) -> Result<Tensor> {
        let row = |v: [f32; 3]| Tensor::new(&v, pixels.device())?.reshape((1, 3, 1, 1))?.to_dtype(pixels.dtype());
        let scaled = pixels.broadcast_mul(&row(self.preprocess.image_std)?)?;
        Ok(scaled.broadcast_add(&row(self.preprocess.image_mean)?)?.affine(2.0, -1.0)?)
    }

    /// Terms over the whole batch (stage 1).
    pub(super) fn whole(&self, seen: &Seen, caption_of: &[usize]) -> Result<Term> {
        let (w, model) = (&self.w, &self.model);
        let mut out = Term::new();
        let align = |image: &Tensor| -> Result<Tensor> {
            match &self.logit_bias {
                Some(bias) => sigmoid(&seen.text, image, &model.logit_scale, bias, caption_of),
                None => info_nce(&seen.text, image, &model.logit_scale, caption_of),
            }
        };
        if w.alignment != 0.0 {
            out.add_balanced("align", w.alignment, 1.0, &align(&seen.image)?)?;
            out.metrics.insert("align_accuracy", accuracy(&seen.text, &seen.image, caption_of)?);
            out.metrics.insert("logit_scale", number(&model.logit_scale.exp()?)?);
        } else {
            // both towers stay in the graph, at no weight, so that one list of variables serves every choice
            let towers = ((&seen.image * &seen.text)?.sum_all()? + &model.logit_scale)?;
            out.loss = Some(idle(&towers)?);
        }
        if let Some(q) = &seen.quantized {
            out.add("quantized_align", w.quantized_alignment, &align(q)?)?;
            out.metrics.insert("quantized_align_accuracy", accuracy(&seen.text, q, caption_of)?);
        }
        let latents = Latents(seen.latents.clone());
        let e = model.bsq.entropies(&latents)?;
        let q = &model.config.vision_config.quantizer_cfg;
        let spread = ((&e.sample * q.gamma_0)? - (&e.codebook * q.gamma_1)?)?.affine(1.0 / q.inv_temperature, 0.0)?;
        out.add("quantizer", w.quantizer, &spread)?;
        out.metrics.insert("sample_entropy", number(&e.sample)?);
        out.metrics.insert("codebook_entropy", number(&e.codebook)?);
        out.add("commitment", w.commitment, &model.bsq.commitment(&latents)?)?;
        Ok(out)
    }
}
