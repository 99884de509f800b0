//! MMMU (Yue et al. 2024): multiple choice and open questions. Where a published program guesses at random, nothing is guessed: the
//! answer is wrong, and counted.

use super::choice::can_infer;
use super::table::Cell;
use super::{Answer, Files, Item, Notes, Scores, Shipped, without_repeats};
use crate::Result;
use serde_json::json;
use std::collections::BTreeMap;

/// MMMU.
pub const MMMU: Shipped =
    Shipped { name: "mmmu", about: "college questions with pictures (MMMU)", load, ask: super::ask::mmmu, score };

fn letter(i: usize) -> char {
    char::from(b'A' + i.min(25) as u8)
}

/// A Python literal of a list of strings; nothing else, and nothing is evaluated.
pub fn python_list(text: &str) -> Option<Vec<String>> {
    let inner = text.trim().strip_prefix('[')?.strip_suffix(']')?;
    let mut out = Vec::new();
    let mut chars = inner.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace() || *c == ',').is_some() {}
        let Some(quote) = chars.next() else { return Some(out) };
        if quote != '\'' && quote != '"' {
            return None;
        }
        let mut item = String::new();
        loop {
            match chars.next()? {
                c if c == quote => break,
                '\\' => item.push(match chars.next()? {
                    'n' => '\n',
                    't' => '\t',
                    other => other,
                }),
                c => item.push(c),
            }
        }
        out.push(item);
        match chars.peek() {
            None | Some(',') => {}
            Some(c) if c.is_whitespace() => {}
            Some(_) => return None,
        }
    }
}

fn load(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let parquet = files.parquet("validation");
    let columns = ["id", "question", "options", "answer", "question_type"];
    let mut items = Vec::new();
    files.rows(("mmmu", "validation-*.parquet"), &parquet, &columns, notes, &mut |n, row, notes| {
        let text = |name: &str| row.text(name).unwrap_or_default();
        let id = text("id");
        let Some(options) = python_list(&text("options")) else {
            notes.skip(format!("row {}, id {id}: options are not a list of strings", n));
            return Ok(());
        };
        let all = format!("{} {}", text("question"), options.join(" "));
        let lost =
            (1..=7).find(|k| all.contains(&format!("<image {k}>")) && *row.get(&format!("image_{k}")) == Cell::Null);
        if let Some(k) = lost {
            notes.skip(format!("row {}, id {id}: picture {k} missing", n));
            return Ok(());
        }
        let answer = text("answer");
        let open = text("question_type") == "open";
        if !open && !(0..options.len()).any(|i| answer == letter(i).to_string()) {
            notes.skip(format!("row {}, id {id}: answer \"{answer}\" outside the options", n));
            return Ok(());
        }
        let answers =
            if open { python_list(&answer).unwrap_or_else(|| vec![answer.clone()]) } else { vec![answer.clone()] };
        let subject = id.split_once('_').map_or("", |p| p.1).rsplit_once('_').map_or("", |p| p.0).to_owned();
        let facts = json!({"question": text("question"), "choices": options, "answers": answers, "label": answer,
            "open": open, "subject": subject});
        let shown = (1..=7).flat_map(|k| notes.shown(row.get(&format!("image_{k}")), files)).collect();
        items.push(Item::new(id.clone(), id, facts).with(shown));
        Ok(())
    })?;
    Ok(without_repeats(items, notes))
}

/// The official reading of a choice: brackets, letters apart, texts of options; nothing where it would guess. lmms-eval's takes letters that
/// end a word or stand before a full stop.
fn choice(text: &str, options: &[String], lmms: bool) -> Option<char> {
    let mut t = text;
    for c in [',', '.', '!', '?', ';', ':', '\''] {
        t = t.trim_matches(c);
    }
    let t = format!(" {t} ");
    let letters: Vec<char> = (0..options.len()).map(letter).collect();
    let those = |shape: &dyn Fn(char) -> String| -> Vec<char> {
        letters.iter().copied().filter(|l| t.contains(&shape(*l))).collect()
    };
    let (brackets, apart) = (|l: char| format!("({l})"), |l: char| format!(" {l} "));
    let last = |found: &[char], at: &dyn Fn(char) -> Option<usize>| {
        // the last one counts; among equals the first
        let mut best: Option<(Option<usize>, char)> = None;
        for &l in found {
            let place = at(l);
            if best.is_none_or(|b| place > b.0) {
                best = Some((place, l));
            }
        }
        best.map(|b| b.1)
    };
    let found = those(&brackets);
    if !found.is_empty() {
        return last(&found, &|l| t.rfind(&brackets(l)));
    }
    let mut found = if lmms { those(&|l| format!("{l} ")) } else { those(&apart) };
    if found.is_empty() && lmms {
        found = those(&|l| format!("{l}."));
    }
    if !found.is_empty() {
        return last(&found, &|l| t.rfind(&apart(l)));
    }
    if t.split_whitespace().count() > 5 {
        let lower = t.to_lowercase();
        let at = |l: char| lower.rfind(&options[l as usize - 'A' as usize].to_lowercase());
        let found: Vec<char> = letters.iter().copied().filter(|l| at(*l).is_some()).collect();
        return last(&found, &at);
    }
    None
}

/// A text, or a number to two places.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Text(String),
    Number(f64),
}

fn normalised(text: &str) -> Vec<Value> {
    let text = text.trim();
    if let Ok(n) = text.replace(',', "").parse::<f64>() {
        return vec![Value::Number((n * 100.0).round_ties_even() / 100.0)];
    }
    let lower = text.to_lowercase();
    if lower.chars().count() == 1 {
        return vec![Value::Text(format!(" {lower}")), Value::Text(format!("{lower} "))];
    }
    vec![Value::Text(lower)]
}

/// Numbers with commas, in scientific notation, and simple ones.
fn numbers(text: &str) -> Vec<String> {
    let c: Vec<char> = text.chars().collect();
    let digit = |i: usize| c.get(i).is_some_and(char::is_ascii_digit);
    let word = |i: usize| c.get(i).is_some_and(|x| x.is_alphanumeric() || *x == '_');
    let digits = |mut i: usize| {
        while digit(i) {
            i += 1;
        }
        i
    };
    let mut out = Vec::new();
    let mut take = |from: usize, to: usize| {
        let from = if from > 0 && c[from - 1] == '-' { from - 1 } else { from };
        out.push(c[from..to].iter().collect::<String>());
    };
    let (mut commas, mut simple, mut scientific) = (Vec::new(), Vec::new(), Vec::new());
    let mut i = 0;
    while i < c.len() {
        if digit(i) && !(i > 0 && word(i - 1)) {
            let mut end = digits(i);
            if end - i <= 3 {
                while c.get(end) == Some(&',') && digits(end + 1) == end + 4 {
                    end += 4;
                }
                if c[i..end].contains(&',') && !word(end) {
                    commas.push((i, end));
                    i = end;
                    continue;
                }
            }
        }
        i += 1;
    }
    let exponent = |end: usize| {
        if !matches!(c.get(end), Some('e' | 'E')) {
            return None;
        }
        let at = end + 1 + usize::from(matches!(c.get(end + 1), Some('+' | '-')));
        (digits(at) > at).then(|| digits(at))
    };
    let mut i = 0;
    while i < c.len() {
        let start = i;
        let whole = digits(i);
        let end = match c.get(whole) {
            Some('.') if digit(whole + 1) => digits(whole + 1),
            _ => whole,
        };
        if end == start {
            i += 1;
            continue;
        }
        if let Some(after) = exponent(end).filter(|_| whole > start) {
            scientific.push((start, after));
        } else if c.get(end) != Some(&',') && (c[start..end].contains(&'.') || !word(end)) {
            simple.push((start, end));
        }
        i = end;
    }
    for (from, to) in commas.into_iter().chain(scientific).chain(simple) {
        take(from, to);
    }
    out
}

/// What an open answer may mean, by the official rules.
fn open(text: &str) -> Vec<Value> {
    let text = text.trim().trim_matches('.').to_lowercase();
    let lines: Vec<&str> = text.split('\n').collect();
    let mut keys: Vec<String> = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let mut signs = vec!["could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result "];
        if i + 1 == lines.len() {
            signs.push("=");
        }
        let tails = signs.iter().filter(|s| line.contains(**s)).filter_map(|s| line.rsplit(*s).next()).map(str::trim);
        let shortest = tails.fold(None::<&str>, |best, t| match best {
            Some(b) if !b.is_empty() && t.chars().count() >= b.chars().count() => Some(b),
            _ => Some(t),
        });
        let trivial = [":", ",", ".", "!", "?", ";", "'", ""];
        keys.extend(shortest.filter(|s| !trivial.contains(s)).map(str::to_owned));
    }
    if keys.is_empty() {
        keys.push(text);
    }
    let found: Vec<String> = keys.iter().flat_map(|k| numbers(k)).collect();
    keys.iter().chain(&found).flat_map(|k| normalised(k)).collect()
}

fn open_is_right(answers: &[String], text: &str) -> bool {
    let gold: Vec<Value> = answers.iter().flat_map(|a| normalised(a)).collect();
    open(text).iter().any(|said| match said {
        Value::Text(t) => gold.iter().any(|g| matches!(g, Value::Text(g) if t.contains(g.as_str()))),
        number => gold.contains(number),
    })
}

fn score(items: &[Item], answers: &[Answer], _: &Files, _: &mut Notes) -> Result<Scores> {
    let mut out = Scores::default();
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        groups.entry(item.text("subject").to_owned()).or_default().push(i);
        let kind = if item.facts["open"] == true { "open" } else { "multiple-choice" };
        groups.entry(kind.into()).or_default().push(i);
    }
    for rule in ["official_noguess", "lmms_noguess", "vlmevalkit"] {
        let mut guessed = 0;
        let mut right = Vec::new();
        for (item, answer) in items.iter().zip(answers) {
            let options = item.texts("choices");
            let label = item.text("label");
            let hit = match (rule, item.facts["open"] == true) {
                ("vlmevalkit", true) => {
                    let options = [label.to_owned(), "Other Answers".to_owned()];
                    can_infer(&answer.text, &options).as_deref() == Some("A")
                }
                ("vlmevalkit", false) => can_infer(&answer.text, &options).as_deref() == Some(label),
                ("official_noguess", true) => open_is_right(&item.texts("answers"), &answer.text),
                // that program keeps the first element of a set and walks over its letters: no open question is ever right
                (_, true) => false,
                (rule, false) => {
                    let lmms = rule == "lmms_noguess";
                    // lmms-eval strips every answer
                    let text = if lmms { answer.text.trim() } else { &answer.text };
                    let said = choice(text, &options, lmms);
                    guessed += usize::from(said.is_none());
                    said.is_some_and(|c| c.to_string() == label)
                }
            };
            right.push(f64::from(hit));
        }
        out.mean(format!("accuracy@{rule}"), right.iter().copied().enumerate().collect());
        for (group, which) in &groups {
            out.mean(format!("accuracy/{group}@{rule}"), which.iter().map(|&i| (i, right[i])).collect());
        }
        if let Some(program) = rule.strip_suffix("_noguess") {
            out.value(format!("guessed@{program}"), guessed as f64);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_never_run() {
        assert_eq!(python_list("['a', \"it's\", 'b\\'c']").unwrap(), ["a", "it's", "b'c"]);
        assert_eq!(python_list("[]").unwrap(), Vec::<String>::new());
        for bad in ["['a'", "[open('x')]", "['a' + 'b']", "a, b"] {
            assert!(python_list(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn numbers_of_open_answers() {
        assert_eq!(numbers("1,250 and then 9"), ["1,250", "250", "9"]);
        assert_eq!(numbers("x = -0.5"), ["-0.5"]);
        assert_eq!(numbers("2/7"), ["2", "7"]);
    }
}
