//! `unified train CONFIG --out DIR`

use super::common::OnDevice;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use unified::train::{Run, Training};

/// Train a tokenizer, a visual tokenizer or a unified model from a config file.
#[derive(Args)]
pub struct Train {
    /// TOML file, as in configs/.
    config: PathBuf,
    /// Folder for the model, its log (metrics.jsonl) and its training state.
    #[arg(long)]
    out: PathBuf,
    /// Override a key of the config: --set steps=100 --set optim.lr=1e-4.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Continue from the folder's last checkpoint.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    device: OnDevice,
    /// Seed of initial values, data order and augmentation; as --set seed=N.
    #[arg(long)]
    seed: Option<u64>,
}

impl Train {
    pub fn run(&self) -> anyhow::Result<()> {
        let mut set = self.set.clone();
        set.extend(self.seed.map(|s| format!("seed={s}")));
        let training = Training::from_file(&self.config, &set)?;
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {per_sec} eta {eta} loss {msg}")?;
        let bar = ProgressBar::new(0).with_style(style);
        let mut progress = |p: &nn::train::Progress| {
            bar.set_length(p.steps as u64);
            bar.set_position(p.step as u64);
            bar.set_message(format!("{:.4}", p.loss));
        };
        let device = self.device.device()?;
        let done = training.run(&mut Run { out: &self.out, resume: self.resume, device, progress: &mut progress })?;
        bar.finish_and_clear();
        if let Some(s) = done {
            summarise(&s);
        }
        eprintln!("{}", self.out.display());
        Ok(())
    }
}

/// A line of what was done, and a line of what it came to.
fn summarise(s: &nn::train::Summary) {
    let rate = (s.ran * s.batch_size) as f64 / s.seconds.max(1e-9);
    eprintln!("{} of {} updates in {:.0} s, {rate:.1} samples/s", s.ran, s.steps, s.seconds);
    let last: Vec<String> = s.last.iter().map(|(name, v)| format!("{name} {v:.4}")).collect();
    if !last.is_empty() {
        eprintln!("mean of the last updates: {}", last.join(", "));
    }
}
