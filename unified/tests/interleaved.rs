//! Ten thousand interleaved answers of a tiny untrained model at temperature 2: every one is well-formed.

use candle_core::Device;
use nn::parallel::World;
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use unified::artifact::{Artifact, Placement};
use unified::conversation::{Content, Message, Request};
use unified::runner::Unified;
use unified::train::{Run, Training};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn train(config: &str, out: &Path, set: &[String]) {
    let photos = format!("data.pictures.path={}", root("tests/fixtures/photos").display());
    let set: Vec<String> =
        set.iter().cloned().chain([photos, "run.steps=1".into(), "run.batch_size=2".into()]).collect();
    let training = Training::from_file(&root(config), &set).unwrap();
    training
        .run(&mut Run {
            out,
            resume: false,
            device: Device::Cpu,
            world: &World::Alone,
            progress: &mut |_| true,
            say: &mut |_| {},
        })
        .unwrap();
}

/// Four patches a picture, the real vocabulary of marks and bytes.
fn tiny(dir: &Path) -> Unified {
    let tokenizer = format!("tokenizer={}", root("unified/assets/nano/tokenizer.json").display());
    let mut set = vec![tokenizer.clone()];
    for tower in ["vision_config", "decoder_config"] {
        set.extend([format!("model.{tower}.num_hidden_layers=1"), format!("model.{tower}.image_size=16")]);
    }
    train("configs/nano/qlip-stage1.toml", &dir.join("qlip"), &set);
    let sizes = ["num_hidden_layers=1", "hidden_size=32", "num_attention_heads=2", "intermediate_size=32"];
    let set: Vec<String> = sizes
        .iter()
        .map(|s| format!("model.{s}"))
        .chain([tokenizer, format!("image_tokenizer={}", dir.join("qlip").display())])
        .chain(["head=tokens".to_owned(), "group_bits=10".to_owned()])
        .collect();
    train("configs/nano/unified.toml", &dir.join("um"), &set);
    Unified::load(&Artifact::at(&dir.join("um")).unwrap(), &Placement::cpu()).unwrap()
}

#[test]
fn ten_thousand_answers_are_well_formed() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny(dir.path());
    let v = &model.config.vocabulary;
    let (pictures, both) = (AtomicUsize::new(0), AtomicUsize::new(0));
    (0..10_000u64).into_par_iter().for_each(|seed| {
        let mut generation = model.config.generation;
        generation.text.temperature = 2.0;
        generation.image.temperature = 2.0;
        generation.guidance_scale = if seed % 2 == 0 { 1.0 } else { 3.0 };
        let request = Request { generation, seed, ..Request::greedy(24) };
        let mut events = 0;
        let reply = model
            .answer(&[Message::user("x")], &request, &mut |_| {
                events += 1;
                true
            })
            .unwrap();
        // read again without the grammar: begin, then four times two sub-tokens of their own tables, then end
        let (mut at, mut found) = (0, 0);
        let t = &reply.tokens;
        while at < t.len() {
            if t[at] == v.begin_image {
                let inside = &t[at + 1..at + 9];
                for (i, &token) in inside.iter().enumerate() {
                    let table = v.text + (i % 2) * 1024;
                    assert!((table..table + 1024).contains(&(token as usize)), "seed {seed}: {token} at place {i}");
                }
                assert_eq!(t[at + 9], v.end_image, "seed {seed}");
                at += 10;
                found += 1;
            } else {
                assert!((t[at] as usize) < v.text && t[at] != v.end_image, "seed {seed}: {} outside a picture", t[at]);
                at += 1;
            }
        }
        assert_eq!(found, reply.images.len());
        assert!(reply.images.iter().all(|i| (i.width(), i.height()) == (16, 16)));
        assert!(reply.content.iter().filter(|c| matches!(c, Content::Codes(c) if c.len() == 4)).count() == found);
        assert!(events >= usize::from(!t.is_empty()));
        pictures.fetch_add(found, Ordering::Relaxed);
        both.fetch_add(usize::from(found > 0 && reply.content.len() > found), Ordering::Relaxed);
    });
    let (pictures, both) = (pictures.into_inner(), both.into_inner());
    println!("{pictures} pictures; {both} answers with words and pictures");
    assert!(pictures > 100 && both > 100, "{pictures} pictures, {both} with both: the test tests too little");
}
