//! A folder of pictures: a subfolder a class, or all of them together with their words in a .txt or .caption beside each, or in
//! metadata.jsonl or metadata.csv as the imagefolder convention has them.

use super::{Item, Pictures, Place, Skipped, is_litter, is_picture, spoken, table, without_mark};
use nn::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = std::fs::read_dir(dir).map_err(Error::io(dir))?;
    let mut all: Vec<PathBuf> = list.filter_map(|e| e.ok().map(|e| e.path())).collect();
    all.sort();
    Ok(all)
}

/// `DIR/SPLIT/` where there is one, else `DIR/`.
pub(super) fn open(dir: &Path, split: &str) -> Result<Pictures> {
    let of_split = dir.join(split);
    let root = if of_split.is_dir() { of_split } else { dir.to_owned() };
    let mut out = Pictures::default();
    let metadata = ["metadata.jsonl", "metadata.csv"].iter().map(|n| root.join(n)).find(|p| p.is_file());
    let mut captions: HashMap<PathBuf, Vec<String>> = HashMap::new();
    if let Some(path) = &metadata {
        out.taken = format!("words from {}", path.file_name().unwrap_or_default().to_string_lossy());
        for row in table::rows(path, &mut out.skipped)? {
            captions.entry(root.join(row.file)).or_default().extend(spoken(row.words));
        }
    }
    for path in entries(&root)? {
        if is_litter(&path) {
            skip(&mut out, &path, "left by the system");
        } else if path.is_dir() {
            let mut pictures = Vec::new();
            for inner in entries(&path)? {
                if is_litter(&inner) {
                    skip(&mut out, &inner, "left by the system");
                } else if is_picture(&inner) {
                    pictures.push(inner);
                }
            }
            if pictures.is_empty() {
                continue;
            }
            let class = out.classes.len();
            out.classes.push(path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default());
            out.items.extend(pictures.into_iter().map(|p| item(p, Some(class), &mut captions)));
        } else if is_picture(&path) {
            out.items.push(item(path, None, &mut captions));
        }
    }
    for file in captions.into_keys() {
        skip(&mut out, &file, "named in the metadata, and not there");
    }
    out.skipped.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(out)
}

fn skip(out: &mut Pictures, path: &Path, why: &str) {
    out.skipped.push(Skipped { name: path.display().to_string(), why: why.into() });
}

fn item(path: PathBuf, class: Option<usize>, captions: &mut HashMap<PathBuf, Vec<String>>) -> Item {
    let beside = ["txt", "caption"].iter().find_map(|e| std::fs::read_to_string(path.with_extension(e)).ok());
    let words = match captions.remove(&path) {
        Some(words) => words,
        None => spoken(beside.map(without_mark)),
    };
    Item { name: path.clone(), place: Place::File(path), words, class }
}
