//! The QLIP model against reference tensors: every stage forward, total loss, gradient of every parameter.

use candle_core::{DType, Device, Tensor};
use nn::Params;
use qlip::config::QlipConfig;
use qlip::loss::info_nce;
use qlip::{Pixels, Qlip};
use tests::{close, close_values, fixture, golden, integers, values};

fn check(case: &str) {
    let config = QlipConfig::from_file(&fixture(&format!("qlip/{case}/config.json"))).unwrap();
    let io = golden(&format!("qlip/{case}/io.safetensors"));
    let weights = golden(&format!("qlip/{case}/model.safetensors"));
    let params = Params::for_training(weights, &[], 0, DType::F32, &Device::Cpu);
    let model = Qlip::new(&params, &config, true).unwrap();

    let pixels = Pixels(io["pixel_values"].clone());
    let out = model.encode(&pixels).unwrap();
    for (i, h) in out.hidden.iter().enumerate() {
        close(&format!("{case} hidden_{i}"), h, &io[&format!("hidden_{i}")], 1e-5);
    }
    close(&format!("{case} pooled"), &out.pooled, &io["pooled"], 1e-5);
    close(&format!("{case} h"), &out.latents.0, &io["h"], 1e-5);
    let codes = model.codes(&out.latents).unwrap();
    let want: Vec<u64> = integers(&io["indices"]).into_iter().map(|v| v as u64).collect();
    assert_eq!(codes.indices, want, "{case} indices");
    let groups: Vec<i64> = codes.indices.iter().flat_map(|&c| model.bsq.groups(c)).map(i64::from).collect();
    assert_eq!(groups, integers(&io["group_indices"]), "{case} group_indices");
    let quantized = model.bsq.quantize(&out.latents).unwrap();
    close(&format!("{case} quantized"), &quantized, &io["quantized"], 1e-6);
    let zhat = model.expand(&quantized).unwrap();
    close(&format!("{case} zhat"), &zhat, &io["zhat"], 1e-5);
    let (recon, hidden) = model.paint(&zhat).unwrap();
    for (i, h) in hidden.iter().enumerate() {
        close(&format!("{case} decoder_hidden_{i}"), h, &io[&format!("decoder_hidden_{i}")], 1e-5);
    }
    close(&format!("{case} recon"), &recon.0, &io["recon"], 1e-5);
    close(&format!("{case} decoded codes"), &model.decode(&codes).unwrap().0, &io["recon"], 1e-5);

    let ids: Vec<u32> = integers(&io["input_ids"]).into_iter().map(|v| v as u32).collect();
    let tokens = io["input_ids"].dim(1).unwrap();
    let text = model.text.as_ref().unwrap().forward(&ids, tokens).unwrap();
    close(&format!("{case} text_hidden"), &text.hidden, &io["text_hidden"], 1e-5);
    close(&format!("{case} text_pooled"), &text.pooled, &io["text_pooled"], 1e-5);
    let image = model.embed_image(&out.pooled).unwrap();
    let words = model.embed_text(&ids, tokens).unwrap();
    close(&format!("{case} image_embeds"), &image, &io["image_embeds"], 1e-5);
    close(&format!("{case} text_embeds"), &words, &io["text_embeds"], 1e-5);

    let clip = info_nce(&words, &image, &model.logit_scale, &[0, 1, 2]).unwrap();
    let mse = (&recon.0 - &pixels.0).unwrap().sqr().unwrap().mean_all().unwrap();
    let entropies = model.bsq.entropies(&out.latents).unwrap();
    let commit = model.bsq.commitment(&out.latents).unwrap();
    for (name, value) in [
        ("clip_loss", &clip),
        ("recon_mse", &mse),
        ("sample_entropy", &entropies.sample),
        ("codebook_entropy", &entropies.codebook),
        ("commit_loss", &commit),
    ] {
        close(&format!("{case} {name}"), value, &io[name], 1e-5);
    }
    let spread = ((entropies.sample - entropies.codebook).unwrap() * 0.01).unwrap();
    let total = (((clip + mse).unwrap() + spread).unwrap() + (commit * 0.25).unwrap()).unwrap();
    close(&format!("{case} total_loss"), &total, &io["total_loss"], 1e-5);

    let grads = total.backward().unwrap();
    let want = golden(&format!("qlip/{case}/grads.safetensors"));
    let vars = params.vars();
    assert_eq!(vars.len(), want.len(), "{case}: parameters with a gradient");
    for (name, var) in &vars {
        let got = grads.get(var.as_tensor()).unwrap_or_else(|| panic!("{case}: no gradient of {name}"));
        let tower = if name.starts_with("text") { false } else { config.vision_config.rope };
        if name.ends_with("k_proj.bias") && !tower {
            assert!(values(got).iter().all(|g| g.abs() < 1e-5), "{case} {name}: must vanish");
        } else {
            close_values(&format!("{case} grad {name}"), &values(got), &values(&want[name]), 1e-4, 0.0);
        }
    }
    // a softmax over equal captions is the mean over them
    let same: Tensor = info_nce(&words, &image, &model.logit_scale, &[0, 0, 0]).unwrap();
    assert!(values(&same)[0].is_finite());
}

#[test]
fn eva() {
    check("eva");
}

#[test]
fn plain() {
    check("plain");
}

#[test]
fn eos2() {
    check("eos2");
}
