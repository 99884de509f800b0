//! Pictures in a terminal: sixel or kitty where it has them, half blocks elsewhere.

use image::{DynamicImage, RgbImage};
use qlip::Image;
use std::io::IsTerminal;

/// Prints a picture at the cursor; does nothing where stdout is not a terminal.
pub fn show(img: &Image) {
    if !std::io::stdout().is_terminal() {
        return;
    }
    if print(img, graphics()).is_none() {
        println!("(this terminal could not show the picture)");
    }
}

/// Prints a picture at the cursor and says how many lines it took, where the terminal could.
fn print(img: &Image, g: Graphics) -> Option<u32> {
    let rgb = RgbImage::from_raw(img.width() as u32, img.height() as u32, img.rgb().to_vec())?;
    let config = viuer::Config {
        width: Some(40),
        absolute_offset: false,
        use_kitty: g.kitty,
        use_iterm: g.iterm,
        use_sixel: g.sixel,
        ..viuer::Config::default()
    };
    viuer::print(&DynamicImage::ImageRgb8(rgb), &config).ok().map(|(_, lines)| lines)
}

/// Ways in which a terminal shows pixels; without any, half blocks stand for them.
#[derive(Debug, Clone, Copy, Default)]
struct Graphics {
    kitty: bool,
    iterm: bool,
    sixel: bool,
}

/// Whether the terminal has kitty's graphics, iTerm2's, or sixel. It is known by its name: asking it leaves the answer on the
/// screen of terminals that have neither, and a multiplexer passes neither on.
fn graphics() -> Graphics {
    let var = |name: &str| std::env::var(name).unwrap_or_default();
    if !var("TMUX").is_empty() || var("TERM").starts_with("screen") {
        return Graphics::default();
    }
    let (term, program) = (var("TERM"), var("TERM_PROGRAM"));
    let kitty = !var("KITTY_WINDOW_ID").is_empty() || term.contains("kitty") || term.contains("ghostty");
    let sixel = ["foot", "mlterm", "contour", "yaft"].iter().any(|t| term.starts_with(t)) || program == "mintty";
    let iterm = ["iTerm.app", "WezTerm"].contains(&program.as_str());
    Graphics { kitty, iterm, sixel }
}

/// A picture that is drawn over itself as it comes into being, in half blocks.
#[derive(Default)]
pub struct Preview {
    lines: u32,
    shown: Option<std::time::Instant>,
}

/// Time between two looks at a picture that is being drawn.
const PREVIEW_EVERY: std::time::Duration = std::time::Duration::from_millis(150);

impl Preview {
    /// Whether a terminal is there and it is time to look again.
    pub fn is_due(&self) -> bool {
        std::io::stdout().is_terminal() && self.shown.is_none_or(|t| t.elapsed() >= PREVIEW_EVERY)
    }

    /// Shows the picture in the place of the last.
    pub fn show(&mut self, img: &Image) {
        self.clear();
        self.lines = print(img, Graphics::default()).unwrap_or(0);
        self.shown = Some(std::time::Instant::now());
    }

    /// Takes the picture from the screen.
    pub fn clear(&mut self) {
        if self.lines > 0 {
            // up to where it began, and everything below is blank again
            print!("\x1b[{}A\r\x1b[J", self.lines);
            let _ = std::io::Write::flush(&mut std::io::stdout());
            self.lines = 0;
        }
    }
}
