//! Text tokenizers in tiktoken's format: an entry's bytes in base64 and its rank, a line each; pairs of lower rank merge first.

use base64::Engine;
use serde_json::{Value, json};
use std::collections::HashMap;

/// How Qwen's tokenizer cuts words, which Emu3 took over.
pub const QWEN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// tokenizer.json of ranks; `special` follow the last rank.
pub fn tokenizer_json(text: &str, pattern: &str, special: &[String]) -> Result<Value, String> {
    let mut ranks: HashMap<Vec<u8>, u32> = HashMap::new();
    for (n, line) in text.lines().enumerate().filter(|l| !l.1.trim().is_empty()) {
        let bad = || format!("line {}: not an entry in base64 and its rank", n + 1);
        let (entry, rank) = line.split_once(' ').ok_or_else(bad)?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(entry).map_err(|_| bad())?;
        ranks.insert(bytes, rank.trim().parse().map_err(|_| bad())?);
    }
    let mut all: Vec<(&Vec<u8>, u32)> = ranks.iter().map(|(b, r)| (b, *r)).collect();
    all.sort_unstable_by_key(|e| e.1);
    if all.iter().enumerate().any(|(i, e)| e.1 as usize != i) {
        return Err("ranks are not 0, 1, 2 ..".into());
    }
    let letters = letters();
    let written = |bytes: &[u8]| -> String { bytes.iter().map(|b| letters[*b as usize]).collect() };
    let mut merges = Vec::new();
    for (bytes, rank) in all.iter().filter(|e| e.0.len() > 1) {
        let parts = before(bytes, *rank, &ranks);
        // an entry that no pair makes is found by nobody; tiktoken finds it as a whole word, which ignore_merges does
        if let [a, b] = parts.as_slice() {
            merges.push(json!([written(a), written(b)]));
        }
    }
    let vocab: serde_json::Map<String, Value> = all.iter().map(|(b, r)| (written(b), (*r).into())).collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(i, s)| {
            json!({"id": all.len() + i, "content": s, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes]}, "post_processor": null, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": true, "vocab": vocab, "merges": merges,
        },
    }))
}

/// The parts of an entry just before its own merge: pairs of lower rank are merged, lowest first.
fn before<'a>(bytes: &'a [u8], rank: u32, ranks: &HashMap<Vec<u8>, u32>) -> Vec<&'a [u8]> {
    let mut ends: Vec<usize> = (0..=bytes.len()).collect();
    while ends.len() > 3 {
        let pair = |i: usize| ranks.get(&bytes[ends[i]..ends[i + 2]]).copied().filter(|r| *r < rank);
        let lowest = (0..ends.len() - 2).filter_map(|i| Some((pair(i)?, i))).min();
        let Some((_, i)) = lowest else { break };
        ends.remove(i + 1);
    }
    ends.windows(2).map(|w| &bytes[w[0]..w[1]]).collect()
}

/// GPT-2's letters for bytes.
fn letters() -> [char; 256] {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut out = ['\0'; 256];
    let mut next = 256;
    for b in 0..=255u8 {
        out[b as usize] = if plain(b) {
            char::from(b)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or('\0')
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::Words;
    use std::path::Path;

    /// tests/fixtures/tiktoken/make.py: small ranks, and what the package `tiktoken` makes of texts with them.
    #[test]
    fn equals_the_package() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiktoken");
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        let special = vec!["<|endoftext|>".to_owned(), "<|image start|>".to_owned()];
        let json = tokenizer_json(&read("small.tiktoken"), QWEN, &special).unwrap();
        let words = Words::from_bytes(Path::new("small"), json.to_string().as_bytes()).unwrap();
        let cases: Vec<(String, Vec<lm::Token>)> = serde_json::from_str(&read("cases.json")).unwrap();
        assert!(cases.len() > 20);
        for (text, ids) in &cases {
            assert_eq!(&words.encode(text).unwrap(), ids, "{text:?}");
        }
    }

    #[test]
    fn damage_is_named_by_line() {
        assert_eq!(
            tokenizer_json("YQ== 0\n???", QWEN, &[]).unwrap_err(),
            "line 2: not an entry in base64 and its rank"
        );
        assert_eq!(tokenizer_json("YQ== 1", QWEN, &[]).unwrap_err(), "ranks are not 0, 1, 2 ..");
    }
}
