//! The scenes suite: questions, follow-ups, drawings, changes and interleaved answers about scenes that no training saw, judged by an
//! exact checker. It needs no data.

use super::ask::Ask;
use super::{Answer, Files, Item, Metric, Notes, Scores, Shipped};
use crate::{Error, Result};
use qlip::Image;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use unified::conversation::{Content, Message, Role};
use unified::scenes::{self, Category, Checker, Edit, Prompt, Question, Scene, SceneRng, Split};

/// The suite.
pub const SCENES: Shipped = Shipped {
    name: "scenes",
    about: "understanding, drawing and changing small scenes, exactly checked; needs no data",
    load: |_, _| load(&SUITE),
    ask,
    score,
};
/// The same of other items, for choosing what the suite's own must not choose.
pub const SCENES_DEV: Shipped = Shipped {
    name: "scenes_dev",
    about: "the scenes suite of another seed: to choose sampling and the like on; needs no data",
    load: |_, _| load(&Suite { seed: 1, side: SIDE }),
    ask,
    score,
};

/// Pixels along a scene's side.
pub(super) const SIDE: usize = 64;
/// Items of each kind, as README quotes them.
const QUESTIONS: usize = 1000;
const EDITS: usize = 200;
const DRAWINGS: usize = 100;
const INTERLEAVED: usize = 100;
/// Drawings after one that has nothing to do with them.
const SECOND: usize = 100;
/// README's first command, and its seeds.
const FIRST: (&str, usize) = ("a red circle above a blue square", 100);

/// The items of the suite: the same for the same seed, whoever asks them.
#[derive(Debug, Clone, Copy)]
pub struct Suite {
    /// Seed.
    pub seed: u64,
    /// Pixels along the side of the pictures that are shown.
    pub side: usize,
}

/// The items that README quotes.
pub(super) const SUITE: Suite = Suite { seed: 0, side: SIDE };

impl Suite {
    fn rng(&self, what: u64, i: usize) -> SceneRng {
        SceneRng::new(Split::Test, self.seed, (what << 32) + i as u64)
    }

    /// A scene to be kept by a reconstruction.
    pub fn scene(&self, i: usize) -> Scene {
        Scene::random(&mut self.rng(1, i), Split::Test, 1, 4)
    }

    /// A scene and a question about it.
    pub fn question(&self, i: usize) -> (Scene, Question) {
        let mut r = self.rng(2, i);
        let scene = Scene::random(&mut r, Split::Test, 1, 4);
        let q = scenes::question(&mut r, &scene);
        (scene, q)
    }

    /// The question beside its picture.
    pub fn asked(&self, (scene, q): (Scene, Question)) -> Vec<Message> {
        vec![Message::user_with_image(scenes::render(&scene, self.side), q.text)]
    }

    /// A scene, a question that comes before, and another about the same picture.
    pub fn follow_up(&self, i: usize) -> (Scene, Question, Question) {
        let mut r = self.rng(21, i);
        let scene = Scene::random(&mut r, Split::Test, 1, 3);
        loop {
            let (a, b) = (scenes::question(&mut r, &scene), scenes::question(&mut r, &scene));
            if a.kind != b.kind {
                return (scene, a, b);
            }
        }
    }

    /// The second question after the first and its answer.
    pub fn asked_later(&self, (scene, before, q): (Scene, Question, Question)) -> Vec<Message> {
        vec![
            Message::user_with_image(scenes::render(&scene, self.side), before.text),
            Message::assistant(before.answer),
            Message::user(q.text),
        ]
    }

    /// A scene and an instruction that changes it.
    pub fn change(&self, i: usize) -> (Scene, Edit) {
        let mut r = self.rng(20, i);
        loop {
            let scene = Scene::random(&mut r, Split::Test, 1, 3);
            if let Some(edit) = scenes::edit(&mut r, Split::Test, &scene) {
                return (scene, edit);
            }
        }
    }

    /// The instruction after its picture, which was drawn on request (even items) or is shown.
    pub fn asked_to_change(&self, i: usize, scene: &Scene, edit: &Edit) -> Vec<Message> {
        let image = Content::Image(scenes::render(scene, self.side));
        if i % 2 == 1 {
            return vec![Message { role: Role::User, content: vec![image, Content::Text(edit.text.clone())] }];
        }
        vec![
            Message::user(format!("draw {}", scenes::caption(scene))),
            Message { role: Role::Assistant, content: vec![image] },
            Message::user(edit.text.clone()),
        ]
    }

    /// A prompt of a category.
    pub fn prompt(&self, category: Category, i: usize) -> Prompt {
        scenes::prompt(&mut self.rng(3 + category as u64, i), Split::Test, category).0
    }
}

fn interleaved(suite: &Suite, i: usize) -> Prompt {
    let category = if i.is_multiple_of(2) { Category::Colour } else { Category::Binding };
    suite.prompt(category, 10_000 + i)
}

/// A scene that was drawn, and what is asked for next.
fn second(suite: &Suite, i: usize) -> (Scene, Prompt) {
    (suite.scene(30_000 + i), suite.prompt(Category::Binding, 30_000 + i))
}

/// The suite that an item is of.
fn suite(item: &Item) -> Suite {
    Suite { seed: item.number("suite") as u64, side: SIDE }
}

/// Prompts to draw, each with its category: what outsiders draw for `eval scenes DIR`.
pub fn prompts(n: usize) -> Vec<(Category, usize, Prompt)> {
    let each = n.div_ceil(Category::ALL.len());
    let all = Category::ALL.into_iter().flat_map(|c| (0..each).map(move |i| (c, i, SUITE.prompt(c, i))));
    all.take(n).collect()
}

fn load(suite: &Suite) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    let mut push = |id: String, kind: &str, index: usize, of: &str, question: String, gold: String| {
        let facts = json!({"kind": kind, "index": index, "of": of, "question": question, "gold": gold,
            "suite": suite.seed});
        items.push(Item::new(id.clone(), id, facts));
    };
    for i in 0..QUESTIONS {
        let (_, q) = suite.question(i);
        push(format!("question-{i}"), "question", i, q.kind, q.text, q.answer);
    }
    for i in 0..EDITS {
        let (_, _, q) = suite.follow_up(i);
        push(format!("follow_up-{i}"), "follow_up", i, q.kind, q.text, q.answer);
        let (_, e) = suite.change(i);
        push(format!("edit-{i}"), "edit", i, e.kind, e.text, scenes::caption(&e.scene));
    }
    for c in Category::ALL {
        for i in 0..DRAWINGS {
            let p = suite.prompt(c, i);
            push(format!("draw-{}-{i}", c.name()), "draw", i, c.name(), p.text.clone(), p.text);
        }
    }
    for i in 0..FIRST.1 {
        push(format!("first-{i}"), "first", i, "first", FIRST.0.into(), FIRST.0.into());
    }
    for i in 0..SECOND {
        let p = second(suite, i).1;
        push(format!("second-{i}"), "second", i, "second", p.text.clone(), p.text);
    }
    for i in 0..INTERLEAVED {
        let p = interleaved(suite, i);
        push(
            format!("interleave-{i}"),
            "interleave",
            i,
            "interleave",
            format!("draw {}, then describe it", p.text),
            p.text,
        );
    }
    Ok(items)
}

fn category(name: &str) -> Result<Category> {
    let found = Category::ALL.into_iter().find(|c| c.name() == name);
    found.ok_or_else(|| Error::invalid(format!("no category `{name}`")))
}

fn ask(item: &Item) -> Result<Ask> {
    let suite = suite(item);
    let i = item.number("index");
    Ok(match item.text("kind") {
        "question" => Ask::Talk { messages: suite.asked(suite.question(i)), max_tokens: 16 },
        "follow_up" => Ask::Talk { messages: suite.asked_later(suite.follow_up(i)), max_tokens: 16 },
        "edit" => {
            let (scene, edit) = suite.change(i);
            Ask::Draw { messages: suite.asked_to_change(i, &scene, &edit), key: i as u64 }
        }
        "draw" => {
            let p = suite.prompt(category(item.text("of"))?, i);
            Ask::Draw { messages: vec![Message::user(format!("draw {}", p.text))], key: i as u64 }
        }
        "second" => {
            let (before, p) = second(&suite, i);
            let messages = vec![
                Message::user(format!("draw {}", scenes::caption(&before))),
                Message { role: Role::Assistant, content: vec![Content::Image(scenes::render(&before, suite.side))] },
                Message::user(format!("draw {}", p.text)),
            ];
            Ask::Draw { messages, key: i as u64 }
        }
        "first" => Ask::Draw { messages: vec![Message::user(format!("draw {}", FIRST.0))], key: i as u64 },
        _ => Ask::Interleave { words: item.text("question").to_owned() },
    })
}

fn score(items: &[Item], answers: &[Answer], files: &Files, _: &mut Notes) -> Result<Scores> {
    let checker = Checker::new(SIDE);
    let mut means: BTreeMap<String, Vec<(usize, f64)>> = BTreeMap::new();
    let mut blind: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for (n, (item, answer)) in items.iter().zip(answers).enumerate() {
        let i = item.number("index");
        let (suite, kind) = (suite(item), item.text("of").to_owned());
        let mut put = |name: String, value: f64| means.entry(name).or_default().push((n, value));
        match item.text("kind") {
            what @ ("question" | "follow_up") => {
                let right = f64::from(answer.text.trim() == item.text("gold"));
                put(format!("{what}@exact"), right);
                if what == "question" {
                    put(format!("question/{kind}@exact"), right);
                    *blind.entry(kind).or_default().entry(item.text("gold").to_owned()).or_default() += 1;
                }
            }
            "edit" => {
                let (_, edit) = suite.change(i);
                let shown = answer.picture(files)?.is_some_and(|p| checker.shows(&p, &edit.scene));
                put("edit@exact".into(), f64::from(shown));
                put(format!("edit/{kind}@exact"), f64::from(shown));
            }
            "draw" => {
                let p = suite.prompt(category(&kind)?, i);
                let v = answer.picture(files)?.map(|image| checker.check(&image, &p));
                put(format!("draw/{kind}@strict"), f64::from(v.is_some_and(|v| v.strict)));
                put(format!("draw/{kind}@soft"), v.map_or(0.0, |v| v.soft));
                put("draw@strict".into(), f64::from(v.is_some_and(|v| v.strict)));
            }
            "second" => {
                let p = second(&suite, i).1;
                let right = answer.picture(files)?.is_some_and(|image| checker.check(&image, &p).strict);
                put("draw/second_in_a_chat@strict".into(), f64::from(right));
            }
            "first" => {
                let p = said(FIRST.0).ok_or_else(|| Error::invalid("the first command's words are no prompt"))?;
                let right = answer.picture(files)?.is_some_and(|image| checker.check(&image, &p).strict);
                put("draw/first_command@strict".into(), f64::from(right));
            }
            _ => {
                let drawn = answer.picture(files)?;
                let told = scenes::read(&answer.text);
                let both = drawn.as_ref().zip(told.as_ref());
                put("interleave@true".into(), f64::from(both.is_some_and(|(p, s)| checker.check(p, s).strict)));
                let asked = drawn.as_ref().is_some_and(|p| checker.check(p, &interleaved(&suite, i)).strict);
                put("interleave@asked".into(), f64::from(asked));
            }
        }
    }
    let mut out = Scores::default();
    means.into_iter().for_each(|(name, of)| out.mean(name, of));
    let asked: usize = blind.values().flat_map(BTreeMap::values).sum();
    let commonest: usize = blind.values().filter_map(|a| a.values().max()).sum();
    if asked > 0 {
        out.0.insert("question@blind".into(), Metric { value: commonest as f64 / asked as f64, of: Vec::new() });
    }
    Ok(out)
}

/// The exact checker over somebody's pictures in GenEval's layout: DIR/NNNNN/samples/*.png beside DIR/NNNNN/metadata.jsonl, or
/// DIR/prompts.jsonl with `{"prompt": .., "file": ..}` a line.
pub fn judge(dir: &Path) -> Result<Vec<(String, String, bool, f64)>> {
    let mut found = Vec::new();
    let mut one = |words: &str, file: &Path, category: &str| -> Result<()> {
        let Some(prompt) = said(words) else {
            return Err(Error::bad_file(
                file,
                format!("`{words}` is no prompt of scenes; eval scenes --prompts N writes some"),
            ));
        };
        let image = Image::open(file)?;
        let v = Checker::new(image.width().min(image.height()).max(8)).check(&image, &prompt);
        found.push((file.display().to_string(), category.to_owned(), v.strict, v.soft));
        Ok(())
    };
    let list = dir.join("prompts.jsonl");
    if list.is_file() {
        let text = std::fs::read_to_string(&list).map_err(Error::io(&list))?;
        for (n, line) in text.lines().enumerate().filter(|l| !l.1.trim().is_empty()) {
            let v: serde_json::Value =
                serde_json::from_str(line).map_err(|e| Error::bad_file(&list, format!("line {}: {e}", n + 1)))?;
            let file = v["file"].as_str().map_or_else(|| format!("{n:05}.png"), str::to_owned);
            let category = v["category"].as_str().or(v["tag"].as_str()).unwrap_or("all");
            let words = v["prompt"].as_str().unwrap_or_default();
            let path = dir.join(&file);
            if path.is_file() {
                one(words, &path, category)?;
                continue;
            }
            let samples = dir.join(format!("{n:05}")).join("samples");
            let entries = std::fs::read_dir(&samples).map_err(Error::io(&path))?;
            let mut all: Vec<_> = entries.flatten().map(|e| e.path()).filter(|p| qlip::data::is_picture(p)).collect();
            all.sort();
            for sample in all {
                one(words, &sample, category)?;
            }
        }
    }
    if found.is_empty() {
        return Err(Error::bad_file(
            list,
            "no prompts with pictures here: prompts.jsonl with {\"prompt\", \"file\"} a line",
        ));
    }
    Ok(found)
}

/// A prompt from its words, relations included.
fn said(words: &str) -> Option<Prompt> {
    let words = words.trim();
    let words = words.strip_prefix("draw ").unwrap_or(words);
    for relation in scenes::Relation::ALL {
        if let Some((a, b)) = words.split_once(&format!(" {} ", relation.name())) {
            let (a, b) = (scenes::read(a)?, scenes::read(b)?);
            let nouns = [a.nouns, b.nouns].concat();
            return Some(Prompt { text: words.to_owned(), nouns, relation: Some(relation) });
        }
    }
    scenes::read(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prompt_is_read_from_its_words() {
        for (_, _, p) in prompts(600) {
            let read = said(&p.text).unwrap_or_else(|| panic!("{}", p.text));
            assert_eq!((read.nouns, read.relation), (p.nouns.clone(), p.relation), "{}", p.text);
        }
    }
}
