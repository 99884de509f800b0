//! `unified info [MODEL]` and `unified export MODEL OUT`

use super::common::Common;
use super::common::Type;
use super::output::say;
use anyhow::{Context, Result, bail};
use candle_core::DType;
use clap::Args;
use nn::checkpoint::Content;
use nn::params::fitting;
use nn::stored::{Stored, may_be_blocks, weight_bytes};
use nn::{Packed, WeightType};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use unified::artifact::{Architecture, Artifact, BESIDE_WEIGHTS, PARTS, adapter};
use unified::config::UnifiedConfig;

/// Print a model's architecture, parameters, memory and vocabulary.
#[derive(Args)]
pub struct Info {
    #[command(flatten)]
    common: Common,
    /// Model folder or hub id; the same as --model.
    #[arg(value_name = "MODEL")]
    target: Option<String>,
}

impl Info {
    pub fn run(&self) -> Result<()> {
        let common = Common { model: self.target.clone().or(self.common.model.clone()), ..self.common.clone() };
        let artifact = common.artifact()?;
        let json: serde_json::Value = artifact.config()?;
        let mut parts = vec![("model", artifact.tensors()?)];
        let mut vocabulary = serde_json::Value::Null;
        let architecture = artifact.architecture.says();
        if artifact.architecture == Architecture::Unified {
            let v = artifact.config::<UnifiedConfig>()?.vocabulary;
            vocabulary = serde_json::json!({
                "text": [0, v.text], "visual": [v.text, v.rows()], "sub_tokens": v.groups(), "bits_per_code": v.bits,
                "visual_tokens_per_image": v.tokens_per_image(), "begin_image": v.begin_image, "end_image": v.end_image,
            });
            parts[0].0 = "language model";
        }
        if !artifact.architecture.can().tokenize
            && let Some(tokenizer) = artifact.image_tokenizer()?
        {
            parts.push(("image tokenizer", tokenizer.tensors()?));
        }
        let text = json.get("text_config").unwrap_or(&json);
        if let (serde_json::Value::Null, Some(rows)) = (&vocabulary, text["vocab_size"].as_u64()) {
            vocabulary = serde_json::json!({ "rows": rows });
        }
        let count = |t: &Stored| t.shapes().iter().map(|s| s.1.iter().product::<usize>()).sum::<usize>();
        // weights; activations of a conversation are small beside those of a model where memory matters
        let memory = |ty| -> usize {
            parts.iter().flat_map(|p| p.1.shapes()).map(|(name, shape)| weight_bytes(name, shape, ty)).sum()
        };
        let (plain, blocks) = (memory(WeightType::F32), memory(WeightType::Q8_0));
        if common.json {
            let each: serde_json::Map<_, _> = parts.iter().map(|p| (p.0.to_owned(), count(&p.1).into())).collect();
            super::output::json(serde_json::json!({
                    "architecture": architecture, "parameters": each, "memory_bytes_f32": plain, "memory_bytes_q8_0": blocks, "vocabulary": vocabulary,
            }))?;
            return Ok(());
        }
        say!("{architecture}");
        for (name, t) in &parts {
            say!("{name}: {:.2}M parameters in {} tensors", count(t) as f64 / 1e6, t.shapes().len());
        }
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        say!("memory: {:.0} MiB of weights in f32, {:.0} MiB with --dtype q8_0", mib(plain), mib(blocks));
        if let Some(v) = vocabulary.as_object() {
            for (k, v) in v {
                say!("{}: {v}", k.replace('_', " "));
            }
        }
        Ok(())
    }
}

/// Copy a model without its training state, weights as float16 or as asked; what is loaded from it needs no conversion. Adapters are added
/// to the weights that they change.
#[derive(Args)]
pub struct Export {
    /// Model folder, file or hub id; an adapter's folder (PEFT) is merged into its base model.
    from: PathBuf,
    /// Folder to write.
    to: PathBuf,
    /// Type of the weights that are written; blocks for the language model's layers, tables and head, float16 for the rest.
    #[arg(long, value_enum, default_value_t = Type::F16)]
    dtype: Type,
    /// The weights as the last update left them instead of their moving average; for a folder of `unified train`.
    #[arg(long)]
    raw: bool,
}

impl Export {
    pub fn run(&self) -> Result<()> {
        // the target as it will be, also where it is not there yet
        let whole = |p: &Path| p.ancestors().find_map(|a| Some(a.canonicalize().ok()?.join(p.strip_prefix(a).ok()?)));
        let absolute = |p: &Path| std::path::absolute(p).ok().and_then(|p| whole(&p));
        let (from, to) = (absolute(&self.from), absolute(&self.to));
        if from.zip(to).is_some_and(|(from, to)| from.starts_with(&to) || to.starts_with(&from)) {
            bail!("{}: export writes a copy; give another folder", self.to.display());
        }
        let artifact = Artifact::open(&self.from.to_string_lossy())?;
        self.part(&artifact, &self.to, self.dtype)?;
        for part in PARTS {
            if let Some(from) = artifact.part(part)? {
                let weights =
                    if self.dtype.weights().is_some_and(WeightType::is_blocks) { Type::F16 } else { self.dtype };
                self.part(&from, &self.to.join(part), weights)?;
            }
        }
        say!("{}", self.to.display());
        Ok(())
    }

    fn part(&self, from: &Artifact, to: &Path, dtype: Type) -> Result<()> {
        let (mut stored, lora) = (from.tensors()?, from.files.adapter());
        if self.raw && to == self.to {
            let path = self.from.join(nn::train::STATE_FILE);
            let state = nn::checkpoint::load(&path).with_context(|| format!("--raw needs {}", path.display()))?;
            let mut all = stored.into_memory()?;
            all.extend(state.into_iter().filter_map(|(k, v)| Some((k.strip_prefix("p.")?.to_owned(), v))));
            stored = all.into();
        }
        let float = match dtype.weights() {
            None => None,
            Some(WeightType::F32) => Some(DType::F32),
            Some(WeightType::Bf16) => Some(DType::BF16),
            Some(_) => Some(DType::F16),
        };
        let mut packed = BTreeMap::new();
        let mut contents = BTreeMap::new();
        for (name, shape) in stored.shapes() {
            if lora.is_some() && adapter::is_adapter(name) {
                continue;
            }
            let blocks = dtype.weights().filter(|t| t.is_blocks() && may_be_blocks(name, shape));
            let seen = name.contains("vision_tower.") || name.contains("multi_modal_projector.");
            let stored = &stored;
            let whole = move || adapter::whole(stored, name, lora, |n| stored.get(n));
            let changed = lora.is_some()
                && name.strip_suffix(".weight").is_some_and(|layer| stored.contains(&format!("{layer}.lora_A.weight")));
            let ty = blocks.filter(|_| !seen).map(|ty| fitting(ty, shape[1])).filter(|ty| ty.is_blocks());
            if let Some(ty) = ty {
                let made = if changed {
                    let values = whole()?.to_vec2::<f32>()?;
                    Some(Packed::from_rows(ty, shape[0], shape[1], |i, out| out.copy_from_slice(&values[i]))?)
                } else {
                    let held = stored.weight(name)?;
                    held.map(|h| Packed::from_rows(ty, shape[0], shape[1], |i, out| h.row(i, out))).transpose()?
                };
                if let Some(made) = made {
                    stored.forget(name);
                    packed.insert(name.to_owned(), made);
                    continue;
                }
            }
            let stored_as = stored.dtype(name).unwrap_or(DType::F32);
            let as_type = float.filter(|_| stored_as.is_float()).unwrap_or(stored_as);
            let make = move || {
                let t = whole()?;
                if as_type == DType::F16 && stored_as != DType::F16 {
                    let top = t.to_dtype(DType::F32)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
                    if top > 65504.0 && top.is_finite() {
                        return Err(nn::Error::invalid(format!(
                            "tensor `{name}` holds {top}, beyond float16's 65504; write --dtype bf16 or f32"
                        )));
                    }
                }
                Ok(t.to_dtype(as_type)?)
            };
            contents.insert(name.to_owned(), Content::Later(as_type, shape.to_vec(), Box::new(make)));
        }
        contents.extend(packed.iter().map(|(k, p)| (k.clone(), Content::Packed(p))));
        super::common::out_dir(to)?;
        nn::checkpoint::save_packed(&to.join("model.safetensors"), &contents, &[])?;
        for name in BESIDE_WEIGHTS.iter().filter(|n| from.files.has(n)) {
            nn::checkpoint::write_atomic(&to.join(name), &from.files.read(name)?)?;
        }
        Ok(())
    }
}
