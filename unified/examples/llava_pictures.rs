//! Writes 1,000 photographs with conversations in LLaVA's format, as an example of "your own pictures":
//! `cargo run --release --example llava_pictures -- ../shared/data/cifar10 runs/llava/pictures`.

use qlip::data::{Pictures, caption};
use std::path::PathBuf;

const PICTURES: usize = 1000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(photos), Some(out)) = (args.next(), args.next()) else {
        return Err("usage: llava_pictures PHOTOS DIR".into());
    };
    let photos = Pictures::open(&photos, "train")?;
    std::fs::create_dir_all(&out)?;
    let mut entries = Vec::new();
    for i in 0..PICTURES.min(photos.len()) {
        let name = format!("{i:05}.png");
        photos.image(i)?.save_png(&out.join(&name))?;
        let class = photos.class(i).map_or("", |c| &photos.classes[c]);
        let kind = if ["airplane", "automobile", "ship", "truck"].contains(&class) { "vehicle" } else { "animal" };
        entries.push(serde_json::json!({
            "id": i,
            "image": name,
            "conversations": [
                {"from": "human", "value": "<image>\nwhat is in the picture?"},
                {"from": "gpt", "value": caption(class)},
                {"from": "human", "value": "is it an animal or a vehicle?"},
                {"from": "gpt", "value": kind},
            ],
        }));
    }
    std::fs::write(out.join("llava.json"), serde_json::to_vec_pretty(&entries)?)?;
    println!("{}", out.display());
    Ok(())
}
