//! What no answer alone shows, on scenes that the exact checker reads: whether the image tokenizer keeps them, whether a model draws what it
//! described, and whether it sees what it drew.

use super::ask::Ask;
use super::scenes::{SIDE, SUITE};
use super::{Answer, Files, Item, Notes, Scores, Shipped};
use crate::Result;
use qlip::Image;
use serde_json::json;
use unified::scenes::{self, Category, Checker, Noun, Prompt, Scene};

/// Scenes through the image tokenizer.
pub const SCENES_KEPT: Shipped = Shipped {
    name: "scenes_kept",
    about: "scenes through the model's image tokenizer and back, read by the exact checker; needs no data",
    load: |_, notes| scenes_shown(1000, notes),
    ask: |_| Ok(Ask::Reconstruct { keep: true }),
    score: score_kept,
};
/// Codes of what a change leaves as it was.
pub const CODES_KEPT: Shipped = Shipped {
    name: "codes_kept",
    about: "cells that look the same before and after a change of a scene, and whether the image tokenizer gives them the same code; needs no data",
    load: |_, notes| changed_scenes(200, notes),
    ask: |_| Ok(Ask::Reconstruct { keep: false }),
    score: score_codes,
};
/// Scene, caption, drawing.
pub const CYCLE: Shipped = Shipped {
    name: "cycle",
    about: "a scene is described, and the description drawn: what comes back of it; needs no data",
    load: |_, notes| scenes_shown(200, notes),
    ask: |item| {
        let key = item.number("index") as u64;
        Ok(Ask::Cycle { describe: "what is in the picture?".into(), key })
    },
    score: score_cycle,
};
/// A model about its own drawings.
pub const SELF_CHECK: Shipped = Shipped {
    name: "self_check",
    about: "questions about the model's own drawings, answered as the exact checker would; needs no data",
    load: load_own,
    ask: |item| {
        let key = item.number("index") as u64;
        Ok(Ask::DrawAndAnswer { words: item.text("question").to_owned(), questions: item.texts("questions"), key })
    },
    score: score_own,
};

fn scenes_shown(n: usize, notes: &mut Notes) -> Result<Vec<Item>> {
    (0..n).map(|i| shown(i.to_string(), i, &SUITE.scene(i), notes)).collect()
}

/// An item that shows a scene, one of the pictures of number `i`.
fn shown(id: String, i: usize, scene: &Scene, notes: &mut Notes) -> Result<Item> {
    let picture = notes.spooled(|| scenes::render(scene, SIDE).to_png())?;
    let facts = json!({"index": i, "gold": scenes::caption(scene)});
    Ok(Item::new(id, i.to_string(), facts).with(picture))
}

fn score_kept(items: &[Item], answers: &[Answer], files: &Files, _: &mut Notes) -> Result<Scores> {
    let checker = Checker::new(SIDE);
    let mut kept = Vec::new();
    for (i, (item, answer)) in items.iter().zip(answers).enumerate() {
        let scene = SUITE.scene(item.number("index"));
        let back = answer.picture(files)?;
        kept.push((i, f64::from(back.is_some_and(|b| checker.shows(&b, &scene)))));
    }
    let mut out = Scores::default();
    out.mean("kept@checker", kept);
    Ok(out)
}

/// A scene and, as the next item, the changed one.
fn pair(i: usize) -> [Scene; 2] {
    let (before, edit) = SUITE.change(i);
    [before, edit.scene]
}

fn changed_scenes(n: usize, notes: &mut Notes) -> Result<Vec<Item>> {
    let mut out = Vec::with_capacity(2 * n);
    for i in 0..n {
        let [before, after] = pair(i);
        out.push(shown(format!("{i}-before"), i, &before, notes)?);
        out.push(shown(format!("{i}-after"), i, &after, notes)?);
    }
    Ok(out)
}

/// Whether two pictures are the same in every pixel of a cell, counted row by row of a grid.
fn looks_the_same(a: &Image, b: &Image, cell: usize, grid: usize) -> bool {
    // a cell of a grid that does not divide the side has the pixels that it touches
    let span = |at: usize| at * SIDE / grid..((at + 1) * SIDE).div_ceil(grid);
    let columns = span(cell % grid);
    span(cell / grid).all(|y| {
        let bytes = 3 * (y * SIDE + columns.start)..3 * (y * SIDE + columns.end);
        a.rgb()[bytes.clone()] == b.rgb()[bytes]
    })
}

fn score_codes(items: &[Item], answers: &[Answer], _: &Files, _: &mut Notes) -> Result<Scores> {
    let (mut same, mut changed) = (Vec::new(), Vec::new());
    for n in 1..items.len() {
        let i = items[n].number("index");
        let [a, b] = [n - 1, n].map(|n| answers[n].codes().collect::<Vec<_>>());
        if items[n - 1].number("index") != i || a.len() != b.len() {
            continue;
        }
        let [before, after] = pair(i).map(|s| scenes::render(&s, SIDE));
        let grid = a.len().isqrt();
        let cells = (0..grid * grid).filter(|&cell| looks_the_same(&before, &after, cell, grid));
        let bits: Vec<u32> = cells.map(|cell| (a[cell] ^ b[cell]).count_ones()).collect();
        if !bits.is_empty() {
            let cells = bits.len() as f64;
            same.push((n, bits.iter().filter(|&&b| b == 0).count() as f64 / cells));
            changed.push((n, f64::from(bits.iter().sum::<u32>()) / cells));
        }
    }
    let mut out = Scores::default();
    out.mean("same_code@exact", same);
    out.mean("changed_bits@a_code", changed);
    Ok(out)
}

fn score_cycle(items: &[Item], answers: &[Answer], files: &Files, _: &mut Notes) -> Result<Scores> {
    let checker = Checker::new(SIDE);
    let (mut described, mut drawn, mut back) = (Vec::new(), Vec::new(), Vec::new());
    for (i, (item, answer)) in items.iter().zip(answers).enumerate() {
        let scene = SUITE.scene(item.number("index"));
        let said = scenes::read(&answer.text);
        let image = answer.picture(files)?;
        let shows = |image: &Image, p: &Option<Prompt>| p.as_ref().is_some_and(|p| checker.check(image, p).strict);
        let whole = scenes::read(&scenes::caption(&scene));
        described.push((i, f64::from(shows(&scenes::render(&scene, SIDE), &said))));
        drawn.push((i, f64::from(image.as_ref().is_some_and(|d| shows(d, &said)))));
        back.push((i, f64::from(image.as_ref().is_some_and(|d| shows(d, &whole)))));
    }
    let mut out = Scores::default();
    out.mean("described@checker", described);
    out.mean("drawn_as_described@checker", drawn);
    out.mean("same_objects_back@checker", back);
    Ok(out)
}

/// Two that were asked for, and the two with their colours changed over.
fn questions(prompt: &Prompt) -> Vec<(String, Noun)> {
    let [a, b] = [prompt.nouns[0], prompt.nouns[1]];
    let swapped = [Noun { colour: b.colour, ..a }, Noun { colour: a.colour, ..b }];
    [a, b].into_iter().chain(swapped).map(|n| (format!("is there {}?", n.phrase()), n)).collect()
}

fn own(i: usize) -> Prompt {
    SUITE.prompt(Category::Binding, 20_000 + i)
}

fn load_own(_: &Files, _: &mut Notes) -> Result<Vec<Item>> {
    let item = |i: usize| {
        let prompt = own(i);
        let asked: Vec<String> = questions(&prompt).into_iter().map(|q| q.0).collect();
        Item::new(i.to_string(), i.to_string(), json!({"index": i, "question": prompt.text, "questions": asked}))
    };
    Ok((0..100).map(item).collect())
}

fn score_own(items: &[Item], answers: &[Answer], files: &Files, _: &mut Notes) -> Result<Scores> {
    let checker = Checker::new(SIDE);
    let (mut asked, mut agreed) = (Vec::new(), Vec::new());
    for (i, (item, answer)) in items.iter().zip(answers).enumerate() {
        let prompt = own(item.number("index"));
        let Some(image) = answer.picture(files)? else {
            asked.push((i, 0.0));
            continue;
        };
        asked.push((i, f64::from(checker.check(&image, &prompt).strict)));
        let seen = checker.see(&image);
        let said = answer.line["answers"].as_array().cloned().unwrap_or_default();
        let of = questions(&prompt);
        let right = of.iter().zip(&said).filter(|((_, noun), said)| {
            let there = seen.iter().any(|s| Some(s.colour) == noun.colour && s.shape == noun.shape);
            said.as_str().unwrap_or_default().trim() == if there { "yes" } else { "no" }
        });
        agreed.push((i, right.count() as f64 / of.len() as f64));
    }
    let mut out = Scores::default();
    out.mean("drawn_as_asked@checker", asked);
    out.mean("sees_its_drawing@checker", agreed);
    Ok(out)
}
