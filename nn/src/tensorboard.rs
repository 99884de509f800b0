//! TensorBoard event files: TFRecord frames around protocol-buffer events that hold scalars and pictures.

use crate::train::Sheet;
use crate::{Error, Result};
use crc::{CRC_32_ISCSI, Crc};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// A file `events.out.tfevents.*` that grows.
pub struct EventFile {
    path: PathBuf,
    file: std::fs::File,
}

impl EventFile {
    /// A new file in the folder, beside those of earlier runs, as TensorBoard expects.
    pub fn create(dir: &Path) -> Result<Self> {
        let now = now();
        let name = format!("events.out.tfevents.{:010}.{}", now as u64, std::process::id());
        let path = dir.join(name);
        let file = std::fs::File::create(&path).map_err(Error::io(&path))?;
        let mut out = Self { path, file };
        out.record(&[double(1, now), bytes(3, b"brain.Event:2")].concat())?;
        Ok(out)
    }

    /// Scalars of a step.
    pub fn scalars(&mut self, step: usize, values: &[(String, f64)]) -> Result<()> {
        let value = |(tag, v): &(String, f64)| bytes(1, &[bytes(1, tag.as_bytes()), float(2, *v as f32)].concat());
        let summary: Vec<u8> = values.iter().flat_map(value).collect();
        self.record(&[double(1, now()), varint_field(2, step as u64), bytes(5, &summary)].concat())
    }

    /// A picture of a step.
    pub fn image(&mut self, step: usize, tag: &str, sheet: &Sheet) -> Result<()> {
        let size = [varint_field(1, sheet.height as u64), varint_field(2, sheet.width as u64), varint_field(3, 3)];
        let image = [size.concat(), bytes(4, &sheet.png)].concat();
        let value = bytes(1, &[bytes(1, tag.as_bytes()), bytes(4, &image)].concat());
        self.record(&[double(1, now()), varint_field(2, step as u64), bytes(5, &value)].concat())
    }

    /// Length, its checksum, the data, its checksum.
    fn record(&mut self, data: &[u8]) -> Result<()> {
        let len = (data.len() as u64).to_le_bytes();
        let frame = [&len[..], &masked(&len), data, &masked(data)].concat();
        self.file.write_all(&frame).map_err(Error::io(&self.path))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// TFRecord's checksum, rotated and shifted so that a checksum of checksums is not degenerate.
fn masked(data: &[u8]) -> [u8; 4] {
    CRC.checksum(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn varint(mut v: u64, out: &mut Vec<u8>) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

fn key(field: u8, wire: u8) -> u8 {
    field << 3 | wire
}

fn varint_field(field: u8, v: u64) -> Vec<u8> {
    let mut out = vec![key(field, 0)];
    varint(v, &mut out);
    out
}

fn double(field: u8, v: f64) -> Vec<u8> {
    [&[key(field, 1)][..], &v.to_le_bytes()].concat()
}

fn float(field: u8, v: f32) -> Vec<u8> {
    [&[key(field, 5)][..], &v.to_le_bytes()].concat()
}

fn bytes(field: u8, v: &[u8]) -> Vec<u8> {
    let mut out = vec![key(field, 2)];
    varint(v.len() as u64, &mut out);
    out.extend_from_slice(v);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_published_checksums() {
        // the known check value of CRC-32C
        assert_eq!(CRC.checksum(b"123456789"), 0xe306_9283);
        let dir = tempfile::tempdir().unwrap();
        let mut f = EventFile::create(dir.path()).unwrap();
        f.scalars(300, &[("loss".into(), 0.5)]).unwrap();
        f.image(2, "samples", &Sheet { png: vec![7; 3], width: 5, height: 4 }).unwrap();
        let all = std::fs::read(&f.path).unwrap();
        // every frame reads back
        let mut at = 0;
        let mut records = Vec::new();
        while at < all.len() {
            let len = u64::from_le_bytes(all[at..at + 8].try_into().unwrap()) as usize;
            assert_eq!(all[at + 8..at + 12], masked(&all[at..at + 8]));
            let data = &all[at + 12..at + 12 + len];
            assert_eq!(all[at + 12 + len..at + 16 + len], masked(data));
            records.push(data.to_vec());
            at += 16 + len;
        }
        assert_eq!(records.len(), 3);
        assert!(records[0].ends_with(b"brain.Event:2"));
        // step 300 as a varint, then the summary
        assert_eq!(records[1][9..12], [0x10, 0xac, 0x02]);
        assert_eq!(records[1][12..], [0x2a, 13, 0x0a, 11, 0x0a, 4, b'l', b'o', b's', b's', 0x15, 0, 0, 0, 0x3f]);
        // a summary's value: its tag, then height, width, colours and the PNG
        let picture =
            [&[0x2a, 24, 0x0a, 22, 0x0a, 7][..], b"samples", &[0x22, 11, 8, 4, 16, 5, 24, 3, 0x22, 3, 7, 7, 7]];
        assert_eq!(records[2][11..], picture.concat());
    }
}
