//! CLIP's tower and LLaVA against reference tensors: every hidden state, logits, loss, the projector's gradients, greedy
//! answers, and the tensor names of three layouts.

use candle_core::{DType, Device, Tensor};
use lm::{Context, Part, Source, Token};
use nn::Params;
use nn::ops::{self, IGNORE};
use qlip::Pixels;
use qlip::clip::{ClipTower, ClipVisionConfig};
use qlip::config::read_json;
use std::collections::HashMap;
use tests::{close, close_values, fixture, golden, integers, values};
use unified::llava::{Llava, LlavaConfig, published_name};

fn config() -> LlavaConfig {
    let path = fixture("llava/config.json");
    LlavaConfig::parse(&path, &std::fs::read_to_string(&path).unwrap()).unwrap()
}

fn ids(t: &Tensor) -> Vec<Token> {
    integers(t).into_iter().map(|v| v as Token).collect()
}

#[test]
fn clip_tower() {
    let config: ClipVisionConfig = read_json(&fixture("clipvision/config.json")).unwrap();
    let params = Params::from_dir(&fixture("clipvision"), DType::F32, &Device::Cpu).unwrap();
    let tower = ClipTower::new(&params.at("vision_model"), &config).unwrap();
    let io = golden("clipvision/io.safetensors");
    let out = tower.forward(&Pixels(io["pixel_values"].clone())).unwrap();
    assert_eq!(out.hidden.len(), 4);
    for (i, h) in out.hidden.iter().enumerate() {
        close(&format!("hidden {i}"), h, &io[&format!("hidden_{i}")], 1e-5);
    }
    close("last", out.hidden.last().unwrap(), &io["last_hidden_state"], 1e-5);
    close("pooled", &out.pooled, &io["pooler_output"], 1e-5);
}

/// Features of pictures as rows [pictures * tokens, width].
fn rows(features: &Tensor) -> Tensor {
    features.flatten_to(1).unwrap()
}

#[test]
fn llava_whole() {
    let config = config();
    let io = golden("llava/io.safetensors");
    let params = Params::for_training(
        golden("llava/model.safetensors"),
        &["vision_tower.", "language_model."],
        0,
        DType::F32,
        &Device::Cpu,
    );
    let model = Llava::new(&params, &config).unwrap();
    let features = model.project(&model.see(&Pixels(io["pixel_values"].clone())).unwrap()).unwrap();
    close("features", &features, &io["image_features"], 1e-5);

    let (batch, tokens) = io["input_ids"].dims2().unwrap();
    let input = ids(&io["input_ids"]);
    let embedded: Vec<Tensor> = input
        .chunks(tokens)
        .enumerate()
        .map(|(i, row)| model.embed(row, Some(&rows(&features.narrow(0, i, 1).unwrap()))).unwrap())
        .collect();
    let logits = model.logits(&Tensor::stack(&embedded, 0).unwrap()).unwrap();
    close("logits", &logits, &io["logits"], 1e-5);

    let labels = integers(&io["labels"]);
    let targets: Vec<u32> = (0..batch * tokens)
        .map(|i| if (i + 1) % tokens == 0 || labels[i + 1] < 0 { IGNORE } else { labels[i + 1] as u32 })
        .collect();
    let counted = targets.iter().filter(|&&t| t != IGNORE).count();
    let loss = ops::cross_entropy(&logits.flatten_to(1).unwrap(), &targets).unwrap();
    let loss = (loss.sum_all().unwrap() / counted as f64).unwrap();
    close("loss", &loss, &io["loss"], 1e-5);
    let grads = loss.backward().unwrap();
    let want = golden("llava/grads.safetensors");
    assert_eq!(params.vars().len(), want.len());
    for (name, var) in params.vars() {
        let got = grads.get(var.as_tensor()).unwrap();
        close_values(&name, &values(got), &values(&want[&name]), 1e-4, 0.0);
    }

    let two = model.embed(&ids(&io["two_images_ids"]), Some(&rows(&features))).unwrap();
    close("two pictures", &model.logits(&two.unsqueeze(0).unwrap()).unwrap(), &io["two_images_logits"], 1e-5);

    let prompt = model.embed(&ids(&io["greedy_prompt"]), Some(&rows(&features.narrow(0, 0, 1).unwrap()))).unwrap();
    let want = ids(&io["greedy_tokens"]);
    let keys = vec![0; prompt.dim(0).unwrap()];
    let context = Context::new(vec![Part::Embedded(prompt, keys)]);
    let rows = Source::rows(0..config.text_config.vocab_size);
    let got = lm::generate::likeliest(model.lm.clone(), vec![context], rows, want.len()).unwrap();
    assert_eq!(got.concat(), want);
}

#[test]
fn names_of_three_layouts() {
    let text = std::fs::read_to_string(fixture("llava/names.json")).unwrap();
    let names: Vec<HashMap<String, String>> = serde_json::from_str(&text).unwrap();
    assert!(names.len() > 50);
    for n in names {
        for layout in ["published", "current", "original"] {
            assert_eq!(published_name(&n[layout]), n["published"], "{layout}");
        }
    }
}

#[test]
fn features_must_fill_their_places() {
    let config = config();
    let params = Params::from_dir(&fixture("llava"), DType::F32, &Device::Cpu).unwrap();
    let model = Llava::new(&params, &config).unwrap();
    let error = model.embed(&[5, config.image_token_index], None).unwrap_err().to_string();
    assert_eq!(error, "1 image tokens for 0 rows of picture features");
}
