//! `[[data]]` of a training config: where samples come from, how they become samples, and with what share.

use crate::{Error, Result};
use nn::rng::{self, Rng};
use qlip::data::Pictures;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A source of samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// What the source holds.
    pub kind: DataKind,
    /// Folder or file, or `hf://datasets/OWNER/NAME[@REVISION][/FOLDER]`, which is fetched into the hub's cache. Scenes have none; text
    /// without one is small talk.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Split of a folder with several (pictures); "train" if absent.
    #[serde(default)]
    pub split: Option<String>,
    /// Folder of the pictures that documents and conversations name; of a web address the last part counts.
    #[serde(default)]
    pub images: Option<PathBuf>,
    /// Codes that `unified tokenize` wrote for the pictures of documents; without it pictures are encoded at every step.
    #[serde(default)]
    pub codes: Option<PathBuf>,
    /// What becomes of a picture or scene in a unified training.
    #[serde(default)]
    pub template: Option<SampleTemplate>,
    /// Share at the first update, next to the other sources'; shares need not add up to one.
    #[serde(default = "one")]
    pub start: f64,
    /// Share from `mixture.calm_down_steps` on; as at the start if absent.
    #[serde(default)]
    pub end: Option<f64>,
    /// What each target of this source counts in the loss, beside 1: a source whose tokens are mostly chance (photographs to draw) tells little by them
    /// and would outshout the others (unified trainings).
    #[serde(default)]
    pub loss_weight: Option<f32>,
    /// Smallest side of a random crop, as a share of the picture's (pictures).
    #[serde(default)]
    pub smallest_crop: Option<f32>,
    /// Most objects of a scene that a tokenizer is trained on, up to 9 (scenes).
    #[serde(default)]
    pub objects: Option<usize>,
    /// Share of the samples that may be unreadable or miss their pictures; 0.01 if absent.
    #[serde(default)]
    pub broken_share: Option<f64>,
}

/// What a source holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum DataKind {
    /// Pictures with classes or captions: see [`Pictures::open`].
    Pictures,
    /// Scenes of coloured shapes, made as they are needed.
    Scenes,
    /// Documents of text and pictures, an object a line: see [`crate::documents`].
    Documents,
    /// Conversations about pictures: LLaVA's files and `messages`.
    Conversations,
    /// Text: an object with `text` a line; without a path, small talk.
    Text,
}

/// What becomes of a picture or scene in a unified training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SampleTemplate {
    /// The picture, then questions and words about it.
    Describe,
    /// A request, then the picture.
    Draw,
    /// A request, the picture, and words about it.
    DrawThenDescribe,
    /// A picture, an instruction that changes it, and the changed picture (scenes).
    Edit,
    /// A picture that answers a request rightly or wrongly, and the question whether it is right; teaches the model to choose among its own
    /// drawings.
    Check,
}

fn one() -> f64 {
    1.0
}

/// Share of broken samples that is allowed where a config does not say.
const BROKEN: f64 = 0.01;

impl DataConfig {
    /// A source of a kind with nothing said about it.
    pub fn of(kind: DataKind) -> Self {
        Self {
            kind,
            path: None,
            split: None,
            images: None,
            codes: None,
            template: None,
            start: 1.0,
            end: None,
            loss_weight: None,
            smallest_crop: None,
            objects: None,
            broken_share: None,
        }
    }

    /// Whether its keys belong to its kind and its numbers are in range.
    pub fn check(&self) -> Result<()> {
        use DataKind::{Conversations, Documents, Pictures, Scenes, Text};
        let kinds: [(&str, bool, &[DataKind]); 8] = [
            ("path", self.path.is_some(), &[Pictures, Documents, Conversations, Text]),
            ("split", self.split.is_some(), &[Pictures]),
            ("images", self.images.is_some(), &[Documents, Conversations]),
            ("codes", self.codes.is_some(), &[Documents]),
            ("template", self.template.is_some(), &[Pictures, Scenes]),
            ("smallest_crop", self.smallest_crop.is_some(), &[Pictures]),
            ("objects", self.objects.is_some(), &[Scenes]),
            ("broken_share", self.broken_share.is_some(), &[Pictures, Documents, Conversations]),
        ];
        let name = self.name();
        if let Some((key, ..)) = kinds.iter().find(|(_, given, of)| *given && !of.contains(&self.kind)) {
            return Err(Error::invalid(format!("[[data]] {name}: {key} has no meaning for this kind; leave it out")));
        }
        if self.path.is_none() && matches!(self.kind, Pictures | Documents | Conversations) {
            return Err(Error::invalid(format!("[[data]] {name}: path is missing")));
        }
        if self.template == Some(SampleTemplate::Edit) && self.kind == Pictures {
            return Err(Error::invalid(format!("[[data]] {name}: template = \"edit\" is for kind = \"scenes\"")));
        }
        for (key, share) in [("start", self.start), ("end", self.end())] {
            if !(share.is_finite() && share >= 0.0) {
                return Err(Error::invalid(format!("[[data]] {name}: {key} = {share}: write 0 or more")));
            }
        }
        if let Some(w) = self.loss_weight.filter(|w| !(w.is_finite() && *w > 0.0)) {
            return Err(Error::invalid(format!(
                "[[data]] {name}: loss_weight = {w}: write more than 0; start = 0 leaves a source out"
            )));
        }
        let shares = [("broken_share", self.broken_share), ("smallest_crop", self.smallest_crop.map(f64::from))];
        for (key, share) in shares {
            if share.is_some_and(|s| !(0.0..=1.0).contains(&s)) {
                return Err(Error::invalid(format!("[[data]] {name}: {key}: write a share from 0 to 1")));
            }
        }
        match self.objects {
            Some(n) if !(1..=9).contains(&n) => {
                Err(Error::invalid(format!("[[data]] {name}: objects = {n}: a scene has 1 to 9")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses keys that are given and say nothing to the training at hand.
    pub fn must_not(&self, keys: &[(&str, bool)]) -> Result<()> {
        match keys.iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(Error::invalid(format!(
                "[[data]] {}: {key} has no meaning for this training; leave it out",
                self.name()
            ))),
            None => Ok(()),
        }
    }

    /// For messages: the kind, what becomes of it, and the path where there is one.
    pub fn name(&self) -> String {
        let kind = format!("{:?}", self.kind).to_lowercase();
        let kind = match self.template {
            Some(t) => format!(
                "{kind} to {}",
                serde_json::to_value(t).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
            ),
            None => kind,
        };
        self.path.as_ref().map_or(kind.clone(), |p| format!("{kind} {}", p.display()))
    }

    /// Share after the calm-down.
    pub fn end(&self) -> f64 {
        self.end.unwrap_or(self.start)
    }

    /// Share at a step of a training that calms down over so many.
    pub fn share(&self, step: usize, calm_down: usize) -> f64 {
        let t = (step as f64 / calm_down.max(1) as f64).min(1.0);
        self.start + (self.end() - self.start) * t
    }

    /// Whether anything is ever drawn from it.
    pub fn is_used(&self) -> bool {
        self.start > 0.0 || self.end() > 0.0
    }

    /// Share of broken samples that is allowed.
    pub fn broken(&self) -> f64 {
        self.broken_share.unwrap_or(BROKEN)
    }

    /// The source's place on this machine; what the hub has is fetched.
    pub fn place(&self) -> Result<PathBuf> {
        let path = self.path.as_deref().unwrap_or(Path::new(""));
        let text = path.to_string_lossy();
        match text.strip_prefix("hf://") {
            Some(place) => crate::artifact::dataset(place),
            None => Ok(path.to_owned()),
        }
    }

    /// The pictures of a source of them, and a line that says what they are.
    pub fn pictures(&self, held_out: f64) -> Result<(Pictures, String)> {
        let place = self.place()?;
        let pictures = Pictures::open(&place, self.split.as_deref().unwrap_or("train"))?
            .allow_broken(self.broken())
            .hold_out(held_out)?;
        let line = format!("{}: {}", place.display(), pictures.summary());
        Ok((pictures, line))
    }
}

/// The number of the source that is drawn by these shares.
pub fn draw(shares: &[f64], r: &mut Rng) -> usize {
    let mut left = f64::from(rng::uniform(r)) * shares.iter().sum::<f64>();
    for (i, share) in shares.iter().enumerate() {
        left -= share;
        if left < 0.0 {
            return i;
        }
    }
    // rounding: the last that has a share
    shares.iter().rposition(|&s| s > 0.0).unwrap_or(0)
}

/// Which of numbered samples are never trained on.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HeldOut(f64);

/// Seed of the choice of what is held out, the same in every training.
const HELD_OUT: u64 = 0x6865_6c64;

impl HeldOut {
    /// A share of so many samples; an error where that is none of them, or all.
    pub fn of(share: f64, all: usize) -> Result<Self> {
        let it = Self(share);
        let held = (0..all).filter(|&n| it.has(n)).count();
        if share > 0.0 && (held == 0 || held == all) {
            return Err(Error::invalid(format!(
                "run.validation.held_out = {share} keeps {held} of {all} samples from training; both parts need some"
            )));
        }
        Ok(it)
    }

    /// Whether a sample is one of them.
    pub fn has(self, n: usize) -> bool {
        f64::from(rng::uniform(&mut rng::keyed(HELD_OUT, &[n as u64]))) < self.0
    }

    /// One of so many at random, of those that are trained on or of those that never are.
    pub fn draw(self, r: &mut Rng, all: usize, held_out: bool) -> usize {
        loop {
            let n = rng::below(r, all);
            if self.0 == 0.0 || self.has(n) == held_out {
                return n;
            }
        }
    }
}

/// Whether sources can be drawn from, and are of kinds that a training takes.
pub fn check(all: &[DataConfig], takes: &[DataKind]) -> Result<()> {
    for d in all {
        d.check()?;
        if !takes.contains(&d.kind) {
            let these: Vec<String> = takes.iter().map(|k| format!("{k:?}").to_lowercase()).collect();
            let why = format!("[[data]] {}: this training takes {}", d.name(), these.join(", "));
            return Err(Error::invalid(why));
        }
    }
    for (when, none) in
        [("at the start", all.iter().all(|d| d.start == 0.0)), ("at the end", all.iter().all(|d| d.end() == 0.0))]
    {
        if none {
            return Err(Error::invalid(format!("[[data]]: no source has a share {when}; write at least one")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_calm_down_in_a_straight_line() {
        let of = |kind, start, end| DataConfig { start, end: Some(end), ..DataConfig::of(kind) };
        // the paper's 60:1:3 to 12:1:3
        let all = [of(DataKind::Text, 60.0, 12.0), of(DataKind::Scenes, 1.0, 1.0), of(DataKind::Scenes, 3.0, 3.0)];
        assert_eq!([0, 5_000, 50_000].map(|s| all[0].share(s, 10_000)), [60.0, 36.0, 12.0]);
        let mut r = rng::keyed(1, &[]);
        let text = (0..4000).filter(|_| draw(&all.each_ref().map(|d| d.share(20_000, 10_000)), &mut r) == 0).count()
            as f64
            / 4000.0;
        assert!((text - 0.75).abs() < 0.03, "{text}");
    }

    #[test]
    fn keys_belong_to_their_kinds() {
        let scenes = DataConfig { path: Some("x".into()), ..DataConfig::of(DataKind::Scenes) };
        for (d, says) in [
            (scenes, "path has no meaning"),
            (DataConfig::of(DataKind::Pictures), "path is missing"),
            (DataConfig { objects: Some(0), ..DataConfig::of(DataKind::Scenes) }, "1 to 9"),
            (DataConfig { start: -1.0, ..DataConfig::of(DataKind::Text) }, "start = -1"),
            (DataConfig { loss_weight: Some(0.0), ..DataConfig::of(DataKind::Text) }, "loss_weight = 0"),
        ] {
            let e = check(&[d], &[DataKind::Text, DataKind::Scenes]).unwrap_err().to_string();
            assert!(e.contains(says), "{e}");
        }
        let e = check(&[DataConfig::of(DataKind::Text)], &[DataKind::Scenes]).unwrap_err().to_string();
        assert!(e.contains("this training takes scenes"), "{e}");
        assert!(check(&[], &[]).is_err());
    }
}
