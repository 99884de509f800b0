//! What a person names as a model - a folder, a file, a hub id, nothing - opened once, for every command, training and test:
//! which architecture it is, its files, its parts.

pub mod adapter;
mod architecture;
mod authors;
mod files;
mod gguf;
#[cfg(feature = "hub")]
mod hub;
mod published;
mod sentencepiece;

pub use architecture::{ALL, Architecture, Can};
pub use files::{ModelFiles, Placement, device, placement};

use crate::words::Words;
use crate::{Error, Result};
use nn::stored::Stored;
use nn::{Params, checkpoint};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Files of a model beside its weights.
pub const BESIDE_WEIGHTS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "added_tokens.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "training.toml",
    "classes.json",
];

/// Folders of a model's parts.
pub const PARTS: &[&str] = &["qlip", "vq", "t5"];

/// A model's files, and what they are.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// Where its files are.
    pub files: ModelFiles,
    /// What config.json says it is.
    pub architecture: Architecture,
}

impl Artifact {
    /// Opens a folder; a file of a published model that needs no config.json (.gguf, LlamaGen's .pt); or a hub id
    /// `owner/name`, `owner/name@revision`, either with `/file` behind it, which is downloaded to the hub's cache.
    pub fn open(model: &str) -> Result<Self> {
        let path = Path::new(model);
        if path.exists() {
            return Self::at(path);
        }
        Self::at(&fetched(model)?)
    }

    /// Opens a folder or file of this machine.
    pub fn at(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let made = match adapter::files(path)? {
                None => authors::files(path)?,
                made => made,
            };
            return Self::of(made.unwrap_or_else(|| ModelFiles::Dir(path.to_path_buf())));
        }
        let beside = path.parent().filter(|p| p.join("config.json").is_file());
        let ends = |e: &str| path.extension().is_some_and(|x| x.eq_ignore_ascii_case(e));
        if ends("gguf") {
            return Self::of(gguf::files(path)?);
        }
        match beside {
            // a file of a model's folder stands for the folder
            Some(folder) if ends("safetensors") || path.ends_with("pytorch_model.bin") => {
                Self::of(ModelFiles::Dir(folder.to_path_buf()))
            }
            _ if ends("pt") || ends("pth") || ends("bin") => Self::of(published::files(path)?),
            _ => {
                let why = "a file of tensors tells no architecture; give the folder in which its config.json is";
                Err(Error::bad_file(path, why))
            }
        }
    }

    /// The nano model that this library carries.
    pub fn nano() -> Result<Self> {
        Self::of(ModelFiles::nano())
    }

    /// What these files are.
    pub fn of(files: ModelFiles) -> Result<Self> {
        let path = files.path_of("config.json");
        if !files.has("config.json") {
            let why = match files.has("params.json") || files.has("consolidated.00.pth") {
                true => {
                    "no such file: this is Meta's own layout (params.json, consolidated.*.pth); convert it with transformers' \
                     convert_llama_weights_to_hf.py, or take the copy on the hub that has a config.json"
                }
                false => "no such file: a model's folder has one",
            };
            return Err(Error::bad_file(path, why));
        }
        let json: serde_json::Value =
            serde_json::from_str(&files.text("config.json")?).map_err(|e| Error::bad_file(&path, e.to_string()))?;
        let architecture = Architecture::of(&json).map_err(|why| Error::bad_file(&path, why))?;
        Ok(Self { files, architecture })
    }

    /// config.json, read as this architecture's configuration.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T> {
        qlip::config::parse_json(&self.files.path_of("config.json"), &self.files.text("config.json")?)
    }

    /// Its tensors, as they are named in the files.
    pub fn tensors(&self) -> Result<Stored> {
        self.files.weights()
    }

    /// Its tensors for layers to take.
    pub fn params(&self, at: &Placement) -> Result<Params> {
        let origin = self.files.weights_path().display().to_string();
        let params = Params::from_tensors(origin, self.tensors()?, at.dtype, &at.device).stored_as(at.weights);
        Ok(params.adapted(self.files.adapter()))
    }

    /// A folder in it with a config.json of its own; nothing where there is none.
    pub fn part(&self, name: &str) -> Result<Option<Self>> {
        let files = self.files.part(name);
        files.has("config.json").then(|| Self::of(files)).transpose()
    }

    /// The image tokenizer that belongs to it: the one that config.json names, or a folder or published file in its folder;
    /// itself where it is one.
    pub fn image_tokenizer(&self) -> Result<Option<Self>> {
        if self.architecture.can().tokenize {
            return Ok(Some(self.clone()));
        }
        let json: serde_json::Value = self.config()?;
        let named = json["image_tokenizer"].as_str();
        for name in named.into_iter().chain(["vq", "qlip"]) {
            if let Some(part) = self.part(name)? {
                return Ok(Some(part));
            }
        }
        published::tokenizer_in(&self.files.folder()).map(|file| Self::at(&file)).transpose()
    }

    /// The T5 encoder in its folder, where there is one.
    pub fn text_encoder(&self) -> Result<Option<Self>> {
        self.part("t5")
    }

    /// Its text tokenizer.
    pub fn text_tokenizer(&self) -> Result<Words> {
        text_tokenizer(&self.files)
    }

    /// A name for exactly these weights and settings: of small files all bytes, of large ones their size and both ends.
    pub fn fingerprint(&self) -> Result<String> {
        const END: usize = 1 << 20;
        let mut sum = Sha256::new();
        sum.update(self.files.text("config.json")?.as_bytes());
        for file in self.files.weight_files()? {
            let file = match file {
                Ok(path) => nn::stored::map(&path)?,
                Err(bytes) => {
                    sum.update(bytes);
                    continue;
                }
            };
            sum.update(file.len().to_le_bytes());
            if file.len() <= 256 * END {
                sum.update(&file[..]);
            } else {
                sum.update(&file[..END]);
                sum.update(&file[file.len() - END..]);
            }
        }
        Ok(sum.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect())
    }

    /// Writes a copy of it into a folder: its files, and its tensors as one file.
    pub fn copy_to(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        for name in ["config.json", "preprocessor_config.json", "tokenizer.json"] {
            if self.files.has(name) {
                checkpoint::write_atomic(&dir.join(name), &self.files.read(name)?)?;
            }
        }
        let to = dir.join("model.safetensors");
        if self.files.has("model.safetensors") {
            return checkpoint::write_atomic(&to, &self.files.read("model.safetensors")?);
        }
        checkpoint::save(&to, &self.tensors()?.into_memory()?.into_iter().collect(), &[])
    }

    /// Whether it can do something, or one line that says what it is instead.
    pub fn must(&self, what: &str, can: bool) -> Result<()> {
        if can {
            return Ok(());
        }
        let (name, says) = (self.files.folder().display().to_string(), self.architecture.says());
        Err(Error::Unsupported(format!("{name} is a {says}; it cannot {what}")))
    }
}

/// transformers' name of a Llama-like decoder's tensor: one of the `fixed` ones, or `layers`, a number and one of the `parts`.
fn decoder_name(name: &str, fixed: &[(&str, &str)], layers: &str, parts: &[(&str, &str)]) -> String {
    let named = |all: &[(&str, &str)], name: &str| all.iter().find(|f| f.0 == name).map(|f| f.1.to_owned());
    let in_layer = || {
        let (i, rest) = name.strip_prefix(layers)?.split_once('.')?;
        let (part, kind) = rest.rsplit_once('.')?;
        Some(format!("model.layers.{i}.{}.{kind}", named(parts, part)?))
    };
    named(fixed, name).or_else(in_layer).unwrap_or_else(|| name.to_owned())
}

/// The text tokenizer among a model's files: tokenizer.json, or SentencePiece's tokenizer.model.
pub fn text_tokenizer(files: &ModelFiles) -> Result<Words> {
    if !files.has("tokenizer.json") && files.has("tokenizer.model") {
        let path = files.path_of("tokenizer.model");
        let made = sentencepiece::tokenizer_json(files).map_err(|why| Error::bad_file(&path, why))?;
        return Words::from_bytes(&path, made.to_string().as_bytes());
    }
    if !files.has("tokenizer.json") {
        let why = "no such file: a chat needs the text tokenizer (tokenizer.json or tokenizer.model)";
        return Err(Error::bad_file(files.path_of("tokenizer.json"), why));
    }
    Words::from_bytes(&files.path_of("tokenizer.json"), &files.read("tokenizer.json")?)
}

#[cfg(feature = "hub")]
fn fetched(model: &str) -> Result<PathBuf> {
    hub::fetch(model)
}

#[cfg(not(feature = "hub"))]
fn fetched(model: &str) -> Result<PathBuf> {
    Err(Error::invalid(format!("model `{model}`: no such folder or file (this build has no feature `hub`)")))
}

/// The place on this machine of `hf://`'s rest, `datasets/OWNER/NAME[@revision][/folder]`.
#[cfg(feature = "hub")]
pub(crate) fn dataset(place: &str) -> Result<PathBuf> {
    hub::dataset(place)
}

/// The place on this machine of `hf://`'s rest.
#[cfg(not(feature = "hub"))]
pub(crate) fn dataset(place: &str) -> Result<PathBuf> {
    Err(Error::invalid(format!("hf://{place}: this build has no feature `hub`; give a folder")))
}
