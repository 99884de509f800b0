//! `unified generate PROMPT`

use super::common::{Common, free_name, out_dir, progress, tick};
use super::llamagen_files::llamagen_files;
use super::terminal::show;
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use clap::{Args, ValueEnum};
use lm::SampleSettings;
use lm::draw::{DrawSettings, Schedule, draw};
use lm::llamagen::{Condition, LlamaGen};
use nn::Params;
use qlip::vq::{VqConfig, VqTokenizer};
use qlip::{Pixels, Preprocess};
use std::path::{Path, PathBuf};

/// Draw pictures from words.
#[derive(Args)]
pub struct Generate {
    #[command(flatten)]
    common: Common,
    /// What to draw: "a red circle above a blue square".
    #[arg(required_unless_present = "class")]
    prompt: Option<String>,
    /// Classes to draw with a class-conditional LlamaGen, one picture each: --class 0,3.
    #[arg(long, value_delimiter = ',', conflicts_with = "prompt")]
    class: Vec<u32>,
    /// Number of pictures, drawn as one batch; picture i has seed SEED + i.
    #[arg(short, long, default_value_t = 1)]
    n: usize,
    /// Folder of the PNG files; with --codes-only the safetensors file.
    #[arg(short, long, default_value = ".")]
    out: PathBuf,
    /// Write `tokens` [pictures, tokens] and decode nothing (LlamaGen).
    #[arg(long, requires = "class")]
    codes_only: bool,
    /// Folder of the image tokenizer, where it is not in the model's folder `vq` (LlamaGen).
    #[arg(long, requires = "class")]
    tokenizer: Option<PathBuf>,
    /// Guidance for the first token and the N + 1 after it; -1 for all (LlamaGen).
    #[arg(long, value_name = "N", requires = "class", allow_negative_numbers = true, default_value_t = -1)]
    guidance_interval: i64,
    /// How the guidance scale goes from the first token to the last (LlamaGen).
    #[arg(long, requires = "class", value_enum, default_value_t = Course::Constant)]
    guidance_schedule: Course,
    /// Take the likeliest token always.
    #[arg(long, conflicts_with = "temperature")]
    greedy: bool,
    /// Guidance scale; 1 is none.
    #[arg(long)]
    guidance: Option<f32>,
    /// Temperature of the visual tokens; 0 takes the likeliest.
    #[arg(long)]
    temperature: Option<f32>,
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

#[derive(Clone, Copy, ValueEnum)]
enum Course {
    Constant,
    Linear,
    Cosine,
}

impl Generate {
    pub fn run(&self) -> Result<()> {
        let Some(prompt) = &self.prompt else { return self.classes() };
        if prompt.trim().is_empty() {
            bail!("the prompt is empty: say what to draw, as in \"a red circle\"");
        }
        let model = self.common.unified()?;
        let mut g = model.config.generation;
        g.guidance_scale = self.guidance.unwrap_or(g.guidance_scale);
        self.settings(&mut g.image)?;
        out_dir(&self.out)?;
        let words = prompt.trim().strip_prefix("draw ").unwrap_or(prompt.trim());
        let context = model.drawing_context(words)?;
        let seeds: Vec<u64> = (0..self.n as u64).map(|i| self.common.seed.wrapping_add(i)).collect();
        let rows = model.config.vocabulary.grid;
        let bar = progress(rows * seeds.len().div_ceil(self.common.batch()?), "draw");
        let mut paths = Vec::new();
        for chunk in seeds.chunks(self.common.batch()?) {
            let contexts = vec![context.clone(); chunk.len()];
            let codes = model.draw_images(&contexts, chunk, &g, &mut |_| {
                tick(&bar, 1);
                true
            })?;
            for image in model.decode(&codes)? {
                let path = free_name(&self.out);
                image.save_png(&path)?;
                if !self.common.json {
                    bar.suspend(|| show(&image));
                    println!("{}", path.display());
                }
                paths.push(path);
            }
        }
        bar.finish_and_clear();
        if self.common.json {
            println!("{}", serde_json::json!({"prompt": prompt, "seed": self.common.seed, "images": paths}));
        }
        Ok(())
    }

    fn settings(&self, s: &mut SampleSettings) -> Result<()> {
        s.temperature = if self.greedy { 0.0 } else { self.temperature.unwrap_or(s.temperature) };
        s.top_k = self.top_k.unwrap_or(s.top_k);
        s.top_p = self.top_p.unwrap_or(s.top_p);
        s.min_p = self.min_p.unwrap_or(s.min_p);
        Ok(s.check()?)
    }

    /// Pictures of classes with LlamaGen.
    fn classes(&self) -> Result<()> {
        let model = self.common.model.as_deref().context("--class needs --model: a LlamaGen folder or .pt file")?;
        let device = self.common.device()?;
        let (config, params) = llamagen_files(model, self.common.dtype()?, &device)?;
        let model = LlamaGen::new(&params, &config)?;
        let tokenizer = if self.codes_only { None } else { Some(self.vq(config.vocab_size, &device)?) };
        let mut settings = DrawSettings {
            sample: SampleSettings::default(),
            guidance_scale: self.guidance.unwrap_or(4.0),
            guidance_interval: self.guidance_interval,
            schedule: match self.guidance_schedule {
                Course::Constant => Schedule::Constant,
                Course::Linear => Schedule::Linear,
                Course::Cosine => Schedule::Cosine,
            },
        };
        self.settings(&mut settings.sample)?;
        let wanted: Vec<u32> = self.class.iter().flat_map(|&c| std::iter::repeat_n(c, self.n)).collect();
        let bar = progress(config.grid() * wanted.len().div_ceil(self.common.batch()?), "draw");
        let mut tokens = Vec::new();
        for (i, chunk) in wanted.chunks(self.common.batch()?).enumerate() {
            let first = (i * self.common.batch()?) as u64;
            let seeds: Vec<u64> = (0..chunk.len() as u64).map(|k| self.common.seed.wrapping_add(first + k)).collect();
            tokens.extend(draw(&model, &Condition::Classes(chunk.to_vec()), &seeds, &settings, &mut |_| {
                tick(&bar, 1);
                true
            })?);
        }
        bar.finish_and_clear();
        let Some(tokenizer) = tokenizer else {
            let ids: Vec<i64> = tokens.concat().into_iter().map(i64::from).collect();
            let tensor = Tensor::from_vec(ids, (tokens.len(), config.block_size), &Device::Cpu)?;
            nn::checkpoint::save(&self.out, &[("tokens".to_owned(), tensor)].into(), &[])?;
            println!("{}", self.out.display());
            return Ok(());
        };
        out_dir(&self.out)?;
        let side = config.grid() * tokenizer.config.stride();
        // the tokenizer's pixels are in -1..1
        let pixels = Preprocess { image_mean: [0.5; 3], image_std: [0.5; 3], ..Preprocess::clip(side) };
        for codes in &tokens {
            let Pixels(p) = tokenizer.decode(&tokenizer.look_up(codes, config.grid(), config.grid())?)?;
            for image in pixels.images(&Pixels(p.to_dtype(DType::F32)?))? {
                let path = free_name(&self.out);
                image.save_png(&path)?;
                show(&image);
                println!("{}", path.display());
            }
        }
        Ok(())
    }

    /// The image tokenizer with as many codes as the model knows.
    fn vq(&self, codes: usize, device: &Device) -> Result<VqTokenizer> {
        let beside = self.common.model.as_deref().map(|m| Path::new(m).join("vq")).filter(|p| p.is_dir());
        let dir =
            self.tokenizer.clone().or(beside).context(
                "the model has no folder `vq` with its image tokenizer: give --tokenizer DIR, or --codes-only",
            )?;
        let config: VqConfig = qlip::config::read_json(&dir.join("config.json"))?;
        if config.codebook_size != codes {
            let n = config.codebook_size;
            bail!("{}: a codebook of {n} for a model of {codes} codes; give its own tokenizer", dir.display());
        }
        Ok(VqTokenizer::new(&Params::from_dir(&dir, self.common.dtype()?, device)?, &config)?)
    }
}
