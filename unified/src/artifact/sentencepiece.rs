//! Text tokenizers that are not written as tokenizer.json: SentencePiece's tokenizer.model, and the same pieces inside a GGUF.

use super::files::ModelFiles;
use serde_json::{Value, json};
use std::collections::HashMap;

/// A piece's part in the vocabulary, numbered as SentencePiece and GGUF number it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Normal,
    /// What no piece fits.
    Unknown,
    /// A special token.
    Control,
    /// A token that is found as a whole.
    UserDefined,
    /// A single byte.
    Byte,
}

impl Kind {
    /// From its number.
    pub fn of(number: u64) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// An entry of the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// How it is written, spaces as U+2581.
    pub text: String,
    /// Merges to pieces of a higher score come first.
    pub score: f32,
    /// Its part.
    pub kind: Kind,
}

/// tokenizer.json of pieces that merge by score (Llama's SentencePiece BPE), as transformers converts them.
pub fn bpe_json(pieces: &[Piece], dummy_prefix: bool) -> Value {
    let ids: HashMap<&str, usize> = pieces.iter().enumerate().map(|(i, p)| (p.text.as_str(), i)).collect();
    let mut merges: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
    for p in pieces.iter().filter(|p| p.kind == Kind::Normal) {
        let mut local: Vec<(usize, usize, &str, &str)> = Vec::new();
        for (at, _) in p.text.char_indices().skip(1) {
            let (l, r) = p.text.split_at(at);
            if let (Some(&a), Some(&b)) = (ids.get(l), ids.get(r)) {
                local.push((a, b, l, r));
            }
        }
        local.sort_unstable_by_key(|m| (m.0, m.1));
        merges.extend(local.into_iter().map(|(_, _, l, r)| (p.score, l.chars().count(), r.chars().count(), l, r)));
    }
    // the highest score first, and the longest of equal ones
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((b.1, b.2).cmp(&(a.1, a.2))));
    let unknown = pieces.iter().find(|p| p.kind == Kind::Unknown).map(|p| p.text.as_str());
    let vocab: serde_json::Map<String, Value> =
        pieces.iter().enumerate().map(|(i, p)| (p.text.clone(), i.into())).collect();
    let mut normalizer = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"})];
    let mut decoder = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if dummy_prefix {
        normalizer.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
        decoder.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added(pieces),
        "normalizer": {"type": "Sequence", "normalizers": normalizer}, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoder},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": pieces.iter().any(|p| p.kind == Kind::Byte),
            "ignore_merges": false, "vocab": vocab,
            "merges": merges.iter().map(|m| json!([m.3, m.4])).collect::<Vec<_>>(),
        },
    })
}

/// Entries that are found as a whole before anything is merged.
pub fn added(pieces: &[Piece]) -> Vec<Value> {
    let whole = |k: Kind| matches!(k, Kind::Unknown | Kind::Control | Kind::UserDefined);
    let entries = pieces.iter().enumerate().filter(|(_, p)| whole(p.kind));
    entries.map(|(i, p)| added_token(i, &p.text, p.kind != Kind::UserDefined)).collect()
}

fn added_token(id: usize, text: &str, special: bool) -> Value {
    json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": special})
}

/// tokenizer.json of the folder's tokenizer.model and added_tokens.json, or why not.
pub fn tokenizer_json(files: &ModelFiles) -> Result<Value, String> {
    let bytes = files.read("tokenizer.model").map_err(|e| e.to_string())?;
    let model = parse(&bytes)?;
    if !model.bpe {
        return Err("a SentencePiece model of kind unigram, which is not converted here; write tokenizer.json beside it: \
                    python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('DIR').save_pretrained('DIR')\""
            .into());
    }
    let mut json = bpe_json(&model.pieces, model.dummy_prefix);
    if files.has("added_tokens.json") {
        let text = files.text("added_tokens.json").map_err(|e| e.to_string())?;
        let more: HashMap<String, usize> =
            serde_json::from_str(&text).map_err(|e| format!("added_tokens.json beside it: {e}"))?;
        let mut more: Vec<_> = more.into_iter().collect();
        more.sort_by_key(|m| m.1);
        if let Some(list) = json["added_tokens"].as_array_mut() {
            list.extend(more.into_iter().filter(|m| m.1 >= model.pieces.len()).map(|m| added_token(m.1, &m.0, true)));
        }
    }
    Ok(json)
}

struct Model {
    pieces: Vec<Piece>,
    bpe: bool,
    dummy_prefix: bool,
}

/// sentencepiece_model.proto: pieces = 1 {piece = 1, score = 2, type = 3}, trainer_spec = 2 {model_type = 3},
/// normalizer_spec = 3 {add_dummy_prefix = 3}.
fn parse(bytes: &[u8]) -> Result<Model, String> {
    let mut m = Model { pieces: Vec::new(), bpe: false, dummy_prefix: true };
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(piece)) => {
                let mut p = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
                for f in Fields(piece) {
                    match f? {
                        (1, Field::Bytes(t)) => {
                            p.text = String::from_utf8(t.to_vec()).map_err(|_| "a piece is not UTF-8".to_owned())?;
                        }
                        (2, Field::Word(w)) => p.score = f32::from_bits(w),
                        (3, Field::Number(n)) => p.kind = Kind::of(n),
                        _ => {}
                    }
                }
                m.pieces.push(p);
            }
            (2, Field::Bytes(spec)) => {
                for f in Fields(spec) {
                    if let (3, Field::Number(n)) = f? {
                        m.bpe = n == 2;
                    }
                }
            }
            (3, Field::Bytes(spec)) => {
                for f in Fields(spec) {
                    if let (3, Field::Number(n)) = f? {
                        m.dummy_prefix = n != 0;
                    }
                }
            }
            _ => {}
        }
    }
    if m.pieces.is_empty() {
        return Err("not a SentencePiece model: it holds no pieces".into());
    }
    Ok(m)
}

enum Field<'a> {
    Number(u64),
    Word(u32),
    Bytes(&'a [u8]),
    Long,
}

/// Fields of a protocol buffer.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or("the file is cut short")?;
            self.0 = rest;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err("not a SentencePiece model".into())
    }
    fn take(&mut self, n: u64) -> Result<&'a [u8], String> {
        let n = usize::try_from(n).ok().filter(|&n| n <= self.0.len()).ok_or("the file is cut short")?;
        let (part, rest) = self.0.split_at(n);
        self.0 = rest;
        Ok(part)
    }
    fn one(&mut self) -> Result<(u64, Field<'a>), String> {
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Long
            }
            2 => {
                let n = self.varint()?;
                Field::Bytes(self.take(n)?)
            }
            5 => Field::Word(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| "cut short")?)),
            _ => return Err("not a SentencePiece model".into()),
        };
        Ok((key >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), String>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let one = self.one();
        if one.is_err() {
            self.0 = &[];
        }
        Some(one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::Words;
    use std::path::Path;

    fn piece(text: &str, score: f32, kind: Kind) -> Piece {
        Piece { text: text.into(), score, kind }
    }

    #[test]
    fn pieces_merge_by_score_and_unknown_letters_fall_to_bytes() {
        let mut pieces = vec![
            piece("<unk>", 0.0, Kind::Unknown),
            piece("<s>", 0.0, Kind::Control),
            piece("</s>", 0.0, Kind::Control),
        ];
        pieces.extend((0..=255).map(|b| piece(&format!("<0x{b:02X}>"), 0.0, Kind::Byte)));
        for (i, t) in ["ab", "\u{2581}ab", "bc", "\u{2581}", "a", "b", "c"].iter().enumerate() {
            pieces.push(piece(t, -(i as f32), Kind::Normal));
        }
        let words = Words::from_bytes(Path::new("x"), bpe_json(&pieces, true).to_string().as_bytes()).unwrap();
        let written = |t: &str| -> Vec<String> {
            words.encode(t).unwrap().into_iter().map(|i| words.token(i).unwrap()).collect()
        };
        assert_eq!(written("abc"), ["\u{2581}ab", "c"]);
        assert_eq!(written("bc"), ["\u{2581}", "bc"]);
        assert_eq!(written("<s>é"), ["<s>", "\u{2581}", "<0xC3>", "<0xA9>"]);
        assert_eq!(words.decode(&words.encode("ab é c").unwrap()).unwrap(), "ab é c");
    }

    #[test]
    fn broken_files_are_errors() {
        for i in 0..4000u64 {
            let bytes: Vec<u8> = (0..40).map(|j| (nn::rng::mix(i << 8 | j) >> 20) as u8).collect();
            let _ = parse(&bytes);
        }
        assert!(parse(&[]).is_err());
    }
}
