//! Captions as LlamaGen's text condition: features of a T5 encoder, padding first (Sun et al. 2024, section 2.3).

use crate::artifact::{Architecture, Artifact};
use crate::words::Words;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::t5::{Config, T5EncoderModel};
use lm::Token;
use lm::llamagen::Condition;
use lm::vocab::table_rows;
use nn::checkpoint;
use std::collections::HashMap;
use std::path::Path;

/// Features of captions, each padded at the start to the same number of positions.
#[derive(Debug, Clone)]
pub struct Captions {
    /// [captions, positions, width], zero where padded.
    pub features: Tensor,
    /// Padded positions of each.
    pub pads: Vec<usize>,
}

impl Captions {
    /// Number of captions.
    pub fn len(&self) -> usize {
        self.pads.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pads.is_empty()
    }

    /// Some of them as a condition.
    pub fn condition(&self, which: &[usize]) -> Result<Condition> {
        if let Some(bad) = which.iter().find(|&&i| i >= self.len()) {
            return Err(Error::invalid(format!("caption {bad} of {}", self.len())));
        }
        let ids: Vec<u32> = which.iter().map(|&i| i as u32).collect();
        let ids = Tensor::from_vec(ids, which.len(), self.features.device())?;
        let features = self.features.index_select(&ids, 0)?.to_dtype(DType::F32)?;
        Ok(Condition::Captions(features, which.iter().map(|&i| self.pads[i]).collect()))
    }

    /// Writes `features` in float16 and `pads`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let pads: Vec<u32> = self.pads.iter().map(|&p| p as u32).collect();
        let pads = Tensor::from_vec(pads, self.len(), &Device::Cpu)?;
        let features = self.features.to_dtype(DType::F16)?;
        checkpoint::save(path, &[("features".to_owned(), features), ("pads".to_owned(), pads)].into(), &[])
    }

    /// Reads what [`Self::save`] wrote.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let tensors = checkpoint::load(path)?;
        let bad = |why: &str| Error::bad_file(path, format!("not caption features: {why}"));
        let features = tensors.get("features").ok_or_else(|| bad("no tensor `features`"))?;
        let pads = tensors.get("pads").ok_or_else(|| bad("no tensor `pads`"))?;
        let (n, positions, _) = features.dims3().map_err(|_| bad("`features` must be [captions, positions, width]"))?;
        let pads =
            pads.to_dtype(DType::U32).and_then(|p| p.to_vec1::<u32>()).map_err(|_| bad("`pads` must be a row"))?;
        if pads.len() != n || pads.iter().any(|&p| p as usize >= positions) {
            return Err(bad("`pads` does not fit `features`"));
        }
        Ok(Self { features: features.to_device(device)?, pads: pads.into_iter().map(|p| p as usize).collect() })
    }
}

/// A T5 encoder with its tokenizer: a folder as FLAN-T5 is published (config.json, model.safetensors, tokenizer.json).
pub struct TextEncoder {
    model: T5EncoderModel,
    words: Words,
    end: Token,
    width: usize,
}

impl TextEncoder {
    /// Reads the encoder's half of the checkpoint.
    pub fn load(artifact: &Artifact, device: &Device) -> Result<Self> {
        artifact.must("encode captions", artifact.architecture == Architecture::T5)?;
        let path = artifact.files.path_of("config.json");
        let config: Config = serde_json::from_str(&artifact.files.text("config.json")?)
            .map_err(|e| Error::bad_file(&path, format!("not a T5 config ({e})")))?;
        let config = Config { use_cache: false, ..config };
        let stored = artifact.tensors()?;
        let names: Vec<String> = stored.shapes().iter().map(|(n, _)| (*n).to_owned()).collect();
        let mut tensors = HashMap::new();
        for name in names.into_iter().filter(|n| n.starts_with("shared.") || n.starts_with("encoder.")) {
            if let Some(t) = stored.get(&name)? {
                tensors.insert(name, t);
            }
        }
        let weights = VarBuilder::from_tensors(tensors, DType::F32, device);
        let model = T5EncoderModel::load(weights, &config)
            .map_err(|e| Error::bad_file(artifact.files.folder(), e.to_string()))?;
        Ok(Self { model, words: artifact.text_tokenizer()?, end: config.eos_token_id as Token, width: config.d_model })
    }

    /// Features of captions over `positions` positions; longer ones lose their end. Each is encoded by itself at its own
    /// length, which is what a mask over padding computes.
    pub fn encode(&mut self, captions: &[String], positions: usize) -> Result<Captions> {
        if positions < 2 {
            return Err(Error::invalid(format!("{positions} positions hold no caption and its end; use 2 or more")));
        }
        let device = self.model.device().clone();
        let (mut features, mut pads) = (Vec::new(), Vec::new());
        for caption in captions {
            let mut ids = self.words.encode(caption)?;
            ids.truncate(positions.saturating_sub(1));
            ids.push(self.end);
            let row = Tensor::new(&table_rows(&ids)?[..], &device)?.unsqueeze(0)?;
            let encoded = self.model.forward(&row)?;
            let pad = positions - ids.len();
            let before = Tensor::zeros((1, pad, self.width), DType::F32, &device)?;
            features.push(Tensor::cat(&[&before, &encoded], 1)?);
            pads.push(pad);
        }
        if features.is_empty() {
            return Err(Error::invalid("no captions"));
        }
        Ok(Captions { features: Tensor::cat(&features, 0)?, pads })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_survive_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("features.safetensors");
        let features = Tensor::arange(0f32, 24.0, &Device::Cpu).unwrap().reshape((2, 3, 4)).unwrap();
        Captions { features, pads: vec![1, 0] }.save(&path).unwrap();
        let back = Captions::load(&path, &Device::Cpu).unwrap();
        assert_eq!((back.len(), back.pads.clone()), (2, vec![1, 0]));
        let Condition::Captions(f, pads) = back.condition(&[1, 1]).unwrap() else { panic!() };
        assert_eq!((f.dims(), pads), (&[2, 3, 4][..], vec![0, 0]));
        assert_eq!(f.get(0).unwrap().get(0).unwrap().to_vec1::<f32>().unwrap(), [12.0, 13.0, 14.0, 15.0]);
        assert!(back.condition(&[2]).is_err());
        checkpoint::save(&path, &Default::default(), &[]).unwrap();
        assert!(Captions::load(&path, &Device::Cpu).unwrap_err().to_string().contains("no tensor `features`"));
    }
}
