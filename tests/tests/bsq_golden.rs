//! The quantizer alone, at 18, 24 and 28 bits.

use candle_core::{Device, Var};
use qlip::bsq::{Bsq, Latents};
use qlip::config::{EntropyMode, QuantizerConfig};
use tests::{close, close_values, golden, integers, values};

#[test]
fn bits_indices_entropies_and_gradients() {
    for (bits, group) in [(18, 9), (24, 4), (28, 14)] {
        let io = golden(&format!("bsq/bits{bits}_group{group}.safetensors"));
        let z = Var::from_tensor(&io["z"]).unwrap();
        let h = Latents(z.as_tensor().clone());
        let config = |mode, tau| QuantizerConfig {
            embed_dim: bits,
            group_size: group,
            persample_entropy_compute: mode,
            inv_temperature: tau,
            ..QuantizerConfig::default()
        };
        let bsq = Bsq::new(&config(EntropyMode::Group, 100.0));
        let indices = bsq.indices(&h).unwrap();
        let want: Vec<u64> = integers(&io["indices"]).into_iter().map(|v| v as u64).collect();
        assert_eq!(indices, want);
        let groups: Vec<i64> = indices.iter().flat_map(|&c| bsq.groups(c)).map(i64::from).collect();
        assert_eq!(groups, integers(&io["group_indices"]));
        let per = bits / group;
        for (code, g) in indices.iter().zip(groups.chunks(per)) {
            assert_eq!(*code, bsq.join(&g.iter().map(|&g| g as u32).collect::<Vec<_>>()));
        }
        let scaled = (bsq.corners(&indices, &Device::Cpu).unwrap() * (bits as f64).sqrt()).unwrap();
        close("codes_from_indices", &scaled.reshape(io["z"].shape()).unwrap(), &io["codes_from_indices"], 1e-6);

        let grad = |loss: &candle_core::Tensor, what: &str, want: &candle_core::Tensor| {
            let g = loss.backward().unwrap();
            close_values(what, &values(g.get(z.as_tensor()).unwrap()), &values(want), 1e-4, 0.0);
        };
        let q = bsq.quantize(&h).unwrap();
        close("quantized", &q, &io["quantized"], 1e-6);
        let probe = (&q * &io["straight_through_probe"]).unwrap().sum_all().unwrap();
        grad(&probe, "straight_through_grad", &io["straight_through_grad"]);
        let commit = bsq.commitment(&h).unwrap();
        close("commit_loss", &commit, &io["commit_loss"], 1e-5);
        grad(&commit, "commit_grad", &io["commit_grad"]);
        for (name, mode) in [("group", EntropyMode::Group), ("analytical", EntropyMode::Analytical)] {
            for tau in [1, 100] {
                let e = Bsq::new(&config(mode, f64::from(tau))).entropies(&h).unwrap();
                for (what, value) in [("sample", &e.sample), ("codebook", &e.codebook)] {
                    let key = format!("{name}_{tau}_{what}");
                    close(&key, value, &io[&format!("{key}_entropy")], 1e-5);
                    grad(value, &key, &io[&format!("{key}_grad")]);
                }
            }
        }
    }
}

/// Against the published formula in float64, whose epsilon of 1e-8 at each of 2^c probabilities is small in groups of 6 and 7.
#[test]
fn factorised_entropies_are_those_of_whole_groups() {
    for (bits, group) in [(18, 6), (28, 7), (4, 1)] {
        let mut r = nn::rng::keyed(5, &[]);
        let z: Vec<f64> = (0..3 * 5 * bits).map(|_| f64::from(nn::rng::normal(&mut r))).collect();
        let z = candle_core::Tensor::from_vec(z, (3, 5, bits), &Device::Cpu).unwrap();
        let z = Var::from_tensor(&qlip::bsq::unit(&z).unwrap()).unwrap();
        for tau in [1.0, 10.0, 100.0] {
            let entropies = |mode| {
                let config = QuantizerConfig {
                    embed_dim: bits,
                    group_size: group,
                    persample_entropy_compute: mode,
                    inv_temperature: tau,
                    ..QuantizerConfig::default()
                };
                let e = Bsq::new(&config).entropies(&Latents(z.as_tensor().clone())).unwrap();
                [e.sample, e.codebook].map(|e| {
                    let slope = e.backward().unwrap().get(z.as_tensor()).unwrap().clone();
                    (e.to_scalar::<f64>().unwrap(), slope.flatten_all().unwrap().to_vec1::<f64>().unwrap())
                })
            };
            let (ours, published) = (entropies(EntropyMode::Factorised), entropies(EntropyMode::Group));
            for ((a, da), (b, db)) in ours.iter().zip(&published) {
                assert!((a - b).abs() < 1e-4, "{bits} bits at {tau}: {a} for {b}");
                let scale = db.iter().fold(1e-3, |m: f64, v| m.max(v.abs()));
                let worst = da.iter().zip(db).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
                assert!(worst < 1e-4 * scale, "{bits} bits at {tau}: slopes off by {worst} of {scale}");
            }
        }
    }
}

/// Latents at the corners themselves, in float32 at the published temperature: probabilities that are exactly 0 and 1.
#[test]
fn certain_codes_have_finite_entropies_and_slopes() {
    let bits = 18;
    let corner = (0..2 * 4 * bits).map(|i| if i * 7 % 3 == 0 { 1f32 } else { -1.0 }).collect::<Vec<_>>();
    let corner = candle_core::Tensor::from_vec(corner, (2, 4, bits), &Device::Cpu).unwrap();
    for mode in [EntropyMode::Group, EntropyMode::Analytical, EntropyMode::Factorised] {
        // four times as long as a unit vector
        let z = Var::from_tensor(&corner).unwrap();
        let config = QuantizerConfig { persample_entropy_compute: mode, ..QuantizerConfig::default() };
        let e = Bsq::new(&config).entropies(&Latents(z.as_tensor().clone())).unwrap();
        for e in [e.sample, e.codebook] {
            let slope = e.backward().unwrap().get(z.as_tensor()).unwrap().clone();
            assert!(e.to_scalar::<f32>().unwrap().is_finite(), "{mode:?}");
            assert!(values(&slope).iter().all(|v| v.is_finite()), "{mode:?}");
        }
    }
}
