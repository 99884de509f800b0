//! `unified train CONFIG --out DIR`

use super::common::OnDevice;
use super::output::say;
use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use nn::parallel::World;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use unified::train::{Run, Training, schema};

/// Train a tokenizer, a visual tokenizer or a unified model from a config file.
#[derive(Args)]
pub struct Train {
    /// TOML file, as in configs/.
    #[arg(required_unless_present = "schema")]
    config: Option<PathBuf>,
    /// Print the JSON schema of a kind of config (of all kinds without one) and do nothing else.
    #[arg(long, value_name = "KIND", num_args = 0..=1, default_missing_value = "", conflicts_with = "config")]
    schema: Option<String>,
    /// Folder for the model, its log (metrics.jsonl) and its training state.
    #[arg(long, required_unless_present_any = ["dry_run", "schema"])]
    out: Option<PathBuf>,
    /// Do one update and write nothing: says what the data are, and how long and how much memory it takes.
    #[arg(long, conflicts_with_all = ["resume", "probe_balance"])]
    dry_run: bool,
    /// Override a key of the config: --set run.steps=100 --set data.0.path=DIR.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Continue from the folder's last checkpoint.
    #[arg(long)]
    resume: bool,
    /// Find the weight of pixels against alignment as QLIP does (section 4): train with each alone, divide the losses that
    /// they end with, and write the config with that ratio to OUT/balanced.toml. Stage 1 of a QLIP training; both runs stay in --out.
    #[arg(long, conflicts_with = "resume")]
    probe_balance: bool,
    #[command(flatten)]
    device: OnDevice,
    /// Seed of initial values, data order and augmentation; as --set run.seed=N.
    #[arg(long)]
    seed: Option<u64>,
}

impl Train {
    pub fn run(&self) -> Result<()> {
        if let Some(kind) = &self.schema {
            return print_schema(kind);
        }
        let mut set = self.set.clone();
        set.extend(self.seed.map(|s| format!("run.seed={s}")));
        if (self.probe_balance || self.dry_run) && nn::parallel::launched().is_some_and(|(_, n)| n > 1) {
            bail!("--probe-balance and --dry-run are for one process");
        }
        if self.probe_balance {
            return self.probe(&set);
        }
        let Some(out) = &self.out else {
            // clap asks for --out without --dry-run
            return self.rehearse(&set);
        };
        if self.dry_run {
            return self.rehearse(&set);
        }
        let done = self.one(&set, out)?;
        if let Some(step) = done.as_ref().and_then(|s| s.stopped_at) {
            eprintln!(
                "stopped after update {step}; go on with: unified train {} --out {} --resume",
                self.config().display(),
                out.display()
            );
        }
        if let Some(step) = done.as_ref().and_then(|s| s.ended_at) {
            eprintln!(
                "validation has not become better: ended after update {step}; the best is in {}/best",
                out.display()
            );
        }
        Ok(())
    }

    /// The config's file; clap asks for it where no schema is wanted.
    fn config(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(""))
    }

    /// One update in a folder that goes away: what the data are, whether all fits together, time and memory.
    fn rehearse(&self, set: &[String]) -> Result<()> {
        let dir = tempfile::tempdir().context("no folder for a dry run")?;
        let done = self.one(set, &dir.path().join("run"))?;
        if let Some(s) = done {
            let left = s.seconds * s.steps as f64 / 3600.0;
            say!("one of {} updates took {:.1} s: about {left:.1} hours in all", s.steps, s.seconds);
            if let Some(m) = s.peak_memory_mib {
                say!("memory: at most {m} MiB so far");
            }
        }
        Ok(())
    }

    /// One training in a folder.
    fn one(&self, set: &[String], out: &Path) -> Result<Option<nn::train::Summary>> {
        let training = Training::from_file(self.config(), set)?;
        let device = self.device.device()?;
        let world = World::join()?;
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {per_sec} eta {eta} loss {msg}")?;
        let bar = if world.is_first() { ProgressBar::new(0) } else { ProgressBar::hidden() }.with_style(style);
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        // a second Ctrl-C ends it at once; the handler can be set once a program, and a probe trains twice
        let _ = ctrlc::set_handler(move || {
            if asked.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            eprintln!("\nthis update, a checkpoint, and then the end (again to leave at once)");
        });
        let mut progress = |p: &nn::train::Progress| {
            bar.set_length(p.steps as u64);
            bar.set_position(p.step as u64);
            bar.set_message(format!("{:.4}", p.loss));
            !stop.load(Ordering::Relaxed) && !self.dry_run
        };
        let mut say = |line: &str| {
            if world.is_first() {
                bar.suspend(|| eprintln!("{line}"));
            }
        };
        let mut run = Run { out, resume: self.resume, device, world: &world, progress: &mut progress, say: &mut say };
        let done = training.run(&mut run);
        if let (Err(e), true) = (&done, world.size() > 1) {
            // the others wait for this one for ever
            eprintln!("error: {e}");
            world.abort();
        }
        let done = done?;
        bar.finish_and_clear();
        if !world.is_first() {
            return Ok(None);
        }
        if let Some(s) = &done {
            summarise(s);
        }
        if !self.dry_run {
            eprintln!("{}", out.display());
        }
        Ok(done)
    }

    /// Both objectives alone, and the ratio of what is left of each.
    fn probe(&self, set: &[String]) -> Result<()> {
        if !matches!(Training::from_file(self.config(), set)?, Training::Qlip(t) if t.stage == 1) {
            bail!("{}: --probe-balance is for stage 1 of a QLIP training", self.config().display());
        }
        let text = std::fs::read_to_string(self.config()).with_context(|| self.config().display().to_string())?;
        let written = |ratio: f64| {
            let one = with_key(&text, "loss", "alignment", "1.0");
            with_key(&one, "loss", "reconstruction", &format!("{ratio:.4}"))
        };
        // before hours of training rather than after them
        toml::from_str::<toml::Table>(&written(1.0)).with_context(|| {
            format!(
                "{}: write its weights below a line [loss], so that the ratio can be put there",
                self.config().display()
            )
        })?;
        let end = |folder: &str, keys: &[&str], metric: &str| -> Result<f64> {
            let mut set = set.to_vec();
            set.extend(keys.iter().map(|key| format!("loss.{key}")));
            set.push("loss.balance=constant".into());
            let out = self.out.as_ref().context("--probe-balance needs --out")?;
            let done = self.one(&set, &out.join(folder))?;
            done.and_then(|s| s.last.get(metric).copied())
                .with_context(|| format!("no `{metric}` in the log of {folder}"))
        };
        let pixels = end("probe-pixels", &PIXELS_ALONE, "mse")?;
        let align = end("probe-align", &ALIGNMENT_ALONE, "align")?;
        let ratio = align / pixels.max(1e-12);
        let balanced = self.out.as_deref().unwrap_or(Path::new("")).join(BALANCED);
        nn::checkpoint::write_atomic(&balanced, written(ratio).as_bytes())?;
        say!(
            "alignment alone ends at {align:.4}, pixels alone at {pixels:.6}: reconstruction = {ratio:.4}, alignment = 1"
        );
        say!("{}", balanced.display());
        Ok(())
    }
}

/// The schema of a kind, or an object of all of them.
fn print_schema(kind: &str) -> Result<()> {
    let all = match kind {
        "" => schema::KINDS
            .iter()
            .map(|k| Ok(((*k).to_owned(), schema::schema(k)?)))
            .collect::<Result<_>>()
            .map(Value::Object)?,
        one => schema::schema(one)?,
    };
    say!("{}", serde_json::to_string_pretty(&all)?);
    Ok(())
}

/// The config with the found weights, in --out.
const BALANCED: &str = "balanced.toml";

/// What a probe of one objective leaves out.
const PIXELS_ALONE: [&str; 4] =
    ["alignment=0.0", "quantized_alignment=0.0", "distillation=0.0", "quantized_distillation=0.0"];
const ALIGNMENT_ALONE: [&str; 7] =
    ["alignment=1.0", "reconstruction=0.0", "l1=0.0", "log_mse=0.0", "lpips=0.0", "adversarial=0.0", "gram=0.0"];

/// A TOML text with a key of a section set, everything else as it was.
fn with_key(text: &str, section: &str, key: &str, value: &str) -> String {
    let header = format!("[{section}]");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let start =
        lines.iter().position(|l| l.split('#').next().unwrap_or_default().trim() == header).unwrap_or_else(|| {
            lines.extend([String::new(), header.clone()]);
            lines.len() - 1
        });
    let rest = &lines[start + 1..];
    let end = start + 1 + rest.iter().position(|l| l.trim_start().starts_with('[')).unwrap_or(rest.len());
    let is_key = |l: &String| l.split_once('=').is_some_and(|(k, _)| k.trim() == key);
    let line = format!("{key} = {value}");
    match lines[start + 1..end].iter().position(is_key) {
        Some(i) => lines[start + 1 + i] = line,
        None => lines.insert(start + 1, line),
    }
    lines.join("\n") + "\n"
}

/// A line of what was done, and a line of what it came to.
fn summarise(s: &nn::train::Summary) {
    let rate = (s.ran * s.batch_size) as f64 / s.seconds.max(1e-9);
    let memory = s.peak_memory_mib.map_or(String::new(), |m| format!(", at most {m} MiB of memory"));
    eprintln!("{} of {} updates in {:.0} s, {rate:.1} samples/s{memory}", s.ran, s.steps, s.seconds);
    let last: Vec<String> = s.last.iter().map(|(name, v)| format!("{name} {v:.4}")).collect();
    if !last.is_empty() {
        eprintln!("mean of the last updates: {}", last.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_set_in_its_section_alone() {
        let text = "a = 1\n[loss] # weights\n# why\nalignment = 2.0\n\n[optim]\nreconstruction = 9\n";
        let out = with_key(&with_key(text, "loss", "alignment", "1.0"), "loss", "reconstruction", "3.5");
        assert_eq!(
            out,
            "a = 1\n[loss] # weights\nreconstruction = 3.5\n# why\nalignment = 1.0\n\n[optim]\nreconstruction = 9\n"
        );
        assert_eq!(with_key("a = 1\n", "loss", "b", "2"), "a = 1\n\n[loss]\nb = 2\n");
    }
}
