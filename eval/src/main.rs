//! The program `eval`.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use eval::nano::{Report, Sizes, Tally, run};
use eval::text::{read_texts, text_loss};
use eval::visual::measure;
use nn::checkpoint;
use nn::train::{STATE_FILE, Summary};
use qlip::data::Pictures;
use std::path::PathBuf;
use std::time::Instant;
use unified::eyes::{Eyes, load_weights};
use unified::files::ModelFiles;
use unified::runner::Unified;

/// What class names are put into for zero-shot classification.
const TEMPLATE: &str = "a photo of a {}";

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measure models.
#[derive(Parser)]
#[command(name = "eval", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Nano(Nano),
    Qlip(Qlip),
    Text(Text),
}

/// Loss of a unified model on held-out text.
#[derive(clap::Args)]
struct Text {
    /// Documents, `{"text": ..}` a line.
    documents: PathBuf,
    /// Model folder.
    #[arg(long, default_value = "unified/assets/nano")]
    model: PathBuf,
    /// Documents read; 0 for all.
    #[arg(long, default_value_t = 0)]
    limit: usize,
    /// Tokens that a prediction can see.
    #[arg(long, default_value_t = 256)]
    length: usize,
    /// Print JSON for machines.
    #[arg(long)]
    json: bool,
}

/// A QLIP tokenizer by itself: reconstruction, zero-shot accuracy, linear probes on its tokens, code entropy.
#[derive(clap::Args)]
struct Qlip {
    /// Model folder.
    #[arg(long, default_value = "unified/assets/nano/qlip")]
    model: PathBuf,
    /// Folder of photographs with classes and both splits (train-*.parquet, test-*.parquet).
    #[arg(long)]
    photos: PathBuf,
    /// Test photographs measured.
    #[arg(long, default_value_t = 10_000)]
    limit: usize,
    /// Training photographs that the probes learn from.
    #[arg(long, default_value_t = 10_000)]
    probe: usize,
    /// Measure the weights themselves instead of their moving average; for a folder of `unified train`.
    #[arg(long)]
    raw: bool,
    /// Print a row of a Markdown table that begins with this name.
    #[arg(long)]
    row: Option<String>,
    /// Folder of the training whose summary.json tells speed and memory for the row; the model's if absent.
    #[arg(long, requires = "row")]
    speed: Option<PathBuf>,
    /// Print JSON for machines.
    #[arg(long)]
    json: bool,
}

/// Reconstruction, zero-shot accuracy, questions and drawings of a small unified model, on held-out data.
#[derive(clap::Args)]
struct Nano {
    /// Model folder.
    #[arg(long, default_value = "unified/assets/nano")]
    model: PathBuf,
    /// Folder of photographs with a test split (test-*.parquet).
    #[arg(long)]
    photos: PathBuf,
    /// Photographs measured; 0 for all.
    #[arg(long, default_value_t = 0)]
    limit: usize,
    /// Scenes reconstructed.
    #[arg(long, default_value_t = 1000)]
    scenes: usize,
    /// Questions asked.
    #[arg(long, default_value_t = 1000)]
    questions: usize,
    /// Instructions that change a picture, and as many follow-up questions.
    #[arg(long, default_value_t = 200)]
    edits: usize,
    /// Drawings a category.
    #[arg(long, default_value_t = 100)]
    drawings: usize,
    /// Drawn photographs a class.
    #[arg(long, default_value_t = 100)]
    drawn_photos: usize,
    /// Drawings for each picture, of which the model keeps its favourite, besides single drawings; as the model's config
    /// says if absent.
    #[arg(long)]
    best_of: Option<usize>,
    /// Pictures at once.
    #[arg(long, default_value_t = 50)]
    batch: usize,
    /// Seed of the test items.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON for machines.
    #[arg(long)]
    json: bool,
}

fn main() -> std::process::ExitCode {
    let done = match Cli::parse().command {
        Command::Nano(n) => n.run(),
        Command::Qlip(q) => q.run(),
        Command::Text(t) => t.run(),
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {}", format!("{e:#}").lines().next().unwrap_or(""));
            std::process::ExitCode::FAILURE
        }
    }
}

impl Text {
    fn run(&self) -> Result<()> {
        let texts = read_texts(&self.documents, self.limit)?;
        let model = Unified::load(&ModelFiles::Dir(self.model.clone()), &unified::files::Placement::cpu())?;
        let r = text_loss(&model, &texts, self.length)?;
        if self.json {
            println!("{}", serde_json::to_string(&r)?);
        } else {
            println!(
                "{} documents, {} tokens: {:.4} nats a token, {:.4} bits a byte",
                r.documents, r.tokens, r.nats_per_token, r.bits_per_byte
            );
        }
        Ok(())
    }
}

impl Qlip {
    fn run(&self) -> Result<()> {
        let (train, test) = (Pictures::open(&self.photos, "train"), Pictures::open(&self.photos, "test"));
        let (train, test) = (train.context("--photos")?, test.context("--photos")?);
        let (files, cpu) = (ModelFiles::Dir(self.model.clone()), unified::files::Placement::cpu());
        let text = files.has("tokenizer.json");
        let mut weights = load_weights(&files, "")?;
        if self.raw {
            let state = checkpoint::load(&self.model.join(STATE_FILE))?;
            let mut all = checkpoint::load_dir(&self.model)?;
            all.extend(state.into_iter().filter_map(|(k, v)| Some((k.strip_prefix("p.")?.to_owned(), v))));
            weights = all.into();
        }
        let text = text && weights.contains("text_projection.weight");
        let eyes = Eyes::with_weights(&files, "", weights, &cpu, text)?;
        let r = measure(&eyes, &train, &test, self.limit, self.probe, &[TEMPLATE])?;
        let percent = |x: f64| format!("{:.1}", 100.0 * x);
        let zero_shot = r.zero_shot.map_or("-".to_owned(), percent);
        if self.json {
            println!("{}", serde_json::to_string(&r)?);
        } else if let Some(name) = &self.row {
            let done = Summary::read(self.speed.as_ref().unwrap_or(&self.model))?;
            println!(
                "| {name} | {:.2} | {:.3} | {zero_shot} | {} | {} | {:.1} of {} | {:.2} | {} |",
                r.psnr,
                r.ssim,
                percent(r.probe_quantized),
                percent(r.probe_latents),
                r.code_entropy,
                r.bits,
                done.updates_per_second(),
                done.peak_memory_mib.map_or("-".to_owned(), |m| m.to_string()),
            );
        } else {
            println!("{} photographs of {} pixels a side, probes from {}:", r.photos, eyes.side(), r.probed);
            println!("  PSNR {:.2} dB, SSIM {:.4}, zero-shot accuracy {zero_shot}%", r.psnr, r.ssim);
            let (quantized, latents) = (percent(r.probe_quantized), percent(r.probe_latents));
            println!(
                "  linear probe on all tokens of a picture: quantised {quantized}%, before quantisation {latents}%"
            );
            println!("  code entropy {:.2} of {} bits a cell", r.code_entropy, r.bits);
        }
        Ok(())
    }
}

impl Nano {
    fn run(&self) -> Result<()> {
        let files = ModelFiles::Dir(self.model.clone());
        let model = Unified::load(&files, &unified::files::Placement::cpu())?;
        let photos = Pictures::open(&self.photos, "test").context("--photos")?;
        let sizes = Sizes {
            photos: self.limit,
            scenes: self.scenes,
            questions: self.questions,
            edits: self.edits,
            drawings: self.drawings,
            drawn_photos: self.drawn_photos,
            best_of: self.best_of.unwrap_or(model.config.generation.best_of),
            batch: self.batch,
            seed: self.seed,
        };
        let clock = Instant::now();
        let report =
            run(&model, &photos, &sizes, &mut |what| eprintln!("{:>6.0} s  {what}", clock.elapsed().as_secs_f64()))?;
        if self.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            print(&report);
        }
        Ok(())
    }
}

fn print(r: &Report) {
    let percent = |t: &Tally| format!("{:.1}% of {}", 100.0 * t.share(), t.n);
    println!("photographs (n = {}, enlarged to {} pixels):", r.photos, r.side);
    println!("  PSNR {:.2} dB, SSIM {:.4}, zero-shot accuracy {:.1}%", r.psnr, r.ssim, 100.0 * r.zero_shot);
    println!("scenes kept by reconstruction: {}", percent(&r.scenes_kept));
    println!("scene questions right: {} (blind {:.1}%)", percent(&r.questions), 100.0 * r.blind);
    for (kind, tally) in &r.by_kind {
        println!("  {kind:<10} {}", percent(tally));
    }
    println!("questions about a picture of an earlier turn right: {}", percent(&r.follow_ups));
    for d in &r.drawing {
        println!("drawing, best of {}", d.best_of);
        println!("  strict check (in brackets the share of asked things that are there):");
        for (category, tally) in &d.strict {
            println!("    {category:<10} {} ({:.1}%)", percent(tally), 100.0 * d.soft[category]);
        }
        println!("  edits that show exactly the changed scene: {}", percent(&d.edits()));
        for (kind, tally) in &d.edits {
            println!("    {kind:<10} {}", percent(tally));
        }
        println!("  photographs that the zero-shot head assigns to the asked class: {}", percent(&d.drawn_photos));
    }
}
