//! GGUF files (llama.cpp's): their settings, and where their tensors lie.
//!
//! candle's reader allocates whatever lengths a file promises; this one reads from the mapped bytes, so that a broken file is an
//! error and never more memory than the file has.

use crate::ops::{WeightType, gguf_row_bytes};
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

/// A setting's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// Yes or no.
    Bool(bool),
    /// Words.
    Text(String),
    /// A list.
    List(Vec<Value>),
}

impl Value {
    /// A whole number that is not negative.
    pub fn index(&self) -> Option<usize> {
        match self {
            Self::Int(i) => usize::try_from(*i).ok(),
            _ => None,
        }
    }
    /// Any number.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Int(i) => Some(*i as f64),
            Self::Float(f) => Some(*f),
            _ => None,
        }
    }
    /// Words.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(t) => Some(t),
            _ => None,
        }
    }
    /// A list's values; none of anything else.
    pub fn list(&self) -> &[Value] {
        match self {
            Self::List(l) => l,
            _ => &[],
        }
    }
}

/// A tensor's place.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub ty: WeightType,
    /// Rows first, as everywhere here; the file has it the other way round.
    pub shape: Vec<usize>,
    pub bytes: Range<usize>,
}

/// A file's head.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// Settings by name.
    pub settings: BTreeMap<String, Value>,
    pub(crate) places: HashMap<String, Place>,
}

impl Head {
    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }
}

/// Whether a file's first bytes are those of a GGUF.
pub fn is_gguf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"GGUF")
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Read<T> = std::result::Result<T, String>;

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Read<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&e| e <= self.bytes.len()).ok_or("the file is cut short")?;
        let part = &self.bytes[self.at..end];
        self.at = end;
        Ok(part)
    }
    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| "the file is cut short".to_owned())
    }
    fn u32(&mut self) -> Read<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Read<u64> {
        self.array().map(u64::from_le_bytes)
    }
    /// A count of things of which each takes at least a byte.
    fn count(&mut self) -> Read<usize> {
        let n = self.u64()?;
        let left = self.bytes.len() - self.at;
        usize::try_from(n).ok().filter(|&n| n <= left).ok_or_else(|| format!("a count of {n} in {left} bytes"))
    }
    fn text(&mut self) -> Read<String> {
        let n = self.count()?;
        Ok(String::from_utf8_lossy(self.take(n)?).into_owned())
    }
    fn value(&mut self, kind: u32, depth: usize) -> Read<Value> {
        Ok(match kind {
            0 => Value::Int(self.array::<1>()?[0].into()),
            1 => Value::Int(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Int(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Int(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Int(self.u32()?.into()),
            5 => Value::Int(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::Text(self.text()?),
            9 => {
                let (kind, n) = (self.u32()?, self.count()?);
                if depth > 2 {
                    return Err("lists within lists".into());
                }
                // a value takes more memory than its bytes in the file, so no room is made for what is only promised
                let mut list = Vec::new();
                for _ in 0..n {
                    list.push(self.value(kind, depth + 1)?);
                }
                Value::List(list)
            }
            10 => Value::Int(i64::try_from(self.u64()?).unwrap_or(i64::MAX)),
            11 => Value::Int(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("a setting of unknown type {other}")),
        })
    }
}

/// ggml's numbers of types.
fn type_of(number: u32) -> Read<WeightType> {
    Ok(match number {
        0 => WeightType::F32,
        1 => WeightType::F16,
        8 => WeightType::Q8_0,
        12 => WeightType::Q4K,
        14 => WeightType::Q6K,
        30 => WeightType::Bf16,
        other => {
            let names = [(2, "q4_0"), (3, "q4_1"), (6, "q5_0"), (7, "q5_1"), (10, "q2_K"), (11, "q3_K"), (13, "q5_K")];
            let name = names.iter().find(|n| n.0 == other).map_or_else(|| format!("number {other}"), |n| n.1.into());
            return Err(format!(
                "weights of type {name}; f32, f16, bf16, q8_0, q4_K and q6_K are read (llama-quantize makes them; of the \
                 mixtures Q4_K_M has no other)"
            ));
        }
    })
}

/// Reads a file's head; `path` names it in errors.
pub fn head(path: &Path, bytes: &[u8]) -> Result<Head> {
    read(bytes).map_err(|why| Error::bad_file(path, format!("not a GGUF file that can be read ({why})")))
}

/// Reads the head of an opened file, and the numbers of one float32 tensor, where there is such a one.
pub fn head_and(path: &Path, name: &str) -> Result<(Head, Option<Vec<f32>>)> {
    let map = crate::stored::map(path)?;
    let head = head(path, &map)?;
    let floats = head.places.get(name).filter(|p| p.ty == WeightType::F32).map(|p| {
        let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        map[p.bytes.clone()].chunks_exact(4).map(number).collect()
    });
    Ok((head, floats))
}

fn read(bytes: &[u8]) -> Read<Head> {
    let mut c = Cursor { bytes, at: 0 };
    if c.take(4)? != b"GGUF" {
        return Err("it does not begin as one".into());
    }
    let version = c.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("version {version}; 2 and 3 are read"));
    }
    let (tensors, settings) = (c.count()?, c.count()?);
    let mut head = Head::default();
    for _ in 0..settings {
        let name = c.text()?;
        let kind = c.u32()?;
        let value = c.value(kind, 0).map_err(|e| format!("{name}: {e}"))?;
        head.settings.insert(name, value);
    }
    let mut found = Vec::new();
    for _ in 0..tensors {
        let name = c.text()?;
        let rank = c.u32()? as usize;
        if rank == 0 || rank > 4 {
            return Err(format!("tensor `{name}` of {rank} axes"));
        }
        let mut shape = Vec::with_capacity(rank);
        for _ in 0..rank {
            shape.push(usize::try_from(c.u64()?).map_err(|_| format!("tensor `{name}`: a shape beyond memory"))?);
        }
        shape.reverse();
        let ty = type_of(c.u32()?).map_err(|e| format!("tensor `{name}`: {e}"))?;
        found.push((name, ty, shape, c.u64()?));
    }
    let step = head.settings.get("general.alignment").and_then(Value::index).unwrap_or(32);
    if step == 0 || !step.is_power_of_two() || step > 1 << 20 {
        return Err(format!("general.alignment {step}"));
    }
    let data = c.at.next_multiple_of(step);
    for (name, ty, shape, offset) in found {
        let bad = |why: &str| format!("tensor `{name}`: {why}");
        let cols = *shape.last().ok_or_else(|| bad("no axes"))?;
        if ty.is_blocks() && !cols.is_multiple_of(ty.block()) {
            return Err(bad(&format!("{cols} columns in {} blocks", ty.name())));
        }
        let rows = shape[..shape.len() - 1].iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let place = || {
            // checked before the multiplication that gguf_row_bytes makes
            let per = cols.checked_mul(8).map(|_| gguf_row_bytes(ty, cols))?;
            let start = data.checked_add(usize::try_from(offset).ok()?)?;
            let end = start.checked_add(rows?.checked_mul(per)?)?;
            (end <= bytes.len()).then_some(start..end)
        };
        let bytes = place().ok_or_else(|| bad("lies beyond the end of the file; was the download complete?"))?;
        head.places.insert(name, Place { ty, shape, bytes });
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(out: &mut Vec<u8>, s: &str) {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    }

    fn small() -> Vec<u8> {
        let mut b = b"GGUF".to_vec();
        b.extend(3u32.to_le_bytes());
        b.extend(1u64.to_le_bytes());
        b.extend(2u64.to_le_bytes());
        text(&mut b, "general.architecture");
        b.extend(8u32.to_le_bytes());
        text(&mut b, "llama");
        text(&mut b, "tokens");
        b.extend(9u32.to_le_bytes());
        b.extend(8u32.to_le_bytes());
        b.extend(2u64.to_le_bytes());
        text(&mut b, "a");
        text(&mut b, "b");
        text(&mut b, "w");
        b.extend(2u32.to_le_bytes());
        b.extend(3u64.to_le_bytes());
        b.extend(2u64.to_le_bytes());
        b.extend(0u32.to_le_bytes());
        b.extend(0u64.to_le_bytes());
        b.resize(b.len().next_multiple_of(32), 0);
        b.extend([1f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|v| v.to_le_bytes()));
        b
    }

    #[test]
    fn a_file_is_read_and_no_change_of_it_panics() {
        let whole = small();
        let path = Path::new("x.gguf");
        let h = head(path, &whole).unwrap();
        assert_eq!(h.settings["general.architecture"].text(), Some("llama"));
        assert_eq!(h.settings["tokens"].list().len(), 2);
        assert_eq!(h.places["w"].shape, [2, 3]);
        for cut in 0..whole.len() {
            let e = head(path, &whole[..cut]).unwrap_err().to_string();
            assert!(e.contains("x.gguf"), "{e}");
        }
        for i in 0..6000u64 {
            let mut changed = whole.clone();
            for j in 0..1 + i % 3 {
                let r = crate::rng::mix(i << 8 | j);
                let at = (r % whole.len() as u64) as usize;
                changed[at] = (r >> 32) as u8;
            }
            if let Ok(h) = head(path, &changed) {
                assert!(h.places.values().all(|p| p.bytes.end <= changed.len()));
            }
        }
    }
}
