//! `unified data PATH`: what a training would find there.

use super::output::say;
use anyhow::{Context, Result, bail};
use clap::Args;
use qlip::data::{Pictures, Skipped};
use qlip::{Image, data};
use rayon::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use unified::data::{DataConfig, DataKind};
use unified::documents::Documents;
use unified::train::{Training, conversations};

/// Say what a training would find in a folder, a file of captions, WebDataset shards, parquet files, conversations or documents: how many
/// pictures, which have words and classes, and what is passed over, with the reason.
#[derive(Args, Clone)]
pub struct Data {
    /// The folder or file, hf://datasets/OWNER/NAME, or a training's config (.toml), whose sources are reported one by one.
    path: PathBuf,
    /// Folder of the pictures that conversations and documents name; theirs if absent.
    #[arg(long)]
    images: Option<PathBuf>,
    /// Split of a folder with several.
    #[arg(long, default_value = "train")]
    split: String,
    /// Pictures that are shown one by one.
    #[arg(long, value_name = "N", default_value_t = 0)]
    samples: usize,
    /// One PNG with the shown pictures.
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Most pixels along a picture's side on a sheet.
const ON_SHEET: usize = 128;

impl Data {
    pub fn run(&self) -> Result<()> {
        if self.path.extension().is_some_and(|e| e == "toml") {
            return self.sources();
        }
        let path = DataConfig { path: Some(self.path.clone()), ..DataConfig::of(DataKind::Pictures) }.place()?;
        let at = Self { path, ..self.clone() };
        let report = match kind(&at.path)? {
            Kind::Pictures => at.pictures()?,
            Kind::Conversations => at.conversations()?,
            Kind::Documents => at.documents()?,
        };
        if self.json {
            say!("{}", serde_json::to_string_pretty(&report)?);
            return Ok(());
        }
        self.show(&report)
    }

    /// The sources of a training's config.
    fn sources(&self) -> Result<()> {
        let training = Training::from_file(&self.path, &[])?;
        let mut all = Vec::new();
        for config in training.data() {
            config.check()?;
            let mut at = Self { sheet: None, images: config.images.clone(), ..self.clone() };
            if let Some(split) = &config.split {
                at.split.clone_from(split);
            }
            let report = match (config.kind, &config.path) {
                (DataKind::Scenes, _) | (_, None) => json!({"made": "as it is needed", "skipped": []}),
                (kind, _) => {
                    at.path = config.place()?;
                    match kind {
                        DataKind::Conversations => at.conversations()?,
                        DataKind::Documents | DataKind::Text => at.documents()?,
                        _ => at.pictures()?,
                    }
                }
            };
            if !self.json {
                say!("{} (share {} to {})", config.name(), config.start, config.end());
                self.show(&report)?;
            }
            let mut report = report;
            report["source"] = config.name().into();
            all.push(report);
        }
        if self.json {
            say!("{}", serde_json::to_string_pretty(&json!({"version": 1, "sources": all}))?);
        } else if all.is_empty() {
            say!("{}: no [[data]]", self.path.display());
        }
        Ok(())
    }

    fn show(&self, report: &Value) -> Result<()> {
        let skipped = report["skipped"].as_array().map_or(0, Vec::len);
        for key in ["pictures", "with_words", "conversations", "documents"] {
            if let Some(n) = report[key].as_u64() {
                say!("{key:<14} {n}");
            }
        }
        let classes: Vec<&str> = report["classes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !classes.is_empty() {
            say!("{:<14} {}", "classes", classes.join(", "));
        }
        if let Some(taken) = report["taken"].as_str().filter(|t| !t.is_empty()) {
            say!("{:<14} {taken}", "taken");
        }
        say!("{:<14} {skipped}", "passed over");
        for s in report["skipped"].as_array().into_iter().flatten().take(20) {
            say!("  {}: {}", s["name"].as_str().unwrap_or_default(), s["why"].as_str().unwrap_or_default());
        }
        for s in report["samples"].as_array().into_iter().flatten() {
            say!(
                "  {} {}x{} {:?}",
                s["name"].as_str().unwrap_or_default(),
                s["width"],
                s["height"],
                s["words"].as_str().unwrap_or_default()
            );
        }
        Ok(())
    }

    fn pictures(&self) -> Result<Value> {
        let found = Pictures::open(&self.path, &self.split)?;
        // every picture is decoded once, so that what is broken is known before a training meets it
        let looked: Vec<std::result::Result<Value, Value>> = (0..found.len())
            .into_par_iter()
            .map(|i| {
                let name = found.name(i).display().to_string();
                match found.image(i) {
                    Ok(image) => {
                        let class = found.class(i).map(|c| found.classes[c].clone());
                        let hash = Sha256::digest(image.rgb());
                        let hash: String = hash.iter().map(|b| format!("{b:02x}")).collect();
                        Ok(json!({"name": name, "words": found.words(i), "class": class, "width": image.width(),
                            "height": image.height(), "sha256": hash, "with_words": found.has_words(i)}))
                    }
                    Err(e) => Err(json!({"name": name, "why": e.to_string()})),
                }
            })
            .collect();
        let mut skipped = passed_over(&found.skipped);
        let mut good = Vec::new();
        for (i, one) in looked.into_iter().enumerate() {
            match one {
                Ok(v) => good.push((i, v)),
                Err(v) => skipped.push(v),
            }
        }
        let with_words = good.iter().filter(|g| g.1["with_words"] == true).count();
        let pictures = good.len();
        good.truncate(self.samples);
        if let Some(sheet) = &self.sheet {
            let images = good.iter().map(|g| Ok(small(&found.image(g.0)?))).collect::<Result<Vec<Image>>>()?;
            if images.is_empty() {
                bail!("--sheet: give --samples N too");
            }
            Image::table(&images, 8, 2).save_png(sheet)?;
        }
        let samples: Vec<Value> = good
            .into_iter()
            .map(|(_, mut v)| {
                v.as_object_mut().map(|o| o.remove("with_words"));
                v
            })
            .collect();
        Ok(
            json!({"version": 1, "pictures": pictures, "with_words": with_words, "classes": found.classes, "conversations": 0,
            "taken": found.taken, "skipped": skipped, "samples": samples}),
        )
    }

    fn conversations(&self) -> Result<Value> {
        let (entries, _, skipped) = conversations::list(&self.path, self.images.as_deref())?;
        let pictures: usize = entries.iter().map(|e| e.images().len()).sum();
        Ok(
            json!({"version": 1, "pictures": pictures, "with_words": pictures, "classes": [], "conversations": entries.len(),
            "skipped": passed_over(&skipped), "samples": []}),
        )
    }

    fn documents(&self) -> Result<Value> {
        let images = self.images.clone().unwrap_or_else(|| self.path.parent().unwrap_or(Path::new("")).to_owned());
        let path = Some(self.path.clone());
        let config = DataConfig { path, images: Some(images), ..DataConfig::of(DataKind::Documents) };
        let found = Documents::open(&config, 1, 1)?;
        Ok(json!({"version": 1, "pictures": found.len(), "with_words": found.len(), "classes": [], "conversations": 0,
            "documents": found.len(), "skipped": passed_over(found.skipped()), "samples": []}))
    }
}

fn passed_over(all: &[Skipped]) -> Vec<Value> {
    all.iter().map(|s| json!({"name": s.name, "why": s.why})).collect()
}

fn small(image: &Image) -> Image {
    let longest = image.width().max(image.height()).max(1);
    let side = |n: usize| (n * ON_SHEET / longest).max(1);
    qlip::resample::resize(image, side(image.width()), side(image.height()))
}

enum Kind {
    Pictures,
    Conversations,
    Documents,
}

/// By the first object of a JSON file.
fn kind(path: &Path) -> Result<Kind> {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    if !path.is_file() || (ending != "json" && ending != "jsonl") {
        return Ok(Kind::Pictures);
    }
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let text = data::without_mark(text);
    let first = text.lines().find(|l| !l.trim().is_empty()).unwrap_or_default();
    let json: Value = match serde_json::from_str(first) {
        Ok(v @ Value::Object(_)) => v,
        _ => serde_json::from_str::<Value>(&text).map(|v| v[0].clone()).with_context(|| path.display().to_string())?,
    };
    Ok(if json.get("conversations").is_some() || json.get("messages").is_some() {
        Kind::Conversations
    } else if json.get("images").is_some() || json.get("text_list").is_some() || json.get("image_info").is_some() {
        Kind::Documents
    } else {
        Kind::Pictures
    })
}
