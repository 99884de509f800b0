//! Where a model's tensors come from: a checkpoint (plain tensors, no graph) or a training (variables).

use crate::stored::Stored;
use crate::{Error, Result, rng};
use candle_core::{DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

/// First value of a parameter that no checkpoint gives.
#[derive(Debug, Clone, Copy)]
pub enum Init {
    /// The same value everywhere.
    Const(f32),
    /// Normal with mean 0, clipped at two deviations.
    Normal(f32),
}

/// A place in the tree of published tensor names, from which layers take their tensors.
#[derive(Clone)]
pub struct Params {
    source: Arc<Source>,
    prefix: String,
    storage: Storage,
    lora: Option<Lora>,
}

/// Low-rank adapters of linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Rank of the change.
    pub rank: usize,
    /// The change is multiplied by alpha / rank.
    pub alpha: f64,
}

impl Lora {
    /// Factor of the change.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank.max(1) as f64
    }
}

/// How linear layers keep their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Storage {
    /// In the type of the activations.
    #[default]
    Plain,
    /// In blocks of 32 8-bit integers with one scale: a quarter of float32.
    Q8_0,
}

struct Source {
    origin: String,
    device: Device,
    dtype: DType,
    stored: Stored,
    training: Option<Training>,
}

struct Training {
    seed: u64,
    freeze: Vec<String>,
    vars: Mutex<BTreeMap<String, Var>>,
    frozen: Mutex<BTreeMap<String, Tensor>>,
}

fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Params {
    /// Tensors of a checkpoint, for inference; `origin` names it in errors.
    pub fn from_tensors(origin: impl Into<String>, stored: impl Into<Stored>, dtype: DType, device: &Device) -> Self {
        Self::new(origin.into(), stored.into(), None, dtype, device)
    }

    /// The safetensors files of a model folder (one file, or shards with an index), mapped into memory: a tensor is read
    /// when a layer takes it.
    pub fn from_dir(dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        Ok(Self::from_tensors(dir.display().to_string(), Stored::map_dir(dir)?, dtype, device))
    }

    /// The same tensors, linear layers keeping their weights this way; for inference.
    pub fn stored_as(mut self, storage: Storage) -> Self {
        self.storage = storage;
        self
    }

    /// The same tensors, linear layers with adapters beside their weights, which the caller freezes.
    pub fn adapted(mut self, lora: Option<Lora>) -> Self {
        self.lora = lora;
        self
    }

    /// Adapters that linear layers are to have.
    pub fn lora(&self) -> Option<Lora> {
        self.lora
    }

    /// How linear layers keep their weights.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// Variables that start from `start` where it has the name, else from their initial value; names that begin with
    /// one of `freeze` become plain tensors, for which no gradient is computed.
    pub fn for_training(
        start: HashMap<String, Tensor>,
        freeze: &[&str],
        seed: u64,
        dtype: DType,
        device: &Device,
    ) -> Self {
        let training = Training {
            seed,
            freeze: freeze.iter().map(|s| (*s).to_owned()).collect(),
            vars: Mutex::default(),
            frozen: Mutex::default(),
        };
        Self::new("the starting checkpoint".into(), start.into(), Some(training), dtype, device)
    }

    fn new(origin: String, stored: Stored, training: Option<Training>, dtype: DType, device: &Device) -> Self {
        let source = Source { origin, device: device.clone(), dtype, stored, training };
        Self { source: Arc::new(source), prefix: String::new(), storage: Storage::Plain, lora: None }
    }

    /// The place below `name`.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        let prefix = if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        Self { source: self.source.clone(), prefix, storage: self.storage, lora: self.lora }
    }

    /// Device on which tensors are created.
    pub fn device(&self) -> &Device {
        &self.source.device
    }

    /// Type of the tensors handed out.
    pub fn dtype(&self) -> DType {
        self.source.dtype
    }

    /// Whether the checkpoint has this tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.source.stored.contains(&self.full_name(name))
    }

    fn full_name(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// The tensor `name`, which must have this shape; in a training without it, a new variable.
    pub fn get(&self, shape: impl Into<candle_core::Shape>, name: &str, init: Init) -> Result<Tensor> {
        let (full, shape) = (self.full_name(name), shape.into());
        let src = &self.source;
        let stored = match src.stored.get(&full)? {
            Some(t) if t.shape() == &shape => Some(t.to_device(&src.device)?.to_dtype(src.dtype)?),
            Some(t) => {
                return Err(Error::WrongShape {
                    origin: src.origin.clone(),
                    name: full,
                    found: t.dims().to_vec(),
                    expected: shape.dims().to_vec(),
                });
            }
            None => None,
        };
        let Some(training) = &src.training else {
            return stored.ok_or_else(|| Error::MissingTensor {
                origin: src.origin.clone(),
                name: full,
                shape: shape.dims().to_vec(),
            });
        };
        let value = match stored {
            Some(t) => t,
            None => initial(&full, &shape, init, training.seed, &src.device)?.to_dtype(src.dtype)?,
        };
        // an adapter is there to be trained, whatever it is beside
        let adapter = full.ends_with("lora_A.weight") || full.ends_with("lora_B.weight");
        if !adapter && training.freeze.iter().any(|f| full.starts_with(f.as_str())) {
            locked(&training.frozen).insert(full, value.clone());
            return Ok(value);
        }
        let var = Var::from_tensor(&value)?;
        let tensor = var.as_tensor().clone();
        locked(&training.vars).insert(full, var);
        Ok(tensor)
    }

    /// The variables of a training, by name; empty for a loaded checkpoint.
    pub fn vars(&self) -> BTreeMap<String, Var> {
        self.source.training.as_ref().map(|t| locked(&t.vars).clone()).unwrap_or_default()
    }

    /// The frozen tensors of a training, by name.
    pub fn frozen(&self) -> BTreeMap<String, Tensor> {
        self.source.training.as_ref().map(|t| locked(&t.frozen).clone()).unwrap_or_default()
    }
}

fn initial(name: &str, shape: &candle_core::Shape, init: Init, seed: u64, device: &Device) -> Result<Tensor> {
    let n = shape.elem_count();
    let values: Vec<f32> = match init {
        Init::Const(c) => vec![c; n],
        Init::Normal(std) => {
            let mut r = rng::keyed(seed, &[rng::name_key(name)]);
            (0..n).map(|_| rng::normal(&mut r).clamp(-2.0, 2.0) * std).collect()
        }
    };
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// Whether a tensor is the weight of a hidden layer, by its published name; tables that are looked up row by row and
/// output heads are not.
pub fn is_hidden_matrix(name: &str, dims: &[usize]) -> bool {
    const TABLES: [&str; 5] =
        ["token_embedding.", "embed_tokens.", "position_embedding.", "quantize.embedding.", "lm_head."];
    dims.len() >= 2 && name.ends_with(".weight") && !TABLES.iter().any(|t| name.contains(t))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_heads_and_vectors_are_not_hidden_matrices() {
        assert!(is_hidden_matrix("model.layers.0.self_attn.q_proj.weight", &[4, 4]));
        assert!(!is_hidden_matrix("model.embed_tokens.weight", &[4, 4]));
        assert!(!is_hidden_matrix("lm_head.weight", &[4, 4]));
        assert!(!is_hidden_matrix("norm.weight", &[4]));
        assert!(!is_hidden_matrix("class_embedding", &[4]));
    }
}
