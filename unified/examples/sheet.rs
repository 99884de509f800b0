//! Puts the PNG files of a folder, in order, into one: `cargo run --example sheet -- DIR COLUMNS OUT.png`.

use qlip::Image;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(dir), Some(columns), Some(out)) = (args.next(), args.next(), args.next()) else {
        return Err("usage: sheet DIR COLUMNS OUT.png".into());
    };
    let columns: usize = columns.to_string_lossy().parse()?;
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)?.filter_map(|e| e.ok().map(|e| e.path())).collect();
    files.sort();
    let images = files.iter().map(|f| Image::open(f)).collect::<Result<Vec<_>, _>>()?;
    Image::table(&images, columns, 2).save_png(&out)?;
    Ok(())
}
