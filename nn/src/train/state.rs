//! training.safetensors: everything that a resumed training needs, and the folder of the best checkpoint.

use super::{Running, STATE_FILE};
use crate::checkpoint::Content;
use crate::{Error, Result, checkpoint};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// The best checkpoint's folder.
const BEST_FOLDER: &str = "best";

impl Running<'_> {
    /// Variables, moments, averages and numbers after an update, a tensor at a time; the first process writes what all have.
    pub(super) fn save(&self, path: &Path, step: usize) -> Result<()> {
        let world = self.trainer.world;
        let moments: BTreeMap<String, (String, Vec<usize>)> = self.optimizer.moments();
        if !world.is_first() {
            for (key, (name, _)) in &moments {
                self.optimizer.moment(key, name, world)?;
            }
            return Ok(());
        }
        let averages = self.ema.as_ref().map(|e| e.tensors(&self.vars)).transpose()?.unwrap_or_default();
        let kept: BTreeMap<String, Tensor> = self
            .vars
            .iter()
            .map(|(k, v)| (format!("p.{k}"), v.as_detached_tensor()))
            .chain(averages.into_iter().map(|(k, v)| (format!("ema.{k}"), v)))
            .collect();
        let mut all: BTreeMap<String, Content> = kept.iter().map(|(k, t)| (k.clone(), Content::Tensor(t))).collect();
        for (key, (name, shape)) in &moments {
            let make = move || {
                let values = self.optimizer.moment(key, name, world)?;
                Ok(Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?)
            };
            all.insert(key.clone(), Content::Later(DType::F32, shape.clone(), Box::new(make)));
        }
        // bits, not decimals: what is read must be what was written
        let numbers = self.numbers.borrow();
        let bits: BTreeMap<&String, u64> = numbers.iter().map(|(k, v)| (k, v.to_bits())).collect();
        let numbers = serde_json::to_string(&bits).map_err(|e| Error::invalid(e.to_string()))?;
        checkpoint::save_packed(path, &all, &[("step", step.to_string()), ("numbers", numbers)])
    }

    /// Takes back what [`Self::save`] wrote; the number of updates done.
    pub(super) fn restore(&mut self, path: &Path) -> Result<usize> {
        let metadata = checkpoint::metadata(path)?;
        let bits: BTreeMap<String, u64> = match metadata.get("numbers") {
            Some(n) => serde_json::from_str(n).map_err(|e| Error::bad_file(path, format!("its numbers: {e}")))?,
            None => BTreeMap::new(),
        };
        *self.numbers.borrow_mut() = bits.into_iter().map(|(k, v)| (k, f64::from_bits(v))).collect();
        let step: usize = metadata
            .get("step")
            .and_then(|s| s.parse().ok())
            .ok_or_else(|| Error::bad_file(path, "no step number: not a training state"))?;
        let state = checkpoint::load(path)?;
        for (name, var) in &self.vars {
            let t = state
                .get(&format!("p.{name}"))
                .filter(|t| t.shape() == var.shape())
                .ok_or_else(|| Error::bad_file(path, format!("no `{name}` of this shape: another config?")))?;
            var.set(&t.to_device(var.device())?)?;
        }
        self.optimizer.restore(step as u64, &state)?;
        if let Some(e) = &mut self.ema {
            e.restore(&state)?;
        }
        Ok(step)
    }
}

/// Writes the model as it is now into the folder `best`: its weights by `export`, all else as in the training's folder.
pub(super) fn keep_best(out: &Path, export: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let best = out.join(BEST_FOLDER);
    let beside = |dir: &Path| -> Result<Vec<_>> {
        let entries = std::fs::read_dir(dir).map_err(Error::io(dir))?;
        Ok(entries.filter_map(|e| e.ok().map(|e| e.path())).collect())
    };
    std::fs::create_dir_all(&best).map_err(Error::io(&best))?;
    for path in beside(out)? {
        let Some(name) = path.file_name() else { continue };
        if path.extension().is_some_and(|e| e == "json") && name != super::SUMMARY_FILE {
            std::fs::copy(&path, best.join(name)).map_err(Error::io(&path))?;
        } else if path.is_dir() && path.join("config.json").is_file() && name != BEST_FOLDER {
            // a part of the model, as an image tokenizer
            let to = best.join(name);
            std::fs::create_dir_all(&to).map_err(Error::io(&to))?;
            for file in beside(&path)?.iter().filter(|f| f.is_file() && !f.ends_with(STATE_FILE)) {
                let Some(name) = file.file_name() else { continue };
                std::fs::copy(file, to.join(name)).map_err(Error::io(file))?;
            }
        }
    }
    export(&best)
}
