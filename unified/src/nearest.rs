//! Names that nobody knows, with the known one that is nearest.

/// The known name that is nearest to a word, no more than `most` edits away.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>, most: usize) -> Option<&'a str> {
    let far = |k: &'a str| (strsim::damerau_levenshtein(word, k), k);
    known.map(far).min().filter(|n| n.0 <= most).map(|n| n.1)
}

/// A message about an unknown key, with the known one that is nearest to it.
pub fn with_nearest(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    if !message.starts_with("unknown field") {
        return message.to_owned();
    }
    let Some(key) = quoted.next() else { return message.to_owned() };
    match nearest(key, quoted, 1 + key.len() / 3) {
        Some(known) => format!("{message}; did you mean `{known}`?"),
        None => message.to_owned(),
    }
}
