//! LoRA adapters in PEFT's layout: adapter_config.json, which names the base model, and adapter_model.safetensors.

use super::Artifact;
use super::files::{Made, ModelFiles, Weights};
use crate::llava::published_name;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use nn::checkpoint;
use nn::params::Lora;
use nn::stored::Stored;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// What PEFT puts before every name.
const PREFIX: &str = "base_model.model.";

/// adapter_config.json: what changes the result; PEFT writes more.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    peft_type: String,
    task_type: Option<String>,
    base_model_name_or_path: String,
    r: usize,
    lora_alpha: f64,
    lora_dropout: f64,
    use_rslora: bool,
    use_dora: bool,
    fan_in_fan_out: bool,
    bias: String,
    rank_pattern: BTreeMap<String, usize>,
    alpha_pattern: BTreeMap<String, f64>,
    target_modules: serde_json::Value,
    modules_to_save: Option<Vec<String>>,
    inference_mode: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: String::new(),
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            fan_in_fan_out: false,
            bias: "none".into(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            target_modules: serde_json::Value::Null,
            modules_to_save: None,
            inference_mode: true,
        }
    }
}

impl Config {
    /// Rank and factor, or what of it is not known here.
    fn lora(&self) -> std::result::Result<Lora, String> {
        let unknown = [
            (self.peft_type != "LORA", format!("peft_type {}", self.peft_type)),
            (self.use_dora, "use_dora".to_owned()),
            (self.fan_in_fan_out, "fan_in_fan_out".to_owned()),
            (self.bias != "none", format!("bias {}", self.bias)),
            (!self.rank_pattern.is_empty(), "rank_pattern".to_owned()),
            (!self.alpha_pattern.is_empty(), "alpha_pattern".to_owned()),
        ];
        if let Some(u) = unknown.into_iter().find(|u| u.0) {
            return Err(format!("{} is not known here; plain LoRA of one rank is", u.1));
        }
        if self.r == 0 {
            return Err("r 0: an adapter has a rank of 1 or more".into());
        }
        // rank-stabilised: alpha / sqrt(r)
        let alpha = if self.use_rslora { self.lora_alpha * (self.r as f64).sqrt() } else { self.lora_alpha };
        Ok(Lora { rank: self.r, alpha, base: None })
    }
}

/// A base model with an adapter beside it.
#[derive(Debug)]
pub struct Adapted {
    /// The base model's files.
    pub base: ModelFiles,
    /// The adapter's tensors.
    weights: PathBuf,
    /// Their rank and factor.
    pub lora: Lora,
}

impl Adapted {
    /// The base's tensors and the adapters, which lie below the layers that they change; what was trained whole is the adapter's.
    pub fn tensors(&self) -> Result<Stored> {
        let strip = |name: &str| name.strip_prefix(PREFIX).unwrap_or(name).to_owned();
        let adapter = Stored::map_files(vec![self.weights.clone()])?.renamed(strip);
        self.base.weights()?.and(adapter)
    }

    /// Whether every adapter belongs to a layer of the base model that can have one.
    fn check(&self) -> Result<()> {
        const LAYERS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        let base = self.base.weights()?.renamed(published_name);
        let adapter = Stored::map_files(vec![self.weights.clone()])?;
        for (name, shape) in adapter.shapes() {
            let bad = |why: &str| Err(Error::bad_file(&self.weights, format!("tensor `{name}`: {why}")));
            if !name.contains("lora_") {
                continue;
            }
            let layer = name.strip_prefix(PREFIX).unwrap_or(name);
            let layer = layer.strip_suffix(".lora_A.weight").or_else(|| layer.strip_suffix(".lora_B.weight"));
            let known = layer.filter(|l| l.contains("layers.") && !l.contains("vision_"));
            let Some(layer) = known.filter(|l| LAYERS.iter().any(|p| l.ends_with(p))) else {
                return bad("adapters of a decoder's layers are known here, and no others");
            };
            if !base.contains(&published_name(&format!("{layer}.weight"))) {
                return bad("the base model has no such layer");
            }
            let rank = if name.ends_with(".lora_A.weight") { shape.first() } else { shape.get(1) };
            if rank != Some(&self.lora.rank) {
                return bad(&format!("its rank is not r {} of {CONFIG}", self.lora.rank));
            }
        }
        Ok(())
    }

    /// The files that hold them.
    pub fn files(&self) -> Result<Vec<std::result::Result<PathBuf, &'static [u8]>>> {
        let mut all = self.base.weight_files()?;
        all.push(Ok(self.weights.clone()));
        Ok(all)
    }
}

/// The folder of an adapter as the folder of its base model would be; nothing where it is another.
pub fn files(dir: &Path) -> Result<Option<ModelFiles>> {
    let path = dir.join(CONFIG);
    if !path.is_file() || dir.join("config.json").is_file() {
        return Ok(None);
    }
    let bad = |why: String| Error::bad_file(&path, why);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let config: Config = qlip::config::parse_json(&path, &text)?;
    let lora = config.lora().map_err(bad)?;
    let named = config.base_model_name_or_path.as_str();
    if named.is_empty() {
        return Err(bad("base_model_name_or_path is missing: an adapter belongs to a base model".into()));
    }
    let beside = dir.join(named);
    let base = if beside.exists() { beside.display().to_string() } else { named.to_owned() };
    let base = Artifact::open(&base).map_err(|e| bad(format!("base_model_name_or_path: {e}")))?.files;
    let Some(weights) = WEIGHTS.iter().map(|w| dir.join(w)).find(|w| w.is_file()) else {
        return Err(Error::bad_file(dir.join(WEIGHTS[0]), "no such file: an adapter's folder has its weights in it"));
    };
    let adapted = Adapted { base: base.clone(), weights, lora };
    adapted.check()?;
    let mut files = BTreeMap::new();
    for name in super::BESIDE_WEIGHTS {
        let own = dir.join(name);
        if own.is_file() && *name != "config.json" {
            files.insert((*name).to_owned(), std::fs::read(&own).map_err(Error::io(&own))?);
        } else if base.has(name) {
            files.insert((*name).to_owned(), base.read(name)?.into_owned());
        }
    }
    Ok(Some(ModelFiles::made(Made { origin: path, files, weights: Weights::Adapted(adapted) })))
}

/// Writes an adapter's folder: `trained` are its tensors by the layers' names, adapters or whole ones.
pub fn write(dir: &Path, base: &str, lora: &Lora, trained: &BTreeMap<String, Tensor>) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let of = |name: &str| name.strip_suffix(".lora_A.weight").map(|layer| layer.to_owned());
    let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    let modules: std::collections::BTreeSet<String> = trained.keys().filter_map(|n| of(n)).map(|l| last(&l)).collect();
    let whole = trained.keys().filter(|n| !is_adapter(n)).filter_map(|n| n.rsplit_once('.').map(|p| p.0.to_owned()));
    let whole: std::collections::BTreeSet<String> = whole.collect();
    let config = Config {
        base_model_name_or_path: base.to_owned(),
        r: lora.rank,
        lora_alpha: lora.alpha,
        target_modules: serde_json::json!(modules),
        modules_to_save: (!whole.is_empty()).then(|| whole.into_iter().collect()),
        ..Config::default()
    };
    let tensors: BTreeMap<String, Tensor> =
        trained.iter().map(|(name, t)| (format!("{PREFIX}{name}"), t.clone())).collect();
    checkpoint::save(&dir.join(WEIGHTS[0]), &tensors, &[])?;
    let text = serde_json::to_string_pretty(&config).map_err(|e| Error::invalid(e.to_string()))?;
    checkpoint::write_atomic(&dir.join(CONFIG), text.as_bytes())
}

/// Whether a tensor is an adapter's.
pub fn is_adapter(name: &str) -> bool {
    name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight")
}

/// A weight with its adapters' change, W + scale B A in float32, where there are such; else as it is held. `adapter` finds them by name.
pub fn whole(
    held: &Stored,
    name: &str,
    lora: Option<Lora>,
    adapter: impl Fn(&str) -> Result<Option<Tensor>>,
) -> Result<Tensor> {
    let weight = held.get(name)?.ok_or_else(|| Error::invalid(format!("tensor `{name}` is gone")))?;
    let Some((lora, layer)) = lora.zip(name.strip_suffix(".weight")) else { return Ok(weight) };
    let find = |m: &str| adapter(&format!("{layer}.lora_{m}.weight"));
    let (Some(a), Some(b)) = (find("A")?, find("B")?) else { return Ok(weight) };
    let wide = |t: &Tensor| t.to_device(&candle_core::Device::Cpu)?.to_dtype(DType::F32);
    Ok((wide(&weight)? + (wide(&b)?.matmul(&wide(&a)?)? * lora.scale())?)?)
}
