//! `unified generate PROMPT`

use super::common::{Common, Sampling, free_name, out_dir, progress, tick};
use super::output::say;
use super::recipe::Recipe;
use super::terminal::{Preview, show};
use anyhow::{Result, bail};
use candle_core::{Device, Tensor};
use clap::{Args, ValueEnum};
use lm::SampleSettings;
use lm::draw::{DrawSettings, Schedule};
use qlip::Image;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use unified::artifact::{Architecture, Artifact, Placement};
use unified::captions::Captions;
use unified::chameleon::ChameleonChat;
use unified::config::UnifiedConfig;
use unified::emu3::Emu3Chat;
use unified::llamagen::{Painter, Wanted, class_of, classes};
use unified::loaded::Loaded;

/// Pixels between the pictures of a grid.
const GAP: usize = 2;

/// Draw pictures from words.
#[derive(Args)]
pub struct Generate {
    #[command(flatten)]
    common: Common,
    /// What to draw: "a red circle above a blue square".
    #[arg(required_unless_present_any = ["class", "features", "from_png"])]
    prompt: Option<String>,
    /// Classes to draw with a class-conditional LlamaGen, one picture each, by number or by name: --class 0,dog.
    #[arg(long, value_delimiter = ',', conflicts_with = "prompt")]
    class: Vec<String>,
    /// Features of captions to draw with a text-conditional LlamaGen, as `unified features` writes them.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "class"])]
    features: Option<PathBuf>,
    /// Folder of the T5 encoder of a text-conditional LlamaGen, where it is not in the model's folder `t5`.
    #[arg(long, value_name = "DIR", requires = "prompt")]
    text_encoder: Option<PathBuf>,
    /// Draw the picture in a PNG file of this command again, with the model, words, seed and settings that it records.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "class", "features", "n", "seed", "grid", "greedy", "guidance",
        "temperature", "top_k", "top_p", "min_p", "best_of"])]
    from_png: Option<PathBuf>,
    /// Drawings for each picture, of which the one is kept that the model itself finds right most surely; as the model's
    /// config says if absent.
    #[arg(long, value_name = "N")]
    best_of: Option<usize>,
    /// One PNG with all pictures side by side.
    #[arg(long)]
    grid: bool,
    /// Number of pictures, drawn as one batch; picture i has seed SEED + i.
    #[arg(short, long, default_value_t = 1)]
    n: usize,
    /// Folder of the PNG files; with --codes-only the safetensors file.
    #[arg(short, long, default_value = ".")]
    out: PathBuf,
    /// Write `tokens` [pictures, tokens] and decode nothing (LlamaGen).
    #[arg(long)]
    codes_only: bool,
    /// Folder of the image tokenizer, where it is not in the model's folder `vq` (LlamaGen).
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Guidance for the first token and the N + 1 after it; -1 for all (LlamaGen).
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = -1)]
    guidance_interval: i64,
    /// How the guidance scale goes from the first token to the last (LlamaGen).
    #[arg(long, value_enum, default_value_t = Course::Constant)]
    guidance_schedule: Course,
    /// Take the likeliest token always.
    #[arg(long, conflicts_with = "temperature")]
    greedy: bool,
    /// Guidance scale; 1 is none.
    #[arg(long)]
    guidance: Option<f32>,
    #[command(flatten)]
    sampling: Sampling,
}

#[derive(Clone, Copy, ValueEnum)]
enum Course {
    Constant,
    Linear,
    Cosine,
}

impl Generate {
    pub fn run(&self) -> Result<()> {
        if let Some(path) = &self.from_png {
            let (recipe, before) = Recipe::read(path)?;
            recipe.check(path)?;
            // a stranger's picture must not fetch models
            let model = self.common.model.clone().or(recipe.model.clone());
            if let Some(id) = recipe.model.filter(|m| self.common.model.is_none() && !Path::new(m).exists()) {
                bail!("{}: drawn by model `{id}`, which is no folder or file here; give --model", path.display());
            }
            let recipe = Recipe { model, ..recipe };
            let artifact = Common { model: recipe.model.clone(), ..self.common.clone() }.artifact()?;
            let drawn = self.draw(&recipe, &artifact)?;
            if drawn != [before] {
                eprintln!("note: not the same pixels: drawn by another version, model or machine");
            }
            return Ok(());
        }
        if self.prompt.as_ref().is_some_and(|p| p.trim().is_empty()) {
            bail!("the prompt is empty: say what to draw, as in \"a red circle\"");
        }
        if self.n == 0 {
            bail!("-n 0: use 1 or more");
        }
        let artifact = self.common.artifact()?;
        let recipe = self.recipe(&artifact)?;
        if self.codes_only {
            return self.codes(&recipe, &artifact);
        }
        self.draw(&recipe, &artifact)?;
        Ok(())
    }

    /// What is asked for, with the model's own settings where nothing else is said.
    fn recipe(&self, artifact: &Artifact) -> Result<Recipe> {
        artifact.must("draw", artifact.architecture.can().draw)?;
        let llamagen = artifact.architecture == Architecture::LlamaGen;
        if !llamagen && (self.features.is_some() || !self.class.is_empty()) {
            bail!("--class and --features are for a LlamaGen: give its --model");
        }
        if llamagen && self.best_of.is_some() {
            bail!("--best-of: LlamaGen does not judge its drawings");
        }
        if !llamagen && self.codes_only {
            bail!("--codes-only is LlamaGen's: give its --model");
        }
        let authors = |(sample, scale): (SampleSettings, f32)| (DrawSettings::constant(sample, scale), 1);
        let (own, best_of) = match artifact.architecture {
            Architecture::LlamaGen => {
                authors((SampleSettings::default(), if self.class.is_empty() { 7.5 } else { 4.0 }))
            }
            Architecture::Unified => {
                let g = artifact.config::<UnifiedConfig>()?.generation;
                (g.drawing(), g.best_of)
            }
            Architecture::Chameleon => authors(ChameleonChat::drawing()),
            Architecture::Emu3 => authors(Emu3Chat::drawing()),
            // Janus
            _ => authors((SampleSettings::default(), 5.0)),
        };
        Ok(Recipe {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.common.model.clone(),
            tokenizer: self.tokenizer.clone(),
            text_encoder: self.text_encoder.clone(),
            features: self.features.clone(),
            dtype: self.common.dtype,
            prompt: self.prompt.clone(),
            class: self.classes(artifact)?,
            seed: self.common.seed,
            n: self.n,
            batch: self.common.batch()?,
            index: None,
            best_of: self.best_of.unwrap_or(best_of),
            settings: self.settings(own)?,
        })
    }

    /// Numbers of the asked classes.
    fn classes(&self, artifact: &Artifact) -> Result<Vec<u32>> {
        let names = if self.class.is_empty() { Vec::new() } else { classes(artifact)? };
        self.class.iter().map(|c| c.parse().or_else(|_| Ok(class_of(&names, c)?))).collect()
    }

    /// Draws, shows and writes what a recipe asks for: one picture, or all of them apart or in one grid.
    fn draw(&self, recipe: &Recipe, artifact: &Artifact) -> Result<Vec<Image>> {
        let at = Common { dtype: recipe.dtype, ..self.common.clone() }.placement()?;
        let model = load(artifact, &at, recipe)?;
        out_dir(&self.out)?;
        let wanted = wanted(recipe)?;
        let (count, batch) = (wanted.len(), recipe.batch.max(1));
        // one picture of a batch comes out the same only in its batch
        let chunks: Vec<Range<usize>> = (0..count.div_ceil(batch))
            .map(|c| c * batch..count.min((c + 1) * batch))
            .filter(|c| recipe.index.is_none_or(|i| c.contains(&i)))
            .collect();
        if chunks.is_empty() {
            bail!("the recipe asks for a picture that it does not draw");
        }
        let bar = progress(model.rows() * chunks.len(), "draw");
        // a picture of all of them has no index of its own
        let together = self.grid || (self.from_png.is_some() && recipe.index.is_none());
        let (mut drawn, mut paths) = (Vec::new(), Vec::new());
        let mut preview = Preview::default();
        let mut write = |image: &Image, recipe: &Recipe| -> Result<()> {
            let path = free_name(&self.out);
            recipe.save(image, &path)?;
            if !self.common.json {
                bar.suspend(|| show(image));
                say!("{}", path.display());
            }
            paths.push(super::output::path(&path));
            Ok(())
        };
        for chunk in chunks {
            let seeds: Vec<u64> = chunk.clone().map(|i| recipe.seed.wrapping_add(i as u64)).collect();
            let how = (&recipe.settings, recipe.best_of);
            let images = model.draw(&wanted[chunk.clone()], &seeds, how, &mut |tokens| {
                if !self.common.json
                    && preview.is_due()
                    && let Ok(sketch) = model.sketch_tokens(&tokens[0])
                {
                    bar.suspend(|| preview.show(&sketch));
                }
                tick(&bar, 1);
                true
            })?;
            bar.suspend(|| preview.clear());
            for (i, image) in chunk.zip(images).filter(|(i, _)| recipe.index.is_none_or(|want| want == *i)) {
                if !together {
                    write(&image, &Recipe { index: Some(i), ..recipe.clone() })?;
                }
                drawn.push(image);
            }
        }
        if together {
            let grid = Image::grid(&drawn, GAP);
            write(&grid, recipe)?;
            drawn = vec![grid];
        }
        bar.finish_and_clear();
        if self.common.json {
            let json = serde_json::json!({
                "prompt": recipe.prompt, "class": recipe.class, "seed": recipe.seed, "images": paths,
            });
            super::output::json(json)?;
        }
        Ok(drawn)
    }

    /// What is asked for in place of the model's own settings.
    fn settings(&self, own: DrawSettings) -> Result<DrawSettings> {
        let temperature = if self.greedy { Some(0.0) } else { self.sampling.temperature };
        let mut s = own.guided(self.guidance).heated(temperature);
        self.sampling.apply(&mut s.sample);
        s.guidance_interval = self.guidance_interval;
        s.schedule = match self.guidance_schedule {
            Course::Constant => Schedule::Constant,
            Course::Linear => Schedule::Linear,
            Course::Cosine => Schedule::Cosine,
        };
        s.check()?;
        Ok(s)
    }

    /// LlamaGen's tokens alone.
    fn codes(&self, recipe: &Recipe, artifact: &Artifact) -> Result<()> {
        let at = self.common.placement()?;
        let model = with_encoder(Painter::codes_alone(artifact, &at)?, recipe, &at)?;
        let wanted = wanted(recipe)?;
        let batch = self.common.batch()?;
        let bar = progress(model.model.config.grid() * wanted.len().div_ceil(batch), "draw");
        let mut ids: Vec<i64> = Vec::new();
        for (n, chunk) in wanted.chunks(batch).enumerate() {
            let seeds: Vec<u64> = (0..chunk.len()).map(|i| recipe.seed.wrapping_add((n * batch + i) as u64)).collect();
            let drawn = model.tokens(chunk, &seeds, &recipe.settings, &mut |_| {
                tick(&bar, 1);
                true
            })?;
            ids.extend(drawn.concat().into_iter().map(|t| t as i64));
        }
        bar.finish_and_clear();
        let tensor = Tensor::from_vec(ids, (wanted.len(), model.model.config.block_size), &Device::Cpu)?;
        nn::checkpoint::save(&self.out, &[("tokens".to_owned(), tensor)].into(), &[])?;
        if self.common.json {
            super::output::json(
                serde_json::json!({"out": super::output::path(&self.out), "pictures": wanted.len(), "seed": recipe.seed}),
            )?;
        } else {
            say!("{}", self.out.display());
        }
        Ok(())
    }
}

/// The asked model, with the parts that a LlamaGen was given beside its own.
fn load(artifact: &Artifact, at: &Placement, recipe: &Recipe) -> Result<Loaded> {
    artifact.must("draw", artifact.architecture.can().draw)?;
    if artifact.architecture != Architecture::LlamaGen {
        return Ok(Loaded::load(artifact, at)?);
    }
    let given = recipe.tokenizer.as_ref().map(|dir| Artifact::open(&dir.to_string_lossy())).transpose()?;
    let painter = Painter::load(artifact, given.as_ref(), at)?;
    Ok(Loaded::LlamaGen(Box::new(with_encoder(painter, recipe, at)?)))
}

fn with_encoder(painter: Painter, recipe: &Recipe, at: &Placement) -> Result<Painter> {
    let Some(dir) = &recipe.text_encoder else { return Ok(painter) };
    Ok(painter.with_encoder(&Artifact::open(&dir.to_string_lossy())?, at)?)
}

/// What each picture is drawn from.
fn wanted(recipe: &Recipe) -> Result<Vec<Wanted>> {
    let each: Vec<Wanted> = match (&recipe.features, &recipe.prompt) {
        (Some(path), _) => {
            let captions = Arc::new(Captions::load(path, &Device::Cpu)?);
            (0..captions.len()).map(|i| Wanted::Caption(captions.clone(), i)).collect()
        }
        (None, Some(prompt)) => vec![Wanted::Words(prompt.clone())],
        (None, None) => recipe.class.iter().map(|c| Wanted::Class(*c)).collect(),
    };
    Ok(each.into_iter().flat_map(|w| std::iter::repeat_n(w, recipe.n)).collect())
}
