//! `eval text`

use anyhow::Result;
use eval::text::{read_texts, text_loss};
use std::path::PathBuf;
use unified::artifact::{Artifact, placement};
use unified::runner::Unified;

/// Loss of a unified model on held-out text.
#[derive(clap::Args)]
pub struct Text {
    /// cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
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

impl Text {
    pub fn run(&self) -> Result<()> {
        let texts = read_texts(&self.documents, self.limit)?;
        let model = Unified::load(&Artifact::at(&self.model)?, &placement(&self.device)?)?;
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
