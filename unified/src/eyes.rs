//! The image tokenizer with its preprocessing and text side: pictures to codes and back, pictures against words.

use crate::artifact::{Architecture, Artifact, Placement};
use crate::{Error, Result};
use candle_core::{D, DType, Device, Tensor};
use nn::stored::Stored;
use nn::{Params, WeightType};
use qlip::bsq::unit;
use qlip::config::QlipConfig;
use qlip::data::caption;
use qlip::tokenizer::TextTokenizer;
use qlip::{Codes, Image, Pixels, Preprocess, Qlip};

/// Pictures that go through the model at once.
const BATCH: usize = 32;

/// A QLIP checkpoint ready for use.
pub struct Eyes {
    /// The model.
    pub model: Qlip,
    /// Its preprocessing.
    pub preprocess: Preprocess,
    text: Option<TextTokenizer>,
    device: Device,
    dtype: DType,
}

impl Eyes {
    /// From a QLIP's files; `with_text` for classification.
    pub fn load(artifact: &Artifact, placement: &Placement, with_text: bool) -> Result<Self> {
        Self::with_weights(artifact, artifact.tensors()?, placement, with_text)
    }

    /// The same with other weights of the same names and shapes.
    pub fn with_weights(artifact: &Artifact, weights: Stored, placement: &Placement, with_text: bool) -> Result<Self> {
        artifact.must("make codes of pictures", artifact.architecture == Architecture::Qlip)?;
        let files = &artifact.files;
        let config: QlipConfig = artifact.config()?;
        config.check().map_err(|e| Error::bad_file(files.path_of("config.json"), e.to_string()))?;
        let preprocess = files.preprocess(config.vision_config.image_size)?;
        let origin = files.weights_path();
        let params = Params::from_tensors(origin.display().to_string(), weights, placement.dtype, &placement.device)
            .stored_as(placement.weights.map(WeightType::for_pictures));
        let model = Qlip::new(&params, &config, with_text)?;
        let text = if with_text && files.has("tokenizer.json") {
            let t = &config.text_config;
            let path = files.path_of("tokenizer.json");
            Some(TextTokenizer::from_bytes(
                &path,
                &files.read("tokenizer.json")?,
                t.max_position_embeddings,
                t.eos_token_id,
            )?)
        } else {
            None
        };
        Ok(Self { model, preprocess, text, device: placement.device.clone(), dtype: placement.dtype })
    }

    /// Pixels along a picture's side.
    pub fn side(&self) -> usize {
        self.preprocess.crop_size
    }

    /// Whether it can compare pictures with words.
    pub fn has_text(&self) -> bool {
        self.text.is_some()
    }

    /// Pictures as the model's type of numbers.
    fn pixels(&self, images: &[Image]) -> Result<Pixels> {
        Ok(Pixels(self.preprocess.pixels(images, &self.device)?.0.to_dtype(self.dtype)?))
    }

    /// Pictures of any size to codes.
    pub fn encode(&self, images: &[Image]) -> Result<Codes> {
        let mut all = Codes { bits: self.model.bsq.bits, grid: self.model.grid(), indices: Vec::new() };
        for chunk in images.chunks(BATCH) {
            let pixels = self.pixels(chunk)?;
            all.indices.extend(self.model.codes(&self.model.encode(&pixels)?.latents)?.indices);
        }
        Ok(all)
    }

    /// Codes to pictures.
    pub fn decode(&self, codes: &Codes) -> Result<Vec<Image>> {
        let per = codes.per_image();
        let mut out = Vec::new();
        for chunk in codes.indices.chunks(BATCH * per) {
            let part = Codes { indices: chunk.to_vec(), ..*codes };
            out.extend(self.preprocess.images(&self.model.decode(&part)?)?);
        }
        Ok(out)
    }

    /// Unit vectors of pictures.
    pub fn image_vectors(&self, images: &[Image]) -> Result<Vec<Vec<f32>>> {
        let mut out = Vec::new();
        for chunk in images.chunks(BATCH) {
            let pooled = self.model.encode(&self.pixels(chunk)?)?.pooled;
            out.extend(self.model.embed_image(&pooled)?.to_dtype(DType::F32)?.to_vec2::<f32>()?);
        }
        Ok(out)
    }

    /// Unit vectors of label texts, averaged over the templates (`{}` stands for the label).
    pub fn label_vectors(&self, labels: &[String], templates: &[&str]) -> Result<Tensor> {
        let text =
            self.text.as_ref().ok_or_else(|| Error::invalid("this model has no text tower or no tokenizer.json"))?;
        let mut rows = Vec::new();
        for label in labels {
            let filled: Vec<String> = templates.iter().map(|t| t.replace("{}", label)).collect();
            let (ids, tokens) = text.encode_batch(&filled)?;
            rows.push(unit(&self.model.embed_text(&ids, tokens)?.mean_keepdim(0)?)?);
        }
        Ok(Tensor::cat(&rows, 0)?)
    }

    /// Unit vectors of classes, each in words as it is in training: "a photo of a dog".
    pub fn class_vectors(&self, classes: &[String]) -> Result<Tensor> {
        let words: Vec<String> = classes.iter().map(|c| caption(c)).collect();
        self.label_vectors(&words, &["{}"])
    }

    /// Probability of each label for each picture, rows in the order of the pictures.
    pub fn classify(&self, images: &[Image], labels: &Tensor) -> Result<Vec<Vec<f32>>> {
        let mut out = Vec::new();
        for chunk in images.chunks(BATCH) {
            let pixels = self.pixels(chunk)?;
            out.extend(self.rank(&self.model.encode(&pixels)?.pooled, labels)?);
        }
        Ok(out)
    }

    /// The same from the class tokens' features [pictures, width].
    pub fn rank(&self, pooled: &Tensor, labels: &Tensor) -> Result<Vec<Vec<f32>>> {
        let image = self.model.embed_image(pooled)?;
        let logits = image.matmul(&labels.t()?)?.broadcast_mul(&self.model.logit_scale.exp()?)?;
        let e = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
        let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?.to_dtype(DType::F32)?;
        Ok(p.to_vec2::<f32>()?)
    }
}
