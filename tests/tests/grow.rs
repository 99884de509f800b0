//! A Llama that grows visual rows and norms of queries and keys says about text what it said before.

use candle_core::{DType, Device, Tensor};
use lm::grow::grow;
use lm::{Llama, LlamaConfig};
use nn::Params;
use qlip::config::read_json;
use tests::{close, fixture, golden, integers, values};

#[test]
fn text_logits_stay_and_new_rows_are_the_mean() {
    for case in ["gqa", "llama3rope", "tied"] {
        let config: LlamaConfig = read_json(&fixture(&format!("llama/{case}/config.json"))).unwrap();
        let tensors = golden(&format!("llama/{case}/model.safetensors"));
        let io = golden(&format!("llama/{case}/io.safetensors"));
        let ids: Vec<lm::Token> = integers(&io["input_ids"]).into_iter().map(|i| i as lm::Token).collect();
        let batch = io["input_ids"].dim(0).unwrap();
        let rows = config.vocab_size + 40;
        let (grown, new) = grow(tensors.clone(), &config, rows, true).unwrap();
        let params = Params::for_training(grown.clone(), &[], 0, DType::F32, &Device::Cpu);
        let model = Llama::new(&params, &new).unwrap();
        let logits = model.forward(&ids, batch).unwrap();
        let text = logits.narrow(2, 0, config.vocab_size).unwrap().contiguous().unwrap();
        close(&format!("{case} text logits"), &text, &io["logits"], 1e-3);
        let table = &grown["model.embed_tokens.weight"];
        let mean = values(&tensors["model.embed_tokens.weight"].mean(0).unwrap());
        for row in [config.vocab_size, rows - 1] {
            let got = values(&table.get(row).unwrap());
            assert!(got.iter().zip(&mean).all(|(a, b)| (a - b).abs() < 1e-6), "{case} row {row}");
        }
        // the norms are learned like everything else
        let grads = logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let vars = params.vars();
        let norm = &vars["model.layers.0.self_attn.q_norm.weight"];
        let g: &Tensor = grads.get(norm.as_tensor()).unwrap();
        assert!(values(g).iter().any(|v| *v != 0.0), "{case}");
        assert!(grow(tensors, &config, config.vocab_size - 1, true).is_err());
    }
}
