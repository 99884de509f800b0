//! `eval import`: other harnesses' logs of samples as answers.

use anyhow::{Context, Result};
use clap::Args;
use eval::bench::import::answers;
use std::fmt::Write;
use std::path::PathBuf;

/// Turn the log of samples of lm-evaluation-harness, lmms-eval or VLMEvalKit into answers that `eval run --model replay:FILE` scores.
#[derive(Args)]
pub struct Import {
    /// samples_*.jsonl, *.json with `logs`, or *.tsv.
    log: PathBuf,
    /// The answers, a JSON object a line.
    #[arg(short, long)]
    out: PathBuf,
}

impl Import {
    pub fn run(&self) -> Result<()> {
        let (found, notes) = answers(&self.log)?;
        let mut text = String::new();
        for answer in &found {
            writeln!(text, "{answer}")?;
        }
        nn::checkpoint::write_atomic(&self.out, text.as_bytes()).with_context(|| self.out.display().to_string())?;
        notes.lines.iter().take(20).for_each(|l| eprintln!("note: {l}"));
        println!("{}: {} answers, {} samples left out", self.out.display(), found.len(), notes.left_out);
        Ok(())
    }
}
