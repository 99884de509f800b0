//! A step of a unified training: samples to packed rows, losses, a sheet of drawings, checkpoints.

use super::{LossOn, UnifiedTraining};
use crate::draw::{Wish, drawing};
use crate::eyes::Eyes;
use crate::mixture::{Piece, Sample, Source};
use crate::sequence::{Packed, Segment, Sequence, pack};
use crate::template::Marks;
use crate::train::{adapters, flip, sheet};
use crate::words::Words;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use lm::draw::pictures;
use lm::loss::{Totals, split_loss};
use lm::shared_bits::SharedBits;
use lm::{Context, Llama, MergedVocab, Part, Shared, Token};
use nn::rng;
use nn::stored::Stored;
use nn::train::{At, Measure, Place, Sheet, StepOutput, Task, in_parts};
use nn::{Params, checkpoint};
use qlip::Codes;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Key of the stream of flipped bits.
const FLIPS: u64 = 0x666c_6970;

/// What a step needs.
pub struct Unifying<'a> {
    pub source: Source<'a>,
    pub model: Llama,
    pub shared: Option<SharedBits>,
    pub vocab: MergedVocab,
    pub words: Words,
    pub eyes: Eyes,
    /// Fills what is left of a row.
    pub pad: Token,
    /// What adapters are added to.
    pub start: Arc<Stored>,
    /// The folder of the model that adapters by themselves belong to.
    pub base: Option<PathBuf>,
    pub config: &'a UnifiedTraining,
}

/// A loss with its name and weight.
type Term = (&'static str, Tensor, f64);

impl Unifying<'_> {
    /// Rows of tokens of some samples; all their pictures are encoded at once.
    fn packed(&self, samples: &[Sample]) -> Result<Packed> {
        let c = self.config;
        pack(&self.sequences(samples)?, c.sequence_length, self.pad, c.block_diagonal)
    }

    fn sequences(&self, samples: &[Sample]) -> Result<Vec<Sequence>> {
        let images: Vec<_> = samples
            .iter()
            .flat_map(|s| &s.pieces)
            .filter_map(|p| match p {
                Piece::Image(i, _) => Some(i.clone()),
                Piece::Text(..) | Piece::Codes(..) => None,
            })
            .collect();
        // the codes that `tokenize` makes, whatever the training's arithmetic
        let codes = nn::Exec::exact(|| self.eyes.encode(&images))?;
        let mut encoded = 0..codes.images();
        let mut one = |sample: &Sample| -> Result<Sequence> {
            let mut s = Sequence { weight: sample.weight, ..Sequence::default() };
            for piece in &sample.pieces {
                let (segment, learn) = match piece {
                    Piece::Text(t, learn) => (Segment::Text(self.words.encode(t)?), *learn),
                    Piece::Codes(c, learn) => (Segment::Image(c.clone()), *learn),
                    Piece::Image(_, learn) => {
                        let at = encoded.next().ok_or_else(|| Error::invalid("a picture was not encoded"))?;
                        (Segment::Image(codes.image(at).to_vec()), *learn)
                    }
                };
                s.push(&self.vocab, &segment, learn || self.config.loss.on == LossOn::All);
            }
            if sample.cut {
                s.cut(&self.vocab, self.config.sequence_length);
            }
            Ok(s)
        };
        samples.iter().map(&mut one).collect()
    }

    /// The losses of packed rows, each its part of the mean over `totals`; and a term of no weight that keeps a head in the graph where nothing
    /// here tells it anything.
    fn losses(&self, batch: &Packed, totals: &Totals) -> Result<(Vec<Term>, Option<Tensor>)> {
        let model = match &self.shared {
            Some(s) => self.model.with_table(s.rows()?)?,
            None => self.model.clone(),
        };
        let x = model.embed(&batch.ids, batch.rows)?;
        let hidden = model.hidden(&x, &batch.positions, &batch.mask)?;
        let weights = &self.config.loss;
        let losses = split_loss(&model, &self.vocab, &hidden, &batch.targets, totals, weights.z != 0.0)?;
        let idle = match model.bitwise().filter(|_| batch.targets.visual.is_empty()) {
            Some(head) => {
                let loss = head.loss(&hidden.flatten_to(1)?.narrow(0, 0, 1)?, &[0])?;
                Some((&loss * loss.zeros_like()?)?)
            }
            None => None,
        };
        let parts = [
            ("text_loss", losses.text, weights.text),
            ("visual_loss", losses.visual, weights.visual),
            ("z_loss", losses.z, weights.z),
        ];
        Ok((parts.into_iter().filter_map(|(name, loss, weight)| Some((name, loss?, weight))).collect(), idle))
    }
}

impl Task for Unifying<'_> {
    type Batch = Vec<Sample>;

    fn batch(&self, place: &Place) -> Result<Vec<Sample>> {
        place.rows.clone().into_par_iter().map(|row| self.source.sample(place.step, row, place.held_out)).collect()
    }

    fn gradients(&self, at: &At, samples: Vec<Sample>) -> Result<StepOutput> {
        let size = at.run.micro_batch.unwrap_or(usize::MAX);
        let parts = samples.chunks(size);
        let mut parts: Vec<Packed> = parts.map(|p| self.packed(p)).collect::<Result<_>>()?;
        if self.config.bit_flip > 0.0 {
            // as LlamaGen's noise: of a part, keyed by where it begins
            let first = at.world.rows(at.run.batch_size).start;
            for (i, part) in parts.iter_mut().enumerate() {
                let row = first + i.saturating_mul(size);
                let mut r = rng::keyed(self.config.run.seed ^ FLIPS, &[at.step as u64, row as u64]);
                flip::flip_drawn(part, &self.vocab, self.config.bit_flip, &mut r);
            }
        }
        let mut totals = Totals::default();
        parts.iter().for_each(|p| totals.add(&p.targets));
        let totals = totals.over(at.world);
        if totals.is_empty() {
            return Err(Error::invalid("a batch without anything to learn"));
        }
        in_parts(at, parts, |batch| {
            let mut metrics = vec![
                ("text_targets", batch.targets.text.len() as f64),
                ("visual_targets", batch.targets.visual.len() as f64),
                ("rows", batch.rows as f64),
            ];
            let (losses, mut total) = self.losses(&batch, &totals)?;
            // every process names the same metrics, whatever its rows hold
            let named = [("text_loss", true), ("visual_loss", true), ("z_loss", self.config.loss.z != 0.0)];
            let named = named.into_iter().filter(|n| n.1 && at.world.size() > 1);
            metrics.extend(named.map(|n| (n.0, 0.0)));
            for (name, loss, weight) in losses {
                let value = f64::from(loss.to_scalar::<f32>()?);
                match metrics.iter_mut().find(|m| m.0 == name) {
                    Some(m) => m.1 += value,
                    None => metrics.push((name, value)),
                }
                nn::ops::add_term(&mut total, (loss * weight)?)?;
            }
            // rows of nothing but what is read teach nothing, at no weight
            let total = match total {
                Some(t) => t,
                None => {
                    let sum = self.model.embed(&batch.ids, batch.rows)?.sum_all()?;
                    (&sum * sum.zeros_like()?)?
                }
            };
            Ok((total, metrics))
        })
    }

    fn validate(&self, samples: Vec<Sample>) -> Result<Vec<Measure>> {
        let batch = self.packed(&samples)?;
        let mut totals = Totals::default();
        totals.add(&batch.targets);
        let mut out = vec![
            Measure { name: "loss", sum: 0.0, count: 0.0 },
            Measure { name: "text_loss", sum: 0.0, count: 0.0 },
            Measure { name: "visual_loss", sum: 0.0, count: 0.0 },
        ];
        let n = samples.len() as f64;
        out[0].count = n;
        for (name, loss, weight) in self.losses(&batch, &totals)?.0 {
            let mean = f64::from(loss.to_scalar::<f32>()?);
            out[0].sum += mean * weight * n;
            let count = if name == "text_loss" { totals.text } else { totals.visual };
            if let Some(m) = out.iter_mut().find(|m| m.name == name) {
                (m.sum, m.count) = (mean * count, count);
            }
        }
        Ok(out)
    }

    /// Pictures of samples that are not trained on, and below them what the model draws in their places.
    fn sheet(&self, weights: &BTreeMap<String, Tensor>) -> Result<Option<Sheet>> {
        let (mut wishes, mut real) = (Vec::new(), Vec::new());
        let g = &self.config.generation;
        for row in 0..sheet::PICTURES * 8 {
            let sample = self.source.sample(0, row, true)?;
            let Some(at) = sample.pieces.iter().position(|p| matches!(p, Piece::Image(_, true))) else { continue };
            let Some(Piece::Image(image, _)) = sample.pieces.get(at) else { continue };
            real.push(image.clone());
            let before = Sample { pieces: sample.pieces[..at].to_vec(), ..sample };
            let mut ids = self.sequences(&[before])?.remove(0).ids;
            ids.push(self.vocab.begin_image);
            let context = Context::new(vec![Part::tokens(ids.clone())]);
            wishes.push(Wish::new(&self.vocab, &self.words, &Marks::default(), context, &ids, g)?);
            if real.len() == sheet::PICTURES {
                break;
            }
        }
        if real.is_empty() {
            return Ok(None);
        }
        let mut tensors = weights.clone();
        if let Some(s) = &self.shared {
            s.join(&mut tensors)?;
        }
        let held = adapters::read(&self.start, &tensors, self.config.lora)?;
        let params = Params::from_tensors("the training", held, DType::F32, &Device::Cpu);
        let model = Arc::new(Llama::of_vocab(&params, &self.model.config, &self.vocab)?);
        let seeds: Vec<u64> = (0..wishes.len() as u64).collect();
        let requests = drawing(&self.vocab, wishes, &seeds, g);
        let per_row = self.vocab.grid * self.vocab.groups();
        let done = pictures(&Shared::new(model), requests, per_row, &|_, token| token, &mut |_| true)?;
        let codes = done.iter().map(|d| self.vocab.to_codes(&d.tokens)).collect::<Result<Vec<_>>>()?;
        let all = Codes { bits: self.vocab.bits, grid: self.vocab.grid, indices: codes.concat() };
        sheet::table(vec![real, self.eyes.decode(&all)?])
    }

    fn export(&self, dir: &Path, weights: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut weights = weights.clone();
        if let Some(s) = &self.shared {
            s.join(&mut weights)?;
        }
        let path = dir.join("model.safetensors");
        let Some(lora) = self.config.lora else { return checkpoint::save(&path, &weights, &[]) };
        checkpoint::save_packed(&path, &adapters::written(&self.start, &weights, Some(lora)), &[])?;
        match &self.base {
            Some(base) => adapters::beside(dir, base, &lora, &weights),
            None => Ok(()),
        }
    }
}
