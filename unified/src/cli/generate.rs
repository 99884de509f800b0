//! `unified generate PROMPT`

use super::common::{Common, Sampling, free_name, out_dir, progress, tick};
use super::recipe::Recipe;
use super::terminal::{Preview, show};
use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use clap::{Args, ValueEnum};
use lm::SampleSettings;
use lm::draw::{DrawSettings, Schedule, draw};
use lm::llamagen::{Condition, LlamaGen, ModelType};
use qlip::Image;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use unified::artifact::{Architecture, Artifact};
use unified::captions::{Captions, TextEncoder};
use unified::config::{Generation, UnifiedConfig};
use unified::janus::JanusChat;
use unified::llamagen::{decoder, tokenizer_of};
use unified::runner::Unified;
use unified::visual::VisualTokenizer;

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
    /// Classes to draw with a class-conditional LlamaGen, one picture each: --class 0,3.
    #[arg(long, value_delimiter = ',', conflicts_with = "prompt")]
    class: Vec<u32>,
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
            let drawn = self.draw(&recipe)?;
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
        if self.codes_only {
            return self.codes();
        }
        self.draw(&self.recipe()?)?;
        Ok(())
    }

    /// What is asked for, with the model's own settings where nothing else is said.
    fn recipe(&self) -> Result<Recipe> {
        let artifact = self.common.artifact()?;
        artifact.must("draw", artifact.architecture.can().draw)?;
        let llamagen = artifact.architecture == Architecture::LlamaGen;
        if !llamagen && (self.features.is_some() || !self.class.is_empty()) {
            bail!("--class and --features are for a LlamaGen: give its --model");
        }
        if llamagen && self.best_of.is_some() {
            bail!("--best-of: LlamaGen does not judge its drawings");
        }
        let (settings, best_of) = if llamagen {
            let scale = if self.class.is_empty() { 7.5 } else { 4.0 };
            (self.settings(SampleSettings::default(), scale)?, 1)
        } else {
            if self.codes_only {
                bail!("--codes-only is LlamaGen's: give its --model");
            }
            let g = match artifact.architecture {
                Architecture::Unified => artifact.config::<UnifiedConfig>()?.generation,
                // the authors' settings of Janus
                _ => Generation { guidance_scale: 5.0, image: SampleSettings::default(), ..Generation::default() },
            };
            (self.settings(g.image, g.guidance_scale)?, self.best_of.unwrap_or(g.best_of))
        };
        Ok(Recipe {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.common.model.clone(),
            tokenizer: self.tokenizer.clone(),
            text_encoder: self.text_encoder.clone(),
            features: self.features.clone(),
            dtype: self.common.dtype,
            prompt: self.prompt.clone(),
            class: self.class.clone(),
            seed: self.common.seed,
            n: self.n,
            batch: self.common.batch()?,
            index: None,
            best_of,
            settings,
        })
    }

    /// Draws, shows and writes what a recipe asks for: one picture, or all of them apart or in one grid.
    fn draw(&self, recipe: &Recipe) -> Result<Vec<Image>> {
        let common = Common { model: recipe.model.clone(), dtype: recipe.dtype, ..self.common.clone() };
        let painter = Painter::load(&common, recipe)?;
        out_dir(&self.out)?;
        let (count, batch) = (painter.count(recipe), recipe.batch.max(1));
        // one picture of a batch comes out the same only in its batch
        let chunks: Vec<Range<usize>> = (0..count.div_ceil(batch))
            .map(|c| c * batch..count.min((c + 1) * batch))
            .filter(|c| recipe.index.is_none_or(|i| c.contains(&i)))
            .collect();
        if chunks.is_empty() {
            bail!("the recipe asks for a picture that it does not draw");
        }
        let bar = progress(painter.rows() * chunks.len(), "draw");
        // a picture of all of them has no index of its own
        let together = self.grid || (self.from_png.is_some() && recipe.index.is_none());
        let (mut drawn, mut paths) = (Vec::new(), Vec::new());
        let mut preview = Preview::default();
        let mut write = |image: &Image, recipe: &Recipe| -> Result<()> {
            let path = free_name(&self.out);
            recipe.save(image, &path)?;
            if !self.common.json {
                bar.suspend(|| show(image));
                println!("{}", path.display());
            }
            paths.push(path);
            Ok(())
        };
        for chunk in chunks {
            let images = painter.draw(recipe, chunk.clone(), &mut |tokens| {
                if !self.common.json
                    && preview.is_due()
                    && let Ok(sketch) = painter.sketch(&tokens[0])
                {
                    bar.suspend(|| preview.show(&sketch));
                }
                tick(&bar, 1);
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
                "prompt": recipe.prompt, "class": recipe.class, "seed": recipe.seed, "images": paths
            });
            println!("{json}");
        }
        Ok(drawn)
    }

    fn settings(&self, mut s: SampleSettings, guidance_scale: f32) -> Result<DrawSettings> {
        self.sampling.apply(&mut s);
        if self.greedy {
            s.temperature = 0.0;
        }
        s.check()?;
        Ok(DrawSettings {
            sample: s,
            guidance_scale: self.guidance.unwrap_or(guidance_scale),
            guidance_interval: self.guidance_interval,
            schedule: match self.guidance_schedule {
                Course::Constant => Schedule::Constant,
                Course::Linear => Schedule::Linear,
                Course::Cosine => Schedule::Cosine,
            },
        })
    }

    /// LlamaGen's tokens alone.
    fn codes(&self) -> Result<()> {
        let recipe = self.recipe()?;
        let artifact = self.common.artifact()?;
        let model = decoder(&artifact, &self.common.placement()?)?;
        let wanted = conditions(&model, &recipe, &artifact)?;
        let batch = self.common.batch()?;
        let bar = progress(model.config.grid() * wanted.len().div_ceil(batch), "draw");
        let mut ids: Vec<i64> = Vec::new();
        for start in (0..wanted.len()).step_by(batch) {
            let chunk = start..wanted.len().min(start + batch);
            let drawn = paint(&model, &wanted, chunk, &recipe, &mut |_| tick(&bar, 1))?;
            ids.extend(drawn.concat().into_iter().map(i64::from));
        }
        bar.finish_and_clear();
        let tensor = Tensor::from_vec(ids, (wanted.len(), model.config.block_size), &Device::Cpu)?;
        nn::checkpoint::save(&self.out, &[("tokens".to_owned(), tensor)].into(), &[])?;
        println!("{}", self.out.display());
        Ok(())
    }
}

/// A model that draws, with what it draws.
enum Painter {
    Unified(Box<Unified>, Vec<u32>),
    Janus(Box<JanusChat>, String),
    LlamaGen(Arc<LlamaGen>, Box<VisualTokenizer>, Condition),
}

/// Hears the tokens of all pictures of a batch after each row.
type OnRow<'a> = &'a mut dyn FnMut(&[Vec<u32>]);

impl Painter {
    fn load(common: &Common, recipe: &Recipe) -> Result<Self> {
        let (artifact, at) = (common.artifact()?, common.placement()?);
        let words = || recipe.prompt.as_deref().context("this model draws from words: give a prompt");
        match artifact.architecture {
            Architecture::Unified => {
                let model = Unified::load(&artifact, &at)?;
                let words = words()?.trim();
                let context = model.drawing_context(words.strip_prefix("draw ").unwrap_or(words))?;
                Ok(Self::Unified(Box::new(model), context))
            }
            Architecture::Janus => Ok(Self::Janus(Box::new(JanusChat::load(&artifact, &at)?), words()?.to_owned())),
            Architecture::LlamaGen => {
                let model = decoder(&artifact, &at)?;
                let wanted = conditions(&model, recipe, &artifact)?;
                let given = recipe.tokenizer.as_ref().map(|dir| Artifact::open(&dir.to_string_lossy())).transpose()?;
                let tokenizer = match given {
                    Some(given) => given,
                    None => artifact.image_tokenizer()?.context(
                        "the model has no folder `vq` or `qlip` with its image tokenizer, and no vq_ds16_*.pt beside it: give \
                         --tokenizer, or --codes-only",
                    )?,
                };
                let visual = tokenizer_of(&model.config, &tokenizer, &at)?;
                Ok(Self::LlamaGen(model, Box::new(visual), wanted))
            }
            other => bail!("drawing with {} is not built yet; unified forward runs it", other.says()),
        }
    }

    /// Rows of a picture's grid.
    fn rows(&self) -> usize {
        match self {
            Self::Unified(model, _) => model.config.vocabulary.grid,
            Self::Janus(model, _) => model.model.config.grid,
            Self::LlamaGen(model, ..) => model.config.grid(),
        }
    }

    /// Pictures in all.
    fn count(&self, recipe: &Recipe) -> usize {
        match self {
            Self::Unified(..) | Self::Janus(..) => recipe.n,
            Self::LlamaGen(_, _, wanted) => wanted.len(),
        }
    }

    /// A picture of which only the first rows are drawn.
    fn sketch(&self, tokens: &[u32]) -> Result<Image> {
        match self {
            Self::Unified(model, _) => Ok(model.sketch(&model.config.vocabulary.cells(tokens)?)?),
            Self::Janus(model, _) => Ok(model.sketch(tokens)?),
            Self::LlamaGen(_, visual, _) => Ok(visual.sketch(tokens)?),
        }
    }

    /// A range of the pictures, as one batch.
    fn draw(&self, recipe: &Recipe, range: Range<usize>, on_row: OnRow) -> Result<Vec<Image>> {
        let s = &recipe.settings;
        match self {
            Self::Unified(model, context) => {
                let g = Generation {
                    image: s.sample,
                    guidance_scale: s.guidance_scale,
                    best_of: recipe.best_of,
                    ..model.config.generation
                };
                let seeds: Vec<u64> = range.map(|i| recipe.seed.wrapping_add(i as u64)).collect();
                let codes = model.draw_images(&vec![context.clone(); seeds.len()], &seeds, &g, &mut |tokens| {
                    on_row(tokens);
                    true
                })?;
                Ok(model.decode(&codes)?)
            }
            Self::Janus(model, words) => {
                let g = Generation { image: s.sample, guidance_scale: s.guidance_scale, ..model.generation() };
                let seeds: Vec<u64> = range.map(|i| recipe.seed.wrapping_add(i as u64)).collect();
                Ok(model.draw(words, &seeds, &g, &mut |codes| {
                    on_row(codes);
                    true
                })?)
            }
            Self::LlamaGen(model, visual, wanted) => Ok(visual.images(&paint(model, wanted, range, recipe, on_row)?)?),
        }
    }
}

/// What each picture is drawn from: classes, or features of captions that are read or made.
fn conditions(model: &Arc<LlamaGen>, recipe: &Recipe, artifact: &Artifact) -> Result<Condition> {
    let n = recipe.n;
    if model.config.model_type == ModelType::C2i {
        if recipe.class.is_empty() {
            bail!("this model draws classes: give --class, as in --class 0,3");
        }
        return Ok(Condition::Classes(recipe.class.iter().flat_map(|&c| std::iter::repeat_n(c, n)).collect()));
    }
    let positions = model.config.cls_token_num;
    let device = model.device();
    let captions = match (&recipe.features, &recipe.prompt) {
        (Some(path), _) => Captions::load(path, device)?,
        (None, Some(prompt)) => {
            let given = recipe.text_encoder.as_ref().map(|dir| Artifact::open(&dir.to_string_lossy())).transpose()?;
            let encoder = given.map_or_else(|| artifact.text_encoder(), |given| Ok(Some(given)))?.context(
                "this model draws captions through a T5 encoder: give its folder by --text-encoder DIR, or features by \
                 --features FILE (unified features makes them)",
            )?;
            TextEncoder::load(&encoder, device)?.encode(std::slice::from_ref(prompt), positions)?
        }
        (None, None) => bail!("this model draws captions, not classes: give words"),
    };
    let each: Vec<usize> = (0..captions.len()).flat_map(|i| std::iter::repeat_n(i, n)).collect();
    Ok(captions.condition(&each)?)
}

/// Tokens of a range of the wanted pictures.
fn paint(
    model: &Arc<LlamaGen>,
    wanted: &Condition,
    range: Range<usize>,
    recipe: &Recipe,
    on_row: OnRow,
) -> Result<Vec<Vec<u32>>> {
    let seeds: Vec<u64> = range.clone().map(|i| recipe.seed.wrapping_add(i as u64)).collect();
    Ok(draw(model, &wanted.range(range)?, &seeds, &recipe.settings, &mut |tokens| {
        on_row(tokens);
        true
    })?)
}
