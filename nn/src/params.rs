//! Where a model's tensors come from: a checkpoint (plain tensors, no graph) or a training (variables).

use crate::ops::WeightType;
use crate::stored::Stored;
use crate::weight::{Packed, Weight};
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
    weights: Option<WeightType>,
    lora: Option<Lora>,
}

/// Low-rank adapters of linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Rank of the change.
    pub rank: usize,
    /// The change is multiplied by alpha / rank.
    pub alpha: f64,
    /// How the weights beside them are held: as they are stored if absent; `q8_0` or `q4_K` is QLoRA (Dettmers et al. 2023).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<WeightType>,
}

impl Lora {
    /// Factor of the change.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank.max(1) as f64
    }
}

struct Source {
    origin: String,
    device: Device,
    dtype: DType,
    stored: Arc<Stored>,
    /// Whether tensors that nobody stored are made, for measuring.
    made: bool,
    training: Option<Training>,
}

struct Training {
    seed: u64,
    freeze: Vec<String>,
    vars: Mutex<BTreeMap<String, Var>>,
    frozen: Mutex<BTreeMap<String, Tensor>>,
}

impl Training {
    fn new(freeze: &[&str], seed: u64) -> Self {
        Self {
            seed,
            freeze: freeze.iter().map(|s| (*s).to_owned()).collect(),
            vars: Mutex::default(),
            frozen: Mutex::default(),
        }
    }
}

fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Params {
    /// Tensors of a checkpoint, for inference; `origin` names it in errors.
    pub fn from_tensors(origin: impl Into<String>, stored: impl Into<Stored>, dtype: DType, device: &Device) -> Self {
        Self::new(origin.into(), Arc::new(stored.into()), None, dtype, device)
    }

    /// Random tensors of whatever shape is asked for, made in place, for measuring speed and memory.
    pub fn made(seed: u64, dtype: DType, device: &Device) -> Self {
        Self::made_for(None, seed, dtype, device)
    }

    /// The same for a training.
    pub fn made_for_training(freeze: &[&str], seed: u64, dtype: DType, device: &Device) -> Self {
        Self::made_for(Some(freeze), seed, dtype, device)
    }

    fn made_for(freeze: Option<&[&str]>, seed: u64, dtype: DType, device: &Device) -> Self {
        let training = freeze.map(|f| Training::new(f, seed));
        let stored = Arc::new(Stored::Memory(HashMap::new()));
        let source =
            Source { origin: "random weights".into(), device: device.clone(), dtype, stored, made: true, training };
        Self { source: Arc::new(source), prefix: String::new(), weights: None, lora: None }
    }

    /// The safetensors files of a model folder (one file, or shards with an index), mapped into memory: a tensor is read
    /// when a layer takes it.
    pub fn from_dir(dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        Ok(Self::from_tensors(dir.display().to_string(), Stored::map_dir(dir)?, dtype, device))
    }

    /// The same tensors, with weights kept as this type, or as they are stored if nothing is asked; for inference on the
    /// CPU.
    pub fn stored_as(mut self, weights: Option<WeightType>) -> Self {
        self.weights = weights;
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

    /// The type that weights are kept as, where one is asked for.
    pub fn weights(&self) -> Option<WeightType> {
        self.weights
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
        Self::for_training_shared(Arc::new(start.into()), freeze, seed, dtype, device)
    }

    /// The same from tensors that others read too.
    pub fn for_training_shared(start: Arc<Stored>, freeze: &[&str], seed: u64, dtype: DType, device: &Device) -> Self {
        let training = Training::new(freeze, seed);
        Self::new("the starting checkpoint".into(), start, Some(training), dtype, device)
    }

    fn new(origin: String, stored: Arc<Stored>, training: Option<Training>, dtype: DType, device: &Device) -> Self {
        let source = Source { origin, device: device.clone(), dtype, stored, made: false, training };
        Self { source: Arc::new(source), prefix: String::new(), weights: None, lora: None }
    }

    /// The place below `name`.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        let prefix = if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        Self { source: self.source.clone(), prefix, weights: self.weights, lora: self.lora }
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
            // a table behind an axis of one, a linear layer as a convolution of one pixel: the same numbers
            Some(t) if same_but_for_ones(t.dims(), shape.dims()) => {
                Some(t.to_device(&src.device)?.to_dtype(src.dtype)?.reshape(&shape)?)
            }
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
        let stored = match (stored, src.made && src.training.is_none()) {
            (None, true) => Some(initial(&full, &shape, init, 1, &src.device)?.to_dtype(src.dtype)?),
            (stored, _) => stored,
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

    /// The weight `name` [rows, cols]: a variable in a training, with adapters beside it where there are to be some; else as
    /// it is stored, or of the asked type. A type whose blocks do not divide the columns gives way to a finer one.
    pub fn weight(&self, (rows, cols): (usize, usize), name: &str, init: Init) -> Result<Weight> {
        let src = &self.source;
        // a checkpoint may have adapters beside some of its layers alone
        let beside = src.training.is_some() || src.made || self.contains("lora_A.weight");
        if let Some(lora) = self.lora.filter(|_| beside) {
            let held = match self.held((rows, cols), name)? {
                Some(held) => held,
                None => dense_rows(WeightType::F32, &self.get((rows, cols), name, init)?)?,
            };
            // A as a layer of its size would begin, B at zero: the first step changes nothing
            let a = self.get((lora.rank, cols), "lora_A.weight", Init::Normal((cols as f32).powf(-0.5)))?;
            let b = self.get((rows, lora.rank), "lora_B.weight", Init::Const(0.0))?;
            return Ok(Weight::adapted(held, a, b, lora));
        }
        if src.training.is_some() || !src.device.is_cpu() || src.dtype != DType::F32 {
            return Ok(Weight::Dense(self.get((rows, cols), name, init)?));
        }
        match self.held((rows, cols), name)? {
            Some(p) => Ok(Weight::Packed(p)),
            // of another kind than floats, or missing: `get` converts it, or says so
            None => Ok(Weight::Packed(dense_rows(WeightType::F32, &self.get((rows, cols), name, init)?)?)),
        }
    }

    /// A stored weight as the asked type.
    fn held(&self, (rows, cols): (usize, usize), name: &str) -> Result<Option<Packed>> {
        let (src, full) = (&self.source, self.full_name(name));
        if src.made {
            let ty = fitting(self.weights.unwrap_or(WeightType::F32), cols);
            return Packed::random(ty, rows, cols, rng::name_key(&full)).map(Some);
        }
        let Some(stored) = src.stored.weight(&full)? else { return Ok(None) };
        if stored.shape() != (rows, cols) {
            let (r, c) = stored.shape();
            return Err(Error::WrongShape {
                origin: src.origin.clone(),
                name: full,
                found: vec![r, c],
                expected: vec![rows, cols],
            });
        }
        let Some(asked) = self.weights.map(|ty| fitting(ty, cols)).filter(|ty| *ty != stored.ty()) else {
            return Ok(Some(stored));
        };
        let packed = Packed::from_rows(asked, rows, cols, |i, out| stored.row(i, out))?;
        src.stored.forget(&full);
        Ok(Some(packed))
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

/// Whether two shapes differ in axes of one alone.
fn same_but_for_ones(a: &[usize], b: &[usize]) -> bool {
    let wide = |dims: &[usize]| dims.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
    a.len() != b.len() && wide(a) == wide(b)
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

/// The asked type, or the next finer one whose blocks divide the columns.
pub fn fitting(ty: WeightType, cols: usize) -> WeightType {
    let finer = [ty, WeightType::Q8_0, WeightType::F16];
    finer.into_iter().find(|t| cols.is_multiple_of(t.block())).unwrap_or(WeightType::F32)
}

/// A float32 tensor as a weight.
fn dense_rows(ty: WeightType, t: &Tensor) -> Result<Packed> {
    let (rows, cols) = t.dims2()?;
    let values = t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
    crate::ops::with_values([&values], |[v]| {
        Packed::from_rows(ty, rows, cols, |i, out| out.copy_from_slice(&v[i * cols..(i + 1) * cols]))
    })?
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
