//! `unified merge FILES -o OUT`: what `tokenize --shard` or `features --shard` wrote, as one file.

use super::output::say;
use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use clap::Args;
use nn::stored::Stored;
use std::path::{Path, PathBuf};
use unified::captions::Captions;

/// Join the files of several parts, in the order given: codes of `tokenize`, or features of `features`.
#[derive(Args)]
pub struct Merge {
    /// Files that `tokenize --shard` or `features --shard` wrote.
    #[arg(required = true)]
    parts: Vec<PathBuf>,
    /// The file that holds them all.
    #[arg(short, long)]
    out: PathBuf,
}

impl Merge {
    pub fn run(&self) -> Result<()> {
        let first = Stored::map_files(vec![self.parts[0].clone()])?;
        if first.contains("codes") {
            self.codes()?;
        } else if first.contains("features") {
            self.features()?;
        } else {
            bail!(
                "{}: neither `codes` nor `features` in it: not a file of `tokenize` or `features`",
                self.parts[0].display()
            );
        }
        say!("{}", self.out.display());
        Ok(())
    }

    fn codes(&self) -> Result<()> {
        let (bits, grid) = shape_of(&self.parts[0])?;
        let mut all = qlip::Codes { bits, grid, indices: Vec::new() };
        let mut names = Vec::new();
        for part in &self.parts {
            if shape_of(part)? != (bits, grid) {
                bail!("{}: bits or grid are not those of {}", part.display(), self.parts[0].display());
            }
            let (codes, files) = qlip::Codes::load(part, bits, grid)?;
            all.indices.extend(codes.indices);
            names.extend(files);
        }
        Ok(all.save(&self.out, &names)?)
    }

    fn features(&self) -> Result<()> {
        let (mut features, mut pads) = (Vec::new(), Vec::new());
        for part in &self.parts {
            let one = Captions::load(part, &Device::Cpu)?;
            pads.extend(one.pads);
            features.push(one.features);
        }
        let features = Tensor::cat(&features, 0).context("parts of different positions or widths")?;
        Ok(Captions { features, pads }.save(&self.out)?)
    }
}

/// Bits and grid of a file of codes.
fn shape_of(path: &Path) -> Result<(usize, usize)> {
    let bits = nn::checkpoint::metadata(path)?.get("bits").and_then(|b| b.parse().ok());
    let grid = Stored::map_files(vec![path.to_path_buf()])?.get("grid")?;
    let grid = grid.and_then(|g| g.to_vec1::<u32>().ok()).filter(|g| g.len() == 2);
    match (bits, grid) {
        (Some(bits), Some(grid)) => Ok((bits, grid[0] as usize)),
        _ => bail!("{}: no bits or grid in it: not a file that `tokenize` wrote", path.display()),
    }
}
