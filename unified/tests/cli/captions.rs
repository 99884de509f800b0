//! LlamaGen by caption, through a text encoder.

use super::{fails, fixture, llamagen_sets, nano, nano_bits, ok};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// A T5 encoder of the published names with random weights, and nano's words.
fn tiny_t5(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let config = serde_json::json!({
        "model_type": "t5", "vocab_size": 700, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
        "relative_attention_num_buckets": 8, "dropout_rate": 0.1, "layer_norm_epsilon": 1e-6, "initializer_factor": 1.0,
        "feed_forward_proj": "gated-gelu", "is_encoder_decoder": true, "use_cache": true, "pad_token_id": 0,
        "eos_token_id": 1, "tie_word_embeddings": false,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(nano().join("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
    let mut all = BTreeMap::new();
    let mut add = |name: &str, shape: &[usize]| {
        let n: usize = shape.iter().product();
        let key = all.len();
        let v: Vec<f32> = (0..n).map(|i| ((i * 37 + key * 11) as f32 * 0.61).sin() * 0.3).collect();
        all.insert(name.to_owned(), Tensor::from_vec(v, shape, &Device::Cpu).unwrap());
    };
    add("shared.weight", &[700, 16]);
    add("encoder.final_layer_norm.weight", &[16]);
    add("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", &[8, 2]);
    for i in 0..2 {
        for p in ["q", "k", "v", "o"] {
            add(&format!("encoder.block.{i}.layer.0.SelfAttention.{p}.weight"), &[16, 16]);
        }
        for (p, shape) in [("wi_0", [24, 16]), ("wi_1", [24, 16]), ("wo", [16, 24])] {
            add(&format!("encoder.block.{i}.layer.1.DenseReluDense.{p}.weight"), &shape);
        }
        add(&format!("encoder.block.{i}.layer.0.layer_norm.weight"), &[16]);
        add(&format!("encoder.block.{i}.layer.1.layer_norm.weight"), &[16]);
    }
    add("decoder.not.read", &[3]);
    nn::checkpoint::save(&dir.join("model.safetensors"), &all, &[]).unwrap();
}

#[test]
fn captions_are_learned_and_drawn_through_a_text_encoder() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    tiny_t5(&d.join("t5"));
    std::fs::create_dir(d.join("pictures")).unwrap();
    for (name, words) in [("photo", "a photo of a ship"), ("grey", "a grey thing")] {
        let from = if name == "photo" { fixture("images/photo.jpg") } else { fixture("preprocess/3.png") };
        let ending = from.extension().unwrap().to_str().unwrap().to_owned();
        std::fs::copy(&from, d.join("pictures").join(format!("{name}.{ending}"))).unwrap();
        std::fs::write(d.join("pictures").join(format!("{name}.txt")), words).unwrap();
    }
    std::fs::write(d.join("pictures/broken.png"), b"no picture").unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/llamagen/cifar-qlip.toml");
    let mut args = vec!["train", config.to_str().unwrap(), "--out", "m"];
    let mut sets: Vec<String> = llamagen_sets().into_iter().filter(|s| !s.starts_with("data.")).collect();
    let more = [
        "data.pictures.path=pictures",
        "text_encoder=t5",
        "model.cls_token_num=9",
        "head=bits",
        "bit_flip=0.2",
        "dropout.token=0.1",
    ];
    sets.extend(more.iter().chain(&["dropout.path=0.2"]).map(|s| (*s).to_owned()));
    sets.iter().for_each(|s| args.extend(["--set", s]));
    ok(d, &args);
    let draw = ["generate", "--model", "m", "a photo of a ship", "-n", "2", "-o"];
    ok(d, &[&draw[..], &["a", "--text-encoder", "t5"]].concat());
    // features by parts, merged, are the features
    std::fs::write(d.join("three.txt"), "a\na grey thing\na ship\n").unwrap();
    let features = |out: &str, shard: &str| {
        ok(d, &["features", "three.txt", "--text-encoder", "t5", "--positions", "9", "-o", out, "--shard", shard]);
    };
    features("whole.safetensors", "0/1");
    features("first.safetensors", "0/2");
    features("second.safetensors", "1/2");
    ok(d, &["merge", "first.safetensors", "second.safetensors", "-o", "merged.safetensors"]);
    assert_eq!(
        std::fs::read(d.join("merged.safetensors")).unwrap(),
        std::fs::read(d.join("whole.safetensors")).unwrap()
    );
    // features made beforehand are the same condition
    std::fs::write(d.join("captions.txt"), "a photo of a ship\n").unwrap();
    ok(d, &["features", "captions.txt", "--text-encoder", "t5", "--positions", "9", "-o", "f.safetensors"]);
    ok(d, &["generate", "--model", "m", "--features", "f.safetensors", "-n", "2", "-o", "b"]);
    for i in 1..=2 {
        let picture = |f: &str| qlip::Image::open(&d.join(f).join(format!("unified-000{i}.png"))).unwrap();
        assert_eq!(picture("a"), picture("b"));
    }
    ok(d, &["generate", "--from-png", "a/unified-0002.png", "-o", "c"]);
    assert_eq!(
        qlip::Image::open(&d.join("c/unified-0001.png")).unwrap(),
        qlip::Image::open(&d.join("a/unified-0002.png")).unwrap()
    );
    fails(d, &[&draw[..], &["x"]].concat(), &["--text-encoder", "--features"]);
    fails(d, &["generate", "--model", "m", "--class", "1", "-o", "x"], &["captions, not classes"]);
    fails(d, &["generate", "--model", "m", "--features", "no.safetensors", "-o", "x"], &["no.safetensors"]);
    let bits =
        ["generate", "--model", "m", "a ship", "--text-encoder", "t5", "--greedy", "--guidance", "2", "--codes-only"];
    ok(d, &[&bits[..], &["-o", "codes.safetensors"]].concat());
    let tokens = nn::checkpoint::load(&d.join("codes.safetensors")).unwrap()["tokens"].to_vec2::<i64>().unwrap();
    assert!(tokens[0].len() == 64 && tokens[0].iter().all(|t| (0..1 << nano_bits()).contains(t)));
}
