//! What decides a drawn picture's pixels, written into its PNG, so that `generate --from-png` can draw it again.

use super::common::Type;
use anyhow::{Context, Result, bail};
use lm::draw::DrawSettings;
use qlip::Image;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Keyword of the text in the PNG.
const KEYWORD: &str = "unified";

/// Most pictures that a recipe may ask for.
const MOST: usize = 10_000;

/// Everything that the pixels depend on, besides the model's weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Version of the program.
    pub version: String,
    /// Folder, file or hub id; the embedded model if absent.
    pub model: Option<String>,
    /// Folder of LlamaGen's image tokenizer, where it was given.
    pub tokenizer: Option<PathBuf>,
    /// Folder of its text encoder, where it was given.
    #[serde(default)]
    pub text_encoder: Option<PathBuf>,
    /// File of caption features, where it was given.
    #[serde(default)]
    pub features: Option<PathBuf>,
    /// Type of the weights in memory.
    pub dtype: Type,
    /// Words.
    pub prompt: Option<String>,
    /// Classes.
    pub class: Vec<u32>,
    /// Seed of the first picture; the next has the next.
    pub seed: u64,
    /// Pictures of the words, or of each class.
    pub n: usize,
    /// Pictures that were drawn at once: products over more rows may round differently.
    pub batch: usize,
    /// Which of the pictures this is; absent for all of them in one grid.
    pub index: Option<usize>,
    /// Drawings of which each picture is the best, where the model judges its own.
    #[serde(default = "one")]
    pub best_of: usize,
    /// Sampling and guidance.
    pub settings: DrawSettings,
}

fn one() -> usize {
    1
}

impl Recipe {
    /// A picture as PNG bytes with its recipe.
    pub fn png(&self, image: &Image) -> Result<Vec<u8>> {
        let text = serde_json::to_string(self)?;
        Ok(image.to_png_with(&[(KEYWORD, &text)])?)
    }

    /// Writes a picture with its recipe.
    pub fn save(&self, image: &Image, path: &Path) -> Result<()> {
        nn::checkpoint::write_atomic(path, &self.png(image)?)?;
        Ok(())
    }

    /// Whether the numbers are ones that this program writes.
    pub fn check(&self, path: &Path) -> Result<()> {
        self.settings.check().with_context(|| format!("{}: its recipe", path.display()))?;
        if self.n == 0 || self.n.max(self.batch).max(self.best_of) > MOST || self.class.len() > MOST {
            bail!("{}: its recipe asks for more than {MOST} pictures, or none", path.display());
        }
        Ok(())
    }

    /// The recipe in a PNG file, and the picture.
    pub fn read(path: &Path) -> Result<(Self, Image)> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        let image = Image::from_bytes(path, &bytes)?;
        let Some(text) = qlip::image::png_text(&bytes, KEYWORD) else {
            bail!("{}: a picture without a recipe; `unified generate` writes one into its PNG files", path.display());
        };
        let recipe = serde_json::from_str(&text).with_context(|| format!("{}: its recipe", path.display()))?;
        Ok((recipe, image))
    }
}
