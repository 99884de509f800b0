//! Benchmarks that a TOML file declares: where the rows lie, what is asked of each, how answers are scored. Nothing in it runs; an unknown key
//! or metric is refused with the nearest name.

mod load;
mod score;

use super::ask::{Ask, Part};
use super::{Answer, Files, Item, Notes, Scores};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;
use unified::nearest::{nearest, with_nearest};

/// A declared benchmark.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// What it measures, in a line.
    pub about: String,
    /// Layouts of its data; the first whose files are there is read.
    data: Vec<Layout>,
    /// What is asked.
    ask: Asking,
    /// How answers are scored.
    score: Scoring,
}

/// A layout: files and columns.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layout {
    /// Files below the folder, by their path's end; one `*` stands for anything. .parquet, .tsv, .csv, .jsonl, .json.
    #[serde(default)]
    files: Option<String>,
    /// Instead of files: the split of a folder of pictures (folders, parquet, WebDataset), with their classes and captions.
    #[serde(default)]
    pictures: Option<String>,
    /// The list of rows in a .json file; the file is the list if absent.
    #[serde(default)]
    rows: Option<String>,
    /// Rows of another file, by a column that both have.
    #[serde(default)]
    join: Option<Join>,
    /// Column that names a row; its place if absent.
    #[serde(default)]
    id: Option<String>,
    /// Column of what belongs together for statistics: the picture's name, most often.
    #[serde(default)]
    cluster: Option<String>,
    /// Columns by whose values metrics are told apart.
    #[serde(default)]
    group: Vec<String>,
    /// Columns of pictures: bytes, base64, or a file's name.
    #[serde(default)]
    image: Vec<String>,
    /// Names of pictures, as a template: `COCO_val2014_{{ "%012d" | format(image_id) }}.jpg`.
    #[serde(default)]
    image_file: Option<String>,
    /// Column of what is right: words, a list of words, or a list of groups with `answer`; for choices a number, a letter or the words.
    #[serde(default)]
    answer: Option<String>,
    /// The number of the first choice where answers are numbers.
    #[serde(default)]
    first_choice: i64,
    /// Columns of choices, or one that holds a list.
    #[serde(default)]
    choices: Vec<String>,
    /// A file of class names, one a line, in the order of the classes; folders' own names if absent.
    #[serde(default)]
    class_names: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Join {
    /// The other file.
    files: String,
    /// The list of rows in it.
    #[serde(default)]
    rows: Option<String>,
    /// The column.
    on: String,
}

/// What is asked.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asking {
    /// What a model is to do.
    kind: Kind,
    /// The words, as a Jinja template over the row's columns.
    #[serde(default)]
    prompt: String,
    /// Most tokens of an answer in words.
    #[serde(default = "sixteen")]
    max_tokens: usize,
    /// What may follow instead of the choices themselves: ["A", "B", "C", "D"].
    #[serde(default)]
    options: Vec<String>,
    /// Sentences around a class, `{}` in each; the 80 of CLIP's for `openai`.
    #[serde(default)]
    templates: Templates,
    /// Tokens that a prediction of a text can see; as many as the model can if 0.
    #[serde(default)]
    window: usize,
    /// Whether the windows of a text see no token of the one before (`eval text` had them so); lm-evaluation-harness's rolling ones if not.
    #[serde(default)]
    disjoint: bool,
}

fn sixteen() -> usize {
    16
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// Words after the pictures and the prompt.
    Words,
    /// How likely each choice is after the prompt.
    Likelihood,
    /// How likely the prompt itself is.
    Text,
    /// A picture of the prompt.
    Draw,
    /// How near the picture is to each class.
    Classes,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(untagged)]
enum Templates {
    #[default]
    Caption,
    Named(String),
    Own(Vec<String>),
}

impl Templates {
    fn all(&self) -> Result<Vec<String>> {
        match self {
            Self::Caption => Ok(vec!["a photo of a {}".into()]),
            Self::Named(n) if n == "openai" => Ok(super::templates::OPENAI.iter().map(|t| (*t).to_owned()).collect()),
            Self::Named(n) => {
                Err(Error::invalid(format!("templates \"{n}\": write \"openai\" or a list of sentences")))
            }
            Self::Own(all) => Ok(all.clone()),
        }
    }
}

/// How answers are scored.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scoring {
    /// Metrics by name@variant.
    metrics: Vec<String>,
}

/// Benchmarks that are declared in the program itself.
const SHIPPED: &[(&str, &str)] = &[
    ("okvqa", include_str!("../../../tasks/okvqa.toml")),
    ("vizwiz", include_str!("../../../tasks/vizwiz.toml")),
    ("imagefolder", include_str!("../../../tasks/imagefolder.toml")),
    ("piqa", include_str!("../../../tasks/piqa.toml")),
    ("mmlu", include_str!("../../../tasks/mmlu.toml")),
    ("boolq", include_str!("../../../tasks/boolq.toml")),
    ("text", include_str!("../../../tasks/text.toml")),
    ("perplexity", include_str!("../../../tasks/perplexity.toml")),
    ("partiprompts", include_str!("../../../tasks/partiprompts.toml")),
];

/// The names of those that the program holds.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().map(|s| s.0)
}

/// One of them.
pub fn named(name: &str) -> Option<Result<Declared>> {
    let (name, text) = SHIPPED.iter().find(|s| s.0 == name)?;
    Some(Declared::parse(text, Path::new(&format!("{name}.toml"))))
}

impl Declared {
    /// Reads a file.
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        let this: Self = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
            Error::bad_file(path, format!("line {line}: {}", with_nearest(e.message())))
        })?;
        this.check().map_err(|e| Error::bad_file(path, e.to_string()))?;
        Ok(this)
    }

    fn check(&self) -> Result<()> {
        if self.name.is_empty() || !self.name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)) {
            return Err(Error::invalid(format!("name \"{}\": letters, digits, _ and - alone", self.name)));
        }
        let known = score::metrics_of(self.ask.kind);
        for m in &self.score.metrics {
            if !known.contains(&m.as_str()) {
                let near = nearest(m, known.iter().copied(), 1 + m.len() / 3);
                let near = near.map_or(String::new(), |k| format!("; did you mean `{k}`?"));
                return Err(Error::invalid(format!("no metric `{m}` of such answers: {}{near}", known.join(", "))));
            }
        }
        if self.score.metrics.is_empty() {
            return Err(Error::invalid(format!("no metrics; there are: {}", known.join(", "))));
        }
        for layout in &self.data {
            match (&layout.files, &layout.pictures, self.ask.kind) {
                (None, None, _) | (Some(_), Some(_), _) => {
                    return Err(Error::invalid("a [[data]] has either `files` or `pictures`"));
                }
                (Some(_), None, Kind::Classes) => {
                    return Err(Error::invalid("kind = \"classes\" is asked of `pictures`"));
                }
                _ => {}
            }
            if self.ask.kind == Kind::Likelihood && layout.choices.is_empty() && self.ask.options.is_empty() {
                return Err(Error::invalid("kind = \"likelihood\" needs `choices` or `options`"));
            }
        }
        self.ask.templates.all()?;
        load::Prompts::of(self).map(drop)
    }

    /// Its items.
    pub fn load(&self, files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
        load::items(self, files, notes)
    }

    /// What a model is asked for an item.
    pub fn ask(&self, item: &Item) -> Result<Ask> {
        let prompt = item.text("question").to_owned();
        Ok(match self.ask.kind {
            Kind::Words => {
                let pictures = (0..item.shown.len()).map(Part::Picture);
                let parts = pictures.chain([Part::Words(prompt)]).collect();
                Ask::Words { parts, max_tokens: self.ask.max_tokens }
            }
            Kind::Likelihood => Ask::Likelihood { context: prompt, choices: item.texts("choices") },
            Kind::Text => Ask::Text { text: prompt, window: self.ask.window, rolling: !self.ask.disjoint },
            Kind::Draw => Ask::Draw {
                messages: vec![unified::conversation::Message::user(format!("draw {prompt}"))],
                key: nn::rng::name_key(&item.id),
            },
            Kind::Classes => {
                Ask::Nearness { classes: item.classes.clone(), templates: self.ask.templates.all()?.into() }
            }
        })
    }

    /// Scores answers, one for each item.
    pub fn score(&self, items: &[Item], answers: &[Answer], files: &Files, notes: &mut Notes) -> Result<Scores> {
        score::scores(self, items, answers, files, notes)
    }
}

/// A list of words in an answer's column.
fn words_of(v: &Value) -> Vec<String> {
    match v {
        Value::Array(all) => all.iter().flat_map(words_of).collect(),
        Value::Object(o) => o.get("answer").map(words_of).unwrap_or_default(),
        Value::String(s) => vec![s.clone()],
        Value::Null => Vec::new(),
        other => vec![other.to_string()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Declared::parse(text, Path::new("t.toml")).unwrap_err().to_string()
    }

    const WHOLE: &str = "name = \"t\"\nabout = \"a test\"\n[[data]]\nfiles = \"a.jsonl\"\nanswer = \"gold\"\n\
                         [ask]\nkind = \"words\"\nprompt = \"{{ q }}\"\n[score]\nmetrics = [\"exact_match@strict\"]\n";

    #[test]
    fn what_the_program_holds_can_be_read() {
        assert!(names().all(|name| named(name).unwrap().unwrap().name == name));
    }

    #[test]
    fn unknown_keys_and_metrics_are_named_with_what_is_near() {
        assert!(Declared::parse(WHOLE, Path::new("t.toml")).is_ok());
        let why = refused(&WHOLE.replace("answer =", "anser ="));
        assert!(why.contains("line 5") && why.contains("did you mean `answer`?"), "{why}");
        let why = refused(&WHOLE.replace("exact_match@strict", "exact_match@strikt"));
        assert!(why.contains("did you mean `exact_match@strict`?"), "{why}");
        let why = refused(&WHOLE.replace("{{ q }}", "{{ q"));
        assert!(why.contains("prompt"), "{why}");
        let why = refused(&WHOLE.replace("files = \"a.jsonl\"\n", ""));
        assert!(why.contains("either `files` or `pictures`"), "{why}");
    }
}
