//! Pictures in a terminal: sixel or kitty where it has them, half blocks elsewhere.

use image::{DynamicImage, RgbImage};
use qlip::Image;
use std::io::IsTerminal;

/// Prints a picture at the cursor; does nothing where stdout is not a terminal.
pub fn show(img: &Image) {
    if !std::io::stdout().is_terminal() {
        return;
    }
    let Some(rgb) = RgbImage::from_raw(img.width() as u32, img.height() as u32, img.rgb().to_vec()) else { return };
    let (kitty, sixel) = graphics();
    let config = viuer::Config {
        width: Some(40),
        absolute_offset: false,
        use_kitty: kitty,
        use_iterm: false,
        use_sixel: sixel,
        ..viuer::Config::default()
    };
    if viuer::print(&DynamicImage::ImageRgb8(rgb), &config).is_err() {
        println!("(this terminal could not show the picture)");
    }
}

/// Whether the terminal has kitty's graphics, and sixel. It is known by its name: asking it leaves the answer on the
/// screen of terminals that have neither, and a multiplexer passes neither on.
fn graphics() -> (bool, bool) {
    let var = |name: &str| std::env::var(name).unwrap_or_default();
    if !var("TMUX").is_empty() || var("TERM").starts_with("screen") {
        return (false, false);
    }
    let (term, program) = (var("TERM"), var("TERM_PROGRAM"));
    let kitty = !var("KITTY_WINDOW_ID").is_empty() || term.contains("kitty") || term.contains("ghostty");
    let sixel = ["foot", "mlterm", "contour", "yaft"].iter().any(|t| term.starts_with(t))
        || ["WezTerm", "mintty"].contains(&program.as_str());
    (kitty, sixel)
}
