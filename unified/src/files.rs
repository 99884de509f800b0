//! A model's files: a folder on disk, or the files embedded in the program.

use crate::{Error, Result};
use candle_core::{DType, Device};
use nn::WeightType;
use qlip::Preprocess;
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// Where the files of a model are.
#[derive(Debug, Clone)]
pub enum ModelFiles {
    /// A folder.
    Dir(PathBuf),
    /// Files in the program, by their path in the model's folder.
    Embedded(&'static [(&'static str, &'static [u8])]),
}

/// Where a model's weights are put, and as what.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Type of weights and activations.
    pub dtype: DType,
    /// How weights are kept on the CPU; as they are stored if nothing is asked.
    pub weights: Option<WeightType>,
    /// Device.
    pub device: Device,
}

impl Placement {
    /// On the CPU: float32 activations, weights as they are stored.
    pub fn cpu() -> Self {
        Self { dtype: DType::F32, weights: None, device: Device::Cpu }
    }
}

/// The device of this name: cpu, cuda or cuda:N.
pub fn device(name: &str) -> Result<Device> {
    let index = match name {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => 0,
        other => match other.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(n) => n,
            None => return Err(Error::invalid(format!("--device {other}: use cpu, cuda or cuda:N"))),
        },
    };
    if !candle_core::utils::cuda_is_available() {
        let why = "this build has no CUDA; build with --features cuda, or use --device cpu";
        return Err(Error::invalid(format!("--device {name}: {why}")));
    }
    Ok(Device::new_cuda(index)?)
}

/// Float32 activations on the device of this name.
pub fn placement(name: &str) -> Result<Placement> {
    Ok(Placement { device: device(name)?, ..Placement::cpu() })
}

impl ModelFiles {
    /// The nano model that this library carries.
    pub fn nano() -> Self {
        Self::Embedded(crate::assets::NANO)
    }

    /// The folder's path, or a name for the embedded model, for messages.
    pub fn path_of(&self, name: &str) -> PathBuf {
        match self {
            Self::Dir(d) => d.join(name),
            Self::Embedded(_) => Path::new("(embedded model)").join(name),
        }
    }

    /// Whether there is such a file.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Dir(d) => d.join(name).is_file(),
            Self::Embedded(files) => files.iter().any(|f| f.0 == name),
        }
    }

    /// A file's bytes.
    pub fn read(&self, name: &str) -> Result<Cow<'static, [u8]>> {
        match self {
            Self::Dir(d) => {
                let path = d.join(name);
                Ok(Cow::Owned(std::fs::read(&path).map_err(Error::io(&path))?))
            }
            Self::Embedded(files) => files
                .iter()
                .find(|f| f.0 == name)
                .map(|f| Cow::Borrowed(f.1))
                .ok_or_else(|| Error::bad_file(self.path_of(name), "this build embeds no such file")),
        }
    }

    /// How pictures are prepared for the model below `folder`, whose side is `side`: preprocessor_config.json, or the part of
    /// processor_config.json in which transformers 5 keeps it, or CLIP's.
    pub fn preprocess(&self, folder: &str, side: usize) -> Result<Preprocess> {
        let at = |name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
        let (own, inside) = (at("preprocessor_config.json"), at("processor_config.json"));
        let bad = |name: &str, e: serde_json::Error| Error::bad_file(self.path_of(name), e.to_string());
        if self.has(&own) {
            return serde_json::from_str(&self.text(&own)?).map_err(|e| bad(&own, e));
        }
        if self.has(&inside) {
            let json: serde_json::Value = serde_json::from_str(&self.text(&inside)?).map_err(|e| bad(&inside, e))?;
            if let Some(part) = json.get("image_processor") {
                return serde_json::from_value(part.clone()).map_err(|e| bad(&inside, e));
            }
        }
        Ok(Preprocess::clip(side))
    }

    /// A text file.
    pub fn text(&self, name: &str) -> Result<String> {
        String::from_utf8(self.read(name)?.into_owned()).map_err(|_| Error::bad_file(self.path_of(name), "not UTF-8"))
    }
}
