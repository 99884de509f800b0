//! `eval nano`

use super::teller;
use anyhow::{Context, Result};
use eval::nano::{Report, Sizes, run};
use qlip::data::Pictures;
use std::path::PathBuf;
use unified::artifact::{Artifact, placement};
use unified::runner::Unified;

/// Reconstruction, zero-shot accuracy, questions and drawings of a small unified model, on held-out data.
#[derive(clap::Args)]
pub struct Nano {
    /// cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
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

impl Nano {
    pub fn run(&self) -> Result<()> {
        let files = Artifact::at(&self.model)?;
        let model = Unified::load(&files, &placement(&self.device)?)?;
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
        let report = run(&model, &photos, &sizes, &mut teller())?;
        if self.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            print(&report);
        }
        Ok(())
    }
}

fn print(r: &Report) {
    println!("photographs (n = {}, enlarged to {} pixels):", r.photos, r.side);
    println!("  PSNR {:.2} dB, SSIM {:.4}, zero-shot accuracy {:.1}%", r.psnr, r.ssim, 100.0 * r.zero_shot);
    println!("scenes kept by reconstruction: {}", r.scenes_kept);
    println!("scene questions right: {} (blind {:.1}%)", r.questions, 100.0 * r.blind);
    for (kind, tally) in &r.by_kind {
        println!("  {kind:<10} {}", tally);
    }
    println!("questions about a picture of an earlier turn right: {}", r.follow_ups);
    for d in &r.drawing {
        println!("drawing, best of {}", d.best_of);
        println!("  strict check (in brackets the share of asked things that are there):");
        for (category, tally) in &d.strict {
            println!("    {category:<10} {} ({:.1}%)", tally, 100.0 * d.soft[category]);
        }
        println!("  edits that show exactly the changed scene: {}", d.edits());
        for (kind, tally) in &d.edits {
            println!("    {kind:<10} {}", tally);
        }
        println!("  photographs that the zero-shot head assigns to the asked class: {}", d.drawn_photos);
    }
}
