//! Words and pictures from the embedded model: `cargo run --release --example interleaved`.

use unified::artifact::{Artifact, Placement};
use unified::conversation::{Event, Message};
use unified::runner::Unified;

fn main() -> unified::Result<()> {
    let model = Unified::load(&Artifact::nano()?, &Placement::cpu())?;
    let messages = [Message::user("draw a red circle above a blue square")];
    let reply = model.answer(&messages, &model.request(7), &mut |event| {
        if let Event::Text(words) = event {
            print!("{words}");
        }
        true // false stops the answer
    })?;
    for (i, picture) in reply.images.iter().enumerate() {
        picture.save_png(format!("picture-{i}.png").as_ref())?;
    }
    Ok(())
}
