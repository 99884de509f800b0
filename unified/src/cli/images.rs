//! `tokenize`, `detokenize`, `reconstruct`, `classify`, `describe`: pictures in, something else out.

use super::common::{Common, open_all, out_dir, progress, tick};
use anyhow::{Result, bail};
use clap::Args;
use qlip::{Codes, Image};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use unified::conversation::Message;

/// Turn pictures into integer codes.
#[derive(Args)]
pub struct Tokenize {
    #[command(flatten)]
    common: Common,
    /// Pictures of any size and format.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// safetensors file: `codes` [images, tokens], `grid`.
    #[arg(short, long)]
    out: PathBuf,
}

impl Tokenize {
    pub fn run(&self) -> Result<()> {
        let eyes = self.common.eyes()?;
        let bar = progress(self.images.len(), "tokenize");
        let mut codes = Codes { bits: eyes.model.bsq.bits, grid: eyes.model.grid(), indices: Vec::new() };
        for chunk in self.images.chunks(self.common.batch()?) {
            codes.indices.extend(eyes.encode(&open_all(chunk)?)?.indices);
            tick(&bar, chunk.len());
        }
        bar.finish_and_clear();
        let names: Vec<String> = self.images.iter().map(|p| stem(p)).collect();
        codes.save(&self.out, &names)?;
        if self.common.json {
            let (images, tokens) = (codes.images(), codes.per_image());
            println!(
                "{}",
                serde_json::json!({"out": self.out, "images": images, "tokens": tokens, "bits": codes.bits})
            );
        } else {
            println!("{}", self.out.display());
        }
        Ok(())
    }
}

/// Turn codes back into pictures.
#[derive(Args)]
pub struct Detokenize {
    #[command(flatten)]
    common: Common,
    /// File that `tokenize` wrote.
    codes: PathBuf,
    /// Folder of the PNG files.
    #[arg(short, long)]
    out: PathBuf,
}

impl Detokenize {
    pub fn run(&self) -> Result<()> {
        let eyes = self.common.eyes()?;
        let (codes, names) = Codes::load(&self.codes, eyes.model.bsq.bits, eyes.model.grid())?;
        let images = eyes.decode(&codes)?;
        out_dir(&self.out)?;
        save(&self.common, &self.out, &names, &images, std::slice::from_ref(&self.codes))
    }
}

/// Through the codes and back, to see what the tokenizer keeps.
#[derive(Args)]
pub struct Reconstruct {
    #[command(flatten)]
    common: Common,
    /// Pictures of any size and format.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Folder of the PNG files, named as the pictures.
    #[arg(short, long)]
    out: PathBuf,
}

impl Reconstruct {
    pub fn run(&self) -> Result<()> {
        let eyes = self.common.eyes()?;
        let bar = progress(self.images.len(), "reconstruct");
        let mut images = Vec::new();
        for chunk in self.images.chunks(self.common.batch()?) {
            images.extend(eyes.decode(&eyes.encode(&open_all(chunk)?)?)?);
            tick(&bar, chunk.len());
        }
        bar.finish_and_clear();
        out_dir(&self.out)?;
        let names: Vec<String> = self.images.iter().map(|p| stem(p)).collect();
        save(&self.common, &self.out, &names, &images, &self.images)
    }
}

fn stem(p: &Path) -> String {
    p.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Writes DIR/NAME.png for each picture; a name that occurs again gets a number. The files they come from are not
/// written over.
fn save(common: &Common, dir: &Path, names: &[String], images: &[Image], from: &[PathBuf]) -> Result<()> {
    let sources: HashSet<PathBuf> = from.iter().filter_map(|p| p.canonicalize().ok()).collect();
    let mut taken = HashSet::new();
    let mut paths = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let plain = !name.is_empty() && !name.contains(['/', '\\']) && name != "..";
        let mut file = if plain { name.clone() } else { format!("image-{i:04}") };
        if !taken.insert(file.clone()) {
            file = format!("{file}-{i:04}");
            taken.insert(file.clone());
        }
        let path = dir.join(format!("{file}.png"));
        if path.canonicalize().is_ok_and(|p| sources.contains(&p)) {
            bail!("{}: this would write over the picture it is made from; choose another -o", path.display());
        }
        paths.push(path);
    }
    for (image, path) in images.iter().zip(&paths) {
        image.save_png(path)?;
    }
    if common.json {
        println!("{}", serde_json::json!({ "images": paths }));
    } else {
        paths.iter().for_each(|p| println!("{}", p.display()));
    }
    Ok(())
}

/// Which of the labels a picture shows, by the tokenizer's own text alignment.
#[derive(Args)]
pub struct Classify {
    #[command(flatten)]
    common: Common,
    /// Pictures of any size and format.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Labels, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    labels: Vec<String>,
    /// Sentence around a label, `{}` standing for it; may be given several times.
    #[arg(long = "template", default_value = "a photo of a {}")]
    templates: Vec<String>,
}

impl Classify {
    pub fn run(&self) -> Result<()> {
        let labels: Vec<String> = self.labels.iter().map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()).collect();
        if labels.is_empty() {
            bail!("--labels is empty: name at least one, as in --labels cat,dog");
        }
        let eyes = self.common.eyes()?;
        let templates: Vec<&str> = self.templates.iter().map(String::as_str).collect();
        let vectors = eyes.label_vectors(&labels, &templates)?;
        let mut rows = Vec::new();
        for chunk in self.images.chunks(self.common.batch()?) {
            rows.extend(eyes.classify(&open_all(chunk)?, &vectors)?);
        }
        for (path, row) in self.images.iter().zip(rows) {
            let mut order: Vec<usize> = (0..labels.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            if self.common.json {
                let p: serde_json::Map<_, _> = order.iter().map(|&i| (labels[i].clone(), row[i].into())).collect();
                println!("{}", serde_json::json!({"image": path, "probabilities": p}));
            } else {
                let words: Vec<String> = order.iter().map(|&i| format!("{} {:.4}", labels[i], row[i])).collect();
                println!("{}: {}", path.display(), words.join(", "));
            }
        }
        Ok(())
    }
}

/// Say what pictures show, or answer a question about them.
#[derive(Args)]
pub struct Describe {
    #[command(flatten)]
    common: Common,
    /// Pictures of any size and format.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Question to answer about each.
    #[arg(long, default_value = "what is in the picture?")]
    question: String,
    /// Most words (text tokens) of an answer.
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
}

impl Describe {
    pub fn run(&self) -> Result<()> {
        if self.question.trim().is_empty() {
            bail!("--question is empty: ask something");
        }
        let model = self.common.talking()?;
        for chunk in self.images.chunks(self.common.batch()?) {
            let ask = |i| vec![Message::user_with_image(i, self.question.clone())];
            let questions: Vec<Vec<Message>> = open_all(chunk)?.into_iter().map(ask).collect();
            for (path, answer) in chunk.iter().zip(model.words(&questions, self.max_tokens)?) {
                if self.common.json {
                    println!("{}", serde_json::json!({"image": path, "answer": answer}));
                } else if self.images.len() == 1 {
                    println!("{answer}");
                } else {
                    println!("{}: {answer}", path.display());
                }
            }
        }
        Ok(())
    }
}
