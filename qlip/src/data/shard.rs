//! WebDataset shards: tar files in which neighbours with one stem are a sample (NAME.jpg, NAME.txt, NAME.json, NAME.cls).
//! The heads of all members are read once; pictures are read in place, so no shuffle buffer is needed.

use super::{Item, Pictures, Place, is_picture};
use nn::{Error, Result};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest number of a class.
const MOST_CLASSES: usize = 1 << 20;

/// Longest words or JSON that is read beside a picture.
const MOST_WORDS: u64 = 1 << 20;

pub(super) fn open(pattern: &str) -> Result<Pictures> {
    let mut out = Pictures::default();
    for path in shards(pattern)? {
        read(&path, &mut out)?;
    }
    // shards number their classes and name none
    let classes = out.items.iter().filter_map(|i| i.class).max().map_or(0, |c| c + 1);
    out.classes = (0..classes).map(|c| format!("class {c}")).collect();
    Ok(out)
}

/// The files that a pattern with `{000..099}`, `{a,b}`, `*` and `?` names, in order.
fn shards(pattern: &str) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for one in braces(pattern) {
        let bad = |e: String| Error::bad_file(Path::new(pattern), e);
        if !one.contains(['*', '?', '[']) {
            let path = PathBuf::from(&one);
            if path.is_file() {
                out.push(path);
            }
            continue;
        }
        let mut found: Vec<PathBuf> =
            glob::glob(&one).map_err(|e| bad(e.to_string()))?.filter_map(std::result::Result::ok).collect();
        found.sort();
        out.extend(found);
    }
    if out.is_empty() {
        return Err(Error::bad_file(Path::new(pattern), "no such shard"));
    }
    Ok(out)
}

/// "a-{08..10}.tar" to three names, "{x,y}.tar" to two.
fn braces(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('{') else { return vec![pattern.to_owned()] };
    let Some((inner, after)) = rest.split_once('}') else { return vec![pattern.to_owned()] };
    let choices: Vec<String> = match inner.split_once("..") {
        Some((a, b)) => match (a.parse::<u64>(), b.parse::<u64>()) {
            (Ok(from), Ok(to)) => (from..=to).map(|n| format!("{n:0width$}", width = a.len())).collect(),
            _ => vec![format!("{{{inner}}}")],
        },
        None => inner.split(',').map(str::to_owned).collect(),
    };
    let rest = braces(after);
    choices.iter().flat_map(|c| rest.iter().map(move |r| format!("{before}{c}{r}"))).collect()
}

/// Stem and ending of a member, as WebDataset splits them: at the first dot of the file's name.
fn split(name: &Path) -> Option<(PathBuf, String)> {
    let file = name.file_name()?.to_str()?;
    let (stem, ending) = file.split_once('.')?;
    Some((name.with_file_name(stem), ending.to_ascii_lowercase()))
}

fn read(path: &Path, out: &mut Pictures) -> Result<()> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let bad = |e: std::io::Error| Error::bad_file(path, format!("not a tar file, or a cut one ({e})"));
    let mut archive = tar::Archive::new(std::io::BufReader::new(file));
    let mut sample = Sample::default();
    for entry in archive.entries().map_err(bad)? {
        let mut entry = entry.map_err(bad)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path().map_err(bad)?.into_owned();
        let Some((stem, ending)) = split(&name) else { continue };
        if stem != sample.stem {
            out.items.extend(std::mem::take(&mut sample).item());
            sample.stem = stem;
        }
        if is_picture(&name) {
            let place = Place::Within(path.to_owned(), entry.raw_file_position(), entry.size() as usize);
            sample.picture = Some((path.join(&name), place));
            continue;
        }
        let mut text = String::new();
        let readable = entry.size() <= MOST_WORDS && entry.read_to_string(&mut text).is_ok();
        match ending.as_str() {
            "txt" | "caption" if readable => sample.words = Some(text.trim().to_owned()),
            "cls" if readable => sample.class = text.trim().parse().ok().filter(|c| *c < MOST_CLASSES),
            "json" if readable => {
                let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
                let found = ["caption", "text"].iter().find_map(|k| json[*k].as_str());
                sample.words = sample.words.or(found.map(str::to_owned));
            }
            _ => {}
        }
    }
    out.items.extend(sample.item());
    Ok(())
}

/// What neighbours with one stem have said so far.
#[derive(Default)]
struct Sample {
    stem: PathBuf,
    picture: Option<(PathBuf, Place)>,
    words: Option<String>,
    class: Option<usize>,
}

impl Sample {
    /// The sample, if it has a picture.
    fn item(self) -> Option<Item> {
        let (name, place) = self.picture?;
        Some(Item { name, place, words: self.words, class: self.class })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_count_and_choose() {
        assert_eq!(braces("a-{08..10}.tar"), ["a-08.tar", "a-09.tar", "a-10.tar"]);
        assert_eq!(braces("{x,y}/{0..1}.tar"), ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]);
        assert_eq!(braces("plain.tar"), ["plain.tar"]);
        assert_eq!(braces("{open"), ["{open"]);
    }
}
