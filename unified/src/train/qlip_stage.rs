//! Training of the visual tokenizer on photographs and scenes.

use super::pictures::{PictureSource, Shown};
use super::{Run, sheet, write_json};
use crate::data::DataConfig;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use nn::train::{At, Measure, OptimConfig, Place, RunConfig, Sheet, StepOutput, Summary, Task};
use nn::{Params, checkpoint};
use qlip::Qlip;
use qlip::config::{QlipConfig, QuantizerConfig};
use qlip::image::{Image, Pixels, Preprocess};
use qlip::loss::{Lpips, LpipsConfig};
use qlip::tokenizer::TextTokenizer;
use qlip::train::{
    AdversaryConfig, CLIPPED_APART, LossConfig, Objective, PairBatch, Parts, STAGE2_FROZEN, Teacher, exported,
    warm_tensors, with_quantizer,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Config of stage 1 or 2.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct QlipTraining {
    /// 1: everything, aligned with text; 2: the way up from the bits, vision tower frozen, no text.
    pub stage: u8,
    /// Steps, batches, checkpoints. The gradient of a batch in parts is the whole batch's but for the adversarial term.
    pub run: RunConfig,
    /// Pictures and scenes, with words in stage 1.
    pub data: Vec<DataConfig>,
    /// Folder of the checkpoint to start from; stage 2 needs one, stage 1 may have one.
    #[serde(default)]
    pub start: Option<PathBuf>,
    /// tokenizer.json of the text tower (stage 1).
    #[serde(default)]
    pub tokenizer: Option<PathBuf>,
    /// Loss weights; stage 1 needs them, stage 2 has pixels alone where they are absent.
    #[serde(default)]
    pub loss: Option<LossConfig>,
    /// Trunk and heads of the perceptual loss.
    #[serde(default)]
    pub lpips: Option<LpipsConfig>,
    /// The other player of the adversarial loss.
    #[serde(default)]
    pub adversary: Option<AdversaryConfig>,
    /// Folder of a CLIP or QLIP whose features are learned too.
    #[serde(default)]
    pub teacher: Option<PathBuf>,
    /// Safetensors file or folder of CLIP, OpenCLIP or EVA weights that a new model's towers begin with.
    #[serde(default)]
    pub warm_start: Option<PathBuf>,
    /// Updates between sheets of a batch and its reconstructions in the folder `samples`, besides those of validations; 0 for none.
    #[serde(default)]
    pub sample_every: usize,
    /// Optimiser.
    pub optim: OptimConfig,
    /// With `start`, in stage 1: another quantizer than the checkpoint's. One of more bits begins with the checkpoint's bits as its first.
    #[serde(default)]
    pub quantizer: Option<QuantizerConfig>,
    /// The model, where no checkpoint gives it: the fields of config.json.
    #[serde(default)]
    pub model: Option<QlipConfig>,
}

/// What a step needs.
struct Aligning<'a> {
    source: PictureSource,
    objective: Objective,
    preprocess: Preprocess,
    text: Option<TextTokenizer>,
    /// What the stage does not touch (the text tower in stage 2) stays in the checkpoint.
    start: HashMap<String, Tensor>,
    device: Device,
    sample_every: usize,
    out: &'a Path,
}

impl QlipTraining {
    /// Runs the stage.
    pub fn run(&self, run: &mut Run) -> Result<Summary> {
        let (config, start) = self.model()?;
        let text = if self.stage == 1 { Some(self.text(&config)?) } else { None };
        let freeze = if self.stage == 2 { STAGE2_FROZEN } else { &[] };
        let start = self.warm(start, &config, run)?;
        let params = Params::for_training(start.clone(), freeze, self.run.seed, DType::F32, &run.device);
        let model = Qlip::new(&params, &config, self.stage == 1)?;
        let preprocess = Preprocess::clip(config.vision_config.image_size);
        let parts = Parts {
            lpips: self.lpips.as_ref().map(|c| Lpips::load(c, &run.device)).transpose()?,
            adversary: self.adversary.clone(),
            teacher: self.teacher.as_ref().map(|t| Teacher::load(t, &run.device)).transpose()?,
            before: self.before(&run.device)?,
            micro_batch: self.run.micro_batch,
        };
        let objective =
            Objective::new(&params, model, self.stage, &self.loss.clone().unwrap_or_default(), &preprocess, parts)?;
        let about = (preprocess.crop_size, self.run.seed, self.run.held_out());
        let source = PictureSource::open(&self.data, about, run.say)?;
        if self.stage == 1 && self.loss.as_ref().is_none_or(|l| l.alignment > 0.0) {
            source.needs_words()?;
        }
        write_json(run, "config.json", &config.published())?;
        write_json(run, "preprocessor_config.json", &preprocess)?;
        if let Some(path) = self.tokenizer_file().filter(|p| p.exists()) {
            let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
            run.write("tokenizer.json", &bytes)?;
        }
        let (sample_every, out, device) = (self.sample_every, run.out, run.device.clone());
        let task = Aligning { source, objective, preprocess, text, start, device, sample_every, out };
        let mut trainer = run.trainer(&self.run, &self.optim, &params);
        trainer.apart = CLIPPED_APART;
        let done = trainer.run(&task, run.progress);
        run.name_broken(&task.source.broken())?;
        done
    }

    /// First values: of the checkpoint, or of published towers, of which warm-start.txt says what was taken.
    fn warm(
        &self,
        start: HashMap<String, candle_core::Tensor>,
        config: &QlipConfig,
        run: &Run,
    ) -> Result<HashMap<String, candle_core::Tensor>> {
        let Some(from) = &self.warm_start else { return Ok(start) };
        if self.start.is_some() {
            return Err(Error::invalid("`start` and `warm_start` both say what to begin with; give one"));
        }
        let file = if from.is_dir() { checkpoint::load_dir(from)? } else { checkpoint::load(from)? };
        let warm = warm_tensors(from, file, config)?;
        let told = format!("{} tensors taken\n{}\n", warm.tensors.len(), warm.left_out.join("\n"));
        run.write("warm-start.txt", told.as_bytes())?;
        Ok(warm.tensors)
    }

    fn model(&self) -> Result<(QlipConfig, HashMap<String, candle_core::Tensor>)> {
        if !(1..=2).contains(&self.stage) {
            return Err(Error::invalid(format!("stage = {}: write 1 or 2", self.stage)));
        }
        if self.stage == 1 && self.loss.is_none() {
            return Err(Error::invalid("stage 1 needs a section [loss]"));
        }
        if self.quantizer.is_some() && (self.stage != 1 || self.start.is_none()) {
            return Err(Error::invalid("[quantizer] changes a checkpoint's in stage 1; it needs `start`"));
        }
        match (&self.start, &self.model) {
            (Some(dir), None) => {
                let config = QlipConfig::from_file(&dir.join("config.json"))?;
                let tensors = checkpoint::load_dir(dir)?;
                match &self.quantizer {
                    Some(q) => with_quantizer(tensors, &config, q, self.run.seed),
                    None => Ok((config, tensors)),
                }
            }
            (None, Some(model)) if self.stage == 1 => {
                model.check()?;
                Ok((model.clone(), HashMap::new()))
            }
            _ => Err(Error::invalid("give either `start` (a checkpoint folder) or, in stage 1, a section [model]")),
        }
    }

    /// The checkpoint as it is, where its bits are to be kept.
    fn before(&self, device: &Device) -> Result<Option<Qlip>> {
        let kept = self.loss.as_ref().is_some_and(|l| l.kept_bits != 0.0);
        self.start.as_ref().filter(|_| kept).map(|dir| Qlip::seeing(dir, device)).transpose()
    }

    fn tokenizer_file(&self) -> Option<PathBuf> {
        self.tokenizer.clone().or_else(|| self.start.as_ref().map(|d| d.join("tokenizer.json")))
    }

    fn text(&self, config: &QlipConfig) -> Result<TextTokenizer> {
        let path =
            self.tokenizer_file().ok_or_else(|| Error::invalid("stage 1 needs `tokenizer`, a tokenizer.json"))?;
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let t = &config.text_config;
        TextTokenizer::from_bytes(&path, &bytes, t.max_position_embeddings, t.eos_token_id)
    }
}

impl Aligning<'_> {
    fn pairs(&self, shown: Vec<Shown>) -> Result<PairBatch> {
        let (images, captions): (Vec<Image>, Vec<String>) = shown.into_iter().map(|s| (s.image, s.words)).unzip();
        let pixels = self.preprocess.normalise(&images, &self.device)?;
        let (text_ids, text_tokens) = match &self.text {
            Some(text) => text.encode_batch(&captions)?,
            None => (Vec::new(), 0),
        };
        let caption_of = captions.iter().map(|c| nn::rng::name_key(c) as usize).collect();
        Ok(PairBatch { pixels, text_ids, text_tokens, caption_of })
    }
}

impl Task for Aligning<'_> {
    type Batch = Vec<Shown>;

    fn batch(&self, place: &Place) -> Result<Vec<Shown>> {
        self.source.batch(place)
    }

    fn gradients(&self, at: &At, batch: Vec<Shown>) -> Result<StepOutput> {
        let batch = self.pairs(batch)?;
        if self.sample_every > 0 && at.step.is_multiple_of(self.sample_every) && at.world.is_first() {
            let rows = rebuilt(self.objective.model(), &self.preprocess, &batch.pixels)?;
            if let Some(s) = sheet::table(rows)? {
                let dir = self.out.join("samples");
                std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
                checkpoint::write_atomic(&dir.join(format!("{:06}.png", at.step)), &s.png)?;
            }
        }
        self.objective.step(at.step, &batch, at.vars, &mut at.numbers.borrow_mut(), at.world)
    }

    fn validate(&self, batch: Vec<Shown>) -> Result<Vec<Measure>> {
        let n = batch.len();
        let found = self.objective.validate(&self.pairs(batch)?)?;
        Ok(found.into_iter().map(|(name, mean)| Measure::mean(name, mean, n)).collect())
    }

    fn sheet(&self, _: &BTreeMap<String, Tensor>) -> Result<Option<Sheet>> {
        let shown = self.source.held_out(sheet::PICTURES)?;
        let images: Vec<Image> = shown.into_iter().map(|s| s.image).collect();
        let pixels = self.preprocess.normalise(&images, &self.device)?;
        sheet::table(rebuilt(self.objective.model(), &self.preprocess, &pixels)?)
    }

    fn export(&self, dir: &Path, weights: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut all: BTreeMap<_, _> = self.start.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        all.extend(exported(weights));
        checkpoint::save(&dir.join("model.safetensors"), &all, &[])
    }
}

/// Pictures, and their reconstructions.
fn rebuilt(model: &Qlip, preprocess: &Preprocess, pixels: &Pixels) -> Result<Vec<Vec<Image>>> {
    let some = Pixels(pixels.0.narrow(0, 0, sheet::PICTURES.min(pixels.0.dim(0)?))?.contiguous()?);
    let latents = nn::Exec::exact(|| model.encode(&some))?.latents;
    let back = model.paint(&model.expand(&model.bsq.quantize(&latents)?)?)?.0;
    Ok(vec![preprocess.images(&some)?, preprocess.images(&Pixels(back.0.detach()))?])
}
