//! Checkpoint files: safetensors in, out, whole or not at all.

use crate::ops::WeightType;
use crate::weight::Packed;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Writes a file under a temporary name beside it and renames it when it is complete and on the disk.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    write_atomic_with(path, |f| f.write_all(content))
}

/// The same with content that `write` produces.
pub fn write_atomic_with(
    path: &Path,
    write: impl FnOnce(&mut std::io::BufWriter<std::fs::File>) -> std::io::Result<()>,
) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let tmp = path.with_file_name(name);
    let all = || -> std::io::Result<()> {
        let mut f = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(&tmp)?);
        write(&mut f)?;
        f.into_inner()?.sync_all()?;
        std::fs::rename(&tmp, path)?;
        // the rename is on the disk once its folder is
        match path.parent().filter(|p| !p.as_os_str().is_empty()) {
            Some(folder) if cfg!(unix) => std::fs::File::open(folder)?.sync_all(),
            _ => Ok(()),
        }
    };
    all().map_err(|e| {
        let _ = std::fs::remove_file(&tmp);
        Error::Io { path: path.to_path_buf(), source: e }
    })
}

/// A tensor to be written.
pub enum Content<'a> {
    /// As it is.
    Tensor(&'a Tensor),
    /// A weight in the order of our kernels; what is loaded from it needs no conversion.
    Packed(&'a Packed),
    /// A tensor that is made when its turn comes.
    Later(DType, Vec<usize>, Box<dyn Fn() -> Result<Tensor> + 'a>),
}

/// The key of a file's metadata that says which tensors are blocks, of what type and shape.
const PACKED: &str = "unified.packed";

/// Writes tensors (as they are) with the metadata that other programs expect, one after the other, without a copy of the
/// whole in memory.
pub fn save(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: &[(&str, String)]) -> Result<()> {
    let contents = tensors.iter().map(|(k, t)| (k.clone(), Content::Tensor(t))).collect();
    save_packed(path, &contents, metadata)
}

/// The same with weights in blocks among them, as bytes; the metadata says what they are.
pub fn save_packed(path: &Path, tensors: &BTreeMap<String, Content>, metadata: &[(&str, String)]) -> Result<()> {
    let mut meta: BTreeMap<&str, String> = metadata.iter().map(|(k, v)| (*k, v.clone())).collect();
    meta.insert("format", "pt".into());
    let mut header = serde_json::Map::new();
    let mut packed = serde_json::Map::new();
    let mut at = 0;
    for (name, content) in tensors {
        let (dtype, shape, bytes) = match content {
            Content::Tensor(t) => {
                let dtype = dtype_name(t.dtype()).ok_or_else(|| {
                    Error::bad_file(
                        path,
                        format!("tensor `{name}`: {:?} has no place in a safetensors file", t.dtype()),
                    )
                })?;
                (dtype, t.dims().to_vec(), t.elem_count() * t.dtype().size_in_bytes())
            }
            Content::Later(dtype, shape, _) => {
                let name_of = dtype_name(*dtype).ok_or_else(|| {
                    Error::bad_file(path, format!("tensor `{name}`: {dtype:?} has no place in a safetensors file"))
                })?;
                (name_of, shape.clone(), shape.iter().product::<usize>() * dtype.size_in_bytes())
            }
            Content::Packed(p) if !p.ty().is_blocks() => {
                let (rows, cols) = p.shape();
                (p.ty().name(), vec![rows, cols], p.bytes().len())
            }
            Content::Packed(p) => {
                let (rows, cols) = p.shape();
                packed.insert(name.clone(), serde_json::json!({"type": p.ty().name(), "shape": [rows, cols]}));
                ("U8", vec![p.bytes().len()], p.bytes().len())
            }
        };
        let offsets = [at, at + bytes];
        header.insert(
            name.clone(),
            serde_json::json!({"dtype": dtype.to_uppercase(), "shape": shape, "data_offsets": offsets}),
        );
        at += bytes;
    }
    if !packed.is_empty() {
        meta.insert(PACKED, serde_json::Value::Object(packed).to_string());
    }
    header.insert("__metadata__".into(), serde_json::json!(meta));
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    // a file that is mapped begins its tensors at a cache line
    header.resize((header.len() + 8).next_multiple_of(64) - 8, b' ');
    write_atomic_with(path, |f| {
        f.write_all(&(header.len() as u64).to_le_bytes())?;
        f.write_all(&header)?;
        for content in tensors.values() {
            match content {
                Content::Tensor(t) => t.write_bytes(f).map_err(std::io::Error::other)?,
                Content::Packed(p) => f.write_all(p.bytes())?,
                Content::Later(dtype, shape, make) => {
                    let t = make().map_err(std::io::Error::other)?.to_dtype(*dtype).map_err(std::io::Error::other)?;
                    if t.dims() != shape.as_slice() {
                        return Err(std::io::Error::other("a tensor of another shape than was said"));
                    }
                    t.write_bytes(f).map_err(std::io::Error::other)?;
                }
            }
        }
        Ok(())
    })
}

fn dtype_name(t: DType) -> Option<&'static str> {
    Some(match t {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::F64 => "F64",
        DType::U8 => "U8",
        DType::U32 => "U32",
        DType::I64 => "I64",
        _ => return None,
    })
}

/// Type and shape of the weights that a file's metadata says are blocks.
pub(crate) fn packed_of(
    path: &Path,
    metadata: Option<&HashMap<String, String>>,
) -> Result<HashMap<String, (WeightType, usize, usize)>> {
    let Some(text) = metadata.and_then(|m| m.get(PACKED)) else { return Ok(HashMap::new()) };
    let bad = |why: String| Error::bad_file(path, format!("metadata `{PACKED}`: {why}"));
    let all: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
    all.into_iter()
        .map(|(name, v)| {
            let ty = v["type"].as_str().and_then(WeightType::of_name).filter(|t| t.is_blocks());
            let size = |i: usize| v["shape"][i].as_u64().filter(|&n| n < 1 << 28).map(|n| n as usize);
            match (ty, size(0), size(1)) {
                (Some(ty), Some(rows), Some(cols)) if rows.checked_mul(cols).is_some() => Ok((name, (ty, rows, cols))),
                _ => Err(bad(format!("`{name}` has no known type and shape"))),
            }
        })
        .collect()
}

/// All tensors of a safetensors file in memory; `origin` names it in errors.
pub fn read(origin: &Path, bytes: &[u8]) -> Result<HashMap<String, Tensor>> {
    let file = safetensors::SafeTensors::deserialize(bytes)
        .map_err(|e| Error::bad_file(origin, format!("not a safetensors file ({e}); was the download complete?")))?;
    let header = safetensors::SafeTensors::read_metadata(bytes).ok();
    let packed = packed_of(origin, header.as_ref().and_then(|h| h.1.metadata().as_ref()))?;
    let mut out = HashMap::new();
    for (name, view) in file.tensors() {
        use candle_core::safetensors::Load;
        if let Some(&(ty, rows, cols)) = packed.get(&name) {
            let bytes = crate::weight::Bytes::Owned(std::sync::Arc::new(view.data().to_vec()));
            let values = Packed::new(ty, bytes, rows, cols)
                .map_err(|e| Error::bad_file(origin, format!("tensor `{name}`: {e}")))?
                .values();
            out.insert(name, Tensor::from_vec(values, (rows, cols), &Device::Cpu)?);
            continue;
        }
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

/// The metadata of a safetensors file's header, which alone is read.
pub fn metadata(path: &Path) -> Result<HashMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Header {
        #[serde(rename = "__metadata__", default)]
        metadata: HashMap<String, String>,
    }
    let header: Header = serde_json::from_slice(&header(path)?[8..])
        .map_err(|e| Error::bad_file(path, format!("not a safetensors file ({e})")))?;
    Ok(header.metadata)
}

/// The first bytes of a safetensors file: the header's length, and the header.
pub fn header(path: &Path) -> Result<Vec<u8>> {
    let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length)
        .map_err(|_| Error::bad_file(path, "not a safetensors file (shorter than a header)"))?;
    let header = u64::from_le_bytes(length);
    if header > size.saturating_sub(8) {
        return Err(Error::bad_file(path, "not a safetensors file (its header is longer than the file)"));
    }
    let mut bytes = length.to_vec();
    file.take(header).read_to_end(&mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}

/// All tensors of a model folder: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
pub fn load_dir(dir: &Path) -> Result<HashMap<String, Tensor>> {
    crate::stored::Stored::map_dir(dir)?.into_memory()
}

/// The files of a model folder's weights: safetensors, or those of torch.save where there are no others.
pub fn files_of(dir: &Path) -> Result<Vec<PathBuf>> {
    let at = |name: &str| Some(dir.join(name)).filter(|p| p.exists());
    let single = dir.join("model.safetensors");
    let index = at("model.safetensors.index.json").or_else(|| at("pytorch_model.bin.index.json"));
    let index = match (single.exists(), at("pytorch_model.bin"), index) {
        (true, _, _) | (_, None, None) => return Ok(vec![single]),
        (_, _, Some(index)) => index,
        (_, Some(bin), None) => return Ok(vec![bin]),
    };
    Ok(shards(&index)?.into_iter().map(|s| dir.join(s)).collect())
}

/// Names of the files that an index of shards speaks of.
pub fn shards(index: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(index).map_err(Error::io(index))?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| Error::bad_file(index, e.to_string()))?;
    let map = json["weight_map"].as_object().ok_or_else(|| Error::bad_file(index, "no `weight_map`"))?;
    let shards: std::collections::BTreeSet<&str> = map.values().filter_map(|v| v.as_str()).collect();
    for shard in &shards {
        if Path::new(shard).components().count() != 1 || shard.starts_with("..") {
            return Err(Error::bad_file(index, format!("shard name `{shard}` leaves the folder")));
        }
    }
    Ok(shards.into_iter().map(str::to_owned).collect())
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
