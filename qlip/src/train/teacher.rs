//! A frozen tower whose features are learned beside captions: a cold start of alignment needs billions of pairs.

use crate::clip::{ClipTower, ClipVisionConfig};
use crate::config::parse_json;
use crate::image::Pixels;
use crate::model::Qlip;
use candle_core::{DType, Device, Tensor};
use nn::{Error, Params, Result};
use std::path::Path;

/// The tower.
pub enum Teacher {
    /// CLIP's.
    Clip(Box<ClipTower>, ClipVisionConfig),
    /// QLIP's, of this or another training.
    Qlip(Box<Qlip>),
}

/// What it sees in pictures.
pub struct Features {
    /// Of the picture [pictures, width].
    pub pooled: Tensor,
    /// Of its patches, from the last layer but one [pictures, patches, width].
    pub patches: Tensor,
}

impl Teacher {
    /// From a folder: CLIP (its vision config alone or inside a whole one) or QLIP.
    pub fn load(dir: &Path, device: &Device) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| Error::bad_file(&path, e.to_string()))?;
        if json.get("decoder_config").is_some() {
            return Ok(Self::Qlip(Box::new(Qlip::seeing(dir, device)?)));
        }
        let params = Params::from_dir(dir, DType::F32, device)?;
        let vision = json.get("vision_config").unwrap_or(&json).to_string();
        let config: ClipVisionConfig = parse_json(&path, &vision)?;
        Ok(Self::Clip(Box::new(ClipTower::new(&params.at("vision_model"), &config)?), config))
    }

    /// Pixels along the side of its pictures.
    pub fn side(&self) -> usize {
        match self {
            Self::Clip(_, c) => c.image_size,
            Self::Qlip(m) => m.config.vision_config.image_size,
        }
    }

    /// Patches of a picture.
    pub fn patches(&self) -> usize {
        match self {
            Self::Clip(_, c) => c.grid() * c.grid(),
            Self::Qlip(m) => m.grid() * m.grid(),
        }
    }

    /// Widths of the picture's feature and the patches'.
    pub fn widths(&self) -> (usize, usize) {
        match self {
            Self::Clip(_, c) => (c.hidden_size, c.hidden_size),
            Self::Qlip(m) => (m.config.projection_dim, m.config.vision_config.hidden_size),
        }
    }

    /// What it sees, without a graph.
    pub fn see(&self, pixels: &Pixels) -> Result<Features> {
        nn::Exec::exact(|| {
            let (hidden, pooled) = match self {
                Self::Clip(tower, _) => {
                    let out = tower.forward(pixels)?;
                    (out.hidden, out.pooled)
                }
                Self::Qlip(m) => {
                    let out = m.encode(pixels)?;
                    let pooled = m.embed_image(&out.pooled)?;
                    (out.hidden, pooled)
                }
            };
            let at = hidden.len().saturating_sub(2);
            let tokens = &hidden[at];
            let patches = tokens.narrow(1, 1, tokens.dim(1)? - 1)?.contiguous()?;
            Ok(Features { pooled: pooled.detach(), patches: patches.detach() })
        })
    }
}
