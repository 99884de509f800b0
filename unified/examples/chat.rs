//! A question about a picture, the answer as it comes: `cargo run --release --example chat -- PICTURE [MODEL]`.

use unified::{Event, Model, image, picture, text, user};

fn main() -> unified::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let model = args.get(2).map_or_else(Model::nano, |m| Model::open(m))?;
    let shown = picture(args.get(1).map_or("photo.png", String::as_str))?;
    for event in model.chat([user([image(shown), text("what is in the picture?")])])? {
        if let Event::Text(words) = event? {
            print!("{words}");
        }
    }
    Ok(())
}
