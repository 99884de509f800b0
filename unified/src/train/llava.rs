//! LLaVA's two stages (Liu et al. 2023, section 3): the projector alone on captions, then projector and language model
//! on conversations, whole or through low-rank adapters. The tower is held in both.

use super::conversations::{self, Entry, IMAGE_MARK, pieces};
use super::{Run, adapters, write_json};
use crate::artifact::{Architecture, Artifact, ModelFiles, text_tokenizer};
use crate::data::{self, DataConfig, DataKind, HeldOut};
use crate::llava::{Llava, LlavaConfig, VICUNA_V1, VisionFeature, published_name};
use crate::sequence::{Packed, Sequence, pack};
use crate::template::{Template, marks_of};
use crate::words::Words;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use lm::Token;
use lm::vocab::table_rows;
use nn::ops::cross_entropy;
use nn::params::Lora;
use nn::stored::Stored;
use nn::train::{At, Measure, OptimConfig, Place, RunConfig, StepOutput, Summary, Task, in_parts};
use nn::{Params, checkpoint, rng};
use qlip::config::parse_json;
use qlip::{Image, Preprocess};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Config of either stage.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LlavaTraining {
    /// 1: the projector; 2: projector and language model.
    pub stage: u8,
    /// Steps, batches, checkpoints.
    pub run: RunConfig,
    /// Conversations; every one comes once an epoch, whatever the shares of their sources.
    pub data: Vec<DataConfig>,
    /// LLaVA folder to start from; or `tower` and `language_model` for a new one.
    #[serde(default)]
    pub start: Option<PathBuf>,
    /// Folder of a QLIP or CLIP checkpoint: the eyes of a new model.
    #[serde(default)]
    pub tower: Option<PathBuf>,
    /// Folder of a Llama or unified checkpoint with its tokenizer: the language model of a new model.
    #[serde(default)]
    pub language_model: Option<PathBuf>,
    /// Which of a QLIP tower's stages a new model is shown.
    #[serde(default)]
    pub vision_feature: VisionFeature,
    /// Chat template of a new model; Vicuna's if absent.
    #[serde(default)]
    pub chat_template: Option<String>,
    /// Tokens a row; short conversations share one, longer ones lose their end, but no picture.
    pub sequence_length: usize,
    /// Adapters instead of the language model's own weights (stage 2).
    #[serde(default)]
    pub lora: Option<Lora>,
    /// Optimiser.
    pub optim: OptimConfig,
}

/// What a model is made from before training.
struct Base {
    config: LlavaConfig,
    tensors: Arc<Stored>,
    preprocess: Preprocess,
    tokenizer: (PathBuf, Vec<u8>),
    template: String,
    marks: (String, String),
}

/// Conversations of all sources, their pictures by whole paths.
struct Entries {
    list: Vec<Entry>,
    /// The folder of each one's pictures.
    images: Vec<PathBuf>,
}

/// What a step needs.
struct Conversing<'a> {
    entries: Entries,
    samples: Vec<Sequence>,
    /// Those that are trained on, and those that never are.
    orders: [Order; 2],
    base: Base,
    model: Llava,
    device: Device,
    config: &'a LlavaTraining,
}

/// A conversation of a batch.
struct Turned {
    tokens: Sequence,
    pictures: Vec<Image>,
}

impl LlavaTraining {
    /// Runs it; the folder becomes a LLaVA checkpoint in the llava-hf layout.
    pub fn run(&self, run: &mut Run) -> Result<Summary> {
        if !(1..=2).contains(&self.stage) {
            return Err(Error::invalid(format!("stage = {}: write 1 or 2", self.stage)));
        }
        adapters::check(self.lora)?;
        if self.lora.is_some() && self.stage == 1 {
            return Err(Error::invalid("[lora] belongs to stage 2"));
        }
        let entries = self.entries(run)?;
        let base = self.base()?;
        let words = Words::from_bytes(&base.tokenizer.0, &base.tokenizer.1)?;
        let template = Template::new(&base.template)?;
        let freeze: &[&str] = match (self.stage, self.lora) {
            (1, _) | (_, Some(_)) => &["vision_tower.", "language_model."],
            _ => &["vision_tower."],
        };
        let params = Params::for_training_shared(base.tensors.clone(), freeze, self.run.seed, DType::F32, &run.device);
        let held = params.clone().stored_as(self.lora.and_then(|l| l.base));
        let model = Llava::adapted(&held, &base.config, self.lora)?;
        let samples = self.samples(&entries.list, &template, &words, &base, &model)?;
        let held_out = HeldOut::of(self.run.held_out(), samples.len())?;
        let order = |held: bool| Order {
            entries: (0..samples.len()).filter(|&i| held_out.has(i) == held).collect(),
            lengths: samples.iter().map(|s| s.ids.len()).collect(),
            batch: self.run.batch_size,
            seed: self.run.seed,
        };
        let orders = [order(false), order(true)];
        self.write_folder(run, &base)?;
        let task = Conversing { entries, samples, orders, base, model, device: run.device.clone(), config: self };
        run.trainer(&self.run, &self.optim, &params).run(&task, run.progress)
    }

    fn entries(&self, run: &mut Run) -> Result<Entries> {
        data::check(&self.data, &[DataKind::Conversations])?;
        self.data.iter().try_for_each(|d| d.must_not(&[("loss_weight", d.loss_weight.is_some())]))?;
        let (mut all, mut broken) = (Entries { list: Vec::new(), images: Vec::new() }, Vec::new());
        for config in self.data.iter().filter(|d| d.is_used()) {
            let (list, images, skipped) = conversations::open(config, run.say)?;
            broken.extend(skipped.into_iter().map(|s| format!("{}: {}", s.name, s.why)));
            all.images.extend(list.iter().map(|_| images.clone()));
            all.list.extend(list);
        }
        run.name_broken(&broken)?;
        Ok(all)
    }

    fn base(&self) -> Result<Base> {
        match (&self.start, &self.tower, &self.language_model) {
            (Some(dir), None, None) => {
                let artifact = Artifact::open(&dir.to_string_lossy())?;
                artifact.must("go on as a LLaVA", artifact.architecture == Architecture::Llava)?;
                let files = &artifact.files;
                let config = LlavaConfig::parse(&files.path_of("config.json"), &files.text("config.json")?)?;
                let tensors = Arc::new(artifact.tensors()?.renamed(published_name));
                let (bos, eos) = marks_of(files)?;
                let or = |mark: Option<String>, or: &str| mark.unwrap_or_else(|| or.to_owned());
                Ok(Base {
                    preprocess: Preprocess::from_file(&files.path_of("preprocessor_config.json"))?,
                    tokenizer: tokenizer(files)?,
                    template: Template::source_of(files)?.unwrap_or_else(|| VICUNA_V1.to_owned()),
                    marks: (or(bos, "<s>"), or(eos, "</s>")),
                    config,
                    tensors,
                })
            }
            (None, Some(tower), Some(lm)) => self.new_base(tower, lm),
            _ => Err(Error::invalid("give either `start` (a LLaVA folder), or `tower` and `language_model`")),
        }
    }

    /// A model of two that do not know each other yet; the projector is new.
    fn new_base(&self, tower: &Path, lm: &Path) -> Result<Base> {
        let spoken = Artifact::open(&lm.to_string_lossy())?;
        let seeing = Artifact::open(&tower.to_string_lossy())?;
        let (vision, text): (serde_json::Value, serde_json::Value) = (seeing.config()?, spoken.config()?);
        let vision = if vision.get("vision_config").is_some() { vision["vision_config"].clone() } else { vision };
        let text = if text.get("text_config").is_some() { text["text_config"].clone() } else { text };
        let tokenizer = tokenizer(&spoken.files)?;
        let words = Words::from_bytes(&tokenizer.0, &tokenizer.1)?;
        let (bos, eos) = marks_of(&spoken.files)?;
        let (bos, eos) = (bos.unwrap_or_default(), eos.unwrap_or_else(|| "</s>".to_owned()));
        let vocab = text["vocab_size"].as_u64().unwrap_or(0);
        // a mark of its own where the tokenizer has one, else the first id that no text has
        let image = words.mark(IMAGE_MARK).map_or(vocab, u64::from);
        let mut config = serde_json::json!({
            "model_type": "llava", "vision_config": vision, "text_config": text, "image_token_index": image,
            "vision_feature": self.vision_feature,
        });
        config["text_config"]["eos_token_id"] = words.mark(&eos)?.into();
        let config: LlavaConfig = parse_json(Path::new("(new model)"), &config.to_string())?;
        config.check()?;
        let seen = seeing.tensors()?.filtered(|k| k.starts_with("vision_model."));
        let seen = seen.renamed(|k| format!("vision_tower.{k}"));
        let spoken = spoken.tensors()?.renamed(|k| format!("language_model.{k}"));
        let tensors = Arc::new(seen.and(spoken)?);
        let template = self.chat_template.clone().unwrap_or_else(|| VICUNA_V1.to_owned());
        let preprocess = Preprocess::from_file(&tower.join("preprocessor_config.json"))?;
        Ok(Base { config, tensors, preprocess, tokenizer, template, marks: (bos, eos) })
    }

    /// Every conversation as tokens; pictures as runs of the image token.
    fn samples(
        &self,
        entries: &[Entry],
        template: &Template,
        words: &Words,
        base: &Base,
        model: &Llava,
    ) -> Result<Vec<Sequence>> {
        let picture = vec![base.config.image_token_index; model.tokens_per_picture()];
        entries
            .par_iter()
            .map(|entry| {
                let pieces = pieces(entry, template, &base.marks.0, &base.marks.1)?;
                let text: String = pieces.iter().map(|p| p.0.as_str()).collect();
                // where each piece ends in the text, and whether it is learned
                let ends: Vec<(usize, bool)> = pieces
                    .iter()
                    .scan(0, |end, (piece, learn)| {
                        *end += piece.len();
                        Some((*end, *learn))
                    })
                    .collect();
                let mut s = Sequence::default();
                let mut start = 0;
                for (i, part) in text.split(IMAGE_MARK).enumerate() {
                    if i > 0 {
                        s.push_text(&picture, false);
                    }
                    // as a whole, as an answer's context is encoded: a turn by itself may become other tokens
                    for (id, at) in words.encode_with_places(part)? {
                        let learn = ends.iter().find(|e| start + at < e.0).is_some_and(|e| e.1);
                        s.push_text(&[id], learn);
                    }
                    start += part.len() + IMAGE_MARK.len();
                }
                let most = self.sequence_length;
                let pictures = s.ids.iter().rposition(|&id| id == base.config.image_token_index).map_or(0, |at| at + 1);
                if pictures > most {
                    let why =
                        format!("entry {}: its pictures end at token {pictures}; sequence_length is {most}", entry.id);
                    let why = self.data.first().map_or(why.clone(), |d| format!("{}: {why}", d.name()));
                    return Err(Error::invalid(why));
                }
                s.truncate(most);
                Ok(s)
            })
            .collect()
    }

    fn write_folder(&self, run: &Run, base: &Base) -> Result<()> {
        write_json(run, "config.json", &base.config)?;
        write_json(run, "preprocessor_config.json", &base.preprocess)?;
        let (bos, eos) = &base.marks;
        let template = serde_json::json!({"chat_template": base.template, "bos_token": bos, "eos_token": eos});
        write_json(run, "tokenizer_config.json", &template)?;
        run.write("tokenizer.json", &base.tokenizer.1)
    }
}

impl Conversing<'_> {
    /// The part of the mean loss over `total` targets that some conversations have, and how many targets and rows they have.
    fn loss(&self, part: &[&Turned], packed: &Packed, total: f64) -> Result<Tensor> {
        let (base, model) = (&self.base, &self.model);
        let pictures: Vec<Image> = part.iter().flat_map(|t| t.pictures.iter().cloned()).collect();
        let features = if pictures.is_empty() {
            None
        } else {
            let pixels = base.preprocess.normalise(&pictures, &self.device)?;
            let seen = nn::Exec::exact(|| model.see(&pixels))?;
            let features = model.project(&seen.detach())?.flatten_to(1)?;
            // pictures lie in the rows in the order of the conversations only if packing kept it
            let tokens: Vec<&Sequence> = part.iter().map(|t| &t.tokens).collect();
            Some(reorder(&features, &tokens, &packed.order, base.config.image_token_index)?)
        };
        let x = model.embed(&packed.ids, features.as_ref())?;
        let width = base.config.text_config.hidden_size;
        let x = x.reshape((packed.rows, self.config.sequence_length, width))?;
        let hidden = model.lm.hidden(&x, &packed.positions, &packed.mask)?.flatten_to(1)?;
        let (rows, targets): (Vec<u32>, Vec<Token>) = packed.targets.text.iter().copied().unzip();
        // the projector moves by nothing in a batch without pictures, as all does in a part without answers; candle cuts the graph at a
        // product with the number zero, not at one with a tensor that holds it
        let zero = Tensor::zeros((), DType::F32, &self.device)?;
        let mut loss = match rows.len() {
            0 => hidden.sum_all()?.mul(&zero)?,
            count => {
                let hidden = hidden.index_select(&Tensor::from_vec(rows, count, &self.device)?, 0)?;
                let logits = model.lm.logits(&hidden, 0..base.config.text_config.vocab_size)?;
                (cross_entropy(&logits, &table_rows(&targets)?)?.sum_all()? / total)?
            }
        };
        if pictures.is_empty() {
            let nothing = Tensor::zeros((1, 1, base.config.feature_width()), DType::F32, &self.device)?;
            loss = (loss + model.project(&nothing)?.sum_all()?.mul(&zero)?)?;
        }
        Ok(loss)
    }

    fn packed(&self, part: &[&Turned]) -> Result<Packed> {
        let tokens: Vec<Sequence> = part.iter().map(|t| t.tokens.clone()).collect();
        pack(&tokens, self.config.sequence_length, 0, true)
    }
}

impl Task for Conversing<'_> {
    type Batch = Vec<Turned>;

    fn batch(&self, place: &Place) -> Result<Vec<Turned>> {
        let chosen = self.orders[usize::from(place.held_out)].batch(place.step);
        let one = |&i: &usize| {
            let folder = &self.entries.images[i];
            let open = |p: &PathBuf| self.base.preprocess.pad(&Image::open(&folder.join(p))?);
            let pictures = self.entries.list[i].images().iter().map(open).collect::<nn::Result<_>>()?;
            Ok(Turned { tokens: self.samples[i].clone(), pictures })
        };
        chosen[place.rows.clone()].par_iter().map(one).collect()
    }

    fn gradients(&self, at: &At, batch: Vec<Turned>) -> Result<StepOutput> {
        let all: Vec<&Turned> = batch.iter().collect();
        let parts = all.chunks(at.run.micro_batch.unwrap_or(usize::MAX));
        let parts: Vec<(&[&Turned], Packed)> = parts.map(|p| Ok((p, self.packed(p)?))).collect::<Result<_>>()?;
        let mut total = [parts.iter().map(|p| p.1.targets.text.len() as f64).sum::<f64>()];
        at.world.sum_numbers(&mut total);
        if total[0] == 0.0 {
            return Err(Error::invalid("a batch without anything to learn"));
        }
        in_parts(at, parts, |(part, packed)| {
            let metrics = vec![("targets", packed.targets.text.len() as f64), ("rows", packed.rows as f64)];
            Ok((self.loss(part, &packed, total[0])?, metrics))
        })
    }

    fn validate(&self, batch: Vec<Turned>) -> Result<Vec<Measure>> {
        let all: Vec<&Turned> = batch.iter().collect();
        let packed = self.packed(&all)?;
        let sum = f64::from(self.loss(&all, &packed, 1.0)?.to_scalar::<f32>()?);
        Ok(vec![Measure { name: "loss", sum, count: packed.targets.text.len() as f64 }])
    }

    fn export(&self, dir: &Path, weights: &BTreeMap<String, Tensor>) -> Result<()> {
        let lora = self.config.lora;
        let path = dir.join("model.safetensors");
        checkpoint::save_packed(&path, &adapters::written(&self.base.tensors, weights, lora), &[])?;
        match (lora, &self.config.start) {
            (Some(lora), Some(base)) => adapters::beside(dir, base, &lora, weights),
            _ => Ok(()),
        }
    }
}

fn tokenizer(files: &ModelFiles) -> Result<(PathBuf, Vec<u8>)> {
    Ok((files.path_of("tokenizer.json"), text_tokenizer(files)?.to_json()?.into_bytes()))
}

/// Features in the order of the packed conversations.
fn reorder(features: &Tensor, batch: &[&Sequence], order: &[usize], image: Token) -> Result<Tensor> {
    let mut starts = Vec::with_capacity(batch.len());
    let mut at = 0;
    for s in batch {
        let n = s.ids.iter().filter(|&&i| i == image).count();
        starts.push((at, n));
        at += n;
    }
    let parts = order.iter().map(|&i| starts[i]).filter(|p| p.1 > 0).map(|(at, n)| features.narrow(0, at, n));
    Ok(Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
}

/// Which conversations an update sees: every one once an epoch, those of like length together, from nothing but seed
/// and step.
struct Order {
    /// Numbers of the conversations.
    entries: Vec<usize>,
    /// Lengths of all there are.
    lengths: Vec<usize>,
    batch: usize,
    seed: u64,
}

/// Most batches that are sorted by length together, as LLaVA's sampler does it.
const GROUP: usize = 16;

impl Order {
    fn batch(&self, step: usize) -> Vec<usize> {
        // of one epoch, or the same conversation would come several times in a row, its length being its own
        let size = (self.entries.len() / self.batch.max(1)).clamp(1, GROUP);
        let (group, within) = (step / size, step % size);
        let mut chosen = self.stream(group * size * self.batch, size * self.batch);
        chosen.sort_by_key(|&i| (self.lengths[i], i));
        let mut places: Vec<usize> = (0..size).collect();
        rng::shuffle(&mut rng::keyed(self.seed, &[1, group as u64]), &mut places);
        chosen[places[within] * self.batch..][..self.batch].to_vec()
    }

    /// Entries `from..from + count` of the endless stream of shuffled epochs.
    fn stream(&self, from: usize, count: usize) -> Vec<usize> {
        let n = self.entries.len();
        let mut out = Vec::with_capacity(count);
        for epoch in from / n..=(from + count - 1) / n {
            let mut all = self.entries.clone();
            rng::shuffle(&mut rng::keyed(self.seed, &[0, epoch as u64]), &mut all);
            let start = from.saturating_sub(epoch * n);
            let end = (from + count - epoch * n).min(n);
            out.extend_from_slice(&all[start..end]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_conversation_comes_once_an_epoch_and_like_lengths_together() {
        let lengths: Vec<usize> = (0..64).map(|i| (i * 37) % 100).collect();
        let order = Order { entries: (0..64).collect(), lengths: lengths.clone(), batch: 4, seed: 3 };
        let mut seen: Vec<usize> = (0..16).flat_map(|s| order.batch(s)).collect();
        let spread = |b: &[usize]| {
            let l = b.iter().map(|&i| lengths[i]);
            l.clone().max().unwrap_or(0) - l.min().unwrap_or(0)
        };
        assert!((0..16).all(|s| spread(&order.batch(s)) < 20));
        seen.sort_unstable();
        assert_eq!(seen, (0..64).collect::<Vec<_>>());
        assert_ne!(order.batch(0), order.batch(16), "the second epoch is in another order");
    }

    #[test]
    fn a_batch_of_a_small_set_holds_different_conversations() {
        let order = Order { entries: (0..8).collect(), lengths: (0..8).collect(), batch: 8, seed: 3 };
        for step in 0..5 {
            let mut batch = order.batch(step);
            batch.sort_unstable();
            assert_eq!(batch, (0..8).collect::<Vec<_>>(), "step {step}");
        }
    }
}
