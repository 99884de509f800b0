//! Documents as training material: files with one JSON object a line, in the layouts that are published.
//!
//! | line | layout |
//! |---|---|
//! | `{"text": ..}` | text alone |
//! | `{"image": .., "caption": ..}` (or `text`) | a captioned picture; the picture comes first half of the time |
//! | `{"images": [..], "texts": [..]}` | OBELICS: two lists of equal length, one of both is null at each place |
//! | `{"text_list": [..], "image_info": [{"image_name", "matched_text_index"}]}` | MMC4: each picture before its text |

use crate::data::{DataConfig, HeldOut};
use crate::mixture::{Piece, Sample};
use crate::{Error, Result};
use nn::rng::{self, Rng};
use qlip::data::{Broken, Skipped};
use qlip::{Codes, Image};
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

/// An open file of documents: where each line begins is known, lines are read when they are wanted.
pub struct Documents {
    path: PathBuf,
    images: PathBuf,
    /// Whether pictures are looked up by their codes.
    coded: bool,
    file: Mutex<File>,
    /// Where each document begins, its length, and its number in the file.
    lines: Vec<(u64, usize, usize)>,
    codes: HashMap<String, Vec<u64>>,
    skipped: Vec<Skipped>,
    broken: Broken,
    held_out: HeldOut,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Obelics {
        images: Vec<Option<String>>,
        texts: Vec<Option<String>>,
    },
    Mmc4 {
        text_list: Vec<String>,
        image_info: Vec<Mmc4Image>,
    },
    Captioned {
        image: String,
        #[serde(alias = "text")]
        caption: String,
    },
    Text {
        text: String,
    },
}

#[derive(Deserialize)]
struct Mmc4Image {
    image_name: String,
    matched_text_index: usize,
}

/// A part of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Image(String),
}

impl Documents {
    /// Finds the lines; `bits` and `grid` are the image tokenizer's.
    pub fn open(config: &DataConfig, bits: usize, grid: usize) -> Result<Self> {
        let path = &config.place()?;
        let images = config.images.clone().or(path.parent().map(Path::to_owned)).unwrap_or_default();
        let mut reader = BufReader::new(File::open(path).map_err(Error::io(path))?);
        let (mut lines, mut at, mut line) = (Vec::new(), 0u64, Vec::new());
        let (mut skipped, mut all) = (Vec::new(), 0);
        loop {
            line.clear();
            let n = reader.read_until(b'\n', &mut line).map_err(Error::io(path))?;
            if n == 0 {
                break;
            }
            if !line.trim_ascii().is_empty() {
                all += 1;
                // pictures that are encoded already are looked up by their codes, not by their files
                match config.codes.is_none().then(|| missing(&line, &images)).flatten() {
                    Some(name) => {
                        skipped.push(Skipped { name: format!("document {all}"), why: format!("no picture {name}") })
                    }
                    None => lines.push((at, n, all)),
                }
            }
            at += n as u64;
        }
        if lines.is_empty() {
            let why = match skipped.first() {
                Some(first) => format!("no document has its pictures; the first: {}: {}", first.name, first.why),
                None => "no documents".into(),
            };
            return Err(Error::bad_file(path, why));
        }
        let mut codes = HashMap::new();
        if let Some(file) = &config.codes {
            let (all, names) = Codes::load(file, bits, grid)?;
            for (i, name) in names.into_iter().enumerate() {
                if codes.contains_key(&name) {
                    let why = format!("two pictures are called `{name}`: which one a document means cannot be told");
                    return Err(Error::bad_file(file, why));
                }
                codes.insert(name, all.image(i).to_vec());
            }
        }
        Ok(Self {
            path: path.clone(),
            images,
            coded: config.codes.is_some(),
            file: Mutex::new(reader.into_inner()),
            lines,
            codes,
            skipped,
            broken: Broken::allowing(config.broken()),
            held_out: HeldOut::default(),
        })
    }

    /// The same with a share of the documents kept from training.
    pub fn hold_out(self, share: f64) -> Result<Self> {
        Ok(Self { held_out: HeldOut::of(share, self.len())?, ..self })
    }

    /// A line that says how many there are, and what was passed over.
    pub fn summary(&self) -> String {
        let mut line = format!("{} documents", self.len());
        if let Some(first) = self.skipped.first() {
            line.push_str(&format!("; {} passed over, the first: {}: {}", self.skipped.len(), first.name, first.why));
        }
        line
    }

    /// What was passed over.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Never true: a file without documents is refused.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// What could not be read so far.
    pub fn broken(&self) -> Vec<String> {
        self.broken.list()
    }

    /// The pieces of a document at random. One that cannot be read is noted and another is drawn.
    pub fn draw(&self, end: &str, r: &mut Rng, held_out: bool) -> Result<Sample> {
        loop {
            let n = self.held_out.draw(r, self.len(), held_out);
            match self.sample(n, end, r) {
                Ok(sample) => return Ok(sample),
                Err(e) => self.broken.note(n, self.len(), &e)?,
            }
        }
    }

    /// The pieces of one document, all of them learned; `end` closes it.
    pub fn sample(&self, n: usize, end: &str, r: &mut Rng) -> Result<Sample> {
        let path = &self.path;
        let (at, length, number) = self.lines[n];
        let bad = |why: String| Error::bad_file(path, format!("document {number}: {why}"));
        let mut bytes = vec![0; length];
        {
            let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes)).map_err(Error::io(path))?;
        }
        let mut all = parts(&bytes, r).map_err(&bad)?;
        // a long document is cut at its end: half of the time it begins somewhere in its middle
        if all.len() > 2 && rng::uniform(r) < 0.5 {
            all.drain(..rng::below(r, all.len() - 1));
        }
        let mut out = Sample { cut: true, ..Sample::default() };
        for part in all {
            out.push(match part {
                // a mark in a foreign text is words, not a mark
                Part::Text(text) => Piece::Text(text.replace("<|", "< |"), true),
                Part::Image(name) => self.picture(&name).map_err(|e| bad(e.to_string()))?,
            });
        }
        out.push(Piece::Text(end.to_owned(), true));
        Ok(out)
    }

    fn picture(&self, name: &str) -> Result<Piece> {
        let file = file_of(name);
        if self.coded {
            let stem = Path::new(file).file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            let codes =
                self.codes.get(&stem).ok_or_else(|| Error::invalid(format!("no codes for picture `{stem}`")))?;
            return Ok(Piece::Codes(codes.clone(), true));
        }
        // documents are foreign: they name files of the folder, not of the machine
        let inside = Path::new(file).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if !inside || file.is_empty() {
            return Err(Error::invalid(format!("picture `{name}` is outside the folder of pictures")));
        }
        Ok(Piece::Image(Image::open(&self.images.join(file))?, true))
    }
}

/// The file's name in an address, or the name itself.
fn file_of(name: &str) -> &str {
    if !name.contains("://") {
        return name;
    }
    let name = name.split(['?', '#']).next().unwrap_or(name);
    name.rsplit('/').next().unwrap_or(name)
}

/// The first picture of a document that is not in the folder. What else may be wrong with it is said when it is read.
fn missing(line: &[u8], images: &Path) -> Option<String> {
    let mut r = rng::keyed(0, &[]);
    let parts = parts(line, &mut r).ok()?;
    parts.into_iter().find_map(|p| match p {
        Part::Image(name) if !images.join(file_of(&name)).is_file() => Some(name),
        _ => None,
    })
}

/// A line's parts in order.
fn parts(line: &[u8], r: &mut Rng) -> std::result::Result<Vec<Part>, String> {
    let line: Line = serde_json::from_slice(line)
        .map_err(|_| "neither {text}, {image, caption}, OBELICS {images, texts} nor MMC4 {text_list, image_info}")?;
    let mut out = Vec::new();
    match line {
        Line::Text { text } => out.push(Part::Text(text)),
        Line::Captioned { image, caption } => {
            out = vec![Part::Image(image), Part::Text(caption)];
            if rng::uniform(r) < 0.5 {
                out.reverse();
            }
        }
        Line::Obelics { images, texts } => {
            if images.len() != texts.len() {
                return Err(format!("{} images beside {} texts", images.len(), texts.len()));
            }
            for (image, text) in images.into_iter().zip(texts) {
                out.extend(image.map(Part::Image));
                out.extend(text.map(Part::Text));
            }
        }
        Line::Mmc4 { text_list, image_info } => {
            if let Some(i) = image_info.iter().find(|i| i.matched_text_index >= text_list.len()) {
                return Err(format!("matched_text_index {} of {} texts", i.matched_text_index, text_list.len()));
            }
            for (n, text) in text_list.into_iter().enumerate() {
                let shown = image_info.iter().filter(|i| i.matched_text_index == n);
                out.extend(shown.map(|i| Part::Image(i.image_name.clone())));
                out.push(Part::Text(if n == 0 { text } else { format!(" {text}") }));
            }
        }
    }
    if out.is_empty() {
        return Err("nothing in it".into());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> std::result::Result<Vec<Part>, String> {
        parts(line.as_bytes(), &mut rng::keyed(0, &[]))
    }

    #[test]
    fn published_layouts_become_parts_in_order() {
        let (t, i) = (|s: &str| Part::Text(s.into()), |s: &str| Part::Image(s.into()));
        assert_eq!(read(r#"{"text": "words", "meta": 1}"#).unwrap(), [t("words")]);
        assert_eq!(
            read(r#"{"images": [null, "https://x.org/a.png?w=1", null], "texts": ["one", null, "two"], "metadata": "[]"}"#)
                .unwrap(),
            [t("one"), i("https://x.org/a.png?w=1"), t("two")]
        );
        let mmc4 = r#"{"url": "u", "text_list": ["One.", "Two."], "image_info":
            [{"image_name": "b.png", "raw_url": "v", "matched_text_index": 1, "matched_sim": 0.3}]}"#;
        assert_eq!(read(mmc4).unwrap(), [t("One."), i("b.png"), t(" Two.")]);
        let mut pair = read(r#"{"image": "c.jpg", "text": "a ship"}"#).unwrap();
        pair.sort_by_key(|p| matches!(p, Part::Text(_)));
        assert_eq!(pair, [i("c.jpg"), t("a ship")]);
        for (line, want) in [
            ("{}", "neither"),
            (r#"{"images": [null], "texts": []}"#, "1 images beside 0 texts"),
            (r#"{"images": [null], "texts": [null]}"#, "nothing in it"),
            (r#"{"text_list": ["a"], "image_info": [{"image_name": "b", "matched_text_index": 1}]}"#, "1 of 1 texts"),
        ] {
            assert!(read(line).unwrap_err().contains(want), "{line}");
        }
    }

    #[test]
    fn errors_name_file_and_document() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docs.jsonl");
        std::fs::write(&path, "{\"text\": \"a\"}\n\n{\"image\": \"../secret.png\", \"text\": \"b\"}\n{").unwrap();
        let config = DataConfig {
            path: Some(path.clone()),
            images: Some(dir.path().into()),
            ..DataConfig::of(crate::data::DataKind::Documents)
        };
        let docs = Documents::open(&config, 20, 8).unwrap();
        let passed = Skipped { name: "document 2".into(), why: "no picture ../secret.png".into() };
        assert_eq!((docs.len(), docs.skipped()), (2, &[passed][..]));
        let mut r = rng::keyed(0, &[]);
        assert_eq!(docs.sample(0, "<end>", &mut r).unwrap().pieces.len(), 2);
        let error = docs.sample(1, "<end>", &mut r).unwrap_err().to_string();
        assert!(error.contains("document 3: neither") && error.contains("docs.jsonl"), "{error}");
        // a picture that is there, and not in the folder
        std::fs::create_dir(dir.path().join("inside")).unwrap();
        std::fs::write(dir.path().join("secret.png"), b"x").unwrap();
        let config = DataConfig { images: Some(dir.path().join("inside")), ..config };
        let docs = Documents::open(&config, 20, 8).unwrap();
        let error = docs.sample(1, "<end>", &mut r).unwrap_err().to_string();
        assert!(error.contains("document 2") && error.contains("outside the folder"), "{error}");
        std::fs::write(&path, "\n").unwrap();
        assert!(Documents::open(&config, 20, 8).is_err());
    }
}
