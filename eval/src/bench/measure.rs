//! What is measured of a model as a whole, not item by item: linear probes on an image tokenizer's tokens, and drawings of classes as a
//! classifier sees them. Such a task has one item, whose answer is the values.

use super::ask::{Ask, Measure};
use super::asking::Asking;
use super::{Answer, Files, Item, Notes, Scores, Shipped};
use crate::pictures::{Sizes, Studio};
use crate::visual::probes;
use crate::{Error, Result};
use qlip::data::Pictures;
use serde_json::{Value, json};
use std::path::Path;
use unified::artifact::Artifact;
use unified::classifier::Classifier;
use unified::loaded::Loaded;

/// Linear probes.
pub const PROBE: Shipped = Shipped {
    name: "probe",
    about: "what a linear layer finds in an image tokenizer's tokens (pictures with classes, train and test)",
    load: |files, _| whole(files),
    ask: |item| Ok(Ask::Measure(Measure::Probe(item.text("dir").into()))),
    score,
};
/// Drawings of classes.
pub const CLASS_PICTURES: Shipped = Shipped {
    name: "class_pictures",
    about: "drawings of a class-conditional LlamaGen as a classifier (--judge) sees them, beside photographs",
    load: |files, _| whole(files),
    ask: |item| Ok(Ask::Measure(Measure::ClassPictures(item.text("dir").into()))),
    score,
};

/// Photographs of each split that probes take.
const PROBED: usize = 10_000;
/// Drawings a class, and at once.
const DRAWINGS: usize = 100;
const BATCH: usize = 50;

fn whole(files: &Files) -> Result<Vec<Item>> {
    let classes = super::pictures::test_split(files)?.classes.len();
    if classes < 2 {
        return Err(Error::bad_file(
            &files.dir,
            format!("pictures of {classes} classes; two or more can be told apart"),
        ));
    }
    Ok(vec![Item::new("all", "all", json!({"dir": files.dir}))])
}

fn score(_: &[Item], answers: &[Answer], _: &Files, _: &mut Notes) -> Result<Scores> {
    let mut out = Scores::default();
    for answer in answers {
        let Some(values) = answer.line["values"].as_object() else {
            return Err(Error::invalid("an answer of this task holds `values`, numbers by name"));
        };
        values.iter().filter_map(|(k, v)| Some((k, v.as_f64()?))).for_each(|(k, v)| out.value(k, v));
    }
    Ok(out)
}

/// The answer: values by metric.
pub(super) fn values(model: &Loaded, artifact: &Artifact, what: &Measure, how: &Asking) -> Result<Value> {
    let values = match what {
        Measure::Probe(dir) => {
            let eyes =
                model.eyes().ok_or_else(|| Error::Unsupported("probes are of a QLIP or a unified model".into()))?;
            let (train, test) = (Pictures::open(dir, "train")?, Pictures::open(dir, "test")?);
            let n = how.limit.unwrap_or(PROBED);
            let r = probes(eyes, &train, &test, n, n)?;
            json!({"quantised@linear_probe": r.quantised, "latents@linear_probe": r.latents})
        }
        Measure::ClassPictures(dir) => class_pictures(model, artifact, dir, how)?,
    };
    Ok(json!({"answer": "", "values": values}))
}

fn class_pictures(model: &Loaded, artifact: &Artifact, dir: &Path, how: &Asking) -> Result<Value> {
    let Loaded::LlamaGen(painter) = model else {
        return Err(Error::Unsupported("class_pictures draws with a LlamaGen".into()));
    };
    let judge = how.judge.as_ref().ok_or_else(|| {
        Error::invalid(
            "class_pictures: give the folder of a classifier by --judge (unified train, kind = \"classifier\")",
        )
    })?;
    let classifier = Classifier::load(judge)?;
    let photos = Pictures::open(dir, "test")?;
    let per_class = how.limit.map_or(DRAWINGS, |n| n.div_ceil(photos.classes.len().max(1)));
    let draw = how.drawing(model).0;
    let sizes = Sizes { per_class, batch: BATCH.min(how.batch.max(1) * 4), seed: how.seed, draw };
    let visual = painter.visual().ok_or_else(|| Error::invalid("this model draws codes alone"))?;
    let studio = Studio { model: &painter.model, visual, classifier: &classifier, photos: &photos };
    let r = crate::pictures::run(&studio, &sizes)?;
    let parameters: usize = artifact.tensors()?.shapes().iter().map(|s| s.1.iter().product::<usize>()).sum();
    Ok(json!({
        "asked_class@classifier": r.asked_class.share(),
        "feature_frechet@classifier": r.feature_frechet,
        "drawings@count": r.drawings,
        "photographs@count": r.photographs,
        "reconstructions@count": r.tokenizer.n,
        "photographs_right@classifier": r.classifier.share(),
        "reconstructions_right@classifier": r.tokenizer.classified.share(),
        "reconstruction_psnr@rgb8": r.tokenizer.psnr,
        "reconstruction_frechet@classifier": r.tokenizer.feature_frechet,
        "seconds_a_picture@wall": r.seconds,
        "tokens_a_picture@decoder": r.tokens,
        "decoder_parameters@millions": parameters as f64 / 1e6,
    }))
}
