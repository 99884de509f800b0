//! LlamaGen and its tokenizers: trained, killed, drawn with.

use super::{SMALL_VQ, fails, fixture, llamagen_sets, ok, picture_sets, resumes, text, unified};
use std::path::Path;

#[test]
fn vq_training_resumes_exactly() {
    let both = format!("data=[{{kind=\"pictures\",path=\"{}\"}},{{kind=\"scenes\"}}]", fixture("photos").display());
    let more = [
        "loss.adversarial=0.1",
        "adversary={net={kind=\"patch\",width=4,layers=2},start=3}",
        &both,
        "model.entropy_loss_ratio=0.1",
    ];
    resumes("llamagen/compare/vq.toml", &picture_sets(&[&SMALL_VQ[..], &more].concat()));
}

#[test]
fn lookup_free_training_resumes_exactly() {
    let more = ["model.quantizer=lfq", "model.codebook_embed_dim=10"];
    resumes("llamagen/compare/vq.toml", &picture_sets(&[&SMALL_VQ[..], &more].concat()));
}

#[test]
fn classifier_training_resumes_exactly() {
    resumes("llamagen/compare/classifier.toml", &picture_sets(&["image_size=16", "widths=[8,16]"]));
}

/// From nothing to drawings: a tokenizer is trained, a decoder on it, and the decoder draws.
#[test]
fn llamagen_draws_with_a_trained_vq() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/llamagen");
    let train = |config: &str, out: &str, sets: &[String]| {
        let path = configs.join(config);
        let mut args = vec!["train", path.to_str().unwrap(), "--out", out];
        sets.iter().for_each(|s| args.extend(["--set", s]));
        ok(d, &args);
    };
    for (name, more) in [("nearest", &[][..]), ("signs", &["model.quantizer=lfq", "model.codebook_embed_dim=10"])] {
        train("compare/vq.toml", name, &picture_sets(&[&SMALL_VQ[..], more].concat()));
        let mut sets = llamagen_sets();
        sets.retain(|s| !s.starts_with("image_tokenizer="));
        sets.extend([format!("image_tokenizer={}", d.join(name).display()), "grid=4".to_owned()]);
        let (out, drawn) = (format!("{name}-decoder"), format!("{name}-drawn"));
        train("cifar-qlip.toml", &out, &sets);
        ok(d, &["generate", "--model", &out, "--class", "3", "-o", &drawn]);
        assert_eq!(qlip::Image::open(&d.join(drawn).join("unified-0001.png")).unwrap().width(), 16);
    }
    let config = configs.join("compare/vq.toml");
    let config = config.to_str().unwrap();
    let photos = format!("data.pictures.path={}", fixture("photos").display());
    let refused = |set: &str, words: &[&str]| {
        fails(d, &["train", config, "--out", "x", "--set", &photos, "--set", set], words);
    };
    refused("image_size=60", &["image_size = 60", "multiple"]);
    refused("loss.lpips=1.0", &["[lpips]"]);
    refused("model.quantizer=lfq", &["codebook_embed_dim"]);
    refused("start=nowhere", &["either `start`"]);
}

#[test]
fn llamagen_training_resumes_exactly() {
    let mut sets = llamagen_sets();
    sets.push("shared_bits=true".to_owned());
    resumes("llamagen/cifar-qlip.toml", &sets);
}

#[test]
fn llamagen_trains_on_either_tokenizer_and_draws() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/llamagen/cifar-qlip.toml");
    let train = |out: &str, more: &[String]| {
        let mut args = vec!["train", config.to_str().unwrap(), "--out", out];
        let sets = llamagen_sets();
        sets.iter().chain(more).for_each(|s| args.extend(["--set", s]));
        unified(d, &args)
    };
    let vq = [format!("image_tokenizer={}", fixture("vq").display()), "grid=4".to_owned()];
    for (out, more, side) in [("q", &[][..], 64), ("v", &vq, 8)] {
        let done = train(out, more);
        assert!(done.status.success(), "{}", text(&done.stderr));
        ok(d, &["generate", "--model", out, "--class", "0,9", "-o", &format!("{out}/drawn")]);
        for i in 1..=2 {
            let picture = d.join(out).join(format!("drawn/unified-000{i}.png"));
            assert_eq!(qlip::Image::open(&picture).unwrap().width(), side, "{out}");
        }
    }
    // the same codes are not made twice, another tokenizer's are not taken
    std::fs::create_dir(d.join("c")).unwrap();
    std::fs::copy(d.join("q/codes.safetensors"), d.join("c/codes.safetensors")).unwrap();
    let again = train("q", &[]);
    assert!(text(&again.stderr).contains("--resume"), "{}", text(&again.stderr));
    let other = train("c", &vq);
    assert!(!other.status.success() && text(&other.stderr).contains("codes.safetensors"), "{}", text(&other.stderr));
    let refused = |more: &[String], words: &[&str]| {
        let said = train("w", more);
        let said = (said.status.success(), text(&said.stderr));
        assert!(!said.0 && words.iter().all(|w| said.1.contains(w)), "{}", said.1);
    };
    refused(&["crops=3".to_owned()], &["1, 2 or 10"]);
    refused(&[&vq[..], &["shared_bits=true".to_owned()]].concat(), &["shared_bits", "lfq"]);
    refused(&["text_encoder=nowhere".to_owned()], &["nowhere"]);
    // what was never trained without a class cannot be guided away from none
    let done = train("always", &["model.class_dropout_prob=0.0".to_owned()]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    ok(d, &["generate", "--model", "always", "--class", "1", "--guidance", "1", "-o", "always/drawn"]);
    fails(d, &["generate", "--model", "always", "--class", "1", "--guidance", "4", "-o", "x"], &["guidance scale 1"]);
}

#[test]
fn classes_are_drawn_to_codes_and_wrong_ones_refused() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let model = fixture("llamagen/c2i");
    let model = model.to_str().unwrap();
    let io = nn::checkpoint::load(&fixture("llamagen/c2i/io.safetensors")).unwrap();
    let classes: Vec<String> =
        io["condition"].to_vec1::<i64>().unwrap().iter().map(std::string::ToString::to_string).collect();
    let list = classes.join(",");
    let base = ["generate", "--model", model, "--class", &list, "--greedy", "--guidance", "4", "--codes-only"];
    for (interval, key) in [("2", "greedy_scale4_interval2"), ("-1", "greedy_scale4_interval-1")] {
        ok(d, &[&base[..], &["--guidance-interval", interval, "-o", "codes.safetensors"]].concat());
        let got = nn::checkpoint::load(&d.join("codes.safetensors")).unwrap();
        assert_eq!(got["tokens"].to_vec2::<i64>().unwrap(), io[key].to_vec2::<i64>().unwrap(), "{key}");
    }
    let draw = |class: &str, more: &[&str], words: &[&str]| {
        fails(d, &[&["generate", "--model", model, "--class", class], more].concat(), words);
    };
    draw("7", &["--codes-only", "-o", "x.safetensors"], &["class 7", "7 classes"]);
    draw("1", &["-o", "x"], &["--tokenizer", "--codes-only"]);
    let vq = fixture("vq");
    draw("1", &["-o", "x", "--tokenizer", vq.to_str().unwrap()], &["codebook of 64", "100 codes"]);
    assert!(!d.join("x").exists() && !d.join("x.safetensors").exists());
    fails(d, &["generate", "--class", "1"], &["--model"]);
    std::fs::write(d.join("c2i_B_256.pt"), b"not a torch file").unwrap();
    fails(d, &["generate", "--class", "1", "--model", "c2i_B_256.pt", "--codes-only", "-o", "y"], &["c2i_B_256.pt"]);
}
