//! Where pictures for training and measuring come from: parquet files, folders, WebDataset shards, tables of paths.
//!
//! Opening finds every picture and remembers where it is; its bytes are read and decoded when it is asked for, on
//! whatever thread asks. Any picture can be read without the ones before it, so the order of a training is its random
//! numbers' alone and a resumed run needs no position.

mod broken;
mod folder;
mod parquet;
mod shard;
mod table;

pub use broken::Broken;
pub use parquet::{Pread, beyond, damaged, huggingface};

use crate::image::Image;
use nn::rng::{self, Rng};
use nn::{Error, Result};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Share of the pictures that may be broken where nothing else is said.
const BROKEN_SHARE: f64 = 0.01;

/// Unreadable pictures that are drawn one after the other before it is an error.
const MOST_FAILED: usize = 1000;

/// Where a picture's bytes are.
enum Place {
    File(PathBuf),
    /// Part of a file.
    Within(PathBuf, u64, usize),
    /// A row of a row group of a parquet file.
    Row(Arc<parquet::Table>, usize, usize),
}

struct Item {
    name: PathBuf,
    place: Place,
    /// Captions, of which each showing takes one.
    words: Vec<String>,
    class: Option<usize>,
}

/// Captions that hold something.
fn spoken(words: impl IntoIterator<Item = String>) -> Vec<String> {
    words.into_iter().map(|w| w.trim().to_owned()).filter(|w| !w.is_empty()).collect()
}

/// Something that is no picture of the source, and why it was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Where it is.
    pub name: String,
    /// Why it is not used.
    pub why: String,
}

/// Pictures with a class or words each, read when they are asked for.
#[derive(Default)]
pub struct Pictures {
    items: Vec<Item>,
    /// Names of the classes; empty where the source has none.
    pub classes: Vec<String>,
    /// What was passed over when the source was opened.
    pub skipped: Vec<Skipped>,
    /// What is taken as picture, words and class.
    pub taken: String,
    broken: Broken,
    /// Numbers of the pictures that are trained on, and of those that never are; all and none where nothing is held out.
    parts: Option<[Vec<usize>; 2]>,
}

impl Pictures {
    /// What a path holds: a folder of SPLIT-*.parquet files, a folder of pictures (a subfolder a class, or a .txt beside
    /// each), WebDataset shards (`DIR/{000..099}.tar`, `DIR/*.tar`), or a table of paths and captions (.csv, .tsv,
    /// .jsonl).
    pub fn open(path: &Path, split: &str) -> Result<Self> {
        let text = path.to_string_lossy();
        let mut found = if text.ends_with(".tar") {
            shard::open(&text)?
        } else if path.is_dir() {
            let files = parquet::files(path, split)?;
            if files.is_empty() { folder::open(path, split)? } else { parquet::open(&files)? }
        } else if text.to_ascii_lowercase().ends_with(".parquet") {
            parquet::open(&[path.to_owned()])?
        } else {
            table::open(path)?
        };
        if found.items.is_empty() {
            let shown: Vec<String> = found.skipped.iter().take(3).map(|s| format!("{}: {}", s.name, s.why)).collect();
            let passed = match shown.is_empty() {
                true => format!("; endings that count are {}", ENDINGS.join(", ")),
                false => format!("; passed over: {}", shown.join("; ")),
            };
            return Err(Error::bad_file(path, format!("no pictures here{passed}")));
        }
        if found.items.iter().any(|i| i.class.is_some_and(|c| c >= found.classes.len())) {
            return Err(Error::bad_file(path, "a picture's class has no name"));
        }
        found.broken = Broken::allowing(BROKEN_SHARE);
        Ok(found)
    }

    /// The same, ending a training only where more than this share of the pictures is broken.
    pub fn allow_broken(mut self, share: f64) -> Self {
        self.broken = Broken::allowing(share);
        self
    }

    /// The same with a share of the pictures kept from training, chosen by their names alone.
    pub fn hold_out(mut self, share: f64) -> Result<Self> {
        if share == 0.0 {
            return Ok(self);
        }
        let held = |i: &usize| f64::from(rng::uniform(&mut rng::keyed(name_key(&self.items[*i].name), &[]))) < share;
        let (out, used): (Vec<usize>, Vec<usize>) = (0..self.len()).partition(held);
        if out.is_empty() || used.is_empty() {
            let (n, all) = (out.len(), self.len());
            return Err(Error::invalid(format!(
                "run.validation.held_out = {share} keeps {n} of {all} pictures from training; both parts need some"
            )));
        }
        self.parts = Some([used, out]);
        Ok(self)
    }

    /// Whether a picture is never trained on.
    pub fn is_held_out(&self, i: usize) -> bool {
        self.parts.as_ref().is_some_and(|p| p[1].binary_search(&i).is_ok())
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// A picture, decoded.
    pub fn image(&self, i: usize) -> Result<Image> {
        let item = &self.items[i];
        match &item.place {
            Place::File(path) => Image::open(path),
            Place::Row(table, group, row) => {
                let bytes = table.picture(*group, *row)?;
                Image::from_bytes(&item.name, &bytes.ok_or_else(|| Error::bad_file(&item.name, "no picture"))?)
            }
            Place::Within(file, start, len) => {
                let mut f = std::fs::File::open(file).map_err(Error::io(file))?;
                f.seek(SeekFrom::Start(*start)).map_err(Error::io(file))?;
                let mut bytes = Vec::new();
                f.take(*len as u64).read_to_end(&mut bytes).map_err(Error::io(file))?;
                Image::from_bytes(&item.name, &bytes)
            }
        }
    }

    /// A picture's class.
    pub fn class(&self, i: usize) -> Option<usize> {
        self.items[i].class
    }

    /// The classes of all pictures; an error names the first that has none.
    pub fn labels(&self) -> Result<Vec<usize>> {
        let label = |i: &Item| i.class.ok_or_else(|| Error::bad_file(&i.name, "a picture without a class"));
        self.items.iter().map(label).collect()
    }

    /// A picture's words: its (first) caption, or "a photo of a CLASS".
    pub fn words(&self, i: usize) -> String {
        self.words_at(i, 0)
    }

    /// The same with the caption of this number, round and round: a picture with several shows another each time.
    pub fn words_at(&self, i: usize, n: usize) -> String {
        let item = &self.items[i];
        match (item.words.as_slice(), item.class) {
            ([], Some(class)) => caption(&self.classes[class]),
            ([], None) => String::new(),
            (words, _) => words[n % words.len()].clone(),
        }
    }

    /// Pictures with captions of their own.
    pub fn with_words(&self) -> usize {
        self.items.iter().filter(|i| !i.words.is_empty()).count()
    }

    /// Whether a picture has captions of its own.
    pub fn has_words(&self, i: usize) -> bool {
        !self.items[i].words.is_empty()
    }

    /// A picture's name.
    pub fn name(&self, i: usize) -> &Path {
        &self.items[i].name
    }

    /// An error where no picture has words or a class, for a training whose loss needs them.
    pub fn needs_words(&self, path: &Path) -> Result<()> {
        if self.items.iter().any(|i| !i.words.is_empty() || i.class.is_some()) {
            return Ok(());
        }
        let n = self.items.len();
        let why = format!(
            "0 of {n} pictures have words, which this training's loss needs; write captions beside them (NAME.txt, \
             metadata.jsonl), or set the loss's weight to 0"
        );
        Err(Error::bad_file(path, why))
    }

    /// A line that says what the source holds.
    pub fn summary(&self) -> String {
        let mut line =
            format!("{} pictures, {} with words, {} classes", self.len(), self.with_words(), self.classes.len());
        if !self.taken.is_empty() {
            line.push_str(&format!(" ({})", self.taken));
        }
        if let Some(first) = self.skipped.first() {
            line.push_str(&format!("; {} passed over, the first: {}: {}", self.skipped.len(), first.name, first.why));
        }
        line
    }

    /// A picture at random. One that cannot be read is noted and another is drawn, until more than the allowed share is
    /// broken.
    pub fn draw(&self, r: &mut Rng, held_out: bool) -> Result<(usize, Image)> {
        let mut failed = 0;
        loop {
            let at = self.pick(r, held_out);
            match self.image(at) {
                Ok(image) => return Ok((at, image)),
                // all that is held out may be broken although little of the whole is
                Err(e) if failed == MOST_FAILED => return Err(e),
                Err(e) => self.note(at, e)?,
            }
            failed += 1;
        }
    }

    /// The number of a picture at random, of those that are trained on or of those that never are.
    pub fn pick(&self, r: &mut Rng, held_out: bool) -> usize {
        match &self.parts {
            Some(parts) => {
                let part = &parts[usize::from(held_out)];
                part[rng::below(r, part.len())]
            }
            None => rng::below(r, self.len()),
        }
    }

    /// Notes that a picture could not be read; an error where more than the allowed share is broken by now.
    pub fn note(&self, at: usize, e: Error) -> Result<()> {
        self.broken.note(at, self.len(), &e)
    }

    /// What could not be read so far, one message a picture.
    pub fn broken(&self) -> Vec<String> {
        self.broken.list()
    }
}

/// A number of a picture's name and folder, the same on every machine.
fn name_key(name: &Path) -> u64 {
    let last = name.components().rev().take(2).map(|c| c.as_os_str().to_string_lossy().into_owned());
    rng::name_key(&last.collect::<Vec<_>>().join("/"))
}

/// "a photo of a dog"
pub fn caption(class: &str) -> String {
    let article = if class.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("a photo of {article} {class}")
}

/// Endings of pictures' names.
const ENDINGS: [&str; 17] = [
    "png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "tga", "ico",
    "qoi",
];

/// Files that systems leave among pictures: AppleDouble, __MACOSX, .DS_Store.
fn is_litter(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    name.starts_with("._") || name == ".DS_Store" || path.components().any(|c| c.as_os_str() == "__MACOSX")
}

/// A text without a byte-order mark.
pub fn without_mark(text: String) -> String {
    text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)
}

/// Whether a file's name ends as pictures' do.
pub fn is_picture(path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    ENDINGS.contains(&ending.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(v: u8) -> Vec<u8> {
        Image::from_rgb(2, 1, vec![v; 6]).to_png().unwrap()
    }

    #[test]
    fn folders_tables_and_shards_hold_the_same() {
        let dir = std::env::temp_dir().join(format!("qlip-data-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        for (class, v) in [("cat", 10), ("owl", 20)] {
            std::fs::create_dir_all(dir.join("by-class").join(class)).unwrap();
            std::fs::write(dir.join("by-class").join(class).join("0.png"), picture(v)).unwrap();
        }
        let p = Pictures::open(&dir.join("by-class"), "train").unwrap();
        assert_eq!((p.len(), p.classes.clone()), (2, vec!["cat".to_owned(), "owl".to_owned()]));
        assert_eq!(
            (p.words(1), p.class(1), p.image(1).unwrap().pixel(0, 0)),
            ("a photo of an owl".into(), Some(1), [20; 3])
        );

        std::fs::write(dir.join("t.csv"), "path,caption\nby-class/cat/0.png,\"a cat, asleep\"\n").unwrap();
        std::fs::write(dir.join("t.jsonl"), "{\"image\": \"by-class/cat/0.png\", \"text\": \"a cat, asleep\"}\n\n")
            .unwrap();
        for name in ["t.csv", "t.jsonl"] {
            let p = Pictures::open(&dir.join(name), "train").unwrap();
            assert_eq!(
                (p.len(), p.words(0), p.image(0).unwrap().pixel(0, 0)),
                (1, "a cat, asleep".into(), [10; 3]),
                "{name}"
            );
        }

        let mut tar = tar::Builder::new(std::fs::File::create(dir.join("s-001.tar")).unwrap());
        let mut add = |name: &str, bytes: &[u8]| {
            let mut h = tar::Header::new_gnu();
            h.set_size(bytes.len() as u64);
            tar.append_data(&mut h, name, bytes).unwrap();
        };
        add("a/1.png", &picture(30));
        add("a/1.txt", b"thirty");
        add("a/2.jpg", b"not a picture");
        add("a/2.json", br#"{"caption": "broken"}"#);
        tar.finish().unwrap();
        drop(tar);
        for glob in ["s-{000..001}.tar", "s-*.tar", "s-001.tar"] {
            let p = Pictures::open(&dir.join(glob), "train").unwrap();
            assert_eq!((p.len(), p.words(0), p.words(1)), (2, "thirty".into(), "broken".into()), "{glob}");
            assert_eq!(p.image(0).unwrap().pixel(1, 0), [30; 3]);
            // the broken one is passed over, and named
            let mut r = rng::keyed(0, &[]);
            assert!((0..20).all(|_| p.draw(&mut r, false).unwrap().0 == 0));
            assert!(p.broken()[0].contains("a/2.jpg"), "{:?}", p.broken());
        }
        std::fs::write(dir.join("by-class/cat/0.png"), b"x").unwrap();
        std::fs::write(dir.join("by-class/owl/0.png"), b"x").unwrap();
        let p = Pictures::open(&dir.join("by-class"), "train").unwrap();
        let e = p.draw(&mut rng::keyed(0, &[]), false).unwrap_err().to_string();
        assert!(e.starts_with("2 of 2 samples cannot be read"), "{e}");
        for bad in ["nothing.csv", "x-{1..2}.tar"] {
            let e = Pictures::open(&dir.join(bad), "train").err().unwrap().to_string();
            assert!(e.contains(bad), "{e}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
