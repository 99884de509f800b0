//! What a training with low-rank adapters writes: a whole checkpoint with the adapters in its weights, and the adapters by themselves as
//! PEFT keeps them.

use crate::artifact::adapter::{self, is_adapter};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use nn::checkpoint::Content;
use nn::params::Lora;
use nn::stored::Stored;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Folder of the adapters in a training's folder.
pub const FOLDER: &str = "adapter";

/// Whether the numbers are in their range.
pub fn check(lora: Option<Lora>) -> Result<()> {
    match lora {
        Some(l) if l.rank == 0 || !l.alpha.is_finite() => {
            Err(Error::invalid(format!("[lora] rank {}, alpha {}: write a rank of 1 or more", l.rank, l.alpha)))
        }
        _ => Ok(()),
    }
}

/// The tensors that training began with, the trained ones in their place, adapters added to the weights that they change; each is made when
/// its turn comes.
pub fn written<'a>(
    start: &'a Stored,
    trained: &'a BTreeMap<String, Tensor>,
    lora: Option<Lora>,
) -> BTreeMap<String, Content<'a>> {
    let mut all = BTreeMap::new();
    for (name, shape) in start.shapes() {
        let make = move || adapter::whole(start, name, lora, |n| Ok(trained.get(n).cloned()));
        all.insert(name.to_owned(), Content::Later(DType::F32, shape.to_vec(), Box::new(make)));
    }
    all.extend(trained.iter().filter(|t| !is_adapter(t.0)).map(|(k, t)| (k.clone(), Content::Tensor(t))));
    all
}

/// The tensors of the whole model, in memory, as [`written`] would write them.
pub fn read(start: &Stored, trained: &BTreeMap<String, Tensor>, lora: Option<Lora>) -> Result<HashMap<String, Tensor>> {
    let mut all = HashMap::new();
    if lora.is_some() {
        for (name, _) in start.shapes().into_iter().filter(|s| !trained.contains_key(s.0)) {
            all.insert(name.to_owned(), adapter::whole(start, name, lora, |n| Ok(trained.get(n).cloned()))?);
        }
    }
    all.extend(trained.iter().filter(|t| !is_adapter(t.0)).map(|(k, t)| (k.clone(), t.clone())));
    Ok(all)
}

/// Writes the adapters, and what was trained whole beside them, into a folder of their own.
pub fn beside(dir: &Path, base: &Path, lora: &Lora, trained: &BTreeMap<String, Tensor>) -> Result<()> {
    let base = std::path::absolute(base).ok().filter(|b| b.exists()).unwrap_or_else(|| base.to_path_buf());
    adapter::write(&dir.join(FOLDER), &base.to_string_lossy(), lora, trained)
}
