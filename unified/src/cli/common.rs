//! Options that all commands share, and how they become a device, a type and a model.

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use lm::SampleSettings;
use nn::WeightType;
use qlip::Image;
use qlip::data::is_picture;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};
use unified::artifact::{Artifact, Placement};
use unified::eyes::Eyes;
use unified::loaded::Loaded;

/// Options of every command.
#[derive(Args, Clone)]
pub struct Common {
    /// Model folder or hub id (owner/name or owner/name@revision); the embedded nano model if absent.
    #[arg(long, value_name = "DIR|HUB_ID")]
    pub model: Option<String>,
    #[command(flatten)]
    pub on: OnDevice,
    /// How weights are kept. auto: as they are stored, where they lie in the file. On the CPU activations are float32
    /// whatever the weights are.
    #[arg(long, value_enum, default_value_t = Type::Auto)]
    pub dtype: Type,
    /// Pictures that are worked on at once.
    #[arg(long, default_value_t = 32)]
    pub batch: usize,
    /// Seed of everything random; -1 takes one by chance, and the answer says which.
    #[arg(long, default_value = "0", value_parser = seed, allow_negative_numbers = true)]
    pub seed: u64,
    /// Print JSON for machines.
    #[arg(long)]
    pub json: bool,
}

/// How tokens are drawn from their probabilities; as the model says where a thing is absent.
#[derive(Args)]
pub struct Sampling {
    /// Temperature; 0 takes the likeliest token. As the model says if absent, like the next ones.
    #[arg(long)]
    pub temperature: Option<f32>,
    /// Keep this many likeliest tokens; 0 keeps all.
    #[arg(long)]
    top_k: Option<usize>,
    /// Keep the likeliest tokens whose probabilities reach this sum.
    #[arg(long)]
    top_p: Option<f32>,
    /// Keep tokens at least this share as likely as the likeliest.
    #[arg(long)]
    min_p: Option<f32>,
}

impl Sampling {
    /// Puts what was asked in place of the model's own settings.
    pub fn apply(&self, s: &mut SampleSettings) {
        s.temperature = self.temperature.unwrap_or(s.temperature);
        s.top_k = self.top_k.unwrap_or(s.top_k);
        s.top_p = self.top_p.unwrap_or(s.top_p);
        s.min_p = self.min_p.unwrap_or(s.min_p);
    }
}

/// Where to compute.
#[derive(Args, Clone)]
pub struct OnDevice {
    /// cpu, cuda or cuda:N.
    #[arg(long = "device", default_value = "cpu")]
    name: String,
}

impl OnDevice {
    pub fn device(&self) -> Result<Device> {
        Ok(unified::artifact::device(&self.name)?)
    }
}

/// Types on offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    Auto,
    F32,
    F16,
    Bf16,
    /// 8-bit blocks of weights: a quarter of float32, on the CPU.
    #[value(name = "q8_0")]
    Q8_0,
    /// 6-bit blocks, on the CPU.
    #[value(name = "q6_K", alias = "q6_k")]
    Q6K,
    /// 4-bit blocks: a seventh of float32, on the CPU.
    #[value(name = "q4_K", alias = "q4_k")]
    Q4K,
}

impl Type {
    /// The type of weights, where one is asked for.
    pub fn weights(self) -> Option<WeightType> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(WeightType::F32),
            Self::F16 => Some(WeightType::F16),
            Self::Bf16 => Some(WeightType::Bf16),
            Self::Q8_0 => Some(WeightType::Q8_0),
            Self::Q6K => Some(WeightType::Q6K),
            Self::Q4K => Some(WeightType::Q4K),
        }
    }
}

/// A seed as people write it: a whole number, or -1 for any.
fn seed(text: &str) -> Result<u64, String> {
    if text.trim() == "-1" {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        // short enough to be read out and typed again
        return Ok(nn::rng::mix(now.map_or(0, |t| t.as_nanos() as u64)) >> 32);
    }
    text.trim().parse().map_err(|_| format!("`{text}` is no seed: write a whole number, or -1 for any"))
}

impl Common {
    pub fn device(&self) -> Result<Device> {
        self.on.device()
    }

    /// Type of activations.
    pub fn dtype(&self) -> Result<DType> {
        match (self.dtype, self.on.name.as_str()) {
            (_, "cpu") | (Type::F32 | Type::Auto, _) => Ok(DType::F32),
            (Type::F16, _) => Ok(DType::F16),
            (Type::Bf16, _) => Ok(DType::BF16),
            (blocks, _) => bail!(
                "--dtype {} works on the CPU; use --dtype bf16 on a GPU",
                blocks.weights().map_or("auto", WeightType::name)
            ),
        }
    }

    pub fn batch(&self) -> Result<usize> {
        if self.batch == 0 {
            bail!("--batch 0: use 1 or more");
        }
        Ok(self.batch)
    }

    pub fn placement(&self) -> Result<Placement> {
        Ok(Placement { dtype: self.dtype()?, weights: self.dtype.weights(), device: self.device()? })
    }

    /// The asked model, or the nano model.
    pub fn artifact(&self) -> Result<Artifact> {
        Ok(match &self.model {
            None => Artifact::nano()?,
            Some(m) => Artifact::open(m)?,
        })
    }

    /// Whatever was asked for that can be talked with.
    pub fn talking(&self) -> Result<Loaded> {
        Ok(Loaded::talking(&self.artifact()?, &self.placement()?)?)
    }

    /// The image tokenizer: of a unified model its own, else the folder itself.
    pub fn eyes(&self) -> Result<Eyes> {
        let artifact = self.artifact()?;
        let tokenizer = artifact.image_tokenizer()?;
        Ok(Eyes::load(tokenizer.as_ref().unwrap_or(&artifact), &self.placement()?, true)?)
    }
}

/// Pictures named on the command line: files, folders of them, `-` for standard input. One that cannot be read is said, and the
/// others go on.
pub struct Inputs {
    paths: Vec<PathBuf>,
    broken: usize,
}

impl Inputs {
    pub fn of(named: &[PathBuf]) -> Result<Self> {
        let mut paths = Vec::new();
        for path in named {
            if !path.is_dir() {
                paths.push(path.clone());
                continue;
            }
            let entries = std::fs::read_dir(path).with_context(|| path.display().to_string())?;
            let mut inside: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| is_picture(p)).collect();
            if inside.is_empty() {
                bail!("{}: no pictures in this folder", path.display());
            }
            inside.sort();
            paths.extend(inside);
        }
        Ok(Self { paths, broken: 0 })
    }

    /// The pictures of one part.
    pub fn part(mut self, shard: unified::shard::Shard) -> Self {
        let range = shard.range(self.paths.len());
        self.paths = self.paths.drain(range).collect();
        self
    }

    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Gives the pictures that can be read to `each`, a batch at a time, with a bar on stderr.
    pub fn each(
        &mut self,
        (batch, what): (usize, &str),
        mut each: impl FnMut(&[&Path], &[Image]) -> Result<()>,
    ) -> Result<()> {
        let bar = progress(self.paths.len(), what);
        let alone = self.paths.len() == 1;
        for chunk in self.paths.chunks(batch) {
            let (mut paths, mut images) = (Vec::new(), Vec::new());
            for path in chunk {
                match read_picture(path) {
                    Ok(image) => {
                        paths.push(path.as_path());
                        images.push(image);
                    }
                    Err(e) if alone => return Err(e),
                    Err(e) => {
                        self.broken += 1;
                        bar.suspend(|| eprintln!("error: {}", super::one_line(&e)));
                    }
                }
            }
            if !images.is_empty() {
                bar.suspend(|| each(&paths, &images))?;
            }
            tick(&bar, chunk.len());
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// An error if some could not be read.
    pub fn finish(self) -> Result<()> {
        if self.broken > 0 {
            bail!("{} of {} pictures could not be read", self.broken, self.paths.len());
        }
        Ok(())
    }
}

/// A picture from a file, or from standard input where its name is `-`.
pub fn read_picture(path: &Path) -> Result<Image> {
    if path != Path::new("-") {
        return Ok(Image::open(path)?);
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes).context("standard input")?;
    Ok(Image::from_bytes(Path::new("standard input"), &bytes)?)
}

/// Makes a folder for results.
pub fn out_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)
        .with_context(|| format!("{}: the folder cannot be made; choose another with -o", dir.display()))
}

/// A progress bar on stderr that shows itself on work longer than a second, in a terminal.
pub fn progress(len: usize, what: &str) -> indicatif::ProgressBar {
    let style = indicatif::ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} eta {eta}");
    let bar = indicatif::ProgressBar::with_draw_target(Some(len as u64), indicatif::ProgressDrawTarget::hidden());
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    bar
}

/// Counts one more, and shows the bar once a second has passed.
pub fn tick(bar: &indicatif::ProgressBar, by: usize) {
    if bar.is_hidden() && bar.elapsed().as_secs() >= 1 {
        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
    }
    bar.inc(by as u64);
}

/// The first path `DIR/unified-NNNN.png` that does not exist.
pub fn free_name(dir: &Path) -> PathBuf {
    (1..)
        .map(|n| dir.join(format!("unified-{n:04}.png")))
        .find(|p| !p.exists())
        .unwrap_or_else(|| dir.join("unified.png"))
}
