//! Tokenizer training: the gradient of a batch in parts is the whole batch's; every term's gradient against differences in
//! float64; the whole objective against the golden gradients.

use candle_core::{DType, Device, Tensor, Var};
use nn::{Params, rng};
use qlip::config::QlipConfig;
use qlip::discriminator::{Discriminator, DiscriminatorConfig};
use qlip::loss::{Game, gram, r1, sigmoid};
use qlip::train::{AdversaryConfig, Alignment, Balance, LossConfig, Objective, PairBatch, Parts, Teacher};
use qlip::{Pixels, Preprocess, Qlip};
use std::collections::{BTreeMap, HashMap};
use tests::{close_values, fixture, golden, integers, values};

fn random(shape: &[usize], key: u64) -> Tensor {
    let mut r = rng::keyed(11, &[key]);
    let v: Vec<f64> = (0..shape.iter().product()).map(|_| f64::from(rng::normal(&mut r))).collect();
    Tensor::from_vec(v, shape, &Device::Cpu).unwrap()
}

fn scalar(t: &Tensor) -> f64 {
    t.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap()
}

/// A loss of one tensor against central differences along random directions.
fn slopes(what: &str, at: &Tensor, tolerance: f64, loss: impl Fn(&Tensor) -> Tensor) {
    let var = Var::from_tensor(at).unwrap();
    let grads = loss(var.as_tensor()).backward().unwrap();
    let g = grads.get(var.as_tensor()).unwrap();
    for key in 0..4 {
        let d = random(at.dims(), 900 + key);
        let along = scalar(&(g * &d).unwrap().sum_all().unwrap());
        let step = 1e-6;
        let value = |s: f64| scalar(&loss(&(at + (&d * s).unwrap()).unwrap()));
        let want = (value(step) - value(-step)) / (2.0 * step);
        assert!((along - want).abs() <= tolerance * want.abs().max(1e-3), "{what}: {along} against {want}");
    }
}

#[test]
fn terms_have_the_gradients_of_their_values() {
    let image = qlip::bsq::unit(&random(&[5, 6], 1)).unwrap();
    let text = qlip::bsq::unit(&random(&[5, 6], 2)).unwrap();
    let (scale, bias) = (Tensor::new(1.2f64, &Device::Cpu).unwrap(), Tensor::new(-2f64, &Device::Cpu).unwrap());
    let captions = [0, 1, 2, 1, 3];
    slopes("sigmoid at images", &image, 1e-6, |x| sigmoid(&text, x, &scale, &bias, &captions).unwrap());
    slopes("sigmoid at the bias", &bias, 1e-6, |b| sigmoid(&text, &image, &scale, b, &captions).unwrap());
    let logits = random(&[4, 7], 3);
    for game in [Game::NonSaturating, Game::Hinge] {
        slopes(&format!("{game:?} generator"), &logits, 1e-6, |x| game.generator(x).unwrap());
        let real = random(&[4, 7], 4);
        slopes(&format!("{game:?} fake"), &logits, 1e-6, |x| game.discriminator(&real, x).unwrap());
        slopes(&format!("{game:?} real"), &real, 1e-6, |x| game.discriminator(x, &logits).unwrap());
    }
    let (a, b) = (random(&[2, 3, 4, 4], 5), random(&[2, 3, 4, 4], 6));
    slopes("gram", &a, 1e-6, |x| gram(std::slice::from_ref(x), std::slice::from_ref(&b)).unwrap());
}

#[test]
fn sigmoid_is_the_published_formula() {
    // two pairs, by hand: -log sigmoid(z) for the diagonal, -log sigmoid(-z) off it, summed, over the batch's size
    let e = Tensor::new(&[[1f64, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap();
    let (scale, bias) = (Tensor::new(0f64, &Device::Cpu).unwrap(), Tensor::new(-0.5f64, &Device::Cpu).unwrap());
    let softplus = |x: f64| (1.0 + x.exp()).ln();
    let want = (2.0 * softplus(-0.5) + 2.0 * softplus(-0.5)) / 2.0;
    assert!((scalar(&sigmoid(&e, &e, &scale, &bias, &[0, 1]).unwrap()) - want).abs() < 1e-12);
}

/// The penalty's gradient in the parameters against differences of the penalty itself.
#[test]
fn r1_has_the_gradient_of_the_penalty() {
    let nets = [
        (DiscriminatorConfig::Patch { width: 3, layers: 1 }, 8),
        (DiscriminatorConfig::StyleGan { channel_base: 32, channel_max: 4 }, 8),
    ];
    for (config, side) in nets {
        let params = Params::for_training(HashMap::new(), &[], 5, DType::F64, &Device::Cpu);
        let d = Discriminator::new(&params, &config, side).unwrap();
        // initial weights of PatchGAN are tiny: differences would drown
        for (i, var) in params.vars().values().enumerate() {
            var.set(&(random(var.dims(), 50 + i as u64) * 0.4).unwrap()).unwrap();
        }
        let real = random(&[4, 3, side, side], 7);
        let (value, slope) = r1(&d, &real, 3.0).unwrap();
        assert!(value > 1e-6);
        let grads = slope.backward().unwrap();
        let directions: BTreeMap<String, Tensor> =
            params.vars().iter().enumerate().map(|(i, (n, v))| (n.clone(), random(v.dims(), 70 + i as u64))).collect();
        let along: f64 = params
            .vars()
            .iter()
            .filter_map(|(n, v)| {
                grads.get(v.as_tensor()).map(|g| scalar(&(g * &directions[n]).unwrap().sum_all().unwrap()))
            })
            .sum();
        let start: BTreeMap<String, Tensor> =
            params.vars().iter().map(|(n, v)| (n.clone(), v.as_tensor().copy().unwrap().detach())).collect();
        let step = 1e-5;
        let moved = |s: f64| {
            for (n, v) in params.vars() {
                v.set(&(&start[&n] + (&directions[&n] * s).unwrap()).unwrap()).unwrap();
            }
            r1(&d, &real, 3.0).unwrap().0
        };
        let want = (moved(step) - moved(-step)) / (2.0 * step);
        assert!((along - want).abs() < 0.02 * want.abs(), "{config:?}: {along} against {want}");
    }
}

fn model(dtype: DType, extra: impl Fn(&mut QlipConfig)) -> (Params, Qlip, PairBatch, QlipConfig) {
    let mut config = QlipConfig::from_file(&fixture("qlip/eva/config.json")).unwrap();
    extra(&mut config);
    let weights = golden("qlip/eva/model.safetensors");
    let params = Params::for_training(weights, &[], 0, dtype, &Device::Cpu);
    let model = Qlip::new(&params, &config, true).unwrap();
    let io = golden("qlip/eva/io.safetensors");
    let ids: Vec<u32> = integers(&io["input_ids"]).into_iter().map(|v| v as u32).collect();
    let batch = PairBatch {
        pixels: Pixels(io["pixel_values"].to_dtype(dtype).unwrap()),
        text_ids: ids,
        text_tokens: io["input_ids"].dim(1).unwrap(),
        caption_of: vec![0, 1, 2],
    };
    (params, model, batch, config)
}

fn objective(params: &Params, model: Qlip, w: &LossConfig, parts: Parts) -> Objective {
    let side = model.config.vision_config.image_size;
    Objective::new(params, model, 1, w, &Preprocess::clip(side), parts).unwrap()
}

#[test]
fn the_objective_has_the_golden_gradients() {
    let (params, model, batch, _) = model(DType::F32, |_| ());
    let w = LossConfig { alignment: 1.0, quantizer: 1.0, commitment: 0.25, ..LossConfig::default() };
    for micro_batch in [None, Some(1), Some(2)] {
        let o = objective(&params, model.clone(), &w, Parts { micro_batch, ..Parts::default() });
        let out = o.step(0, &batch, &params.vars(), &mut BTreeMap::new(), &nn::parallel::World::Alone).unwrap();
        let total = values(&golden("qlip/eva/io.safetensors")["total_loss"])[0];
        assert!((out.loss - total).abs() < 1e-4 * total, "{} against {total}", out.loss);
        let want = golden("qlip/eva/grads.safetensors");
        for (name, var) in params.vars() {
            let Some(want) = want.get(&name) else { continue };
            let g = out.grads.get(var.as_tensor()).unwrap_or_else(|| panic!("{name}: no gradient"));
            // without rope a bias of keys has no gradient: the file holds noise (fixtures/README.md)
            let floor = if name.ends_with("k_proj.bias") { 0.1 } else { 1e-6 };
            close_values(&format!("{name} in parts of {micro_batch:?}"), &values(g), &values(want), 1e-4, floor);
        }
    }
}

/// Every term that stage 1 has, in float64: parts of two and of one against the batch at once.
#[test]
fn a_batch_in_parts_has_exactly_the_gradient_of_the_whole() {
    for alignment_loss in [Alignment::InfoNce, Alignment::Sigmoid] {
        let w = LossConfig {
            l1: 0.3,
            log_mse: 0.2,
            alignment: 1.0,
            alignment_loss,
            quantizer: 1.0,
            commitment: 0.25,
            quantized_alignment: 0.7,
            distillation: 0.5,
            quantized_distillation: 0.5,
            kept_bits: 0.4,
            proximal_steps: 2,
            proximal_ramp: 4,
            balance: Balance::Running,
            ..LossConfig::default()
        };
        let before = |config: &QlipConfig| {
            let p = Params::from_tensors("teacher", golden("qlip/eva/model.safetensors"), DType::F64, &Device::Cpu);
            Qlip::new(&p, config, false).unwrap()
        };
        let mut all: Vec<BTreeMap<String, Vec<f64>>> = Vec::new();
        for micro_batch in [None, Some(2), Some(1)] {
            let (params, model, batch, config) = model(DType::F64, |c| c.vision_config.quantizer_levels = vec![1]);
            let plain = QlipConfig::from_file(&fixture("qlip/eva/config.json")).unwrap();
            assert_ne!(plain, config);
            let teacher = Some(Teacher::Qlip(Box::new(before(&plain))));
            let parts = Parts { micro_batch, teacher, before: Some(before(&plain)), ..Parts::default() };
            let o = objective(&params, model, &w, parts);
            let mut numbers = BTreeMap::from([("balance.align".to_owned(), 2.0), ("balance.pixels".to_owned(), 0.5)]);
            let out = o.step(3, &batch, &params.vars(), &mut numbers, &nn::parallel::World::Alone).unwrap();
            assert!(numbers["balance.align"] != 2.0, "the averages move");
            let mut grads: BTreeMap<String, Vec<f64>> =
                params.vars().iter().map(|(n, v)| (n.clone(), values(out.grads.get(v.as_tensor()).unwrap()))).collect();
            grads.insert("loss".into(), vec![out.loss]);
            all.push(grads);
        }
        for parts in &all[1..] {
            for (name, want) in &all[0] {
                close_values(name, &parts[name], want, 1e-9, 1e-6);
            }
        }
        assert!(all[0].keys().any(|k| k.starts_with("training.quantized_pool")));
        assert!(all[0]["vision_model.quant_levels.1.weight"].iter().any(|v| *v != 0.0));
    }
}

/// Plain descent on one term alone: codes that changed with the rest of the picture stay.
#[test]
fn codes_learn_to_stay() {
    let (params, model, batch, _) = model(DType::F64, |_| ());
    let w = LossConfig { reconstruction: 0.0, consistency: 1.0, ..LossConfig::default() };
    let o = objective(&params, model, &w, Parts::default());
    let mut found = Vec::new();
    for _ in 0..60 {
        let out = o.step(7, &batch, &params.vars(), &mut BTreeMap::new(), &nn::parallel::World::Alone).unwrap();
        let metric = |name: &str| out.metrics.iter().find(|m| m.0 == name).unwrap().1;
        found.push((metric("consistency"), metric("same_code")));
        for (name, v) in params.vars() {
            let Some(g) = out.grads.get(v.as_tensor()) else { continue };
            assert!(!name.starts_with("vision_decoder") || values(g).iter().all(|g| *g == 0.0), "{name}");
            v.set(&(v.as_tensor() - (g * 0.05).unwrap()).unwrap()).unwrap();
        }
    }
    let (first, last) = (found[0], found[found.len() - 1]);
    assert!(last.0 < 0.5 * first.0 && last.1 >= first.1, "{first:?} to {last:?}");
}

#[test]
fn the_two_players_do_not_pull_each_other() {
    let (params, model, batch, _) = model(DType::F32, |_| ());
    let net = DiscriminatorConfig::Patch { width: 4, layers: 1 };
    let config = |start| AdversaryConfig { net: net.clone(), game: Game::Hinge, r1_gamma: 1.0, r1_every: 4, start };
    let grads = |adversarial: f64, start: usize| {
        let w = LossConfig { reconstruction: 0.0, adversarial, alignment: 1.0, ..LossConfig::default() };
        let parts = Parts { adversary: Some(config(start)), ..Parts::default() };
        let o = objective(&params, model.clone(), &w, parts);
        let out = o.step(0, &batch, &params.vars(), &mut BTreeMap::new(), &nn::parallel::World::Alone).unwrap();
        let of = |name: &str| values(out.grads.get(params.vars()[name].as_tensor()).unwrap());
        (of("vision_decoder.conv_out.weight"), of("training.discriminator.main.0.weight"))
    };
    let (decoder, judge) = grads(1.0, 0);
    let (twice, same) = grads(2.0, 0);
    assert!(decoder.iter().any(|v| *v != 0.0) && judge.iter().any(|v| *v != 0.0));
    close_values("the generator's weight", &twice, &decoder.iter().map(|v| 2.0 * v).collect::<Vec<_>>(), 1e-4, 1e-9);
    close_values("the discriminator does not know it", &same, &judge, 1e-5, 1e-9);
    let (before, _) = grads(1.0, 5);
    assert!(before.iter().all(|v| *v == 0.0), "the generator does not play yet");
}
