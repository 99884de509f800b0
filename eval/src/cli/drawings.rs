//! `eval score drawings RUN`: a run's drawings of classes as somebody else's classifier sees them, beside the photographs.

use anyhow::{Context, Result, bail};
use eval::frechet::Gaussian;
use eval::pictures::{Judged, Tally, photographs};
use qlip::Image;
use qlip::data::Pictures;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;
use unified::classifier::Classifier;

/// Drawings that are in memory together.
const AT_ONCE: usize = 100;

/// Where a run has them.
const SAMPLES: &str = "samples/drawn_classes.jsonl";

/// A line of a run's samples.
#[derive(Deserialize)]
struct Sample {
    facts: Facts,
    picture: Option<String>,
}

#[derive(Deserialize)]
struct Facts {
    name: String,
}

/// What a run drew, a line a drawing.
pub(super) fn samples(run: &Path) -> Result<String> {
    let path = run.join(SAMPLES);
    std::fs::read_to_string(&path).with_context(|| {
        let (path, run) = (path.display(), run.display());
        format!("{path}: no drawings of classes; `eval run --tasks drawn_classes --out {run}` makes them")
    })
}

/// The photographs and who looks at them, once for all runs.
pub(super) struct Gallery {
    judge: Classifier,
    found: Tally,
    real: Gaussian,
}

impl Gallery {
    pub(super) fn open(classifier: &Path, data: &Path) -> Result<Self> {
        let judge = Classifier::load(classifier)?;
        let photos = Pictures::open(data, "test")?;
        if judge.config.classes != photos.classes {
            bail!("{}: the classifier's classes are not those of {}", classifier.display(), data.display());
        }
        let (found, real) = photographs(&judge, &photos)?;
        Ok(Self { judge, found, real })
    }

    /// Values by metric; a drawing that is not there counts as wrong.
    pub(super) fn judged(&self, run: &Path, samples: &str) -> Result<Value> {
        let classes = &self.judge.config.classes;
        let lines: Vec<&str> = samples.lines().collect();
        let mut drawn = Judged::default();
        for (n, some) in lines.chunks(AT_ONCE).enumerate() {
            let (mut images, mut wanted) = (Vec::new(), Vec::new());
            for (i, line) in some.iter().enumerate() {
                let at = || format!("{}, line {}", run.join(SAMPLES).display(), n * AT_ONCE + i + 1);
                let Sample { facts, picture } = serde_json::from_str(line).with_context(at)?;
                let class = classes.iter().position(|c| *c == facts.name);
                let class = class.with_context(|| format!("{}: no class `{}` in the classifier", at(), facts.name))?;
                match picture {
                    Some(picture) => {
                        images.push(Image::open(&run.join(picture))?);
                        wanted.push(class);
                    }
                    None => drawn.right.add(false),
                }
            }
            drawn.look(&self.judge, &images, &wanted)?;
        }
        Ok(json!({
            "asked_class@classifier": drawn.right.share(),
            "feature_frechet@classifier": Gaussian::of(&drawn.features)?.distance(&self.real)?,
            "drawings@count": drawn.right.n,
            "photographs@count": self.real.n,
            "photographs_right@classifier": self.found.share(),
        }))
    }
}
