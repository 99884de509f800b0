//! `unified generate PROMPT`

use super::common::{Common, free_name, out_dir, progress, tick};
use super::terminal::show;
use anyhow::{Result, bail};
use clap::Args;
use std::path::PathBuf;

/// Draw pictures from words.
#[derive(Args)]
pub struct Generate {
    #[command(flatten)]
    common: Common,
    /// What to draw: "a red circle above a blue square".
    prompt: String,
    /// Number of pictures, drawn as one batch; picture i has seed SEED + i.
    #[arg(short, long, default_value_t = 1)]
    n: usize,
    /// Folder of the PNG files.
    #[arg(short, long, default_value = ".")]
    out: PathBuf,
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
}

impl Generate {
    pub fn run(&self) -> Result<()> {
        if self.prompt.trim().is_empty() {
            bail!("the prompt is empty: say what to draw, as in \"a red circle\"");
        }
        let model = self.common.unified()?;
        let mut g = model.config.generation;
        g.guidance_scale = self.guidance.unwrap_or(g.guidance_scale);
        g.image.temperature = self.temperature.unwrap_or(g.image.temperature);
        g.image.top_k = self.top_k.unwrap_or(g.image.top_k);
        g.image.top_p = self.top_p.unwrap_or(g.image.top_p);
        g.image.check()?;
        out_dir(&self.out)?;
        let words = self.prompt.trim().strip_prefix("draw ").unwrap_or(self.prompt.trim());
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
            println!("{}", serde_json::json!({"prompt": self.prompt, "seed": self.common.seed, "images": paths}));
        }
        Ok(())
    }
}
