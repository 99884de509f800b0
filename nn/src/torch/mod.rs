//! Files of `torch.save` (.pt, .pth, .bin): where the tensors lie in them. Zip archives and the older files before torch 1.6; weights
//! only, nothing is executed.

mod pickle;

use crate::{Error, Result};
use pickle::{Node, Reader, TensorAt, Tree};
use safetensors::Dtype;
use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

/// A tensor's type, shape and bytes in the file.
pub(crate) type Place = (Dtype, Vec<usize>, Range<usize>);

/// Where trainings keep the weights that are to be used, the wanted first: an average before what it is of.
const HOLDERS: [&str; 7] = ["ema", "model_ema", "model", "module", "state_dict", "model_state_dict", "weights"];

/// What wrappers write before every name.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

/// Magic numbers of an older file: the first pickle of it.
const LEGACY: [u8; 14] = [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Whether a file's first bytes are those of `torch.save`.
pub(crate) fn is_torch(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(&LEGACY)
}

/// Tensors of a file by name; `path` names it in errors.
pub(crate) fn tensors(path: &Path, bytes: &[u8]) -> Result<HashMap<String, Place>> {
    let bad =
        |why: String| Error::bad_file(path, format!("not a file of torch.save ({why}); was the download complete?"));
    let (tree, storages) = if bytes.starts_with(b"PK") { zipped(bytes) } else { legacy(bytes) }.map_err(bad)?;
    let held = weights(&tree);
    if held.is_empty() {
        let keys: Vec<&str> = tree.entries(tree.root).into_iter().take(8).map(|e| e.0).collect();
        return Err(Error::bad_file(path, format!("holds no tensors by name; its keys are {keys:?}")));
    }
    let mut out = HashMap::new();
    for (name, at) in held {
        let place = place(at, &storages).map_err(|why| Error::bad_file(path, format!("tensor `{name}`: {why}")))?;
        out.insert(name, place);
    }
    Ok(out)
}

/// The named tensors: those of the first holder that has some, or the root's own.
fn weights(tree: &Tree) -> HashMap<String, &TensorAt> {
    let of = |id| -> HashMap<String, &TensorAt> {
        let tensor = |(name, v): (&str, usize)| match tree.node(v) {
            Node::Tensor(t) => Some((name.to_owned(), t)),
            _ => None,
        };
        tree.entries(id).into_iter().filter_map(tensor).collect()
    };
    let root = tree.entries(tree.root);
    let held = HOLDERS.iter().filter_map(|h| root.iter().find(|e| e.0 == *h));
    let mut found = held.map(|e| of(e.1)).find(|t| !t.is_empty()).unwrap_or_else(|| of(tree.root));
    while let Some(w) = WRAPPERS.iter().find(|w| !found.is_empty() && found.keys().all(|k| k.starts_with(**w))) {
        found = found.into_iter().map(|(k, v)| (k[w.len()..].to_owned(), v)).collect();
    }
    found
}

fn place(t: &TensorAt, storages: &HashMap<String, Range<usize>>) -> std::result::Result<Place, String> {
    let size = t.dtype.bitsize() / 8;
    let count = t.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or("a shape beyond memory")?;
    let mut step = 1usize;
    for (&n, &stride) in t.shape.iter().zip(&t.stride).rev() {
        if n > 1 && stride != step {
            return Err("is a view whose numbers do not lie in order; save it with .contiguous()".into());
        }
        step = step.saturating_mul(n.max(1));
    }
    let storage = storages.get(&t.storage).ok_or_else(|| format!("storage {} is missing", t.storage))?;
    let within = || {
        let start = storage.start.checked_add(t.offset.checked_mul(size)?)?;
        let end = start.checked_add(count.checked_mul(size)?)?;
        (end <= storage.end).then_some(start..end)
    };
    Ok((t.dtype, t.shape.clone(), within().ok_or("lies outside its storage")?))
}

type Parsed = (Tree, HashMap<String, Range<usize>>);

fn zipped(bytes: &[u8]) -> std::result::Result<Parsed, String> {
    let text = |e: zip::result::ZipError| e.to_string();
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(text)?;
    let mut storages = HashMap::new();
    let mut tree = None;
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(text)?;
        let name = entry.name().map_err(text)?.into_owned();
        let stored = entry.compression() == zip::CompressionMethod::Stored;
        let start = entry.data_start().ok_or("an entry without data")? as usize;
        let end = start.checked_add(entry.compressed_size() as usize).filter(|&e| e <= bytes.len());
        let range = start..end.ok_or_else(|| format!("`{name}` is cut short"))?;
        let wanted = name.ends_with("/data.pkl") || name.contains("/data/");
        if wanted && !stored {
            return Err(format!("`{name}` is compressed, which torch.save never does"));
        }
        if name.ends_with("/byteorder") && !bytes[range.clone()].starts_with(b"little") {
            return Err("numbers of another byte order".into());
        }
        if name.ends_with("/data.pkl") {
            tree = Some(pickle::read(&mut Reader { bytes: &bytes[range], at: 0 })?);
        } else if let Some((_, key)) = name.split_once("/data/") {
            storages.insert(key.to_owned(), range);
        }
    }
    Ok((tree.ok_or("no data.pkl in the archive")?, storages))
}

/// Magic number, version, system, the object, the order of its storages; then each one's count and numbers.
fn legacy(bytes: &[u8]) -> std::result::Result<Parsed, String> {
    let mut r = Reader { bytes, at: 0 };
    for _ in 0..3 {
        pickle::read(&mut r)?;
    }
    let tree = pickle::read(&mut r)?;
    let keys = pickle::read(&mut r)?;
    let mut sizes = HashMap::new();
    tree.storages(|key, dtype| {
        sizes.insert(key.to_owned(), dtype.bitsize() / 8);
    });
    let mut storages = HashMap::new();
    let Node::List(order) = keys.node(keys.root) else { return Err("no list of storages".into()) };
    for id in order {
        let key = keys.text(*id).ok_or("a storage without a name")?;
        let count = r.number(8)? as usize;
        let size = sizes.get(key).ok_or_else(|| format!("storage {key} has no type"))?;
        let start = r.at;
        r.take(count.checked_mul(*size).ok_or("a storage beyond memory")?)?;
        storages.insert(key.to_owned(), start..r.at);
    }
    Ok((tree, storages))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(t: &str) -> Vec<u8> {
        [b"X".as_slice(), &(t.len() as u32).to_le_bytes(), t.as_bytes()].concat()
    }

    /// A tensor of torch.save before 1.6, under `ema` and behind two wrappers.
    fn old_file() -> Vec<u8> {
        let mut out = LEGACY.to_vec();
        out.push(b'.');
        out.extend(*b"\x80\x02M\xe9\x03."); // version 1001
        out.extend(*b"\x80\x02}."); // system
        let mut object = vec![0x80, 2, b'}', b'('];
        object.extend(text("ema"));
        object.extend(*b"}(");
        object.extend(text("module._orig_mod.w"));
        object.extend(*b"ctorch._utils\n_rebuild_tensor_v2\n((");
        object.extend(text("storage"));
        object.extend(*b"ctorch\nFloatStorage\n");
        object.extend(text("7"));
        object.extend(text("cpu"));
        object.extend(*b"K\x06NtQ"); // six numbers
        object.extend(*b"K\x02(K\x02K\x02t(K\x02K\x01t\x89ccollections\nOrderedDict\n)RtR"); // from the third on, [2, 2]
        object.extend(*b"u");
        object.extend(text("args"));
        object.extend(*b"cargparse\nNamespace\n)\x81}b");
        object.extend(*b"u.");
        out.extend(object);
        out.extend([vec![0x80, 2, b']', b'('], text("7"), b"e.".to_vec()].concat());
        out.extend(6u64.to_le_bytes());
        (0..6).for_each(|i| out.extend((i as f32).to_le_bytes()));
        out
    }

    #[test]
    fn an_old_file_with_an_average_behind_wrappers() {
        let file = old_file();
        assert!(is_torch(&file));
        let found = tensors(Path::new("x.pt"), &file).unwrap();
        let (dtype, shape, bytes) = &found["w"];
        assert_eq!((found.len(), *dtype, shape.as_slice()), (1, Dtype::F32, &[2, 2][..]));
        let values: Vec<f32> =
            file[bytes.clone()].chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(values, [2.0, 3.0, 4.0, 5.0]);
    }

    /// Files that were changed or cut are read or refused, and never end the program.
    #[test]
    fn changed_files_are_refused_or_read() {
        let zip =
            std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/janus/original/pytorch_model.bin"));
        for whole in [old_file(), zip.unwrap()] {
            assert!(tensors(Path::new("x.pt"), &whole).is_ok());
            for case in 0..3000u64 {
                let mut r = crate::rng::keyed(9, &[case]);
                let mut file = whole.clone();
                for _ in 0..1 + crate::rng::below(&mut r, 8) {
                    // pickles stand at the beginning of old files, and among the first and last bytes of archives
                    let near = crate::rng::below(&mut r, file.len().min(20_000));
                    let at = if crate::rng::below(&mut r, 3) == 0 { file.len() - 1 - near } else { near };
                    file[at] = crate::rng::below(&mut r, 256) as u8;
                }
                if case % 5 == 0 {
                    file.truncate(crate::rng::below(&mut r, whole.len()));
                }
                for (_, _, bytes) in tensors(Path::new("x.pt"), &file).into_iter().flat_map(HashMap::into_values) {
                    assert!(bytes.end <= file.len());
                }
            }
        }
    }
}
