//! The language model against reference tensors: logits, loss, gradients, cached and padded generation.

use candle_core::{DType, Device, Tensor};
use lm::{Context, Llama, LlamaConfig, Part, Source, Token};
use nn::Params;
use nn::ops::{self, IGNORE, Mask, Positions};
use qlip::config::read_json;
use std::sync::Arc;
use tests::{close, close_values, fixture, golden, integers, values};

fn ids(t: &Tensor) -> Vec<Token> {
    integers(t).into_iter().map(|v| v as Token).collect()
}

fn check(case: &str, tolerance: f64) {
    let config: LlamaConfig = read_json(&fixture(&format!("llama/{case}/config.json"))).unwrap();
    let io = golden(&format!("llama/{case}/io.safetensors"));
    let params =
        Params::for_training(golden(&format!("llama/{case}/model.safetensors")), &[], 0, DType::F32, &Device::Cpu);
    let model = Arc::new(Llama::new(&params, &config).unwrap());
    close_values("frequencies", &config.inverse_frequencies(), &values(&io["inverse_frequencies"]), 1e-6, 0.0);

    let (batch, tokens) = io["input_ids"].dims2().unwrap();
    let input = ids(&io["input_ids"]);
    let logits = model.forward(&input, batch).unwrap();
    close(&format!("{case} logits"), &logits, &io["logits"], tolerance);

    let labels = integers(&io["labels"]);
    let targets: Vec<u32> = (0..batch * tokens)
        .map(|i| if (i + 1).is_multiple_of(tokens) || labels[i + 1] < 0 { IGNORE } else { labels[i + 1] as u32 })
        .collect();
    let counted = targets.iter().filter(|&&t| t != IGNORE).count();
    let loss = ops::cross_entropy(&logits.flatten_to(1).unwrap(), &targets).unwrap();
    let loss = (loss.sum_all().unwrap() / counted as f64).unwrap();
    close(&format!("{case} loss"), &loss, &io["loss"], 1e-5);
    let grads = loss.backward().unwrap();
    let want = golden(&format!("llama/{case}/grads.safetensors"));
    assert_eq!(params.vars().len(), want.len());
    for (name, var) in params.vars() {
        let got = grads.get(var.as_tensor()).unwrap_or_else(|| panic!("{case}: no gradient of {name}"));
        close_values(&format!("{case} grad {name}"), &values(got), &values(&want[&name]), 1e-4, 0.0);
    }

    // token by token through caches, and in uneven pieces
    use lm::engine::Model;
    let trunk = model.trunk();
    let mut slots: Vec<_> = (0..batch).map(|_| trunk.slot()).collect();
    let mut t = 0;
    for n in [1, 1, 3].into_iter().cycle() {
        let n = n.min(tokens - t);
        if n == 0 {
            break;
        }
        let column: Vec<Token> = (0..batch).flat_map(|b| input[b * tokens + t..][..n].to_vec()).collect();
        let x = Model::embed(&*model, 0, &column).unwrap();
        let positions = (0..batch).flat_map(|_| t as u32..(t + n) as u32).collect();
        let h = trunk.step(&x, positions, slots.iter_mut().map(|s| (s, n)).collect()).unwrap();
        let step = model.logits(&h, 0..config.vocab_size).unwrap().reshape((batch, n, config.vocab_size)).unwrap();
        close(&format!("{case} step {t}"), &step, &io["logits"].narrow(1, t, n).unwrap(), tolerance);
        t += n;
    }

    let prompt = ids(&io["greedy_prompt"]);
    assert_eq!(generate(&model, &prompt, 1, None, 12), ids(&io["greedy_tokens"]), "{case} greedy");

    if io.contains_key("padded_ids") {
        let (b, t) = io["padded_ids"].dims2().unwrap();
        let mask = integers(&io["padded_mask"]);
        let pads: Vec<usize> = mask.chunks(t).map(|m| m.iter().filter(|&&v| v == 0).count()).collect();
        let input = ids(&io["padded_ids"]);
        let x = model.embed(&input, b).unwrap();
        let (positions, see) = padded(&pads, 0, t);
        let h = model.hidden(&x, &positions, &see).unwrap();
        let logits = model.logits(&h, 0..config.vocab_size).unwrap();
        let want = &io["padded_logits"];
        for i in 0..b {
            let (from, len) = (pads[i], t - pads[i]);
            let cut = |x: &Tensor| x.get(i).unwrap().narrow(0, from, len).unwrap();
            close(&format!("{case} padded {i}"), &cut(&logits), &cut(want), tolerance);
        }
        assert_eq!(
            generate(&model, &input, b, Some(&pads), 12),
            ids(&io["padded_greedy_tokens"]),
            "{case} padded greedy"
        );
    }
}

/// Positions and mask of tokens `from..to` of left-padded sequences.
fn padded(pads: &[usize], from: usize, to: usize) -> (Positions, Mask) {
    let each = |f: &dyn Fn(usize, usize) -> usize| -> Vec<u32> {
        pads.iter().flat_map(|&p| (from..to).map(move |t| (p, t))).map(|(p, t)| f(p, t) as u32).collect()
    };
    (Positions::Each(each(&|p, t| t.saturating_sub(p)).into()), Mask::CausalFrom(each(&|p, t| p.min(t)).into()))
}

/// All prompts in one engine, each without its padding.
fn generate(model: &Arc<Llama>, prompt: &[Token], batch: usize, pads: Option<&[usize]>, count: usize) -> Vec<Token> {
    let zero = vec![0; batch];
    let per = prompt.len() / batch;
    let contexts = prompt.chunks(per).zip(pads.unwrap_or(&zero));
    let contexts = contexts.map(|(c, &p)| Context::new(vec![Part::tokens(&c[p..])])).collect();
    let rows = Source::rows(0..model.config.vocab_size);
    lm::generate::likeliest(model.clone(), contexts, rows, count).unwrap().concat()
}

#[test]
fn gqa() {
    check("gqa", 1e-5);
}

#[test]
fn llama3rope() {
    check("llama3rope", 2e-5);
}

#[test]
fn tied() {
    check("tied", 1e-5);
}
