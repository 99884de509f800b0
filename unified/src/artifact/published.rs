//! Published files that come without a config.json: LlamaGen's models (c2i_B_256.pt) and its image tokenizers
//! (vq_ds16_c2i.pt). A model's name tells its size; a tokenizer's tensors tell theirs.

use super::files::{Made, ModelFiles, Weights};
use crate::{Error, Result};
use lm::llamagen::{LlamaGenConfig, ModelType};
use nn::stored::Stored;
use qlip::vq::VqConfig;
use std::path::{Path, PathBuf};

/// Names of LlamaGen's tokenizers.
pub const TOKENIZERS: [&str; 3] = ["vq_ds16_c2i.pt", "vq_ds16_t2i.pt", "vq_ds8_c2i.pt"];

/// The tokenizer's file beside a model.
pub fn tokenizer_in(folder: &Path) -> Option<PathBuf> {
    TOKENIZERS.into_iter().map(|name| folder.join(name)).find(|file| file.is_file())
}

/// A file as a model's folder would be.
pub fn files(path: &Path) -> Result<ModelFiles> {
    let stored = Stored::map_files(vec![path.to_path_buf()])?;
    let config = match VqConfig::of_tensors(&stored, "", true) {
        Ok(vq) => serde_json::to_vec(&vq),
        Err(_) => serde_json::to_vec(&from_name(path)?),
    };
    let config = config.map_err(|e| Error::bad_file(path, e.to_string()))?;
    Ok(ModelFiles::made(Made {
        origin: path.to_path_buf(),
        files: [("config.json".to_owned(), config)].into(),
        weights: Weights::AsStored,
    }))
}

/// c2i_B_256.pt, t2i_XL_stage2_512.pt: condition, size, pixels a side (16 to a token).
fn from_name(path: &Path) -> Result<LlamaGenConfig> {
    let name = path.file_stem().and_then(|n| n.to_str()).unwrap_or_default();
    let parts: Vec<&str> = name.split('_').collect();
    let hint = "a file of tensors without a config.json is read where its name tells a LlamaGen's condition, size and pixels, \
                as c2i_B_256.pt does; else give the folder with its config.json";
    let kind = match parts.first() {
        Some(&"c2i") => ModelType::C2i,
        Some(&"t2i") => ModelType::T2i,
        _ => return Err(Error::bad_file(path, hint)),
    };
    let side = parts.last().and_then(|s| s.parse::<usize>().ok()).filter(|s| *s >= 16 && s.is_multiple_of(16));
    let (Some(size), Some(side)) = (parts.get(1), side) else { return Err(Error::bad_file(path, hint)) };
    LlamaGenConfig::preset(size, kind, side / 16).map_err(|e| Error::bad_file(path, e.to_string()))
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
