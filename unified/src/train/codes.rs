//! Codes of all pictures of a LlamaGen training, made once: written as they are made, gone on with after a kill, read from the file.
//!
//! codes.safetensors holds `packed` [rows, bytes], the tokens of a crop a row in as few bits as the vocabulary needs, and `pictures`, the
//! number in the source of each picture, which has as many rows as there are crops; bits and tokens a row are metadata.

use super::Run;
use crate::visual::VisualTokenizer;
use crate::{Error, Result};
use lm::Token;
use nn::checkpoint;
use qlip::Image;
use qlip::data::Pictures;
use qlip::resample::{resize, resize_window};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Pictures that are encoded between two writes.
const CHUNK: usize = 512;

/// Pictures, and which crops of them become codes.
pub(super) struct Pictured<'a> {
    pub photos: &'a Pictures,
    pub crops: usize,
    pub crop_share: f64,
    pub visual: &'a VisualTokenizer,
    /// The tokenizer's fingerprint.
    pub fingerprint: String,
}

/// Pictures whose pixels tell one source from another.
const PROBES: usize = 8;

impl Pictured<'_> {
    /// Tokens of all crops of all pictures that can be read, made by the first process where the file does not have them.
    pub fn tokens(&self, path: &Path, run: &mut Run) -> Result<PackedTokens> {
        let per = self.visual.grid() * self.visual.grid() * self.visual.sub_tokens();
        let bits = (self.visual.vocab().max(2) - 1).ilog2() as usize + 1;
        let layout = Layout { per, bits, crops: self.crops, source: self.source() };
        if run.world.is_first() && !path.is_file() {
            self.make(path, layout, run.say)?;
        }
        run.world.any(false);
        let found = PackedTokens::load(path)?;
        let fits = found.pictures.iter().all(|&p| p < self.photos.len()) && !found.pictures.is_empty();
        if fits && found.layout == layout {
            return Ok(found);
        }
        if fits && found.layout == (Layout { source: 0, ..layout }) {
            (run.say)(&format!(
                "{}: says neither tokenizer nor pictures that it was made of; used as it is",
                path.display()
            ));
            return Ok(found);
        }
        let why = "codes of another image tokenizer, other pictures or other crops; remove the file, or choose another folder";
        Err(Error::bad_file(path, why))
    }

    /// A number for tokenizer, crops and pictures: how many there are, and the pixels of some.
    fn source(&self) -> u64 {
        let mut sum = Sha256::new();
        sum.update(&self.fingerprint);
        sum.update(self.crop_share.to_le_bytes());
        sum.update((self.photos.len() as u64).to_le_bytes());
        let step = self.photos.len().div_ceil(PROBES).max(1);
        for i in (0..self.photos.len()).step_by(step) {
            // one that cannot be read is told when its turn comes
            if let Ok(image) = self.photos.image(i) {
                sum.update(image.rgb());
            }
        }
        sum.finalize().iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b)).max(1)
    }

    fn make(&self, path: &Path, layout: Layout, say: &mut dyn FnMut(&str)) -> Result<()> {
        let (mut writer, done) = PackedWriter::begin(path, layout)?;
        let pictures: Vec<usize> = (done..self.photos.len()).collect();
        if done > 0 {
            say(&format!("{}: codes of {done} pictures are there; going on", path.display()));
        }
        for chunk in pictures.chunks(CHUNK) {
            let read = |&i: &usize| -> Result<Option<(usize, Image)>> {
                match self.photos.image(i) {
                    Ok(image) => Ok(Some((i, image))),
                    Err(e) => self.photos.note(i, e).map(|()| None),
                }
            };
            let images: Vec<(usize, Image)> =
                chunk.par_iter().filter_map(|i| read(i).transpose()).collect::<Result<_>>()?;
            let crops: Vec<Image> = images
                .par_iter()
                .flat_map_iter(|(_, image)| (0..self.crops).map(move |c| self.crop(image, c)))
                .collect();
            let tokens = self.visual.tokens(&crops)?;
            for ((picture, _), rows) in images.iter().zip(tokens.chunks(self.crops)) {
                writer.push(*picture, rows)?;
            }
            writer.sync()?;
        }
        writer.finish()
    }

    fn crop(&self, image: &Image, n: usize) -> Image {
        let side = self.visual.side();
        let (w, h) = (image.width(), image.height());
        let (cell, mirrored) = if self.crops == 10 { (n / 2, n % 2 == 1) } else { (4, n == 1) };
        let short = w.min(h);
        let keep = if self.crops == 10 { ((short as f64 * self.crop_share).round() as usize).max(1) } else { short };
        let (right, bottom) = (w - keep, h - keep);
        let at = [(0, 0), (right, 0), (0, bottom), (right, bottom), (right / 2, bottom / 2)][cell];
        let cut = resize_window(image, (w, h), at, (keep, keep));
        let out = resize(&cut, side, side);
        if mirrored { out.flipped() } else { out }
    }
}

/// How rows lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    /// Tokens a row.
    per: usize,
    /// Bits a token.
    bits: usize,
    /// Rows a picture.
    crops: usize,
    /// What they are of; 0 where a file does not say.
    source: u64,
}

impl Layout {
    /// Bytes a row.
    fn stride(self) -> usize {
        (self.per * self.bits).div_ceil(8)
    }

    /// Bytes of a picture in the file that grows: its number, and its rows.
    fn record(self) -> usize {
        4 + self.crops * self.stride()
    }

    fn pack(self, tokens: &[Token], out: &mut [u8]) {
        for (i, token) in tokens.iter().enumerate() {
            for bit in 0..self.bits {
                let at = i * self.bits + bit;
                out[at / 8] |= ((token >> bit & 1) as u8) << (at % 8);
            }
        }
    }

    fn unpack(self, row: &[u8]) -> Vec<Token> {
        let token = |i: usize| {
            (0..self.bits).fold(0, |token, bit| {
                let at = i * self.bits + bit;
                token | Token::from(row[at / 8] >> (at % 8) & 1) << bit
            })
        };
        (0..self.per).map(token).collect()
    }
}

/// The file that grows beside the one that it becomes: a head that says the layout, then a record a picture.
struct PackedWriter {
    layout: Layout,
    path: PathBuf,
    growing: PathBuf,
    file: File,
    buffer: Vec<u8>,
}

/// Bytes of the growing file's head: tokens, bits, crops and source, eight bytes each.
const HEAD: usize = 32;

impl PackedWriter {
    /// Goes on with what an earlier run wrote; the number of the first picture that it did not see.
    fn begin(path: &Path, layout: Layout) -> Result<(Self, usize)> {
        let growing = path.with_extension("partial");
        let io = |e| Error::io(&growing)(e);
        let mut file = File::options().read(true).append(true).create(true).open(&growing).map_err(&io)?;
        let head = [layout.per as u64, layout.bits as u64, layout.crops as u64, layout.source];
        let head: Vec<u8> = head.iter().flat_map(|n| n.to_le_bytes()).collect();
        let size = file.metadata().map_err(&io)?.len() as usize;
        let mut found = vec![0; HEAD.min(size)];
        file.read_exact_at(&mut found, 0).map_err(&io)?;
        let mut next = 0;
        if found != head {
            file.set_len(0).map_err(&io)?;
            file.write_all(&head).map_err(&io)?;
        } else {
            // a record that was cut by a kill is made again
            let records = (size - HEAD) / layout.record();
            file.set_len((HEAD + records * layout.record()) as u64).map_err(&io)?;
            if records > 0 {
                let mut number = [0; 4];
                let last = HEAD + (records - 1) * layout.record();
                file.read_exact_at(&mut number, last as u64).map_err(&io)?;
                next = u32::from_le_bytes(number) as usize + 1;
            }
        }
        Ok((Self { layout, path: path.to_owned(), growing, file, buffer: Vec::new() }, next))
    }

    fn push(&mut self, picture: usize, rows: &[Vec<Token>]) -> Result<()> {
        let number = u32::try_from(picture).map_err(|_| Error::invalid("more than 2^32 pictures"))?;
        let start = self.buffer.len();
        self.buffer.resize(start + self.layout.record(), 0);
        self.buffer[start..start + 4].copy_from_slice(&number.to_le_bytes());
        for (i, row) in rows.iter().enumerate() {
            let at = start + 4 + i * self.layout.stride();
            let stride = self.layout.stride();
            self.layout.pack(row, &mut self.buffer[at..at + stride]);
        }
        Ok(())
    }

    /// What was pushed is in the file.
    fn sync(&mut self) -> Result<()> {
        let growing = self.growing.clone();
        let io = |e| Error::io(&growing)(e);
        self.file.write_all(&self.buffer).map_err(&io)?;
        self.buffer.clear();
        self.file.sync_data().map_err(&io)
    }

    /// The growing file becomes codes.safetensors, a record at a time.
    fn finish(mut self) -> Result<()> {
        self.sync()?;
        let growing = self.growing.clone();
        let io = |e| Error::io(&growing)(e);
        let (layout, record) = (self.layout, self.layout.record());
        let pictures = (self.file.metadata().map_err(&io)?.len() as usize - HEAD) / record;
        if pictures == 0 {
            return Err(Error::bad_file(&self.path, "no picture could be read"));
        }
        let rows = pictures * layout.crops;
        let (packed, numbers) = (rows * layout.stride(), pictures * 4);
        let meta = serde_json::json!({
            "bits": layout.bits.to_string(), "tokens": layout.per.to_string(), "crops": layout.crops.to_string(),
            "source": format!("{:016x}", layout.source)
        });
        // numbers are 4 bytes each and come first, so that they lie at a multiple of 4
        let header = serde_json::json!({
            "__metadata__": meta,
            "pictures": {"dtype": "U32", "shape": [pictures], "data_offsets": [0, numbers]},
            "packed": {"dtype": "U8", "shape": [rows, layout.stride()], "data_offsets": [numbers, numbers + packed]},
        });
        let mut header = header.to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        checkpoint::write_atomic_with(&self.path, |out| {
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(&header)?;
            for part in [0..4, 4..record] {
                let mut file = &self.file;
                file.seek(SeekFrom::Start(HEAD as u64))?;
                let mut file = BufReader::with_capacity(1 << 20, file);
                let mut one = vec![0; record];
                for _ in 0..pictures {
                    file.read_exact(&mut one)?;
                    out.write_all(&one[part.clone()])?;
                }
            }
            Ok(())
        })?;
        std::fs::remove_file(&self.growing).map_err(&io)
    }
}

/// Tokens of many pictures, each row read from the file when it is asked for.
pub(super) struct PackedTokens {
    layout: Layout,
    path: PathBuf,
    file: File,
    /// Where the rows begin.
    start: u64,
    /// Which pictures of the source they are; each has as many rows as there are crops.
    pub pictures: Vec<usize>,
}

impl PackedTokens {
    /// Opens a file that [`PackedWriter`] finished.
    pub fn load(path: &Path) -> Result<Self> {
        let bad = || Error::bad_file(path, "not the codes of a LlamaGen training");
        let io = |e| Error::io(path)(e);
        let meta = checkpoint::metadata(path)?;
        let number = |key: &str| meta.get(key).and_then(|v| v.parse::<usize>().ok());
        let (Some(bits), Some(per), Some(crops)) = (number("bits"), number("tokens"), number("crops")) else {
            return Err(bad());
        };
        let source = meta.get("source").and_then(|s| u64::from_str_radix(s, 16).ok()).unwrap_or(0);
        let layout = Layout { per, bits, crops, source };
        if bits == 0 || bits > Token::BITS as usize || crops == 0 || per.checked_mul(bits).is_none() {
            return Err(bad());
        }
        let file = File::open(path).map_err(&io)?;
        let size = file.metadata().map_err(&io)?.len();
        let head = checkpoint::header(path)?;
        let json: serde_json::Value = serde_json::from_slice(&head[8..]).map_err(|_| bad())?;
        let range = |name: &str| {
            let of = |i: usize| json[name]["data_offsets"][i].as_u64()?.checked_add(head.len() as u64);
            of(0).zip(of(1)).filter(|(a, b)| a <= b && *b <= size)
        };
        let (Some((a, b)), Some((start, end))) = (range("pictures"), range("packed")) else { return Err(bad()) };
        let mut numbers = vec![0; (b - a) as usize];
        file.read_exact_at(&mut numbers, a).map_err(&io)?;
        let of = |four: &[u8]| four.iter().rev().fold(0usize, |n, b| n << 8 | usize::from(*b));
        let pictures: Vec<usize> = numbers.chunks(4).map(of).collect();
        if (end - start) as usize != pictures.len() * crops * layout.stride() {
            return Err(bad());
        }
        Ok(Self { layout, path: path.to_owned(), file, start, pictures })
    }

    /// A row's tokens.
    pub fn get(&self, n: usize) -> Result<Vec<Token>> {
        let stride = self.layout.stride();
        let mut row = vec![0; stride];
        self.file.read_exact_at(&mut row, self.start + (n * stride) as u64).map_err(Error::io(&self.path))?;
        Ok(self.layout.unpack(&row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [[Token; 5]; 4] = [[0, 1023, 5, 512, 77], [1, 2, 3, 4, 1000], [9, 8, 7, 6, 5], [1023, 0, 1023, 0, 1]];

    /// Two rows a picture; a kill after the first picture and a part of the second loses nothing.
    #[test]
    fn tokens_survive_packing_the_file_and_a_kill() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("codes.safetensors");
        let layout = Layout { per: 5, bits: 10, crops: 2, source: 7 };
        // fifty bits are seven bytes
        assert_eq!((layout.stride(), layout.record()), (7, 18));
        let rows: Vec<Vec<Token>> = ROWS.iter().map(|r| r.to_vec()).collect();
        let (mut w, next) = PackedWriter::begin(&path, layout).unwrap();
        assert_eq!(next, 0);
        w.push(0, &rows[..2]).unwrap();
        w.sync().unwrap();
        w.file.write_all(&[3, 0, 0]).unwrap();
        drop(w);
        let (mut w, next) = PackedWriter::begin(&path, layout).unwrap();
        assert_eq!(next, 1);
        // pictures 1 and 2 could not be read
        w.push(3, &rows[2..]).unwrap();
        w.finish().unwrap();
        let p = PackedTokens::load(&path).unwrap();
        assert_eq!((p.pictures.clone(), p.layout), (vec![0, 3], layout));
        for (i, r) in rows.iter().enumerate() {
            assert_eq!(p.get(i).unwrap(), *r);
        }
        // another layout begins anew, and so do other pictures
        for other in [Layout { crops: 1, ..layout }, Layout { source: 8, ..layout }] {
            let (mut w, next) = PackedWriter::begin(&path, other).unwrap();
            assert_eq!(next, 0);
            w.push(0, &rows[..other.crops]).unwrap();
            w.sync().unwrap();
        }
        checkpoint::save(&path, &Default::default(), &[]).unwrap();
        assert!(PackedTokens::load(&path).is_err());
    }

    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        text.split(' ').nth(1).and_then(|n| n.parse::<usize>().ok()).unwrap_or(0) * 4096
    }

    /// As many as ImageNet has, ten crops each, of made codes: half, a kill, the other half; memory does not grow with them.
    #[test]
    fn a_million_pictures_of_ten_crops() {
        const ALL: usize = 1_280_000;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("codes.safetensors");
        let layout = Layout { per: 4, bits: 14, crops: 10, source: 7 };
        let made = |picture: usize, crop: usize| -> Vec<Token> {
            (0..4).map(|i| ((picture * 31 + crop * 7 + i * 3) & 0x3fff) as Token).collect()
        };
        let before = resident();
        for end in [ALL / 2, ALL] {
            let (mut w, start) = PackedWriter::begin(&path, layout).unwrap();
            assert_eq!(start, end - ALL / 2);
            for picture in start..end {
                let rows: Vec<Vec<Token>> = (0..10).map(|c| made(picture, c)).collect();
                w.push(picture, &rows).unwrap();
                if picture % (128 * CHUNK) == 0 {
                    w.sync().unwrap();
                }
            }
            w.sync().unwrap();
            if end == ALL {
                w.finish().unwrap();
            }
        }
        let codes = PackedTokens::load(&path).unwrap();
        assert_eq!(codes.pictures.len(), ALL);
        for picture in [0, 1, ALL / 2, ALL - 1] {
            assert_eq!(codes.get(picture * 10 + 3).unwrap(), made(picture, 3));
        }
        let grown = resident().saturating_sub(before) >> 20;
        assert!(grown < 600, "{grown} MiB more, other tests among them");
    }
}
