//! `tokenize`, `detokenize`, `reconstruct`, `classify`, `describe`: pictures in, something else out.

use super::common::{Common, Inputs, out_dir};
use super::output::{self, say};
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
    /// Pictures (PNG, JPEG, WebP, BMP, GIF, TIFF, PNM, TGA, ICO, QOI) of any size, folders of them, or - for standard input.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// safetensors file: `codes` [images, tokens], `grid`.
    #[arg(short, long)]
    out: PathBuf,
    /// One of n parts of the pictures, i/n with i from 0; `unified merge` joins their files.
    #[arg(long, value_name = "I/N", default_value = "0/1", hide_default_value = true)]
    shard: unified::shard::Shard,
}

impl Tokenize {
    pub fn run(&self) -> Result<()> {
        let eyes = self.common.eyes()?;
        let mut codes = Codes { bits: eyes.model.bsq.bits, grid: eyes.model.grid(), indices: Vec::new() };
        let mut names = Vec::new();
        let mut inputs = Inputs::of(&self.images)?.part(self.shard);
        inputs.each((self.common.batch()?, "tokenize"), |paths, images| {
            codes.indices.extend(eyes.encode(images)?.indices);
            names.extend(paths.iter().map(|p| stem(p)));
            Ok(())
        })?;
        codes.save(&self.out, &names)?;
        if self.common.json {
            let (images, tokens) = (codes.images(), codes.per_image());
            let out = output::path(&self.out);
            output::json(serde_json::json!({"out": out, "images": images, "tokens": tokens, "bits": codes.bits}))?;
        } else {
            say!("{}", self.out.display());
        }
        inputs.finish()
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
    /// Pictures (PNG, JPEG, WebP, BMP, GIF, TIFF, PNM, TGA, ICO, QOI) of any size, folders of them, or - for standard input.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Folder of the PNG files, named as the pictures.
    #[arg(short, long)]
    out: PathBuf,
}

impl Reconstruct {
    pub fn run(&self) -> Result<()> {
        let eyes = self.common.eyes()?;
        let (mut drawn, mut from) = (Vec::new(), Vec::new());
        let mut inputs = Inputs::of(&self.images)?;
        inputs.each((self.common.batch()?, "reconstruct"), |paths, images| {
            drawn.extend(eyes.decode(&eyes.encode(images)?)?);
            from.extend(paths.iter().map(|p| p.to_path_buf()));
            Ok(())
        })?;
        out_dir(&self.out)?;
        let names: Vec<String> = from.iter().map(|p| stem(p)).collect();
        save(&self.common, &self.out, &names, &drawn, &from)?;
        inputs.finish()
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
        let paths: Vec<String> = paths.iter().map(|p| output::path(p)).collect();
        output::json(serde_json::json!({ "images": paths }))?;
    } else {
        for p in &paths {
            say!("{}", p.display());
        }
    }
    Ok(())
}

/// Which of the labels a picture shows, by the tokenizer's own text alignment.
#[derive(Args)]
pub struct Classify {
    #[command(flatten)]
    common: Common,
    /// Pictures (PNG, JPEG, WebP, BMP, GIF, TIFF, PNM, TGA, ICO, QOI) of any size, folders of them, or - for standard input.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Labels, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    labels: Vec<String>,
    /// Sentence around a label, `{}` standing for it; may be given several times.
    #[arg(long = "template", default_value = "a photo of a {}")]
    templates: Vec<String>,
    /// A table for spreadsheets: a row a picture, a column a label.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
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
        let mut inputs = Inputs::of(&self.images)?;
        let mut table = self.csv.then(|| csv::Writer::from_writer(std::io::stdout()));
        if let Some(table) = &mut table {
            table.write_record(std::iter::once("image").chain(labels.iter().map(String::as_str)))?;
        }
        inputs.each((self.common.batch()?, "classify"), |paths, images| {
            for (path, row) in paths.iter().zip(eyes.classify(images, &vectors)?) {
                let mut order: Vec<usize> = (0..labels.len()).collect();
                order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
                if let Some(table) = &mut table {
                    let numbers = row.iter().map(|p| format!("{p:.6}"));
                    table.write_record(std::iter::once(output::path(path)).chain(numbers))?;
                    table.flush()?;
                } else if self.common.json {
                    let p: serde_json::Map<_, _> = order.iter().map(|&i| (labels[i].clone(), row[i].into())).collect();
                    output::json(serde_json::json!({"image": output::path(path), "probabilities": p}))?;
                } else {
                    let words: Vec<String> = order.iter().map(|&i| format!("{} {:.4}", labels[i], row[i])).collect();
                    say!("{}: {}", path.display(), words.join(", "));
                }
            }
            Ok(())
        })?;
        inputs.finish()
    }
}

/// Say what pictures show, or answer a question about them.
#[derive(Args)]
pub struct Describe {
    #[command(flatten)]
    common: Common,
    /// Pictures (PNG, JPEG, WebP, BMP, GIF, TIFF, PNM, TGA, ICO, QOI) of any size, folders of them, or - for standard input.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Question to answer about each.
    #[arg(long, default_value = "what is in the picture?")]
    question: String,
    /// Most words (text tokens) of an answer.
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// A table for spreadsheets.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

impl Describe {
    pub fn run(&self) -> Result<()> {
        if self.question.trim().is_empty() {
            bail!("--question is empty: ask something");
        }
        let model = self.common.talking()?;
        let mut inputs = Inputs::of(&self.images)?;
        let mut table = self.csv.then(|| csv::Writer::from_writer(std::io::stdout()));
        if let Some(table) = &mut table {
            table.write_record(["image", "answer"])?;
        }
        let several = inputs.len() > 1;
        inputs.each((self.common.batch()?, "describe"), |paths, images| {
            let ask = |i: &Image| vec![Message::user_with_image(i.clone(), self.question.clone())];
            let questions: Vec<Vec<Message>> = images.iter().map(ask).collect();
            for (path, answer) in paths.iter().zip(model.words(&questions, self.max_tokens)?) {
                if let Some(table) = &mut table {
                    table.write_record([output::path(path), answer])?;
                    table.flush()?;
                } else if self.common.json {
                    output::json(serde_json::json!({"image": output::path(path), "answer": answer}))?;
                } else if several {
                    say!("{}: {answer}", path.display());
                } else {
                    say!("{answer}");
                }
            }
            Ok(())
        })?;
        inputs.finish()
    }
}
