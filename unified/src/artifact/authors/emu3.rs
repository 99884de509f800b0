//! Emu3's own layout: Emu3-Chat, Emu3-Gen and Emu3-Stage1 hold the decoder and emu3.tiktoken, Emu3-VisionTokenizer the image tokenizer.

use super::super::files::{Made, ModelFiles, Weights};
use super::{Layout, tiktoken};
use crate::{Error, Result};
use nn::checkpoint;
use nn::stored::Stored;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The image tokenizer's repository.
const TOKENIZER: &str = "Emu3-VisionTokenizer";

/// Special entries behind those of emu3.tiktoken: three and 205 extras (Emu3Tokenizer), then the pictures'.
const EXTRAS: usize = 205;

/// More rows than any vocabulary has: a config may promise what no file holds.
const MOST_ROWS: u64 = 1 << 24;

/// Keys of the image tokenizer's config.json.
#[derive(Deserialize)]
struct Tokenizer {
    ch: usize,
    ch_mult: Vec<usize>,
    codebook_size: usize,
    embed_dim: usize,
    z_channels: usize,
    #[serde(default)]
    double_z: bool,
    in_channels: usize,
    out_channels: usize,
    num_res_blocks: usize,
    #[serde(default)]
    attn_resolutions: Vec<usize>,
    temporal_downsample_factor: usize,
}

/// Ids of marks in the decoder's config.json, each with its writing.
const MARKS: [(&str, &str); 8] = [
    ("bos_token_id", "<|extra_203|>"),
    ("eos_token_id", "<|extra_204|>"),
    ("pad_token_id", "<|endoftext|>"),
    ("img_token_id", "<|image token|>"),
    ("boi_token_id", "<|image start|>"),
    ("eoi_token_id", "<|image end|>"),
    ("eol_token_id", "<|extra_200|>"),
    ("eof_token_id", "<|extra_201|>"),
];

/// The folder as one of transformers' would be, where it is one.
pub fn files(dir: &Path) -> Result<Option<ModelFiles>> {
    let path = dir.join("config.json");
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(None) };
    let Ok(mut config) = serde_json::from_str::<Value>(&text) else { return Ok(None) };
    match config["model_type"].as_str() {
        Some("Emu3") => {}
        Some("Emu3VisionVQ") => {
            let why = "this is Emu3's image tokenizer; give the decoder's folder (Emu3-Chat, Emu3-Gen), with this one beside it";
            return Err(Error::bad_file(&path, why));
        }
        _ => return Ok(None),
    }
    let tokenizer = tokenizer_beside(dir)?;
    let vq_path = tokenizer.join("config.json");
    let vq_text = std::fs::read_to_string(&vq_path).map_err(Error::io(&vq_path))?;
    let vq: Tokenizer = qlip::config::parse_json(&vq_path, &vq_text)?;
    let bad = |why: String| Error::bad_file(&path, why);
    let mut vocabulary = serde_json::Map::new();
    for (key, writing) in MARKS {
        let id = config[key].as_u64().ok_or_else(|| bad(format!("{key} is missing")))?;
        vocabulary.insert(writing.to_owned(), id.into());
    }
    // the authors need no mark that stands for a picture's tokens: the entry behind the first special one (<|im_start|>), which they
    // never use, is transformers' here
    let after = |key: &str| config[key].as_u64().unwrap_or(0).saturating_add(1);
    vocabulary.insert("<image>".into(), after("pad_token_id").into());
    // the codes follow the mark of a picture's end
    let first = after("eoi_token_id");
    let rows = config["vocab_size"].as_u64().unwrap_or(0);
    if first.saturating_add(vq.codebook_size as u64) > rows.min(MOST_ROWS) {
        return Err(bad(format!("vocab_size {rows} has no room for {} codes behind eoi_token_id", vq.codebook_size)));
    }
    for code in 0..vq.codebook_size as u64 {
        vocabulary.insert(format!("<|visual token {code:06}|>"), (first + code).into());
    }
    let mut files = std::collections::BTreeMap::new();
    let copied = [(dir, "generation_config.json"), (dir, "tokenizer.json"), (&tokenizer, "preprocessor_config.json")];
    for (folder, name) in copied {
        let file = folder.join(name);
        if file.is_file() {
            files.insert(name.to_owned(), std::fs::read(&file).map_err(Error::io(&file))?);
        }
    }
    let ranks = dir.join("emu3.tiktoken");
    if !files.contains_key("tokenizer.json") && ranks.is_file() {
        let text = std::fs::read_to_string(&ranks).map_err(Error::io(&ranks))?;
        let json = tiktoken::tokenizer_json(&text, tiktoken::QWEN, &special(vq.codebook_size));
        let json = json.map_err(|why| Error::bad_file(&ranks, why))?;
        // a picture's size is told in words, so the words' entries are wanted too
        for (word, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
            vocabulary.entry(word.clone()).or_insert(id.clone());
        }
        files.insert("tokenizer.json".into(), json.to_string().into_bytes());
    }
    if let Some(root) = config.as_object_mut() {
        // what belongs to pictures and to loading is said elsewhere
        root.retain(|key, _| !["architectures", "auto_map", "image_area", "model_type"].contains(&key.as_str()));
        root.retain(|key, _| !["img_", "boi_", "eoi_", "eol_", "eof_"].iter().any(|p| key.starts_with(p)));
    }
    let made = json!({
        "model_type": "emu3", "text_config": config, "vocabulary_map": vocabulary,
        "vq_config": {
            "codebook_size": vq.codebook_size, "embed_dim": vq.embed_dim, "latent_channels": vq.z_channels,
            "double_latent": vq.double_z, "base_channels": vq.ch, "channel_multiplier": vq.ch_mult,
            "num_res_blocks": vq.num_res_blocks, "attn_resolutions": vq.attn_resolutions, "in_channels": vq.in_channels,
            "out_channels": vq.out_channels, "temporal_downsample_factor": vq.temporal_downsample_factor,
        },
    });
    files.insert("config.json".to_owned(), made.to_string().into_bytes());
    Ok(Some(ModelFiles::made(Made {
        origin: path,
        files,
        weights: Weights::Authors(Layout::Emu3 { decoder: dir.to_path_buf(), tokenizer }),
    })))
}

/// Special entries in their order (Emu3Tokenizer, emu3_vision_tokens.txt).
fn special(codes: usize) -> Vec<String> {
    let first = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned);
    let extras = (0..EXTRAS).map(|i| format!("<|extra_{i}|>"));
    let marks = ["<|image token|>", "<|image start|>", "<|image end|>"].map(str::to_owned);
    let codes = (0..codes).map(|c| format!("<|visual token {c:06}|>"));
    first.into_iter().chain(extras).chain(marks).chain(codes).collect()
}

/// The image tokenizer's folder: in the decoder's, beside it, or in the hub's cache.
fn tokenizer_beside(dir: &Path) -> Result<PathBuf> {
    let around = [dir.join(TOKENIZER), dir.join("vision_tokenizer"), dir.join("..").join(TOKENIZER)];
    if let Some(found) = around.into_iter().find(|d| d.join("config.json").is_file()) {
        return Ok(found);
    }
    // a decoder that came from the hub has its tokenizer there
    if dir.components().any(|c| c.as_os_str().to_string_lossy().starts_with("models--BAAI--Emu3")) {
        return super::super::fetched(&format!("BAAI/{TOKENIZER}"));
    }
    let why = format!("no such folder: Emu3's own layout keeps the image tokenizer apart; put BAAI/{TOKENIZER} there");
    Err(Error::bad_file(dir.join(TOKENIZER), why))
}

/// Its tensors under transformers' names; an image tokenizer's are understood as they are (qlip::vq::llamagen_name).
pub fn tensors(decoder: &Path, tokenizer: &Path) -> Result<Stored> {
    let words = Stored::map_files(checkpoint::files_of(decoder)?)?.renamed(|name| match name.strip_prefix("model.") {
        Some(rest) => format!("model.text_model.{rest}"),
        None => name.to_owned(),
    });
    words.and(Stored::map_files(checkpoint::files_of(tokenizer)?)?.renamed(|name| format!("model.vqmodel.{name}")))
}
