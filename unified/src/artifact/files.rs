//! A model's files: a folder on disk, the files embedded in the program, or one file that holds what a folder would.

use crate::{Error, Result};
use candle_core::{DType, Device};
use nn::stored::Stored;
use nn::{WeightType, checkpoint};
use qlip::Preprocess;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the files of a model are.
#[derive(Debug, Clone)]
pub enum ModelFiles {
    /// A folder.
    Dir(PathBuf),
    /// Files in the program, by their path in the model's folder; those below a folder in it.
    Embedded(&'static [(&'static str, &'static [u8])], String),
    /// One file that holds what a folder would.
    Made(Arc<Made>),
}

/// A file of weights, and the files that would lie beside it in a folder, made from what it holds.
#[derive(Debug)]
pub struct Made {
    /// The file.
    pub(super) origin: PathBuf,
    /// Content by name.
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// How its tensors become the model's.
    pub(super) weights: Weights,
}

/// How a file's tensors become a model's.
#[derive(Debug)]
pub(super) enum Weights {
    /// They are the model's.
    AsStored,
    /// llama.cpp's names and order, with so many heads of queries and of keys.
    Gguf {
        /// Of queries, of keys.
        heads: (usize, usize),
    },
    /// Those of a layout that transformers did not write.
    Authors(super::authors::Layout),
    /// A base model's, and adapters.
    Adapted(super::adapter::Adapted),
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
        Self::Embedded(crate::assets::NANO, String::new())
    }

    pub(super) fn made(made: Made) -> Self {
        Self::Made(Arc::new(made))
    }

    /// The folder that they are in, or a name for the embedded model, for messages.
    pub fn folder(&self) -> PathBuf {
        match self {
            Self::Dir(d) => d.clone(),
            Self::Embedded(_, below) => Path::new("(embedded model)").join(below),
            Self::Made(m) => m.origin.parent().unwrap_or(Path::new("")).to_path_buf(),
        }
    }

    /// A file's path, for messages.
    pub fn path_of(&self, name: &str) -> PathBuf {
        match self {
            // made from it
            Self::Made(m) if m.files.contains_key(name) => m.origin.clone(),
            _ => self.folder().join(name),
        }
    }

    /// The path of the weights, for messages.
    pub fn weights_path(&self) -> PathBuf {
        match self {
            Self::Made(m) => m.origin.clone(),
            _ => self.path_of("model.safetensors"),
        }
    }

    /// The files in a folder of the model's folder.
    pub fn part(&self, name: &str) -> Self {
        match self {
            Self::Embedded(files, below) => Self::Embedded(files, format!("{below}{name}/")),
            Self::Made(m) if let Weights::Adapted(a) = &m.weights => a.base.part(name),
            _ => Self::Dir(self.folder().join(name)),
        }
    }

    /// Rank and factor of the adapters beside the weights, where there are some.
    pub fn adapter(&self) -> Option<nn::params::Lora> {
        match self {
            Self::Made(m) => match &m.weights {
                Weights::Adapted(a) => Some(a.lora),
                Weights::AsStored | Weights::Gguf { .. } | Weights::Authors(_) => None,
            },
            Self::Dir(_) | Self::Embedded(..) => None,
        }
    }

    /// Whether there is such a file.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Dir(d) => d.join(name).is_file(),
            Self::Embedded(files, below) => files.iter().any(|f| f.0.strip_prefix(below.as_str()) == Some(name)),
            Self::Made(m) => m.files.contains_key(name),
        }
    }

    /// A file's bytes.
    pub fn read(&self, name: &str) -> Result<Cow<'static, [u8]>> {
        match self {
            Self::Dir(d) => {
                let path = d.join(name);
                Ok(Cow::Owned(std::fs::read(&path).map_err(Error::io(&path))?))
            }
            Self::Embedded(files, below) => files
                .iter()
                .find(|f| f.0.strip_prefix(below.as_str()) == Some(name))
                .map(|f| Cow::Borrowed(f.1))
                .ok_or_else(|| Error::bad_file(self.path_of(name), "this build embeds no such file")),
            Self::Made(m) => m
                .files
                .get(name)
                .map(|f| Cow::Owned(f.clone()))
                .ok_or_else(|| Error::bad_file(&m.origin, format!("it holds no {name}"))),
        }
    }

    /// The files of the weights, or their bytes where they are in the program.
    pub(super) fn weight_files(&self) -> Result<Vec<std::result::Result<PathBuf, &'static [u8]>>> {
        Ok(match self {
            Self::Dir(dir) => checkpoint::files_of(dir)?.into_iter().map(Ok).collect(),
            Self::Embedded(files, below) => {
                let own = |f: &&(&str, _)| f.0.strip_prefix(below.as_str()) == Some("model.safetensors");
                files.iter().filter(own).map(|f| Err(f.1)).collect()
            }
            Self::Made(m) => match &m.weights {
                Weights::Authors(layout) => layout.files()?.into_iter().map(Ok).collect(),
                Weights::Adapted(a) => a.files()?,
                Weights::AsStored | Weights::Gguf { .. } => vec![Ok(m.origin.clone())],
            },
        })
    }

    /// The tensors: safetensors, torch.save's or GGUF, in one file or in shards.
    pub fn weights(&self) -> Result<Stored> {
        match self {
            Self::Dir(dir) => Stored::map_dir(dir),
            Self::Embedded(..) => {
                let name = "model.safetensors";
                Ok(checkpoint::read(&self.path_of(name), &self.read(name)?)?.into())
            }
            Self::Made(m) => match &m.weights {
                Weights::AsStored => Stored::map_files(vec![m.origin.clone()]),
                Weights::Gguf { heads } => super::gguf::tensors(&m.origin, *heads),
                Weights::Authors(layout) => layout.tensors(),
                Weights::Adapted(a) => a.tensors(),
            },
        }
    }

    /// How pictures of `side` pixels are prepared for the model: preprocessor_config.json, or the part of processor_config.json
    /// in which transformers 5 keeps it, or CLIP's.
    pub fn preprocess(&self, side: usize) -> Result<Preprocess> {
        let (own, inside) = ("preprocessor_config.json", "processor_config.json");
        let bad = |name: &str, e: serde_json::Error| Error::bad_file(self.path_of(name), e.to_string());
        if self.has(own) {
            return serde_json::from_str(&self.text(own)?).map_err(|e| bad(own, e));
        }
        if self.has(inside) {
            let json: serde_json::Value = serde_json::from_str(&self.text(inside)?).map_err(|e| bad(inside, e))?;
            if let Some(part) = json.get("image_processor") {
                return serde_json::from_value(part.clone()).map_err(|e| bad(inside, e));
            }
        }
        Ok(Preprocess::clip(side))
    }

    /// A text file.
    pub fn text(&self, name: &str) -> Result<String> {
        String::from_utf8(self.read(name)?.into_owned()).map_err(|_| Error::bad_file(self.path_of(name), "not UTF-8"))
    }
}
