//! What goes to standard output: lines for people, JSON for machines. A full disk ends the program with one line (and a
//! closed pipe without any: see [`unified::process`]).

use std::io::Write;
use std::path::Path;

/// Version of the JSON shapes in docs/cli.md.
const VERSION: u32 = 1;

/// Prints a line, or returns why not from the function around it.
macro_rules! say {
    ($($t:tt)*) => { $crate::cli::output::line(format_args!($($t)*))? };
}
pub(crate) use say;

pub fn line(text: std::fmt::Arguments) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{text}")
}

/// Words without an end of line, shown at once.
pub fn words(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// An object in one line, with the version of its shape.
pub fn json(mut value: serde_json::Value) -> std::io::Result<()> {
    if let Some(object) = value.as_object_mut() {
        object.insert("version".into(), VERSION.into());
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()
}

/// A path as JSON can hold it: what is not UTF-8 in it is replaced.
pub fn path(path: &Path) -> String {
    path.display().to_string()
}
