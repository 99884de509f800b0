//! WebDataset shards: tar files in which members with one stem are a sample (NAME.jpg, NAME.txt, NAME.json, NAME.cls).
//! The heads of all members are read once; pictures are read in place, so no shuffle buffer is needed.

use super::table::{WORDS, captions};
use super::{ENDINGS, Item, Pictures, Place, Skipped, is_litter, spoken, without_mark};
use nn::{Error, Result};
use std::collections::HashMap;
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

/// Stem and ending of a member, as WebDataset splits them: at the first dot of the file's name; or at the last.
fn split(name: &Path, last: bool) -> Option<(PathBuf, String)> {
    let file = name.file_name()?.to_str()?;
    let (stem, ending) = if last { file.rsplit_once('.')? } else { file.split_once('.')? };
    Some((name.with_file_name(stem), ending.to_ascii_lowercase()))
}

/// Samples of a shard. Members with one stem are a sample wherever they stand; a picture is what ends as one exactly: K.png, and not
/// K.seg.png beside it. Where no member does, names have dots of their own, and are split at the last one.
fn read(path: &Path, out: &mut Pictures) -> Result<()> {
    let mut members = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let bad = |e: std::io::Error| Error::bad_file(path, format!("not a tar file, or a cut one ({e})"));
    let mut archive = tar::Archive::new(std::io::BufReader::new(file));
    for entry in archive.entries().map_err(bad)? {
        let mut entry = entry.map_err(bad)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path().map_err(bad)?.into_owned();
        if is_litter(&name) {
            out.skipped
                .push(Skipped { name: path.join(&name).display().to_string(), why: "left by the system".into() });
            continue;
        }
        let place = (entry.raw_file_position(), entry.size() as usize);
        let ending = name.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        let mut text = String::new();
        let spoken = ["txt", "caption", "cls", "json"].contains(&ending.as_str());
        let readable = spoken && entry.size() <= MOST_WORDS && entry.read_to_string(&mut text).is_ok();
        members.push((name, place, readable.then_some(text)));
    }
    let exact = |name: &Path| split(name, false).is_some_and(|(_, e)| ENDINGS.contains(&e.as_str()));
    let last = !members.iter().any(|m| exact(&m.0));
    let mut samples: Vec<Sample> = Vec::new();
    let mut of_stem: HashMap<PathBuf, usize> = HashMap::new();
    let mut others = 0;
    let mut other = None;
    for (name, (start, size), text) in members {
        let Some((stem, ending)) = split(&name, last) else { continue };
        let at = *of_stem.entry(stem).or_insert_with(|| {
            samples.push(Sample::default());
            samples.len() - 1
        });
        let sample = &mut samples[at];
        match (ending.as_str(), text) {
            (e, _) if ENDINGS.contains(&e) => {
                if let Some((before, _)) = &sample.picture {
                    let why = format!("two pictures of one sample: {} and {}", before.display(), name.display());
                    return Err(Error::bad_file(path, why));
                }
                sample.picture = Some((path.join(&name), Place::Within(path.to_owned(), start, size)));
            }
            ("txt" | "caption", Some(text)) => sample.words = spoken([without_mark(text)]),
            ("cls", Some(text)) => sample.class = text.trim().parse().ok().filter(|c| *c < MOST_CLASSES),
            ("json", Some(text)) => {
                let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
                let found = WORDS.iter().find_map(|k| json.get(*k)).map(captions).unwrap_or_default();
                if sample.words.is_empty() {
                    sample.words = spoken(found);
                }
            }
            _ => {
                others += 1;
                other.get_or_insert(name);
            }
        }
    }
    if let Some(name) = other {
        let why = format!("{others} members that are neither pictures nor words");
        out.skipped.push(Skipped { name: path.join(name).display().to_string(), why });
    }
    out.items.extend(samples.into_iter().filter_map(Sample::item));
    Ok(())
}

/// What members with one stem have said so far.
#[derive(Default)]
struct Sample {
    picture: Option<(PathBuf, Place)>,
    words: Vec<String>,
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
