//! A model folder on disk, or its files fetched from the hub by id.

use hf_hub::HFError;
use nn::{Error, Result};
use std::path::{Path, PathBuf};

/// Files of a checkpoint that are fetched when the hub has them.
const OPTIONAL: &[&str] = &[
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
];

/// The image tokenizer inside a unified model, as far as the hub has it.
const IMAGE_TOKENIZER: &[&str] =
    &["qlip/config.json", "qlip/preprocessor_config.json", "qlip/tokenizer.json", "qlip/model.safetensors"];

/// The folder of a model: a path that exists, or a hub id `owner/name` or `owner/name@revision`, which is downloaded to
/// the hub's cache. With HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE true (1, True, on, ..) only the cache is asked.
pub fn resolve(model: &str) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let (id, revision) = match model.split_once('@') {
        Some((id, r)) => (id, Some(r.to_owned())),
        None => (model, None),
    };
    let parts: Vec<&str> = id.split('/').collect();
    let plain = |s: &&str| {
        !s.is_empty() && !s.starts_with('.') && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    if parts.len() != 2 || !parts.iter().all(plain) || path.exists() {
        return Err(Error::invalid(format!(
            "model `{model}`: no such folder, and not a hub id of the form owner/name"
        )));
    }
    fetch(id, parts[0], parts[1], revision)
}

/// Every spelling of true that transformers and the hub's own client take.
fn is_true(value: &str) -> bool {
    ["1", "true", "yes", "on", "y", "t"].contains(&value.trim().to_ascii_lowercase().as_str())
}

fn fetch(id: &str, owner: &str, name: &str, revision: Option<String>) -> Result<PathBuf> {
    let offline =
        ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].iter().any(|name| std::env::var(name).is_ok_and(|v| is_true(&v)));
    let failed = |what: &str, e: String| {
        let hint = if offline {
            "HF_HUB_OFFLINE is set and the cache lacks it"
        } else {
            "is the id right and the network up? a folder works too"
        };
        Error::invalid(format!("model `{id}`, file {what}: {e} ({hint})"))
    };
    let client = hf_hub::HFClientSync::new().map_err(|e| failed("-", e.to_string()))?;
    let repo = client.model(owner, name);
    let get = |file: &str| {
        repo.download_file().filename(file).maybe_revision(revision.clone()).local_files_only(offline).send()
    };
    let config = get("config.json").map_err(|e| failed("config.json", e.to_string()))?;
    let text = std::fs::read_to_string(&config).map_err(Error::io(&config))?;
    let unified = serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|json| json["model_type"] == "um3");
    let wanted = OPTIONAL.iter().chain(if unified { IMAGE_TOKENIZER } else { &[] });
    for file in wanted {
        match get(file) {
            Ok(_) => {}
            // not in the repository, or not in the cache that alone may be asked
            Err(HFError::EntryNotFound { .. } | HFError::LocalEntryNotFound { .. }) => {}
            Err(e) => return Err(failed(file, e.to_string())),
        }
    }
    let dir = config.parent().unwrap_or(Path::new(".")).to_path_buf();
    let index = dir.join("model.safetensors.index.json");
    if !index.exists() {
        get("model.safetensors").map_err(|e| failed("model.safetensors", e.to_string()))?;
        return Ok(dir);
    }
    let text = std::fs::read_to_string(&index).map_err(Error::io(&index))?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| Error::bad_file(&index, e.to_string()))?;
    let shards: std::collections::BTreeSet<&str> =
        json["weight_map"].as_object().into_iter().flatten().filter_map(|(_, v)| v.as_str()).collect();
    for shard in shards {
        get(shard).map_err(|e| failed(shard, e.to_string()))?;
    }
    Ok(dir)
}
