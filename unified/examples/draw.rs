//! Drawings of words, a seed each, in one batch: `cargo run --release --example draw`.

use unified::{Draw, Model};

fn main() -> unified::Result<()> {
    let model = Model::nano()?;
    let drawn = model.draw_many(&["a red circle".into(), "a blue square".into()], &Draw::default())?;
    for (i, picture) in drawn.iter().enumerate() {
        picture.save_png(format!("drawn-{i}.png").as_ref())?;
    }
    model.draw("two green stars", &Draw { seed: 7, ..Draw::default() })?.save_png("stars.png".as_ref())
}
