//! `unified features CAPTIONS`

use super::common::{OnDevice, progress, tick};
use super::output::say;
use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use clap::Args;
use std::path::PathBuf;
use unified::artifact::Artifact;
use unified::captions::{Captions, TextEncoder};

/// Features of captions for a text-conditional LlamaGen, made once and kept in a file.
#[derive(Args)]
pub struct Features {
    /// Text file with a caption a line.
    captions: PathBuf,
    /// Folder of the T5 encoder (config.json, model.safetensors, tokenizer.json).
    #[arg(long, value_name = "DIR")]
    text_encoder: PathBuf,
    /// The safetensors file: `features` [captions, positions, width] in float16 and `pads`.
    #[arg(short, long)]
    out: PathBuf,
    /// Positions of a caption; longer ones lose their end.
    #[arg(long, default_value_t = 120)]
    positions: usize,
    /// One of n parts of the captions, i/n with i from 0; `unified merge` joins their files.
    #[arg(long, value_name = "I/N", default_value = "0/1", hide_default_value = true)]
    shard: unified::shard::Shard,
    #[command(flatten)]
    on: OnDevice,
}

impl Features {
    pub fn run(&self) -> Result<()> {
        let text = std::fs::read_to_string(&self.captions).with_context(|| self.captions.display().to_string())?;
        let captions: Vec<String> = text.lines().map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()).collect();
        if captions.is_empty() {
            bail!("{}: no captions; write one a line", self.captions.display());
        }
        let captions = &captions[self.shard.range(captions.len())];
        if captions.is_empty() {
            bail!("--shard: fewer captions than parts; this one has none");
        }
        let mut encoder =
            TextEncoder::load(&Artifact::open(&self.text_encoder.to_string_lossy())?, &self.on.device()?)?;
        let bar = progress(captions.len(), "encode");
        let (mut features, mut pads) = (Vec::new(), Vec::new());
        for caption in captions {
            let one = encoder.encode(std::slice::from_ref(caption), self.positions)?;
            features.push(one.features);
            pads.extend(one.pads);
            tick(&bar, 1);
        }
        bar.finish_and_clear();
        Captions { features: Tensor::cat(&features, 0)?, pads }.save(&self.out)?;
        say!("{}", self.out.display());
        Ok(())
    }
}
