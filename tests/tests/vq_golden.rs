//! LlamaGen's image tokenizer against reference tensors, weights widened from float16.

use candle_core::{DType, Device, Tensor};
use nn::Params;
use qlip::Pixels;
use qlip::config::read_json;
use qlip::vq::{VqConfig, VqTokenizer};
use tests::{close, fixture, golden, integers};

#[test]
fn every_stage() {
    let config: VqConfig = read_json(&fixture("vq/config.json")).unwrap();
    let params = Params::from_dir(&fixture("vq"), DType::F32, &Device::Cpu).unwrap();
    let model = VqTokenizer::new(&params, &config).unwrap();
    let io = golden("vq/io.safetensors");
    let encoded = model.encoder_out(&Pixels(io["pixels"].clone())).unwrap();
    close("encoder", &encoded, &io["encoder_out"], 5e-5);
    let pre = model.pre_quant(&encoded).unwrap();
    close("pre quant", &pre, &io["pre_quant"], 5e-5);
    let q = model.quantise(&pre).unwrap();
    let indices: Vec<i64> = q.indices.iter().map(|&i| i64::from(i)).collect();
    assert_eq!(indices, integers(&io["indices"]));
    close("quantised", &q.values, &io["quantized"], 5e-5);
    close("vq loss", &q.vq_loss, &io["vq_loss"], 5e-5);
    close("commit loss", &q.commit_loss, &io["commit_loss"], 5e-5);
    close("decoded", &model.decode(&q.values).unwrap().0, &io["decoded"], 5e-5);
    let entries = model.look_up(&q.indices, 16, 12).unwrap();
    close("entries", &entries, &io["codebook_entries"], 5e-5);
    close("decoded from codes", &model.decode(&entries).unwrap().0, &io["decoded_from_code"], 5e-5);
}

#[test]
fn wrong_codes_and_sizes_are_one_line() {
    let config: VqConfig = read_json(&fixture("vq/config.json")).unwrap();
    let params = Params::from_dir(&fixture("vq"), DType::F32, &Device::Cpu).unwrap();
    let model = VqTokenizer::new(&params, &config).unwrap();
    let error = model.look_up(&[64], 1, 1).unwrap_err().to_string();
    assert_eq!(error, "code 64 is outside the codebook of 64");
    let odd = Pixels(Tensor::zeros((1, 3, 31, 24), DType::F32, &Device::Cpu).unwrap());
    assert_eq!(
        model.encoder_out(&odd).unwrap_err().to_string(),
        "pixels are 31x24; the tokenizer takes multiples of 2"
    );
}

#[test]
fn gradients_reach_every_parameter() {
    let config: VqConfig = read_json(&fixture("vq/config.json")).unwrap();
    let params = Params::for_training(golden("vq/model.safetensors"), &[], 0, DType::F32, &Device::Cpu);
    let model = VqTokenizer::new(&params, &config).unwrap();
    let pixels = Pixels(golden("vq/io.safetensors")["pixels"].clone());
    let q = model.quantise(&model.pre_quant(&model.encoder_out(&pixels).unwrap()).unwrap()).unwrap();
    let error = (model.decode(&q.values).unwrap().0 - &pixels.0).unwrap().sqr().unwrap().mean_all().unwrap();
    let loss = ((error + q.vq_loss).unwrap() + q.commit_loss).unwrap();
    let grads = loss.backward().unwrap();
    for (name, var) in params.vars() {
        let g = grads.get(var.as_tensor()).unwrap_or_else(|| panic!("no gradient of {name}"));
        assert!(tests::values(g).iter().any(|v| *v != 0.0), "{name}: all zero");
    }
}
