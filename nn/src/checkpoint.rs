//! Checkpoint files: safetensors in, out, whole or not at all.

use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes a file under a temporary name beside it and renames it when it is complete and on the disk.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let tmp = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut f = std::fs::File::create(&tmp)?;
        f.write_all(content)?;
        f.sync_all()?;
        std::fs::rename(&tmp, path)
    };
    write().map_err(|e| {
        let _ = std::fs::remove_file(&tmp);
        Error::Io { path: path.to_path_buf(), source: e }
    })
}

/// Writes tensors (float32 or float16, as they are) with the metadata that other programs expect.
pub fn save(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: &[(&str, String)]) -> Result<()> {
    let mut meta: HashMap<String, String> = metadata.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    meta.insert("format".into(), "pt".into());
    let bytes = safetensors::serialize(tensors.iter().map(|(k, v)| (k.as_str(), v)), Some(meta))
        .map_err(|e| Error::bad_file(path, e.to_string()))?;
    write_atomic(path, &bytes)
}

/// All tensors of a safetensors file in memory; `origin` names it in errors.
pub fn read(origin: &Path, bytes: &[u8]) -> Result<HashMap<String, Tensor>> {
    let file = safetensors::SafeTensors::deserialize(bytes)
        .map_err(|e| Error::bad_file(origin, format!("not a safetensors file ({e}); was the download complete?")))?;
    let mut out = HashMap::new();
    for (name, view) in file.tensors() {
        use candle_core::safetensors::Load;
        let tensor = view.load(&Device::Cpu).map_err(|e| Error::bad_file(origin, format!("tensor `{name}`: {e}")))?;
        out.insert(name, tensor);
    }
    Ok(out)
}

/// All tensors of a safetensors file.
pub fn load(path: &Path) -> Result<HashMap<String, Tensor>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    read(path, &bytes)
}

/// The metadata of a safetensors file's header.
pub fn metadata(path: &Path) -> Result<HashMap<String, String>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let (_, meta) = safetensors::SafeTensors::read_metadata(&bytes)
        .map_err(|e| Error::bad_file(path, format!("not a safetensors file ({e})")))?;
    Ok(meta.metadata().clone().unwrap_or_default())
}

/// All tensors of a model folder: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
pub fn load_dir(dir: &Path) -> Result<HashMap<String, Tensor>> {
    let mut all = HashMap::new();
    for file in files_of(dir)? {
        all.extend(load(&file)?);
    }
    Ok(all)
}

/// The safetensors files of a model folder.
pub fn files_of(dir: &Path) -> Result<Vec<PathBuf>> {
    let single = dir.join("model.safetensors");
    let index = dir.join("model.safetensors.index.json");
    if single.exists() || !index.exists() {
        return Ok(vec![single]);
    }
    let text = std::fs::read_to_string(&index).map_err(Error::io(&index))?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| Error::bad_file(&index, e.to_string()))?;
    let map = json["weight_map"].as_object().ok_or_else(|| Error::bad_file(&index, "no `weight_map`"))?;
    let shards: std::collections::BTreeSet<&str> = map.values().filter_map(|v| v.as_str()).collect();
    for shard in &shards {
        if Path::new(shard).components().count() != 1 || shard.starts_with("..") {
            return Err(Error::bad_file(&index, format!("shard name `{shard}` leaves the folder")));
        }
    }
    Ok(shards.into_iter().map(|s| dir.join(s)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_file_is_an_error_that_names_it() {
        let dir = std::env::temp_dir().join(format!("nn-checkpoint-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("model.safetensors");
        let t = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        save(&path, &BTreeMap::from([("a".to_owned(), t)]), &[("step", "3".into())]).unwrap();
        assert_eq!(metadata(&path).unwrap()["step"], "3");
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            let err = read(&path, &whole[..cut]).unwrap_err().to_string();
            assert!(err.contains("model.safetensors"), "{err}");
        }
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "no temporary file is left");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
