//! Names that nobody knows, with the known one that is nearest.

/// A message about an unknown key, with the known one that is nearest to it.
pub fn with_nearest(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    if !message.starts_with("unknown field") {
        return message.to_owned();
    }
    let Some(key) = quoted.next() else { return message.to_owned() };
    let nearest = quoted.map(|k| (strsim::damerau_levenshtein(key, k), k)).min();
    match nearest {
        Some((far, known)) if far <= 1 + key.len() / 3 => format!("{message}; did you mean `{known}`?"),
        _ => message.to_owned(),
    }
}
