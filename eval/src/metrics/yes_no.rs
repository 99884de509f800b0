//! Yes or no out of a model's words, as four publications read it, and the scores of POPE (Li et al. 2023).

use super::vqa::punctuation;
use std::collections::BTreeMap;

/// What an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// Yes.
    Yes,
    /// No.
    No,
    /// Neither.
    Unknown,
}

/// LLaVA's and POPE's own: no where the first sentence, split at blanks, holds "No", "not" or "no"; else yes.
pub fn llava(text: &str) -> Said {
    let text = text.split('.').next().unwrap_or_default().replace(',', "");
    let no = text.split(' ').any(|w| ["No", "not", "no"].contains(&w));
    if no { Said::No } else { Said::Yes }
}

/// lmms-eval: the whole answer, in lower case, is the word.
pub fn lmms(text: &str) -> Said {
    match text.trim().to_lowercase().as_str() {
        "yes" => Said::Yes,
        "no" => Said::No,
        _ => Said::Unknown,
    }
}

/// VLMEvalKit: just one of the two words is there.
pub fn vlmevalkit(text: &str) -> Said {
    let words = punctuation(&text.to_lowercase(), true);
    let has = |w: &str| words.split_whitespace().any(|x| x == w);
    match (has("yes"), has("no")) {
        (true, false) => Said::Yes,
        (false, true) => Said::No,
        _ => Said::Unknown,
    }
}

/// MME's reading: the words, or the first four characters. `bare` takes single letters and goes before (lmms-eval); the
/// official tool keeps the line's end, so that a bare letter is never read.
pub fn mme(text: &str, bare: bool) -> Said {
    let text = match bare {
        true => text.to_lowercase().trim().replace('.', ""),
        false => format!("{}\n", text.replace(['\t', '\n'], " ")).to_lowercase(),
    };
    match text.as_str() {
        "yes" => return Said::Yes,
        "no" => return Said::No,
        _ => {}
    }
    if bare && text.chars().count() == 1 {
        return match text.as_str() {
            "y" => Said::Yes,
            "n" => Said::No,
            _ => Said::Unknown,
        };
    }
    let start: String = text.chars().take(4).collect();
    match (start.contains("yes"), start.contains("no")) {
        (true, _) => Said::Yes,
        (_, true) => Said::No,
        _ => Said::Unknown,
    }
}

/// Counts of a rule's readings against labels.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Said yes, is yes.
    pub tp: f64,
    /// Said yes, is no.
    pub fp: f64,
    /// Said no, is no.
    pub tn: f64,
    /// Said no, is yes.
    pub fn_: f64,
    /// Neither was said, and is yes.
    pub unknown_yes: f64,
    /// Neither was said, and is no.
    pub unknown_no: f64,
}

impl Counts {
    /// Of readings with labels (true is yes).
    pub fn of(all: impl IntoIterator<Item = (Said, bool)>) -> Self {
        let mut c = Self::default();
        for (said, label) in all {
            *match (said, label) {
                (Said::Yes, true) => &mut c.tp,
                (Said::Yes, false) => &mut c.fp,
                (Said::No, false) => &mut c.tn,
                (Said::No, true) => &mut c.fn_,
                (Said::Unknown, true) => &mut c.unknown_yes,
                (Said::Unknown, false) => &mut c.unknown_no,
            } += 1.0;
        }
        c
    }

    /// How many.
    pub fn n(&self) -> f64 {
        self.tp + self.fp + self.tn + self.fn_ + self.unknown_yes + self.unknown_no
    }
}

/// 0 where there is nothing to divide by.
fn ratio(a: f64, b: f64) -> f64 {
    if b == 0.0 { 0.0 } else { a / b }
}

/// Scores of POPE under a rule's own definitions, by name.
pub fn pope(rule: &str, answers: &[(String, bool)]) -> BTreeMap<&'static str, f64> {
    let read: fn(&str) -> Said = match rule {
        "llava" => llava,
        "lmms" => lmms,
        _ => vlmevalkit,
    };
    let c = Counts::of(answers.iter().map(|(t, l)| (read(t), *l)));
    let n = c.n();
    let accuracy = ratio(c.tp + c.tn, n);
    let precision = ratio(c.tp, c.tp + c.fp);
    // lmms-eval leaves out what it could not read
    let missed = if rule == "lmms" { c.fn_ } else { c.fn_ + c.unknown_yes };
    let recall = ratio(c.tp, c.tp + missed);
    let f1 = ratio(2.0 * precision * recall, precision + recall);
    let mut out = BTreeMap::from([("accuracy", accuracy), ("precision", precision), ("recall", recall), ("f1", f1)]);
    match rule {
        // of the labels, as that program counts
        "lmms" => drop(out.insert("yes_ratio", ratio(c.tp + c.fn_ + c.unknown_yes, n))),
        "vlmevalkit" => {}
        _ => drop(out.insert("yes_ratio", ratio(c.tp + c.fp, n))),
    }
    if rule == "strict" {
        out.insert("unparsed_rate", ratio(c.unknown_yes + c.unknown_no, n));
    }
    out
}
