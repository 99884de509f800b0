//! Files of conversations about pictures: LLaVA's {id, image, conversations: [{from, value}]} as they are published, and
//! {messages: [{role, content}], images}.

use crate::data::DataConfig;
use crate::template::{Conversation, Template};
use crate::{Error, Result};
use qlip::data::{Skipped, without_mark};
use serde::{Deserialize, Deserializer};
use std::path::{Path, PathBuf};

/// Where a picture goes, in the files and in the templates of this family.
pub const IMAGE_MARK: &str = "<image>";

/// One entry of a file; other keys are ignored, as published files carry many.
#[derive(Debug, Clone, Deserialize)]
pub struct Entry {
    /// Name for messages; a number or a text.
    #[serde(default)]
    pub id: serde_json::Value,
    /// Picture or pictures, relative to the image folder; text-only entries have none.
    #[serde(default, alias = "images")]
    pub image: Option<OneOrMany>,
    /// Turns, a human's first.
    #[serde(alias = "messages")]
    pub conversations: Vec<Turn>,
}

/// A path or a list of paths.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(PathBuf),
    /// Several, in the order of their marks.
    Many(Vec<PathBuf>),
}

/// What one side says.
#[derive(Debug, Clone, Deserialize)]
pub struct Turn {
    /// "human" or "gpt" ("user" and "assistant" are understood too).
    #[serde(alias = "role")]
    pub from: String,
    /// Words, with `<image>` where a picture is shown.
    #[serde(alias = "content", deserialize_with = "words")]
    pub value: String,
}

/// A text, or a list of parts {type: text | image, text}, each picture its mark.
fn words<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Content {
        Text(String),
        Parts(Vec<Part>),
    }
    #[derive(Deserialize)]
    struct Part {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        text: Option<String>,
    }
    let parts = match Content::deserialize(d)? {
        Content::Text(text) => return Ok(text),
        Content::Parts(parts) => parts,
    };
    let one = |p: Part| match (p.kind.as_str(), p.text) {
        ("text", Some(text)) => Ok(text),
        ("image" | "image_url", _) => Ok(IMAGE_MARK.to_owned()),
        (kind, _) => Err(serde::de::Error::custom(format!("a part of type `{kind}`; text and image are read"))),
    };
    parts.into_iter().map(one).collect()
}

/// The conversations of a source whose pictures are there, its folder of pictures, and what is passed over.
pub fn list(path: &Path, images: Option<&Path>) -> Result<(Vec<Entry>, PathBuf, Vec<Skipped>)> {
    let images = images.or(path.parent()).unwrap_or(Path::new(".")).to_owned();
    let mut skipped = Vec::new();
    let mut there = |e: &Entry| match e.images().iter().find(|p| !images.join(p).is_file()) {
        Some(p) => {
            let why = format!("no picture {}", images.join(p).display());
            skipped.push(Skipped { name: format!("entry {}", e.id), why });
            false
        }
        None => true,
    };
    let kept = read(path)?.into_iter().filter(|e| there(e)).collect();
    Ok((kept, images, skipped))
}

/// The same of `[[data]]`, saying what was found; an error where more than the allowed share is missing.
pub fn open(config: &DataConfig, say: &mut dyn FnMut(&str)) -> Result<(Vec<Entry>, PathBuf, Vec<Skipped>)> {
    let path = config.place()?;
    let (entries, images, skipped) = list(&path, config.images.as_deref())?;
    let (n, all) = (skipped.len(), entries.len() + skipped.len());
    if entries.is_empty() {
        return Err(Error::bad_file(&path, format!("none of {all} conversations has its pictures")));
    }
    let mut line = format!("{}: {} conversations", path.display(), entries.len());
    if let Some(first) = skipped.first() {
        line.push_str(&format!("; {n} passed over, the first: {}: {}", first.name, first.why));
    }
    say(&line);
    if n as f64 > config.broken() * all as f64 && n > 3.min(all - 1) {
        let share = config.broken();
        let why = format!("{n} of {all} conversations miss their pictures, more than the allowed broken_share {share}");
        return Err(Error::bad_file(&path, why));
    }
    Ok((entries, images, skipped))
}

/// Turns in order, each with whether it is learned; what a system says is said by the user's first turn.
pub fn learned_turns(entry: &Entry) -> Vec<(bool, String)> {
    let mut out: Vec<(bool, String)> = Vec::new();
    for t in &entry.conversations {
        match (role(t), out.last_mut()) {
            (Some("user"), Some((false, before))) => *before = format!("{before}\n{}", t.value),
            (who, _) => out.push((who == Some("assistant"), t.value.clone())),
        }
    }
    out
}

impl Entry {
    /// Pictures in order.
    pub fn images(&self) -> &[PathBuf] {
        match &self.image {
            Some(OneOrMany::One(p)) => std::slice::from_ref(p),
            Some(OneOrMany::Many(v)) => v,
            None => &[],
        }
    }

    fn marks(&self) -> usize {
        self.conversations.iter().map(|t| t.value.matches(IMAGE_MARK).count()).sum()
    }
}

/// All entries of a JSON list or of a file with one JSON object a line.
pub fn read(path: &Path) -> Result<Vec<Entry>> {
    let text = without_mark(std::fs::read_to_string(path).map_err(Error::io(path))?);
    let bad = |line: usize, e: serde_json::Error| Error::bad_file(path, format!("line {line}: {e}"));
    let mut entries: Vec<Entry> = if text.trim_start().starts_with('[') {
        serde_json::from_str(&text).map_err(|e| bad(e.line(), e))?
    } else {
        let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
        lines.map(|(i, l)| serde_json::from_str(l).map_err(|e| bad(i + 1, e))).collect::<Result<_>>()?
    };
    for e in &mut entries {
        // published files hold a few that begin with an answer; LLaVA leaves that turn out
        if e.conversations.first().and_then(role) == Some("assistant") {
            e.conversations.remove(0);
        }
        let wrong = |why: String| Err(Error::bad_file(path, format!("entry {}: {why}", e.id)));
        if e.marks() != e.images().len() {
            return wrong(format!("{} `<image>` marks for {} pictures", e.marks(), e.images().len()));
        }
        if let Some(t) = e.conversations.iter().find(|t| role(t).is_none()) {
            return wrong(format!("`from` is `{}`; use human or gpt", t.from));
        }
        let system = e.conversations.first().and_then(role) == Some("system");
        let turns = &e.conversations[usize::from(system)..];
        if turns.first().and_then(role) != Some("user") || turns.len() < 2 {
            return wrong("a conversation begins with a human's turn and has an answer".into());
        }
    }
    if entries.is_empty() {
        return Err(Error::bad_file(path, "no conversations"));
    }
    Ok(entries)
}

fn role(t: &Turn) -> Option<&'static str> {
    match t.from.as_str() {
        "human" | "user" => Some("user"),
        "gpt" | "assistant" => Some("assistant"),
        "system" => Some("system"),
        _ => None,
    }
}

/// The rendered conversation in pieces, each with whether it is learned: answers and their end marks are.
pub fn pieces(entry: &Entry, template: &Template, bos: &str, eos: &str) -> Result<Vec<(String, bool)>> {
    let content = |t: &Turn| -> serde_json::Value {
        // the marks become parts, so that any template of the dialect can place them
        let mut parts = Vec::new();
        for (i, text) in t.value.split(IMAGE_MARK).enumerate() {
            if i > 0 {
                parts.push(serde_json::json!({"type": "image"}));
            }
            let text = text.trim_matches('\n');
            if !text.is_empty() {
                parts.push(serde_json::json!({"type": "text", "text": text}));
            }
        }
        parts.into()
    };
    let turn = |t: &Turn| serde_json::json!({"role": role(t), "content": content(t)});
    let messages: Vec<serde_json::Value> = entry.conversations.iter().map(turn).collect();
    let render = |n: usize, add_generation_prompt: bool| -> Result<String> {
        let list = serde_json::Value::Array(messages[..n].to_vec());
        let now = chrono::NaiveDateTime::default();
        template.render(&Conversation {
            messages: &list,
            tools: None,
            bos_token: bos,
            eos_token: eos,
            add_generation_prompt,
            now,
        })
    };
    let mut out: Vec<(String, bool)> = Vec::new();
    let mut done = String::new();
    let mut add = |upto: String, learn: bool| -> Result<()> {
        let rest = upto.strip_prefix(done.as_str()).ok_or_else(|| {
            Error::invalid("this chat template changes earlier turns when later ones come; it cannot be trained on")
        })?;
        if !rest.is_empty() {
            out.push((rest.to_owned(), learn));
        }
        done = upto;
        Ok(())
    };
    for (i, t) in entry.conversations.iter().enumerate() {
        if role(t) == Some("assistant") {
            add(render(i, true)?, false)?;
            add(render(i + 1, false)?, true)?;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llava::VICUNA_V1;

    fn entry() -> Entry {
        serde_json::from_value(serde_json::json!({
            "id": "000", "image": "a.jpg", "model": "other keys are ignored",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A ship."},
                {"from": "human", "value": "Which colour?"}, {"from": "gpt", "value": "Blue."},
            ]
        }))
        .unwrap()
    }

    #[test]
    fn only_answers_and_their_ends_are_learned() {
        let all = pieces(&entry(), &Template::new(VICUNA_V1).unwrap(), "<s>", "</s>").unwrap();
        let learned: Vec<&str> = all.iter().filter(|p| p.1).map(|p| p.0.as_str()).collect();
        assert_eq!(learned, [" A ship.</s>", " Blue.</s>"]);
        let text: String = all.iter().map(|p| p.0.as_str()).collect();
        assert!(
            text.ends_with(
                " USER: <image>\nWhat is it? ASSISTANT: A ship.</s> USER: Which colour? ASSISTANT: Blue.</s>"
            )
        );
    }

    #[test]
    fn files_are_lists_or_lines_and_errors_name_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.json");
        let one = r#"{"id": 7, "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}"#;
        for text in [format!("[{one}, {one}]"), format!("{one}\n\n{one}\n")] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(&path).unwrap().len(), 2);
        }
        for (text, want) in [
            (one.replace("hi", "<image>"), "entry 7: 1 `<image>` marks for 0 pictures"),
            (one.replace("gpt", "bot"), "entry 7: `from` is `bot`"),
            (format!("{one}\n{{"), "line 2"),
            ("[]".to_owned(), "no conversations"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("data.json"), "{error}");
        }
    }
}
