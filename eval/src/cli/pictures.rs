//! `eval pictures`

use super::teller;
use anyhow::{Context, Result};
use eval::pictures::{Report, Sizes, Studio, run};
use lm::SampleSettings;
use lm::draw::{DrawSettings, Schedule};
use std::path::PathBuf;
use unified::artifact::{Artifact, placement};
use unified::classifier::Classifier;
use unified::llamagen::{decoder, tokenizer_of};

/// Drawings of a LlamaGen that was trained by class: what a classifier sees in them, and what they cost.
#[derive(clap::Args)]
pub struct Pictures {
    /// cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Folder of the model, its image tokenizer in it.
    #[arg(long)]
    model: PathBuf,
    /// Folder of the classifier, which `unified train` makes (kind = "classifier").
    #[arg(long)]
    classifier: PathBuf,
    /// Photographs with a test split (test-*.parquet).
    #[arg(long)]
    photos: PathBuf,
    /// Drawings a class.
    #[arg(long, default_value_t = 100)]
    per_class: usize,
    /// Guidance scale; 1 is none.
    #[arg(long, default_value_t = 2.0)]
    guidance: f32,
    /// Temperature of the tokens; 0 takes the likeliest.
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Keep the likeliest tokens whose probabilities reach this sum.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Drawings at once.
    #[arg(long, default_value_t = 50)]
    batch: usize,
    /// Seed of the first drawing.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one row of a Markdown table under this name.
    #[arg(long, value_name = "NAME", conflicts_with = "json")]
    row: Option<String>,
    /// Print JSON for machines.
    #[arg(long)]
    json: bool,
}

impl Pictures {
    pub fn run(&self) -> Result<()> {
        let at = placement(&self.device)?;
        let artifact = Artifact::at(&self.model)?;
        let model = decoder(&artifact, &at)?;
        let parameters: usize = artifact.tensors()?.shapes().iter().map(|s| s.1.iter().product::<usize>()).sum();
        let beside = artifact
            .image_tokenizer()?
            .with_context(|| format!("{}: no folder `vq` or `qlip` in it", self.model.display()))?;
        let visual = tokenizer_of(&model.config, &beside, &at)?;
        let classifier = Classifier::load(&self.classifier).context("--classifier")?;
        let photos = qlip::data::Pictures::open(&self.photos, "test").context("--photos")?;
        let sample = SampleSettings { temperature: self.temperature, top_p: self.top_p, ..SampleSettings::default() };
        let draw =
            DrawSettings { sample, guidance_scale: self.guidance, guidance_interval: -1, schedule: Schedule::Constant };
        let sizes = Sizes { per_class: self.per_class, batch: self.batch, seed: self.seed, draw };
        let studio = Studio { model: &model, visual: &visual, classifier: &classifier, photos: &photos };
        let report = run(&studio, &sizes, &mut teller())?;
        match &self.row {
            Some(name) => row(name, &report, parameters),
            None if self.json => {
                let mut json = serde_json::to_value(&report)?;
                json["decoder_parameters"] = parameters.into();
                println!("{json}");
            }
            None => print(&report, parameters),
        }
        Ok(())
    }
}

fn print(r: &Report, parameters: usize) {
    println!("classifier right on test photographs: {}", r.classifier);
    println!("drawings that it assigns to the asked class: {}", r.asked_class);
    println!(
        "feature_frechet@classifier {:.4} (n = {} drawings, {} photographs)",
        r.feature_frechet, r.drawings, r.photographs
    );
    println!("drawing: {:.4} s a picture of {} tokens", r.seconds, r.tokens);
    println!("decoder: {:.2}M parameters", parameters as f64 / 1e6);
    let t = &r.tokenizer;
    println!(
        "reconstructions: PSNR {:.2} dB, classifier right on {}, feature_frechet@classifier {:.4}",
        t.psnr, t.classified, t.feature_frechet
    );
}

/// The columns are those of configs/llamagen/compare/run.sh.
fn row(name: &str, r: &Report, parameters: usize) {
    println!(
        "| {name} | {:.2}M | {} | {:.4} | {} | {:.3} (n = {}, {}) | {:.2} | {:.1}% | {:.3} |",
        parameters as f64 / 1e6,
        r.tokens,
        r.seconds,
        r.asked_class,
        r.feature_frechet,
        r.drawings,
        r.photographs,
        r.tokenizer.psnr,
        100.0 * r.tokenizer.classified.share(),
        r.tokenizer.feature_frechet
    );
}
