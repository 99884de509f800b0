//! `eval qlip`

use anyhow::{Context, Result};
use eval::visual::measure;
use nn::checkpoint;
use nn::train::STATE_FILE;
use qlip::data::Pictures;
use std::path::PathBuf;
use unified::artifact::{Artifact, placement};
use unified::eyes::Eyes;

/// A QLIP tokenizer by itself: reconstruction, zero-shot accuracy, linear probes on its tokens, code entropy.
#[derive(clap::Args)]
pub struct Qlip {
    /// cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
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
    #[arg(long, conflicts_with = "json")]
    row: Option<String>,
    /// Print JSON for machines.
    #[arg(long)]
    json: bool,
}

impl Qlip {
    pub fn run(&self) -> Result<()> {
        let (train, test) = (Pictures::open(&self.photos, "train"), Pictures::open(&self.photos, "test"));
        let (train, test) = (train.context("--photos")?, test.context("--photos")?);
        let (artifact, at) = (Artifact::at(&self.model)?, placement(&self.device)?);
        let weights = if self.raw {
            let state = checkpoint::load(&self.model.join(STATE_FILE))?;
            let mut all = checkpoint::load_dir(&self.model)?;
            all.extend(state.into_iter().filter_map(|(k, v)| Some((k.strip_prefix("p.")?.to_owned(), v))));
            all.into()
        } else {
            artifact.tensors()?
        };
        let text = artifact.files.has("tokenizer.json") && weights.contains("text_projection.weight");
        let eyes = Eyes::with_weights(&artifact, weights, &at, text)?;
        let r = measure(&eyes, &train, &test, self.limit, self.probe)?;
        let percent = |x: f64| format!("{:.1}", 100.0 * x);
        let zero_shot = r.zero_shot.map_or("-".to_owned(), percent);
        if self.json {
            println!("{}", serde_json::to_string(&r)?);
        } else if let Some(name) = &self.row {
            println!(
                "| {name} | {:.2} | {:.3} | {zero_shot} | {} | {} | {:.1} of {} |",
                r.psnr,
                r.ssim,
                percent(r.probe_quantized),
                percent(r.probe_latents),
                r.code_entropy,
                r.bits,
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
