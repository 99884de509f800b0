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
    // a character cell is two pixels high in half blocks
    let config = viuer::Config { width: Some(40), absolute_offset: false, ..viuer::Config::default() };
    if viuer::print(&DynamicImage::ImageRgb8(rgb), &config).is_err() {
        println!("(this terminal could not show the picture)");
    }
}
