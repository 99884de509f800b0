//! LlamaGen's decoder against reference tensors: rotary table, condition embeddings, logits, loss, gradients, greedy
//! guided drawings, with and without padding.

use candle_core::{DType, Device, Tensor};
use lm::Token;
use lm::draw::{DrawSettings, draw};
use lm::llamagen::{Condition, LlamaGen, LlamaGenConfig, ModelType};
use lm::sample::SampleSettings;
use lm::vocab::table_rows;
use nn::Params;
use nn::ops::cross_entropy;
use qlip::config::read_json;
use std::collections::HashMap;
use std::sync::Arc;
use tests::{close, close_values, fixture, golden, integers, values};

fn ids(t: &Tensor) -> Vec<Token> {
    integers(t).into_iter().map(|v| v as Token).collect()
}

fn load(case: &str) -> (Arc<LlamaGen>, Params, HashMap<String, Tensor>) {
    let config: LlamaGenConfig = read_json(&fixture(&format!("llamagen/{case}/config.json"))).unwrap();
    let start = golden(&format!("llamagen/{case}/model.safetensors"));
    // the features of "no caption" are data, not a parameter
    let freeze = ["cls_embedding.uncond_embedding"];
    let params = Params::for_training(start, &freeze, 0, DType::F32, &Device::Cpu);
    (Arc::new(LlamaGen::new(&params, &config).unwrap()), params, golden(&format!("llamagen/{case}/io.safetensors")))
}

fn greedy(model: &Arc<LlamaGen>, condition: &Condition, scale: f32, interval: i64) -> Vec<Token> {
    let settings =
        DrawSettings { guidance_interval: interval, ..DrawSettings::constant(SampleSettings::greedy(), scale) };
    draw(model, condition, &vec![0; condition.len()], &settings, &mut |_| true).unwrap().concat()
}

fn check(case: &str, condition: Condition, io: &HashMap<String, Tensor>, model: &Arc<LlamaGen>, params: &Params) {
    let rope = model.config.rope();
    let table = values(&io["rope_table"]);
    let got: Vec<f64> = rope.table().into_iter().map(f64::from).collect();
    close_values(&format!("{case} rope"), &got, &table, 1e-6, 1.0);

    let n = condition.len();
    let keep = vec![false; n];
    let embedded = model.condition(&condition, &keep).unwrap();
    let first = io["condition_embedding"].dim(1).unwrap();
    close("condition", &embedded.narrow(1, 0, first).unwrap(), &io["condition_embedding"], 1e-5);
    let drop: Vec<bool> = integers(&io["condition_drop"]).into_iter().map(|d| d == 1).collect();
    assert!(drop.contains(&true));
    let dropped = model.condition(&condition, &drop).unwrap();
    close("dropped", &dropped.narrow(1, 0, first).unwrap(), &io["condition_drop_embedding"], 1e-5);

    let tokens = ids(&io["tokens"]);
    let before: Vec<Token> = tokens.chunks(16).flat_map(|t| t[..15].to_vec()).collect();
    let x = Tensor::cat(&[&embedded, &model.embed(&before, n, 0).unwrap()], 1).unwrap();
    let logits = model.forward(&x, &vec![0; n]).unwrap();
    let rows = io["eval_logits"].dim(1).unwrap();
    let tail = logits.narrow(1, logits.dim(1).unwrap() - rows, rows).unwrap();
    close(&format!("{case} eval logits"), &tail, &io["eval_logits"], 1e-5);

    let train = model.train_logits(&condition, &keep, &tokens).unwrap();
    close(&format!("{case} train logits"), &train, &io["train_logits"], 1e-5);
    let loss = cross_entropy(&train.flatten_to(1).unwrap(), &table_rows(&tokens).unwrap()).unwrap().mean_all().unwrap();
    close(&format!("{case} loss"), &loss, &io["train_loss"], 1e-5);
    let grads = loss.backward().unwrap();
    let want = golden(&format!("llamagen/{case}/grads.safetensors"));
    assert_eq!(params.vars().len(), want.len());
    for (name, var) in params.vars() {
        let got = grads.get(var.as_tensor()).unwrap_or_else(|| panic!("{case}: no gradient of {name}"));
        close_values(&format!("{case} grad {name}"), &values(got), &values(&want[&name]), 1e-4, 0.0);
    }
    for (scale, interval) in [(1.0, -1), (4.0, -1), (4.0, 2)] {
        let key = format!("greedy_scale{scale}_interval{interval}");
        assert_eq!(greedy(model, &condition, scale, interval), ids(&io[&key]), "{case} {key}");
    }
}

#[test]
fn class_conditional() {
    let (model, params, io) = load("c2i");
    let condition = Condition::Classes(table_rows(&ids(&io["condition"])).unwrap());
    check("c2i", condition, &io, &model, &params);
}

#[test]
fn text_conditional() {
    let (model, params, io) = load("t2i");
    let features = io["condition"].clone();
    check("t2i", Condition::Captions(features, vec![0; 3]), &io, &model, &params);

    let mask = integers(&io["padded_mask"]);
    let pads = mask.chunks(120).map(|m| m.iter().filter(|&&v| v == 0).count()).collect();
    let padded = Condition::Captions(io["padded_condition"].clone(), pads);
    let tokens = ids(&io["tokens"]);
    let logits = model.train_logits(&padded, &[false; 3], &tokens).unwrap();
    close("padded train logits", &logits, &io["padded_train_logits"], 1e-5);
    close("padded eval logits", &logits, &io["padded_eval_logits"], 1e-5);
    let valid = integers(&io["padded_valid"]);
    let each = values(&cross_entropy(&logits.flatten_to(1).unwrap(), &table_rows(&tokens).unwrap()).unwrap());
    let counted: Vec<f64> =
        each.chunks(16).zip(&valid).filter(|(_, v)| **v == 1).flat_map(|(l, _)| l.to_vec()).collect();
    let loss = counted.iter().sum::<f64>() / counted.len() as f64;
    close_values("padded loss", &[loss], &values(&io["padded_train_loss"]), 1e-5, 1.0);
    for (scale, interval) in [(1.0, -1), (4.0, -1), (4.0, 2)] {
        let key = format!("greedy_padded_scale{scale}_interval{interval}");
        assert_eq!(greedy(&model, &padded, scale, interval), ids(&io[&key]), "{key}");
    }
}

#[test]
fn wrong_conditions_are_one_line() {
    let (model, _, _) = load("c2i");
    let error = |c: Condition| model.condition(&c, &vec![false; c.len()]).unwrap_err().to_string();
    assert_eq!(error(Condition::Classes(vec![7])), "class 7 is beyond the 7 classes of the model");
    let features = Tensor::zeros((1, 120, 20), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(error(Condition::Captions(features, vec![0])), "this model draws classes, not captions");
    assert!(LlamaGenConfig::preset("M", ModelType::C2i, 16).unwrap_err().to_string().contains("B, L, XL"));
}

#[test]
fn presets_have_the_published_size() {
    // parameters without the condition's, from the paper's table 1
    for (name, millions) in [("B", 111.0), ("L", 343.0), ("XL", 775.0), ("XXL", 1411.0), ("3B", 3100.0)] {
        let c = LlamaGenConfig::preset(name, ModelType::C2i, 16).unwrap();
        let layer = 4 * c.dim * c.dim + 3 * c.dim * c.ffn_dim() + 2 * c.dim;
        let total = c.n_layer * layer + 2 * c.vocab_size * c.dim + c.dim + (c.num_classes + 1) * c.dim;
        assert!((total as f64 / 1e6 / millions - 1.0).abs() < 0.02, "{name}: {total}");
    }
}
