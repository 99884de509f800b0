//! `eval score drawings RUN`: a run's drawings of classes as somebody else's classifier sees them, beside the photographs.

use anyhow::{Context, Result, bail};
use eval::frechet::Gaussian;
use eval::pictures::photographs;
use qlip::Image;
use qlip::data::Pictures;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;
use unified::classifier::Classifier;

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

/// Values by metric; a drawing that is not there counts as wrong.
pub(super) fn judged(run: &Path, classifier: &Path, data: &Path) -> Result<Value> {
    let samples = run.join("samples/drawn_classes.jsonl");
    let text = std::fs::read_to_string(&samples).with_context(|| {
        format!(
            "{}: no drawings of classes; `eval run --tasks drawn_classes --out {}` makes them",
            samples.display(),
            run.display()
        )
    })?;
    let judge = Classifier::load(classifier)?;
    let photos = Pictures::open(data, "test")?;
    if judge.config.classes != photos.classes {
        bail!("{}: the classifier's classes are not those of {}", classifier.display(), data.display());
    }
    let (mut right, mut asked, mut seen) = (0usize, 0usize, Vec::new());
    let lines: Vec<&str> = text.lines().collect();
    for (n, some) in lines.chunks(100).enumerate() {
        let (mut images, mut wanted) = (Vec::new(), Vec::new());
        for (i, line) in some.iter().enumerate() {
            let at = || format!("{}, line {}", samples.display(), n * 100 + i + 1);
            let sample: Sample = serde_json::from_str(line).with_context(at)?;
            let class = judge.config.classes.iter().position(|c| *c == sample.facts.name);
            let class =
                class.with_context(|| format!("{}: no class `{}` in the classifier", at(), sample.facts.name))?;
            asked += 1;
            if let Some(picture) = sample.picture {
                images.push(Image::open(&run.join(picture))?);
                wanted.push(class);
            }
        }
        for ((features, class), wanted) in judge.look(&images)?.into_iter().zip(wanted) {
            right += usize::from(class == wanted);
            seen.push(features);
        }
    }
    let (found, real) = photographs(&judge, &photos)?;
    Ok(json!({
        "asked_class@classifier": right as f64 / asked.max(1) as f64,
        "feature_frechet@classifier": Gaussian::of(&seen)?.distance(&real)?,
        "drawings@count": asked,
        "photographs@count": real.n,
        "photographs_right@classifier": found.share(),
    }))
}
