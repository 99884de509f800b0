//! Every fused operation against the same formula composed of candle operations in float64, forward and backward.

use candle_core::{DType, Device, Result, Tensor, Var};
use nn::ops::{self, Activation, IGNORE, Mask, Positions, Rope, RopeStyle};
use nn::rng;

fn random(shape: &[usize], key: u64) -> Tensor {
    let mut r = rng::keyed(7, &[key]);
    let v: Vec<f32> = (0..shape.iter().product()).map(|_| rng::normal(&mut r)).collect();
    Tensor::from_vec(v, shape, &Device::Cpu).unwrap()
}

/// Runs `f` on float32 and float64 copies of the inputs and compares output and all gradients of sum(output * probe).
fn check(name: &str, shapes: &[&[usize]], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let mut results = vec![];
    for dtype in [DType::F32, DType::F64] {
        let vars: Vec<Var> = shapes
            .iter()
            .enumerate()
            .map(|(i, s)| Var::from_tensor(&random(s, i as u64).to_dtype(dtype).unwrap()).unwrap())
            .collect();
        // a fused input that is not a leaf, as inside a model
        let inputs: Vec<Tensor> = vars.iter().map(|v| (v.as_tensor() * 1.5).unwrap()).collect();
        let y = f(&inputs).unwrap();
        let probe = random(y.dims(), 99).to_dtype(dtype).unwrap();
        let grads = (&y * probe).unwrap().sum_all().unwrap().backward().unwrap();
        let mut all = vec![y.clone()];
        all.extend(vars.iter().map(|v| grads.get(v.as_tensor()).expect("a gradient").clone()));
        results.push(
            all.iter()
                .map(|t| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap())
                .collect::<Vec<_>>(),
        );
    }
    for (i, (a, b)) in results[0].iter().zip(&results[1]).enumerate() {
        let scale = b.iter().fold(1e-3f64, |m, x| m.max(x.abs()));
        let worst = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
        assert!(worst <= 3e-6 * scale, "{name}, value {i} (0 = output): off by {worst} of {scale}");
    }
}

#[test]
fn norms() {
    check("layer_norm", &[&[3, 5, 37], &[37], &[37]], |x| ops::layer_norm(&x[0], &x[1], &x[2], 1e-3));
    check("group_norm", &[&[3, 6, 5, 7], &[6], &[6]], |x| ops::group_norm(&x[0], &x[1], &x[2], 2, 1e-3));
    // away from 0: what is left after the mean must not be lost
    check("group_norm", &[&[2, 4, 3, 3], &[4], &[4]], |x| ops::group_norm(&(&x[0] + 8.0)?, &x[1], &x[2], 2, 1e-3));
    check("rms_norm", &[&[3, 5, 37], &[37]], |x| ops::rms_norm(&x[0], &x[1], 1e-3));
}

#[test]
fn activations() {
    for act in [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Silu, Activation::Tanh] {
        check(&format!("{act:?}"), &[&[7, 33]], |x| act.forward(&x[0]));
    }
    check("gated_silu", &[&[7, 33], &[7, 33]], |x| ops::gated_silu(&x[0], &x[1]));
}

#[test]
fn linear() {
    check("linear", &[&[2, 9, 40], &[24, 40], &[24]], |x| ops::linear(&x[0], &x[1], Some(&x[2])));
    check("linear, few rows", &[&[3, 40], &[24, 40], &[24]], |x| ops::linear(&x[0], &x[1], Some(&x[2])));
    check("linear, no bias", &[&[2, 9, 40], &[24, 40]], |x| ops::linear(&x[0], &x[1], None));
}

#[test]
fn rope() {
    let angles: Vec<f64> = (0..11 * 4).map(|i| f64::from(i) * 0.37).collect();
    for style in [RopeStyle::Interleaved, RopeStyle::Halves] {
        let rope = Rope::from_angles(&angles, 8, style);
        check("rope", &[&[2, 5, 3, 8]], |x| rope.apply(&x[0], &Positions::From(6)));
        let each = Positions::Each(vec![0, 1, 2, 3, 4, 10, 9, 8, 7, 6].into());
        check("rope, listed", &[&[2, 5, 3, 8]], |x| rope.apply(&x[0], &each));
    }
}

#[test]
fn attention() {
    let first: Vec<u32> = (0..2 * 70)
        .map(|i| {
            let t = i % 70;
            if t < 20 {
                0
            } else if t < 66 {
                20
            } else {
                66
            }
        })
        .collect();
    let masks = [Mask::Full, Mask::Causal, Mask::CausalFrom(first.into())];
    for mask in &masks {
        check(
            &format!("attention {mask:?}").chars().take(30).collect::<String>(),
            &[&[2, 70, 4, 8], &[2, 70, 2, 8], &[2, 70, 2, 8]],
            |x| ops::attention(&x[0], &x[1], &x[2], 0.35, mask),
        );
    }
    for mask in &masks[..2] {
        check("attention, more keys", &[&[2, 3, 2, 8], &[2, 9, 2, 8], &[2, 9, 2, 8]], |x| {
            ops::attention(&x[0], &x[1], &x[2], 0.35, mask)
        });
    }
}

#[test]
fn cross_entropy() {
    check("cross_entropy", &[&[5, 300]], |x| ops::cross_entropy(&x[0], &[3, IGNORE, 299, 0, 17]));
    assert!(ops::cross_entropy(&random(&[2, 3], 0), &[0, 3]).is_err());
}

/// Sizes that the stride divides: candle's own convolution, the other side of the comparison, has no backward for others.
#[test]
fn convolution() {
    check("conv 3x3", &[&[2, 3, 7, 6], &[5, 3, 3, 3]], |x| ops::conv2d(&x[0], &x[1], 1, 1));
    check("conv 3x3, stride 2", &[&[2, 3, 9, 7], &[4, 3, 3, 3]], |x| ops::conv2d(&x[0], &x[1], 1, 2));
    check("conv 4x4, no padding", &[&[1, 2, 6, 8], &[3, 2, 4, 4]], |x| ops::conv2d(&x[0], &x[1], 0, 2));
    check("conv 11x11, stride 4", &[&[1, 2, 23, 27], &[3, 2, 11, 11]], |x| ops::conv2d(&x[0], &x[1], 2, 4));
    check("conv 1x1", &[&[2, 3, 4, 5], &[6, 3, 1, 1]], |x| ops::conv2d(&x[0], &x[1], 0, 1));
    check("conv with bias", &[&[2, 3, 4, 5], &[6, 3, 3, 3], &[6]], |x| ops::conv2d_biased(&x[0], &x[1], &x[2], 1, 1));
    check("padding wider than the picture", &[&[1, 1, 3, 3], &[1, 1, 5, 5]], |x| ops::conv2d(&x[0], &x[1], 4, 3));
}

#[test]
fn resolutions() {
    check("double", &[&[2, 3, 4, 5]], |x| ops::double(&x[0]));
    check("double with another consumer", &[&[1, 2, 3, 4]], |x| {
        let twice = ops::halve(&ops::double(&x[0])?)?;
        &x[0] + (twice * 0.5)?
    });
    check("halve", &[&[2, 3, 4, 6]], |x| ops::halve(&x[0]));
}

#[test]
fn max_pooling_sends_its_gradient_to_the_largest() {
    let x = Tensor::new(&[1f64, 5.0, 2.0, 0.0, 3.0, 4.0, 8.0, 7.0, 6.0], &Device::Cpu).unwrap();
    let x = Var::from_tensor(&x.reshape((1, 1, 3, 3)).unwrap()).unwrap();
    let y = ops::max_pool2d(x.as_tensor(), 2, 1).unwrap();
    assert_eq!(y.flatten_all().unwrap().to_vec1::<f64>().unwrap(), [5.0, 5.0, 8.0, 7.0]);
    let g = y.sum_all().unwrap().backward().unwrap().get(x.as_tensor()).unwrap().flatten_all().unwrap();
    assert_eq!(g.to_vec1::<f64>().unwrap(), [0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
}

#[test]
fn a_block_that_forgets_has_the_same_gradients() {
    use nn::Params;
    use nn::block::{Block, BlockConfig, BlockContext, CLIP_NAMES, MlpKind, NormKind};
    let params = Params::for_training(Default::default(), &[], 1, DType::F32, &Device::Cpu);
    let config = BlockConfig {
        width: 32,
        mlp_width: 48,
        heads: 2,
        kv_heads: 2,
        head_dim: 16,
        norm: NormKind::Layer,
        eps: 1e-5,
        mlp: MlpKind::SwiGlu,
        bias: [true; 5],
        sub_norm: true,
        qk_norm: None,
        norm_after: false,
        init_std: 0.2,
        residual_std: 0.2,
    };
    let block = Block::new(&params, &config, &CLIP_NAMES).unwrap();
    let x = random(&[2, 5, 32], 3);
    let grads = |recompute: bool| {
        nn::Exec { recompute, ..nn::Exec::default() }.run(|| {
            let y = block.forward(&x, &BlockContext { rope: None, mask: &Mask::Full }).unwrap();
            let g = (&y * random(y.dims(), 4)).unwrap().sum_all().unwrap().backward().unwrap();
            let of = |v: &Var| g.get(v.as_tensor()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            params.vars().values().map(of).collect::<Vec<_>>()
        })
    };
    assert_eq!(grads(false), grads(true));
}

/// A block with adapters: its output and the adapters' gradients are those of a block whose weights are W + scale B A, and the
/// held weights have none. In every type of weight, apart and joined projections.
#[test]
fn adapters_have_the_gradients_of_the_sum() {
    use nn::Params;
    use nn::block::{Block, BlockConfig, BlockContext, LLAMA_NAMES, LLAMAGEN_NAMES, MlpKind, NormKind};
    use nn::params::Lora;
    use std::collections::HashMap;
    let config = BlockConfig {
        width: 32,
        mlp_width: 64,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        norm: NormKind::Rms,
        eps: 1e-5,
        mlp: MlpKind::SwiGlu,
        bias: [false; 5],
        sub_norm: false,
        qk_norm: None,
        norm_after: false,
        init_std: 0.2,
        residual_std: 0.2,
    };
    let lora = Lora { rank: 3, alpha: 6.0, base: None };
    for names in [&LLAMA_NAMES, &LLAMAGEN_NAMES] {
        let whole = Params::for_training(HashMap::new(), &[], 1, DType::F32, &Device::Cpu);
        Block::new(&whole, &config, names).unwrap();
        let start: HashMap<String, Tensor> =
            whole.vars().into_iter().map(|(k, v)| (k, v.as_detached_tensor())).collect();
        for ty in [None, Some(nn::WeightType::Bf16), Some(nn::WeightType::Q8_0)] {
            let params = Params::for_training(start.clone(), &[""], 1, DType::F32, &Device::Cpu);
            let block = Block::new(&params.clone().stored_as(ty).adapted(Some(lora)), &config, names).unwrap();
            // B begins at zero: give it values, or A has no gradient
            let vars = params.vars();
            assert!(vars.keys().all(|k| k.contains(".lora_")), "only adapters are trained: {:?}", vars.keys());
            for (i, (name, v)) in vars.iter().enumerate().filter(|(_, (k, _))| k.contains("lora_B")) {
                let values = (random(v.dims(), 50 + i as u64) * 0.1).unwrap();
                v.set(&values).unwrap_or_else(|e| panic!("{name}: {e}"));
            }
            // the sum as an ordinary block, whose weights' gradients give the adapters'
            let mut summed = params.frozen();
            let mut sums = HashMap::new();
            let stored = Params::from_tensors("start", start.clone(), DType::F32, &Device::Cpu).stored_as(ty);
            for layer in vars.keys().filter_map(|k| k.strip_suffix(".lora_A.weight")) {
                let name = format!("{layer}.weight");
                let shape = start[&name].dims2().unwrap();
                let weight = stored.at(layer).weight(shape, "weight", nn::Init::Const(0.0)).unwrap();
                let nn::Weight::Packed(held) = weight else { panic!("{name} is not held") };
                let part =
                    |p: &str| Var::from_tensor(&vars[&format!("{layer}.{p}.weight")].as_detached_tensor()).unwrap();
                let (a, b) = (part("lora_A"), part("lora_B"));
                let (rows, cols) = held.shape();
                let w = Tensor::from_vec(held.values(), (rows, cols), &Device::Cpu).unwrap();
                let change = (b.matmul(a.as_tensor()).unwrap() * lora.scale()).unwrap();
                summed.insert(name.clone(), (w + change).unwrap().detach());
                sums.insert(name.clone(), (layer.to_owned(), a, b));
            }
            let ordinary = Params::for_training(summed.into_iter().collect(), &[], 1, DType::F32, &Device::Cpu);
            let plain = Block::new(&ordinary, &config, names).unwrap();
            let x = Var::from_tensor(&random(&[2, 5, 32], 3)).unwrap();
            let run = |block: &Block| {
                let y = block.forward(x.as_tensor(), &BlockContext { rope: None, mask: &Mask::Causal }).unwrap();
                let g = (&y * random(y.dims(), 4)).unwrap().sum_all().unwrap().backward().unwrap();
                (y, g)
            };
            let ((y, g), (y_plain, g_plain)) = (run(&block), run(&plain));
            let near = |a: &Tensor, b: &Tensor, what: &str| {
                let top = b.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap().max(1e-3);
                let off = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(off < 1e-4 * top, "{ty:?} {what}: off by {off} of {top}");
            };
            near(&y, &y_plain, "output");
            near(g.get(x.as_tensor()).unwrap(), g_plain.get(x.as_tensor()).unwrap(), "input");
            for (name, (layer, a, b)) in &sums {
                let dw = g_plain.get(ordinary.vars()[name].as_tensor()).unwrap();
                let want_a = (b.t().unwrap().matmul(dw).unwrap() * lora.scale()).unwrap();
                let want_b = (dw.matmul(&a.t().unwrap()).unwrap() * lora.scale()).unwrap();
                let got = |p: &str| g.get(vars[&format!("{layer}.{p}.weight")].as_tensor()).unwrap().clone();
                near(&got("lora_A"), &want_a, &format!("{layer} A"));
                near(&got("lora_B"), &want_b, &format!("{layer} B"));
            }
        }
    }
}

/// A stride that leaves a column over: the gradient against central differences.
#[test]
fn a_convolution_that_does_not_reach_the_edge() {
    let (x, w) = (random(&[1, 2, 5, 8], 1), random(&[3, 2, 3, 3], 2));
    let loss = |x: &Tensor| {
        let y = ops::conv2d(x, &w, 1, 2).unwrap();
        (&y * random(y.dims(), 3)).unwrap().sum_all().unwrap()
    };
    let var = Var::from_tensor(&x).unwrap();
    let g = loss(var.as_tensor()).backward().unwrap().get(var.as_tensor()).unwrap().flatten_all().unwrap();
    for (i, g) in g.to_vec1::<f32>().unwrap().into_iter().enumerate() {
        let value = |s: f32| {
            let mut v = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            v[i] += s;
            loss(&Tensor::from_vec(v, x.shape(), &Device::Cpu).unwrap()).to_scalar::<f32>().unwrap()
        };
        // linear in x, so a large step is exact
        let want = (value(0.5) - value(-0.5)) as f64;
        assert!((f64::from(g) - want).abs() < 1e-4, "{i}: {g} against {want}");
    }
}
