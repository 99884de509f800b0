//! LlamaGen's files: from a folder with config.json, or from one of the published .pt files, whose name tells size and grid.

use crate::files::Placement;
use crate::visual::VisualTokenizer;
use crate::{Error, Result};
use lm::llamagen::{LlamaGenConfig, ModelType};
use nn::Params;
use nn::stored::Stored;
use std::path::{Path, PathBuf};

/// The configuration and tensors of `model`.
pub fn llamagen_files(model: &str, at: &Placement) -> Result<(LlamaGenConfig, Params)> {
    if model.ends_with(".pt") {
        let path = Path::new(model);
        let config = from_name(path)?;
        let tensors = Stored::map_files(vec![path.to_path_buf()])?;
        return Ok((config, Params::from_tensors(model, tensors, at.dtype, &at.device).stored_as(at.weights)));
    }
    let dir = qlip::hub::resolve(model)?;
    let config = qlip::config::read_json(&dir.join("config.json"))?;
    Ok((config, Params::from_dir(&dir, at.dtype, &at.device)?.stored_as(at.weights)))
}

/// Whether `model` is a LlamaGen: a .pt file, or a folder whose config.json has its fields.
pub fn is_llamagen(model: Option<&str>) -> Result<bool> {
    let Some(model) = model else { return Ok(false) };
    if model.ends_with(".pt") {
        return Ok(true);
    }
    let path = qlip::hub::resolve(model)?.join("config.json");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap_or_default()).unwrap_or_default();
    Ok(json.get("n_layer").is_some() || json.get("cls_token_num").is_some())
}

/// c2i_B_256.pt, t2i_XL_stage2_512.pt: condition, size, pixels a side (16 to a token).
fn from_name(path: &Path) -> Result<LlamaGenConfig> {
    let name = path.file_stem().and_then(|n| n.to_str()).unwrap_or_default();
    let parts: Vec<&str> = name.split('_').collect();
    let kind = match parts.first() {
        Some(&"c2i") => ModelType::C2i,
        Some(&"t2i") => ModelType::T2i,
        _ => return Err(Error::bad_file(path, "the name does not tell what it is; c2i_B_256.pt would")),
    };
    let side = parts.last().and_then(|s| s.parse::<usize>().ok()).filter(|s| *s >= 16 && s.is_multiple_of(16));
    let (Some(size), Some(side)) = (parts.get(1), side) else {
        return Err(Error::bad_file(path, "the name does not tell size and pixels; c2i_B_256.pt would"));
    };
    LlamaGenConfig::preset(size, kind, side / 16).map_err(|e| Error::bad_file(path, e.to_string()))
}

/// The image tokenizer beside a model: a folder in its folder, or LlamaGen's published file in the same place.
pub fn tokenizer_beside(model: &Path) -> Option<PathBuf> {
    let folder = if model.is_file() { model.parent().unwrap_or(Path::new("")) } else { model };
    let part = ["vq", "qlip"].into_iter().map(|name| folder.join(name)).find(|dir| dir.is_dir());
    let files = ["vq_ds16_c2i.pt", "vq_ds16_t2i.pt", "vq_ds8_c2i.pt"];
    part.or_else(|| files.into_iter().map(|name| folder.join(name)).find(|file| file.is_file()))
}

/// The image tokenizer in a folder, as a model with this configuration reads it.
pub fn tokenizer_of(c: &LlamaGenConfig, dir: &Path, at: &Placement) -> Result<VisualTokenizer> {
    let group_bits = match &c.bitwise {
        Some(b) => Some(b.bits),
        None => (c.sub_tokens > 1).then(|| c.vocab_size.max(1).ilog2() as usize),
    };
    let visual = VisualTokenizer::load(dir, group_bits, Some(c.grid()), at)?;
    let codes = c.bitwise.map_or(c.vocab_size, |b| 1 << b.bits);
    if (visual.vocab(), visual.sub_tokens(), visual.grid()) != (codes, c.sub_tokens, c.grid()) {
        let (n, sub, grid) = (visual.vocab(), visual.sub_tokens(), visual.grid());
        let why = format!(
            "a codebook of {n}, {sub} tokens a cell, {grid} cells a side, for a model of {codes} codes, {}, {}; give its own tokenizer",
            c.sub_tokens,
            c.grid()
        );
        return Err(Error::bad_file(dir, why));
    }
    Ok(visual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_size_and_grid() {
        let c = from_name(Path::new("x/c2i_L_384.pt")).unwrap();
        assert_eq!((c.n_layer, c.grid(), c.cls_token_num), (24, 24, 1));
        let t = from_name(Path::new("t2i_XL_stage2_512.pt")).unwrap();
        assert_eq!((t.n_layer, t.grid(), t.cls_token_num), (36, 32, 120));
        for bad in ["model.pt", "c2i_B.pt", "c2i_M_256.pt", "c2i_B_100.pt"] {
            let e = from_name(Path::new(bad)).unwrap_err().to_string();
            assert!(e.contains(bad), "{e}");
        }
    }
}
