//! Words of captions as Stanford's PTB tokenizer 3.4.1 parts them (lower case, punctuation dropped): the rules that captions need.

/// What pycocoevalcap drops after the tokenizer.
const DROPPED: [&str; 18] =
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";", "\""];

/// Words that are written as one and are two.
const SPLIT: [(&str, usize); 10] = [
    ("cannot", 3),
    ("gonna", 3),
    ("gotta", 3),
    ("wanna", 3),
    ("gimme", 3),
    ("lemme", 3),
    ("d'ye", 2),
    ("more'n", 4),
    ("'tis", 2),
    ("'twas", 2),
];

/// Endings that are words of their own.
const ENDINGS: [&str; 7] = ["n't", "'s", "'m", "'d", "'ll", "'re", "'ve"];

/// Abbreviations that keep their full stop.
const ABBREVIATIONS: [&str; 22] = [
    "mr.", "mrs.", "ms.", "dr.", "st.", "jr.", "sr.", "vs.", "etc.", "inc.", "co.", "corp.", "ltd.", "prof.", "gen.",
    "sen.", "rep.", "gov.", "mt.", "ave.", "blvd.", "no.",
];

/// A caption's words, parted by single blanks.
pub fn tokenised(caption: &str) -> String {
    // the package hands captions over a line each
    let text = caption.replace(['\n', '\r'], " ").to_lowercase().replace(['‘', '’'], "'").replace(['“', '”'], "\"");
    let mut out: Vec<String> = Vec::new();
    for chunk in text.split_whitespace() {
        pieces(chunk, &mut out);
    }
    // brackets are words in lower case by now, which the list's upper case does not find: so it is with the package
    out.retain(|w| !DROPPED.contains(&w.as_str()));
    out.join(" ")
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn pieces(chunk: &str, out: &mut Vec<String>) {
    let chars: Vec<char> = chunk.chars().collect();
    let mut i = 0;
    while i < chars.len() {
        let c = chars[i];
        let begins = is_word(c) || (c == '\'' && starts_elision(&chars[i..]));
        if !begins {
            // dots and dashes in a row are one sign
            let mut j = i + 1;
            while j < chars.len() && chars[j] == c && (c == '.' || c == '-') {
                j += 1;
            }
            let sign: String = chars[i..j].iter().collect();
            out.push(match sign.as_str() {
                "(" => "-lrb-".into(),
                ")" => "-rrb-".into(),
                "[" => "-lsb-".into(),
                "]" => "-rsb-".into(),
                "{" => "-lcb-".into(),
                "}" => "-rcb-".into(),
                "\"" => "''".into(),
                _ => sign,
            });
            i = j;
            continue;
        }
        let mut j = i + 1;
        while j < chars.len() && joins(&chars, i, j) {
            j += 1;
        }
        let word: String = chars[i..j].iter().collect();
        i = j;
        // a full stop belongs to abbreviations and to letters that are parted by stops
        if chars.get(i) == Some(&'.') {
            let dotted = format!("{word}.");
            let letters = word.contains('.')
                && word.split('.').all(|p| p.chars().count() == 1 && p.chars().all(char::is_alphabetic));
            if letters || ABBREVIATIONS.contains(&dotted.as_str()) {
                i += 1;
                out.push(dotted);
                continue;
            }
        }
        split(&word, out);
    }
}

/// 'tis and 'twas begin with their apostrophe.
fn starts_elision(rest: &[char]) -> bool {
    let text: String = rest.iter().take(5).collect();
    text.starts_with("'tis") || text.starts_with("'twas")
}

/// Whether the sign at `j` goes on with the word that began at `i`.
fn joins(chars: &[char], i: usize, j: usize) -> bool {
    let (c, next) = (chars[j], chars.get(j + 1).copied());
    let next_word = next.is_some_and(is_word);
    let digit = |c: Option<char>| c.is_some_and(char::is_numeric);
    match c {
        _ if is_word(c) => true,
        '\'' => next_word,
        '-' => next_word && is_word(chars[j - 1]),
        '.' | ',' | ':' if digit(next) && digit(Some(chars[j - 1])) => true,
        // letters parted by stops: p.m, u.s
        '.' => {
            next.is_some_and(char::is_alphabetic) && chars[i..j].iter().filter(|c| **c != '.').count() <= 3 && {
                let last = chars[i..j].iter().rposition(|c| *c == '.').map_or(i, |p| i + p + 1);
                j - last == 1
            }
        }
        '&' | '/' => next_word && c == '&' && chars[i..j].iter().all(|c| c.is_alphabetic()) && j - i <= 2,
        '@' => next_word,
        _ => false,
    }
}

fn split(word: &str, out: &mut Vec<String>) {
    if let Some((_, at)) = SPLIT.iter().find(|s| s.0 == word) {
        let chars: Vec<char> = word.chars().collect();
        out.push(chars[..*at].iter().collect());
        out.push(chars[*at..].iter().collect());
        return;
    }
    for ending in ENDINGS {
        if let Some(start) = word.strip_suffix(ending).filter(|s| !s.is_empty()) {
            split(start, out);
            out.push(ending.to_owned());
            return;
        }
    }
    out.push(word.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs of captions and what Stanford's jar made of them (tests/fixtures/ptb).
    #[test]
    fn captions_are_parted_as_the_jar_parts_them() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/ptb/captions.json");
        let pairs: Vec<(String, String)> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let wrong: Vec<String> = pairs
            .iter()
            .filter(|(c, want)| tokenised(c) != *want)
            .map(|(c, want)| format!("{c:?}\n  got  {:?}\n  want {want:?}", tokenised(c)))
            .collect();
        assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), pairs.len(), wrong.join("\n"));
    }
}
