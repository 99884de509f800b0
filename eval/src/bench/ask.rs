//! What a model is asked for an item: words and pictures in order; and where the pictures are until they are shown.

use super::table::Cell;
use super::{Files, Item};
use crate::{Error, Result};
use base64::Engine;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use unified::conversation::{Content, Message};

/// Where a picture is.
#[derive(Debug, Clone)]
pub enum Shown {
    /// A file.
    File(PathBuf),
    /// Bytes of the spool.
    Spooled {
        /// From this byte.
        at: u64,
        /// So many.
        len: usize,
    },
}

/// Encoded pictures of a benchmark's tables, in a temporary file: tables are read once, a row at a time, and no picture stays in
/// memory.
#[derive(Debug, Clone, Default)]
pub struct Spool(Arc<Mutex<Option<Kept>>>);

/// The file, where it ends, and where pictures with a hash are in it.
type Kept = (File, u64, HashMap<u64, Shown>);

impl Spool {
    pub(super) fn keep(&self, bytes: &[u8]) -> std::io::Result<Shown> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Some((tempfile::tempfile()?, 0, HashMap::new()));
        }
        let Some((file, end, known)) = &mut *held else { return Err(std::io::Error::other("no spool")) };
        // the same picture stands beside many questions
        let key = bytes.iter().fold(bytes.len() as u64, |k, b| (k ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
        if let Some(Shown::Spooled { at, len }) = known.get(&key)
            && *len == bytes.len()
        {
            return Ok(Shown::Spooled { at: *at, len: *len });
        }
        let shown = Shown::Spooled { at: *end, len: bytes.len() };
        file.seek(SeekFrom::Start(*end))?;
        file.write_all(bytes)?;
        *end += bytes.len() as u64;
        known.insert(key, shown.clone());
        Ok(shown)
    }

    /// A picture's encoded bytes.
    pub fn bytes(&self, shown: &Shown) -> Result<Vec<u8>> {
        match shown {
            Shown::File(path) => std::fs::read(path).map_err(Error::io(path)),
            Shown::Spooled { at, len } => {
                let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let Some((file, ..)) = &mut *held else { return Err(Error::invalid("no pictures were kept")) };
                let mut bytes = vec![0; *len];
                let read = file.seek(SeekFrom::Start(*at)).and_then(|_| file.read_exact(&mut bytes));
                read.map_err(Error::io("(temporary file of pictures)"))?;
                Ok(bytes)
            }
        }
    }

    /// Where a table's picture is from here on: bytes, `{bytes, path}`, base64, or a file's name.
    pub fn shown(&self, cell: &Cell, files: &Files) -> Option<Shown> {
        match held(cell, files)? {
            Held::Bytes(b) => self.keep(b).ok(),
            Held::Base64(t) => self.keep(&base64::engine::general_purpose::STANDARD.decode(t.trim()).ok()?).ok(),
            Held::File(shown) => Some(shown),
        }
    }
}

/// What a table's cell holds of a picture.
pub(super) enum Held<'a> {
    /// Its bytes.
    Bytes(&'a [u8]),
    /// Its bytes as text.
    Base64(&'a str),
    /// A file's name, and the file is there.
    File(Shown),
}

/// The picture of a table's cell, if there is one.
pub(super) fn held<'a>(cell: &'a Cell, files: &Files) -> Option<Held<'a>> {
    match cell {
        Cell::Bytes(b) if !b.is_empty() => Some(Held::Bytes(b)),
        Cell::Group(g) => match g.get("bytes") {
            Cell::Bytes(b) if !b.is_empty() => Some(Held::Bytes(b)),
            _ => files.picture(&g.text("path")?).map(Held::File),
        },
        Cell::List(l) => held(l.first()?, files),
        Cell::Text(t) if t.len() > 200 => Some(Held::Base64(t)),
        Cell::Text(name) => files.picture(name).map(Held::File),
        _ => None,
    }
}

/// Names of classes, or sentences around them: one list for all items.
pub type Names = Arc<[String]>;

/// A part of what is asked.
#[derive(Debug, Clone)]
pub enum Part {
    /// Words.
    Words(String),
    /// The item's n-th picture.
    Picture(usize),
}

/// What cannot be measured item by item.
#[derive(Debug, Clone)]
pub enum Measure {
    /// Linear probes on an image tokenizer's tokens.
    Probe(PathBuf),
    /// Drawings of a class-conditional LlamaGen, as a classifier sees them beside photographs.
    ClassPictures(PathBuf),
}

/// What is wanted of a model for an item.
#[derive(Debug, Clone)]
pub enum Ask {
    /// Words, the likeliest, at most so many tokens.
    Words {
        /// What is asked.
        parts: Vec<Part>,
        /// Most tokens of the answer.
        max_tokens: usize,
    },
    /// How likely each continuation of a text is.
    Likelihood {
        /// The text.
        context: String,
        /// What may follow.
        choices: Vec<String>,
    },
    /// Words that answer a conversation.
    Talk {
        /// The conversation.
        messages: Vec<Message>,
        /// Most tokens of the answer.
        max_tokens: usize,
    },
    /// A picture that answers a conversation.
    Draw {
        /// The conversation.
        messages: Vec<Message>,
        /// Added to the run's seed.
        key: u64,
    },
    /// A picture and words in one answer.
    Interleave {
        /// What is asked.
        words: String,
    },
    /// How near the picture is to each of several classes.
    Nearness {
        /// The classes' names.
        classes: Names,
        /// Sentences around a name, `{}` in each.
        templates: Names,
    },
    /// How likely a text is.
    Text {
        /// The text.
        text: String,
        /// Tokens that a prediction can see; as many as the model can if 0.
        window: usize,
        /// lm-evaluation-harness's windows; else such that see nothing of the one before.
        rolling: bool,
    },
    /// The picture through the model's image tokenizer and back.
    Reconstruct {
        /// Whether what comes back is kept as a file.
        keep: bool,
    },
    /// Everything at once: values of the whole data.
    Measure(Measure),
    /// A picture of a class, and how near it is to each.
    DrawClass {
        /// Classes' names.
        classes: Names,
        /// Which is drawn.
        class: usize,
        /// Added to the run's seed.
        key: u64,
    },
    /// The same words about each of the pictures by itself.
    OfEach {
        /// What is asked.
        words: String,
        /// Most tokens of an answer.
        max_tokens: usize,
    },
    /// A description of the picture, and a drawing of what it says.
    Cycle {
        /// How the description is asked for.
        describe: String,
        /// Added to the run's seed.
        key: u64,
    },
    /// A drawing, and answers to questions about it.
    DrawAndAnswer {
        /// What is asked to be drawn.
        words: String,
        /// The questions, each asked by itself.
        questions: Vec<String>,
        /// Added to the run's seed.
        key: u64,
    },
}

impl Ask {
    /// Whether the answer depends on the run's seed and on how it draws.
    pub(super) fn draws(&self) -> bool {
        matches!(
            self,
            Self::Measure(_)
                | Self::Draw { .. }
                | Self::DrawClass { .. }
                | Self::Cycle { .. }
                | Self::DrawAndAnswer { .. }
                | Self::Interleave { .. }
        )
    }

    /// Everything that the answer depends on, into a hash; pictures by their pixels.
    pub(super) fn hash(&self, sum: &mut Sha256) {
        let (messages, rest) = match self {
            Self::Talk { messages, max_tokens } => (messages, format!("talk {max_tokens}")),
            Self::Draw { messages, key } => (messages, format!("draw {key}")),
            // words alone, which print quickly
            other => return sum.update(format!("{other:?}")),
        };
        sum.update(rest);
        for m in messages {
            sum.update(m.role.name());
            for c in &m.content {
                match c {
                    Content::Text(t) => sum.update(format!("text {} {t}", t.len())),
                    Content::Image(i) => {
                        sum.update(format!("image {}x{}", i.width(), i.height()));
                        sum.update(i.rgb());
                    }
                    Content::Codes(codes) => sum.update(format!("{codes:?}")),
                }
            }
        }
    }
}

fn about_picture(item: &Item, words: String, max_tokens: usize) -> Ask {
    let pictures = (0..item.shown.len()).map(Part::Picture);
    Ask::Words { parts: pictures.chain([Part::Words(words)]).collect(), max_tokens }
}

/// LLaVA's words for short answers.
fn briefly(item: &Item) -> String {
    format!("{}\nAnswer the question using a single word or phrase.", item.text("question"))
}

/// LLaVA's protocol for short answers.
pub fn short(item: &Item) -> Result<Ask> {
    Ok(about_picture(item, briefly(item), 16))
}

/// The same of each of the pictures by itself.
pub fn short_of_each(item: &Item) -> Result<Ask> {
    Ok(Ask::OfEach { words: briefly(item), max_tokens: 16 })
}

/// LLaVA's protocol for letters of options.
pub fn letters(item: &Item) -> Result<Ask> {
    let mut words = String::new();
    if let Some(hint) = item.facts["hint"].as_str().filter(|h| !h.is_empty() && *h != "nan") {
        words.push_str(&format!("{hint}\n"));
    }
    words.push_str(item.text("question"));
    for (i, choice) in item.texts("choices").iter().enumerate() {
        words.push_str(&format!("\n{}. {choice}", char::from(b'A' + i.min(25) as u8)));
    }
    words.push_str("\nAnswer with the option's letter from the given choices directly.");
    Ok(about_picture(item, words, 16))
}

/// MMMU: pictures stand where the question names them.
pub fn mmmu(item: &Item) -> Result<Ask> {
    if item.facts["open"] == true {
        return Ok(Ask::Words { parts: named(&briefly(item), item.shown.len()), max_tokens: 16 });
    }
    let Ask::Words { parts, max_tokens } = letters(item)? else { return letters(item) };
    let words: String = parts.iter().map(|p| if let Part::Words(w) = p { w.as_str() } else { "" }).collect();
    Ok(Ask::Words { parts: named(&words, item.shown.len()), max_tokens })
}

/// Words in which `<image k>` is the k-th picture; pictures that are not named stand first.
fn named(words: &str, pictures: usize) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut used = vec![false; pictures];
    let mut rest = words;
    while let Some(at) = rest.find("<image ") {
        let after = &rest[at + 7..];
        let number = after.split_once('>').and_then(|(n, tail)| Some((n.parse::<usize>().ok()?, tail)));
        match number.filter(|(n, _)| (1..=pictures).contains(n)) {
            Some((n, tail)) => {
                parts.push(Part::Words(rest[..at].to_owned()));
                if !std::mem::replace(&mut used[n - 1], true) {
                    parts.push(Part::Picture(n - 1));
                }
                rest = tail;
            }
            None => {
                parts.push(Part::Words(rest[..at + 7].to_owned()));
                rest = after;
            }
        }
    }
    parts.push(Part::Words(rest.to_owned()));
    let first = (0..pictures).filter(|i| !used[*i]).map(Part::Picture);
    first.chain(parts).collect()
}

/// A caption.
pub fn caption(item: &Item) -> Result<Ask> {
    Ok(about_picture(item, "Provide a one-sentence caption for the provided image.".into(), 64))
}

/// Likelihoods of continuations, each after a blank.
pub fn likelihood(item: &Item) -> Result<Ask> {
    Ok(Ask::Likelihood { context: item.text("context").to_owned(), choices: item.texts("choices") })
}

/// Nearness of a picture to classes.
pub fn classes(item: &Item) -> Result<Ask> {
    let templates = super::templates::OPENAI.iter().map(|t| (*t).to_owned()).collect();
    Ok(Ask::Nearness { classes: item.classes.clone(), templates })
}

/// For tasks whose answers come from files alone.
pub fn none(item: &Item) -> Result<Ask> {
    Err(Error::Unsupported(format!("item {}: this task scores answers of files; give --model replay:FILE", item.id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_stand_where_they_are_named() {
        let shape = |parts: Vec<Part>| -> String {
            parts.iter().map(|p| if let Part::Words(w) = p { w.clone() } else { "*".into() }).collect()
        };
        assert_eq!(shape(named("a <image 1> b", 1)), "a * b");
        assert_eq!(shape(named("a <image 2> b <image 2> <image 9>", 2)), "*a * b  <image 9>");
    }
}
