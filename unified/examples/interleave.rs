//! Words and pictures in one conversation: `cargo run --release --example interleave`.

use unified::{Event, Model, text, user};

fn main() -> unified::Result<()> {
    let model = Model::nano()?; // or Model::open("DIR or owner/name")?
    for event in model.chat([user([text("draw a red circle above a blue square")])])? {
        match event? {
            Event::Text(words) => print!("{words}"),
            Event::Image(picture) => picture.save_png("picture.png".as_ref())?,
            _ => {}
        }
    }
    Ok(())
}
