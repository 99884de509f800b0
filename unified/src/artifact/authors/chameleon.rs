//! Chameleon's and Anole's own layout: models/7b/{consolidated.pth, params.json}, tokenizer/{vqgan.ckpt, vqgan.yaml,
//! text_tokenizer.json}.

use super::super::decoder_name;
use super::super::files::{Made, ModelFiles, Weights};
use super::Layout;
use crate::{Error, Result};
use nn::stored::Stored;
use serde::Deserialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use yaml_rust2::{Yaml, YamlLoader};

/// Section `model` of params.json; what else it holds is its training's.
#[derive(Deserialize)]
struct Params {
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: Option<usize>,
    norm_eps: f64,
    rope_theta: f64,
    #[serde(default)]
    qk_normalization: bool,
    #[serde(default)]
    swin_norm: bool,
    vocab_size: usize,
}

#[derive(Deserialize)]
struct ParamsFile {
    model: Params,
}

/// Most positions, which params.json does not say.
const POSITIONS: usize = 4096;

/// The folder of the decoder: the one given, or the only one in its `models`.
fn decoder_in(dir: &Path) -> Result<Option<PathBuf>> {
    if dir.join("config.json").is_file() {
        return Ok(None);
    }
    let is_one = |d: &Path| d.join("params.json").is_file() && d.join("consolidate_params.json").is_file();
    if is_one(dir) {
        return Ok(Some(dir.to_path_buf()));
    }
    let Ok(entries) = std::fs::read_dir(dir.join("models")) else { return Ok(None) };
    let mut all: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(|d| is_one(d)).collect();
    all.sort();
    match all.len() {
        0 => Ok(None),
        1 => Ok(all.pop()),
        n => {
            let why = format!("{n} models lie here; give one of them, as {}", all[0].display());
            Err(Error::bad_file(dir.join("models"), why))
        }
    }
}

/// The folder as one of transformers' would be, where it is one.
pub fn files(dir: &Path) -> Result<Option<ModelFiles>> {
    let Some(own) = decoder_in(dir)? else { return Ok(None) };
    let bad = |path: &Path, why: &str| Err(Error::bad_file(path, why.to_owned()));
    let decoder = own.join("consolidated.pth");
    if !decoder.is_file() {
        let why = match own.join("consolidated.00.pth").is_file() {
            true => {
                "weights in several shards (the 30B) are not read; take transformers' copy (facebook/chameleon-30b)"
            }
            false => "no such file: Chameleon's own layout has the decoder's weights in it",
        };
        return bad(&decoder, why);
    }
    let beside = [own.join("tokenizer"), own.join("../../tokenizer"), dir.join("tokenizer")];
    let Some(folder) = beside.into_iter().find(|d| d.join("vqgan.ckpt").is_file()) else {
        return bad(
            &dir.join("tokenizer/vqgan.ckpt"),
            "no such file: Chameleon's own layout has the image tokenizer there",
        );
    };
    let parsed = |path: &Path| -> Result<String> { std::fs::read_to_string(path).map_err(Error::io(path)) };
    let path = own.join("params.json");
    let ParamsFile { model: p } = qlip::config::parse_json(&path, &parsed(&path)?)?;
    if !p.qk_normalization {
        return bad(
            &path,
            "qk_normalization false is not known here: every published Chameleon has norms of queries and keys",
        );
    }
    let stored = Stored::map_files(vec![decoder.clone()])?;
    let shape = |name: &str| stored.shapes().into_iter().find(|s| s.0 == name).and_then(|s| s.1.first().copied());
    let Some(intermediate) = shape("layers.0.feed_forward.w1.weight") else {
        return bad(&decoder, "tensor `layers.0.feed_forward.w1.weight` is missing");
    };
    let text = folder.join("text_tokenizer.json");
    let words = parsed(&text)?;
    let yaml = folder.join("vqgan.yaml");
    let vq = image_tokenizer(&parsed(&yaml)?).map_err(|why| Error::bad_file(&yaml, why))?;
    let kv_heads = p.n_kv_heads.unwrap_or(p.n_heads);
    let config = json!({
        "model_type": "chameleon", "hidden_size": p.dim, "intermediate_size": intermediate, "num_hidden_layers": p.n_layers,
        "num_attention_heads": p.n_heads, "num_key_value_heads": kv_heads, "rms_norm_eps": p.norm_eps,
        "rope_theta": p.rope_theta, "swin_norm": p.swin_norm, "vocab_size": p.vocab_size, "tie_word_embeddings": false,
        "max_position_embeddings": POSITIONS, "vq_config": vq,
        "vocabulary_map": vocabulary(&words).map_err(|why| Error::bad_file(&text, why))?,
    });
    let files = [("config.json", config.to_string()), ("tokenizer.json", words)];
    Ok(Some(ModelFiles::made(Made {
        files: files.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect(),
        weights: Weights::Authors(Layout::Chameleon {
            decoder: decoder.clone(),
            tokenizer: folder.join("vqgan.ckpt"),
            heads: (p.n_heads, kv_heads),
        }),
        origin: decoder,
    })))
}

/// Entries by their writing: the model's own and those that were added.
fn vocabulary(text: &str) -> std::result::Result<serde_json::Map<String, serde_json::Value>, String> {
    let json: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let mut all = json["model"]["vocab"].as_object().ok_or("no vocabulary at model.vocab")?.clone();
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        if let Some(content) = added["content"].as_str() {
            all.insert(content.to_owned(), added["id"].clone());
        }
    }
    Ok(all)
}

/// vqgan.yaml as transformers' vq_config.
fn image_tokenizer(text: &str) -> std::result::Result<serde_json::Value, String> {
    let all = YamlLoader::load_from_str(text).map_err(|e| e.to_string())?;
    let params = &all.first().ok_or("empty")?["model"]["params"];
    let net = &params["ddconfig"];
    let number = |from: &Yaml, key: &str| {
        let n = from[key].as_i64().filter(|n| *n > 0);
        n.ok_or_else(|| format!("{key} is not a number above 0"))
    };
    let numbers = |key: &str| -> std::result::Result<Vec<i64>, String> {
        let list = net[key].as_vec().ok_or_else(|| format!("{key} is not a list"))?;
        list.iter()
            .map(|v| v.as_i64().filter(|n| *n > 0).ok_or_else(|| format!("{key} holds what is no number")))
            .collect()
    };
    Ok(json!({
        "embed_dim": number(params, "embed_dim")?, "num_embeddings": number(params, "n_embed")?,
        "latent_channels": number(net, "z_channels")?, "resolution": number(net, "resolution")?,
        "in_channels": number(net, "in_channels")?, "out_channels": number(net, "out_ch")?,
        "base_channels": number(net, "ch")?, "channel_multiplier": numbers("ch_mult")?,
        "num_res_blocks": number(net, "num_res_blocks")?, "attn_resolutions": numbers("attn_resolutions")?,
        "double_latent": net["double_z"].as_bool().unwrap_or(false),
    }))
}

/// transformers' names of the decoder's tensors.
fn published(name: &str) -> String {
    let fixed = [
        ("tok_embeddings.weight", "model.embed_tokens.weight"),
        ("norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
    ];
    let parts = [
        ("attention.wq", "self_attn.q_proj"),
        ("attention.wk", "self_attn.k_proj"),
        ("attention.wv", "self_attn.v_proj"),
        ("attention.wo", "self_attn.o_proj"),
        ("attention.q_normalization", "self_attn.q_norm"),
        ("attention.k_normalization", "self_attn.k_norm"),
        ("feed_forward.w1", "mlp.gate_proj"),
        ("feed_forward.w3", "mlp.up_proj"),
        ("feed_forward.w2", "mlp.down_proj"),
        ("attention_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
    ];
    decoder_name(name, &fixed, "layers.", &parts)
}

/// Its tensors under transformers' names and in transformers' order of rows.
pub fn tensors(decoder: &Path, tokenizer: &Path, (heads, kv_heads): (usize, usize)) -> Result<Stored> {
    let mut stored = Stored::map_files(vec![decoder.to_path_buf()])?.renamed(published);
    let names: Vec<String> = stored.shapes().iter().map(|s| s.0.to_owned()).collect();
    for name in names {
        let heads = if name.contains("self_attn.q_") { heads } else { kv_heads };
        if name.ends_with("self_attn.q_proj.weight") || name.ends_with("self_attn.k_proj.weight") {
            stored.part_pairs(&name, heads)?;
        } else if name.contains("self_attn.q_norm.") || name.contains("self_attn.k_norm.") {
            stored.part_pairs_of_all(&name, heads)?;
        }
    }
    let vq = Stored::map_files(vec![tokenizer.to_path_buf()])?;
    // the discriminator and the losses of its training are no part of the model
    let parts = ["encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv."];
    let vq = vq.filtered(|name| parts.iter().any(|p| name.starts_with(p)));
    stored.filtered(|name| name != "rope.freqs").and(vq.renamed(|name| format!("model.vqmodel.{name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_is_read_in_both_ways_of_writing_lists() {
        let text = |mult: &str| {
            format!(
                "model:\n  target: taming.models.vqgan.VQModel\n  params:\n    embed_dim: 256\n    n_embed: 8192\n    ddconfig:\n      \
                 double_z: false\n      z_channels: 256\n      resolution: 512\n      in_channels: 3\n      out_ch: 3\n      ch: 128\n      \
                 ch_mult: {mult}\n      num_res_blocks: 2\n      attn_resolutions: []\n      dropout: 0.0\n"
            )
        };
        let flow = image_tokenizer(&text("[1, 1, 2, 2, 4]")).unwrap();
        let block = image_tokenizer(&text("\n      - 1\n      - 1\n      - 2\n      - 2\n      - 4")).unwrap();
        assert_eq!(flow, block);
        assert_eq!(flow["channel_multiplier"], json!([1, 1, 2, 2, 4]));
        assert_eq!(image_tokenizer(&text("[1, x]")).unwrap_err(), "ch_mult holds what is no number");
        assert!(image_tokenizer("model: {}").unwrap_err().contains("embed_dim"));
    }
}
