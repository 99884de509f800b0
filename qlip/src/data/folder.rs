//! A folder of pictures: a subfolder a class, or all of them together with their words in a .txt beside each.

use super::{Item, Pictures, Place, is_picture};
use nn::{Error, Result};
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
    for path in entries(&root)? {
        if path.is_dir() {
            let pictures: Vec<PathBuf> = entries(&path)?.into_iter().filter(|p| is_picture(p)).collect();
            if pictures.is_empty() {
                continue;
            }
            let class = out.classes.len();
            out.classes.push(path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default());
            out.items.extend(pictures.into_iter().map(|p| item(p, Some(class))));
        } else if is_picture(&path) {
            out.items.push(item(path, None));
        }
    }
    Ok(out)
}

fn item(path: PathBuf, class: Option<usize>) -> Item {
    let words = std::fs::read_to_string(path.with_extension("txt")).ok().map(|t| t.trim().to_owned());
    Item { name: path.clone(), place: Place::File(path), words, class }
}
