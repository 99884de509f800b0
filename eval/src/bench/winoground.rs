//! Winoground (Thrush et al. 2022): two pictures and two captions of the same words; which belongs to which. Answers hold how near each caption
//! is to each picture, `scores` [[c0_i0, c0_i1], [c1_i0, c1_i1]].

use super::table::{self, Row};
use super::{Answer, Files, Item, Notes, Scores, Shipped, without_repeats};
use crate::{Error, Result};
use serde_json::json;

/// Winoground.
pub const WINOGROUND: Shipped = Shipped {
    name: "winoground",
    about: "two pictures and two captions of the same words (Winoground)",
    load,
    ask: super::ask::none,
    score,
};

fn take(n: usize, row: &Row, items: &mut Vec<Item>, notes: &mut Notes) -> Result<()> {
    let id = row.text("id").unwrap_or_else(|| n.to_string());
    let (Some(a), Some(b)) = (row.text("caption_0"), row.text("caption_1")) else {
        notes.skip(format!("row {n}, id {id}: no caption"));
        return Ok(());
    };
    let kind = row.text("collapsed_tag").unwrap_or_default();
    items.push(Item::new(id.clone(), id, json!({"captions": [a, b], "tag": kind})));
    Ok(())
}

fn load(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    // captions alone, beside somebody's scores
    if let Some(path) = files.named(&["captions.jsonl"]) {
        table::json_lines(&path, notes, &mut |line, row, notes| take(line - 1, row, &mut items, notes))?;
        return Ok(without_repeats(items, notes));
    }
    let parquet = files.parquet("test");
    files.rows(
        ("winoground", "test-*.parquet"),
        &parquet,
        &["caption_0", "caption_1", "image_0", "image_1"],
        notes,
        &mut |n, row, notes| take(n, row, &mut items, notes),
    )?;
    Ok(without_repeats(items, notes))
}

fn score(items: &[Item], answers: &[Answer], _: &Files, _: &mut Notes) -> Result<Scores> {
    let (mut text, mut image, mut group) = (Vec::new(), Vec::new(), Vec::new());
    for (i, (item, answer)) in items.iter().zip(answers).enumerate() {
        let s = |c: usize, p: usize| answer.line["scores"][c][p].as_f64();
        let (Some(a), Some(b), Some(c), Some(d)) = (s(0, 0), s(0, 1), s(1, 0), s(1, 1)) else {
            let why = "`scores` must be [[caption 0 with picture 0, with picture 1], [caption 1 with picture 0, with picture 1]]";
            return Err(Error::invalid(format!("answer {}: {why}", item.id)));
        };
        // every picture picks its caption; every caption picks its picture
        let (t, p) = (a > c && d > b, a > b && d > c);
        text.push((i, f64::from(t)));
        image.push((i, f64::from(p)));
        group.push((i, f64::from(t && p)));
    }
    let mut out = Scores::default();
    for (name, of) in [("text", text), ("image", image), ("group", group)] {
        out.mean(format!("{name}@clip_benchmark"), of);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_image_and_group() {
        let items: Vec<Item> = (0..4).map(|i| Item::new(i.to_string(), i.to_string(), json!({}))).collect();
        let answer = |s: serde_json::Value| Answer { text: String::new(), line: json!({"scores": s}) };
        let answers = [
            answer(json!([[0.9, 0.1], [0.2, 0.8]])), // both
            answer(json!([[0.5, 0.6], [0.4, 0.7]])), // pictures pick their captions alone
            answer(json!([[0.5, 0.4], [0.6, 0.7]])), // captions pick their pictures alone
            answer(json!([[0.5, 0.5], [0.5, 0.5]])), // a tie is no pick
        ];
        let dir = tempfile::tempdir().unwrap();
        let files = Files::of(dir.path()).unwrap();
        let s = score(&items, &answers, &files, &mut Notes::default()).unwrap().0;
        let value = |n: &str| s[&format!("{n}@clip_benchmark")].value;
        assert_eq!((value("text"), value("image"), value("group")), (0.5, 0.5, 0.25));
        assert!(
            score(
                &items,
                &[answer(json!(1)), answer(json!(1)), answer(json!(1)), answer(json!(1))],
                &files,
                &mut Notes::default()
            )
            .is_err()
        );
    }
}
