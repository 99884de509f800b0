//! Models of the hub by their id, fetched into the hub's cache.

use super::published::TOKENIZERS;
use super::{BESIDE_WEIGHTS, PARTS, adapter};
use hf_hub::HFError;
use nn::{Error, Result};
use std::cell::Cell;
use std::path::{Path, PathBuf};

/// Chameleon's and Anole's own layout.
const CHAMELEON: [&str; 6] = [
    "models/7b/params.json",
    "models/7b/consolidate_params.json",
    "models/7b/consolidated.pth",
    "tokenizer/text_tokenizer.json",
    "tokenizer/vqgan.yaml",
    "tokenizer/vqgan.ckpt",
];

/// Names of weights, the wanted first: one file, or an index of shards.
const WEIGHTS: &[&str] =
    &["model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin"];

/// The place of `owner/name[@revision]` in the cache, or of `owner/name[@revision]/file`. With HF_HUB_OFFLINE or
/// TRANSFORMERS_OFFLINE true (1, True, on, ..), or the network down, the cache alone serves.
pub fn fetch(model: &str) -> Result<PathBuf> {
    let mut parts = model.splitn(3, '/');
    let (owner, name, file) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next());
    let (name, revision) = match name.split_once('@') {
        Some((name, r)) => (name, Some(r.to_owned())),
        None => (name, None),
    };
    if !plain(owner) || !plain(name) || !file.is_none_or(|f| f.split('/').all(plain)) {
        return Err(Error::invalid(format!(
            "model `{model}`: no such folder or file, and not a hub id of the form owner/name or owner/name@revision"
        )));
    }
    let client = hf_hub::HFClientSync::new().map_err(|e| Error::invalid(format!("the hub's client: {e}")))?;
    let repo = Repository {
        asked: model.to_owned(),
        repo: client.model(owner, name),
        revision,
        offline: Cell::new(is_offline()),
    };
    match file {
        Some(file) => repo.file(file),
        None => repo.folder(),
    }
}

/// The place in the cache of `datasets/OWNER/NAME[@revision][/folder or file]`, fetched where it is not there yet.
pub fn dataset(place: &str) -> Result<PathBuf> {
    let wrong = || Error::invalid(format!("hf://{place}: write hf://datasets/OWNER/NAME[@REVISION][/FOLDER]"));
    let mut parts = place.strip_prefix("datasets/").ok_or_else(wrong)?.splitn(3, '/');
    let (Some(owner), Some(name), below) = (parts.next(), parts.next(), parts.next()) else { return Err(wrong()) };
    let (name, revision) = name.split_once('@').map_or((name, None), |(n, r)| (n, Some(r.to_owned())));
    let below = below.unwrap_or_default().trim_end_matches('/');
    if !plain(owner) || !plain(name) || !(below.is_empty() || below.split('/').all(plain)) {
        return Err(wrong());
    }
    let client = hf_hub::HFClientSync::new().map_err(|e| Error::invalid(format!("the hub's client: {e}")))?;
    let repo = client.dataset(owner, name);
    let wanted = (!below.is_empty()).then(|| vec![below.to_owned(), format!("{below}/**")]);
    let ask = |cache_alone: bool| {
        let ask = repo.snapshot_download().maybe_revision(revision.clone()).maybe_allow_patterns(wanted.clone());
        ask.local_files_only(cache_alone).send()
    };
    let offline = is_offline();
    // what was fetched before serves where nobody answers
    let found = ask(offline).or_else(|e| match ask(true) {
        Ok(path) if !offline && e.to_string().contains("error sending request") => Ok(path),
        _ => Err(e),
    });
    let root = found.map_err(|e| failed(&format!("data hf://{place}"), &e.to_string(), offline))?;
    let path = root.join(below);
    match path.exists() {
        true => Ok(path),
        false => Err(failed(&format!("data hf://{place}"), "the repository has no such file or folder", offline)),
    }
}

fn is_offline() -> bool {
    ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].iter().any(|name| std::env::var(name).is_ok_and(|v| is_true(&v)))
}

/// Whether a part of an id or a path has nothing that leads elsewhere.
fn plain(s: &str) -> bool {
    !s.is_empty() && !s.starts_with('.') && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// Why the hub gave nothing, and what to do.
fn failed(what: &str, why: &str, offline: bool) -> Error {
    let why = why.lines().next().unwrap_or_default();
    let refused = ["401", "403", "Authentication", "Gated", "Forbidden"].iter().any(|w| why.contains(w));
    let hint = match offline {
        true => "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set and the cache lacks it",
        false if refused => "set HF_TOKEN to a token that may read it",
        false => "is the id right and the network up? a folder works too",
    };
    Error::invalid(format!("{what}: {why} ({hint})"))
}

/// Every spelling of true that transformers and the hub's own client take.
fn is_true(value: &str) -> bool {
    ["1", "true", "yes", "on", "y", "t"].contains(&value.trim().to_ascii_lowercase().as_str())
}

struct Repository {
    /// What was asked for, for messages.
    asked: String,
    repo: hf_hub::HFRepositorySync<hf_hub::RepoTypeModel>,
    revision: Option<String>,
    /// Whether the cache alone is asked: as the environment says, or because the network was found to be down.
    offline: Cell<bool>,
}

impl Repository {
    fn ask(&self, file: &str, cache_alone: bool) -> std::result::Result<PathBuf, HFError> {
        let revision = self.revision.clone();
        self.repo.download_file().filename(file).maybe_revision(revision).local_files_only(cache_alone).send()
    }

    /// A file's place; nothing if the repository (or the cache, where it alone is asked) has none.
    fn find(&self, file: &str) -> Result<Option<PathBuf>> {
        let absent = |e: &HFError| matches!(e, HFError::EntryNotFound { .. } | HFError::LocalEntryNotFound { .. });
        match self.ask(file, self.offline.get()) {
            Ok(path) => Ok(Some(path)),
            Err(e) if absent(&e) => Ok(None),
            // the network is down: what was fetched before serves
            Err(e) if !self.offline.get() => {
                let nobody = e.to_string().contains("error sending request");
                let cached = self.ask(file, true).ok();
                if cached.is_some() || (nobody && self.ask("config.json", true).is_ok()) {
                    // and the other files are not waited for
                    self.offline.set(true);
                    return Ok(cached);
                }
                Err(self.failed(file, &e.to_string()))
            }
            Err(e) => Err(self.failed(file, &e.to_string())),
        }
    }

    fn need(&self, file: &str) -> Result<PathBuf> {
        self.find(file)?.ok_or_else(|| self.failed(file, "the repository has no such file"))
    }

    fn failed(&self, what: &str, why: &str) -> Error {
        let what = format!("model `{}`: no such folder or file here; at the hub, file {what}", self.asked);
        failed(&what, why, self.offline.get())
    }

    /// One file, and what a model in it needs beside it.
    fn file(&self, file: &str) -> Result<PathBuf> {
        let path = self.need(file)?;
        if file.ends_with(".pt") && !TOKENIZERS.contains(&file) {
            let wanted = if file.starts_with("t2i") { TOKENIZERS[1] } else { TOKENIZERS[0] };
            self.find(wanted)?;
        }
        Ok(path)
    }

    /// A model's folder.
    fn folder(&self) -> Result<PathBuf> {
        let Some(config) = self.find("config.json")? else {
            if let Some(params) = self.find(CHAMELEON[0])? {
                for file in &CHAMELEON[1..] {
                    self.need(file)?;
                }
                return Ok(params.ancestors().nth(3).unwrap_or(Path::new(".")).to_path_buf());
            }
            if let Some(config) = self.find(adapter::CONFIG)? {
                let [safe, torch] = adapter::WEIGHTS;
                if self.find(safe)?.is_none() {
                    self.need(torch)?;
                }
                return Ok(config.parent().unwrap_or(Path::new(".")).to_path_buf());
            }
            let why = "the repository has no such file; name one of its files, as owner/name/model.gguf";
            return Err(self.failed("config.json", why));
        };
        let dir = config.parent().unwrap_or(Path::new(".")).to_path_buf();
        for file in BESIDE_WEIGHTS.iter().chain(&["emu3.tiktoken"]) {
            self.find(file)?;
        }
        self.weights("")?;
        for part in PARTS {
            if self.find(&format!("{part}/config.json"))?.is_none() {
                continue;
            }
            for file in ["preprocessor_config.json", "tokenizer.json"] {
                self.find(&format!("{part}/{file}"))?;
            }
            self.weights(&format!("{part}/"))?;
        }
        Ok(dir)
    }

    fn weights(&self, below: &str) -> Result<()> {
        for name in WEIGHTS {
            let Some(path) = self.find(&format!("{below}{name}"))? else { continue };
            if name.ends_with(".index.json") {
                for shard in nn::checkpoint::shards(&path)? {
                    self.need(&format!("{below}{shard}"))?;
                }
            }
            return Ok(());
        }
        Err(self.failed(&format!("{below}model.safetensors"), "the repository has no weights by any known name"))
    }
}
