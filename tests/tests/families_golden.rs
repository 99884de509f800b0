//! Janus, Chameleon and Emu3: gradients, names of both layouts, prompts and preprocessing against reference values.

use candle_core::{DType, Device, Tensor};
use lm::Token;
use nn::Params;
use nn::ops::{IGNORE, cross_entropy};
use qlip::{Image, Pixels};
use std::collections::HashMap;
use tests::{close, close_values, fixture, golden, integers, values};
use unified::chameleon::{Chameleon, ChameleonConfig, preprocess};
use unified::emu3::{fitted, resized};
use unified::janus::{Janus, JanusConfig, JanusPreprocess, prompt, published_name};

fn ids(t: &Tensor) -> Vec<Token> {
    integers(t).into_iter().map(|v| v as Token).collect()
}

fn names(folder: &str) -> Vec<serde_json::Value> {
    serde_json::from_str(&std::fs::read_to_string(fixture(folder).join("names.json")).unwrap()).unwrap()
}

/// Mean loss of the next labels.
fn loss(logits: &Tensor, labels: &[i64], tokens: usize) -> Tensor {
    let next = |i: usize| match labels.get(i + 1) {
        Some(&l) if !(i + 1).is_multiple_of(tokens) && l >= 0 => l as u32,
        _ => IGNORE,
    };
    let targets: Vec<u32> = (0..labels.len()).map(next).collect();
    let n = targets.iter().filter(|&&t| t != IGNORE).count();
    let all = cross_entropy(&logits.flatten_to(1).unwrap(), &targets).unwrap();
    (all.sum_all().unwrap() / n as f64).unwrap()
}

fn pads(mask: &Tensor) -> Vec<usize> {
    let tokens = mask.dim(1).unwrap();
    integers(mask).chunks(tokens).map(|m| m.iter().take_while(|&&v| v == 0).count()).collect()
}

fn wide(tensors: HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    tensors.into_iter().map(|(k, v)| (k, v.to_dtype(DType::F32).unwrap())).collect()
}

#[test]
fn janus_gradients() {
    let stored: HashMap<String, Tensor> =
        wide(golden("janus/model.safetensors")).into_iter().map(|(k, v)| (published_name(&k), v)).collect();
    let path = fixture("janus/config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let config = JanusConfig::parse(&path, &text, &HashMap::new().into()).unwrap();
    let params = Params::for_training(stored, &["gen_vision_model."], 0, DType::F32, &Device::Cpu);
    let model = Janus::new(&params, &config).unwrap();
    let (io, want) = (golden("janus/io.safetensors"), golden("janus/grads.safetensors"));
    let features = model.project(&model.see(&Pixels(io["pixel_values"].clone())).unwrap().1).unwrap();
    let (rows, tokens) = io["input_ids"].dims2().unwrap();
    let image = config.image_token.unwrap();
    let mut embedded = Vec::new();
    for (i, row) in ids(&io["input_ids"]).chunks(tokens).enumerate() {
        let parts: Vec<Tensor> = row
            .chunk_by(|a, b| (*a == image) == (*b == image))
            .map(|run| match run[0] == image {
                true => features.get(i).unwrap(),
                false => model.lm.embed(run, 1).unwrap().squeeze(0).unwrap(),
            })
            .collect();
        embedded.push(Tensor::cat(&parts, 0).unwrap());
    }
    let x = Tensor::stack(&embedded, 0).unwrap();
    let hidden = model.lm.hidden_padded(&x, &pads(&io["attention_mask"])).unwrap();
    let logits = model.lm.logits(&hidden, 0..config.text.vocab_size).unwrap();
    let seeing = loss(&logits, &integers(&io["labels"]), tokens).backward().unwrap();

    let codes = ids(&io["drawing_tokens"]);
    let count = model.codes_per_picture();
    let drawn = model.embed_codes(&codes).unwrap().reshape((rows, count, ())).unwrap();
    let before = pads(&io["drawing_mask"]);
    let width = io["drawing_ids"].dim(1).unwrap();
    let mut all = Vec::new();
    for (i, row) in ids(&io["drawing_ids"]).chunks(width).enumerate() {
        let words = model.lm.embed(&row[before[i]..], 1).unwrap();
        let from = words.dim(1).unwrap() - 1;
        let codes = drawn.narrow(0, i, 1).unwrap().narrow(1, 0, count - 1).unwrap();
        let hidden = model.lm.hidden_padded(&Tensor::cat(&[&words, &codes], 1).unwrap(), &[0]).unwrap();
        all.push(model.code_logits(&hidden.narrow(1, from, count).unwrap().contiguous().unwrap()).unwrap());
    }
    let logits = Tensor::cat(&all, 0).unwrap().flatten_to(1).unwrap();
    let drawing = cross_entropy(&logits, &lm::vocab::table_rows(&codes).unwrap())
        .unwrap()
        .mean_all()
        .unwrap()
        .backward()
        .unwrap();
    let vars = params.vars();
    assert!(want.len() >= 15);
    for (name, want) in &want {
        let grads = if name.contains("generation_") { &drawing } else { &seeing };
        let got = grads.get(vars[&published_name(name)].as_tensor()).expect("a gradient");
        close_values(name, &values(got), &values(want), 1e-4, 0.0);
    }
}

#[test]
fn janus_names_of_both_layouts() {
    let all = names("janus");
    assert!(all.len() > 100);
    for n in all {
        let (ours, theirs) = (published_name(n["transformers"].as_str().unwrap()), n["original"].as_str().unwrap());
        // queries, keys and values are the thirds of one tensor there
        if n.get("rows").is_none() {
            assert_eq!(published_name(theirs), ours);
        }
    }
}

#[test]
fn janus_prompts() {
    let text = std::fs::read_to_string(fixture("janus/prompts.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let cases = json["cases"].as_array().unwrap();
    assert!(cases.len() > 10);
    for case in cases {
        let turns: Vec<(&str, &str)> = case["turns"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| (t["role"].as_str().unwrap(), t["content"].as_str().unwrap()))
            .collect();
        let mut got = prompt(case["system"].as_str().unwrap(), &turns);
        if case["name"] == "draw" {
            got.push_str("<begin_of_image>");
        }
        assert_eq!(got, case["text"].as_str().unwrap(), "{}", case["name"]);
    }
    assert_eq!(unified::janus::SYSTEM, json["system_prompt"].as_str().unwrap());
}

fn picture(i: usize) -> Image {
    Image::open(&fixture(&format!("preprocess/{i}.png"))).unwrap()
}

/// Levels that differ by more than one; and the share that differ at all.
fn levels(got: &[u8], want: &Tensor) {
    let want: Vec<i64> = integers(want);
    assert_eq!(got.len(), want.len());
    let off = |(a, b): (&u8, &i64)| (i64::from(*a) - b).abs();
    let worst = got.iter().zip(&want).map(off).max().unwrap();
    let differ = got.iter().zip(&want).filter(|p| off((p.0, p.1)) > 0).count();
    assert!(worst <= 1 && differ * 1000 <= got.len(), "worst {worst}, {differ} of {}", got.len());
}

#[test]
fn janus_preprocessing() {
    for i in [0, 1, 4, 5] {
        let want = golden(&format!("janus/preprocess/{i}.safetensors"));
        for size in [48, 80] {
            let got = JanusPreprocess::new(size).square(&picture(i));
            levels(got.rgb(), &want[&format!("bytes_{size}")]);
        }
        let pixels = JanusPreprocess::new(48).pixels(&[picture(i)], &Device::Cpu).unwrap().0;
        let Some(want) = want.get("pixels_48") else { continue };
        let got = pixels.reshape(want.dims()).unwrap();
        close("pixels", &got, want, 0.02);
    }
}

#[test]
fn chameleon_preprocessing() {
    for i in [0, 1, 4, 5] {
        let want = golden(&format!("chameleon/preprocess/{i}.safetensors"));
        levels(preprocess::square(&picture(i), 48).rgb(), &want["bytes_48"]);
        if let Some(white) = want.get("rgb_on_white") {
            levels(picture(i).on_white().rgb(), white);
        }
        let pixels = preprocess::pixels(&[picture(i)], 48, &Device::Cpu).unwrap().0;
        let Some(want) = want.get("pixels_48") else { continue };
        close("pixels", &pixels.reshape(want.dims()).unwrap(), want, 0.02);
    }
}

#[test]
fn emu3_preprocessing() {
    for i in [0, 1, 2, 5] {
        let want = golden(&format!("emu3/preprocess/{i}.safetensors"));
        levels(fitted(&picture(i), 8, (2304, 6400)).rgb(), &want["bytes"]);
    }
}

#[test]
fn emu3_sizes() {
    let text = std::fs::read_to_string(fixture("emu3/preprocess/sizes.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let n = |v: &serde_json::Value| v.as_u64().unwrap() as usize;
    let limits = (n(&json["min_pixels"]), n(&json["max_pixels"]));
    for case in json["cases"].as_array().unwrap() {
        let (h, w) = (n(&case["height"]), n(&case["width"]));
        for (name, limits) in [("published", (512 * 512, 1024 * 1024)), ("small", limits)] {
            let want = (n(&case[name][0]), n(&case[name][1]));
            assert_eq!(resized(h, w, n(&json["factor"]), limits), want, "{h} x {w}, {name}");
        }
    }
}

#[test]
fn chameleon_gradients() {
    for folder in ["chameleon/plain", "chameleon/swin"] {
        let path = fixture(folder).join("config.json");
        let config = ChameleonConfig::parse(&path, &std::fs::read_to_string(&path).unwrap()).unwrap();
        let levels = config.vq.encoder_ch_mult.len();
        let stored = wide(golden(&format!("{folder}/model.safetensors")));
        let stored = unified::chameleon::ours(stored.into(), levels).into_memory().unwrap();
        let params = Params::for_training(stored, &["vqmodel."], 0, DType::F32, &Device::Cpu);
        let model = Chameleon::new(&params, config).unwrap();
        let (io, want) = (golden(&format!("{folder}/io.safetensors")), golden(&format!("{folder}/grads.safetensors")));
        let (rows, tokens) = io["expanded_ids"].dims2().unwrap();
        let x = model.lm.embed(&ids(&io["expanded_ids"]), rows).unwrap();
        let hidden = model.lm.hidden_padded(&x, &pads(&io["attention_mask"])).unwrap();
        let logits = model.lm.logits(&hidden, 0..model.config.text.vocab_size).unwrap();
        let loss = loss(&logits, &integers(&io["labels"]), tokens);
        close("loss", &loss, &io["loss"], 1e-5);
        let grads = loss.backward().unwrap();
        let vars = params.vars();
        assert!(want.len() > 10);
        for (name, want) in &want {
            let got = grads.get(vars[name].as_tensor()).expect("a gradient");
            close_values(&format!("{folder} {name}"), &values(got), &values(want), 1e-4, 0.0);
        }
    }
}
