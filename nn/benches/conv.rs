//! Convolution, forward and backward: candle's against ours in float32 and with products in bfloat16.
//! `cargo bench --workspace --bench conv`

use candle_core::{Device, Tensor, Var};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn seconds(mut f: impl FnMut()) -> f64 {
    f();
    let clock = Instant::now();
    let mut runs = 0;
    while runs < 3 || clock.elapsed().as_secs_f64() < 1.0 {
        f();
        runs += 1;
    }
    clock.elapsed().as_secs_f64() / f64::from(runs)
}

fn main() {
    println!("| pictures x in x side, out, kernel, stride | candle, ms | ours, ms | ratio | ours bf16, ms | ratio |");
    println!("|---|---|---|---|---|---|");
    for (n, i, side, o, k, stride) in
        [(16, 64, 32, 64, 3, 1), (16, 128, 16, 128, 3, 1), (16, 3, 64, 64, 4, 2), (16, 64, 32, 128, 4, 2)]
    {
        let x = Var::from_tensor(&Tensor::randn(0f32, 1.0, (n, i, side, side), &Device::Cpu).unwrap()).unwrap();
        let w = Var::from_tensor(&Tensor::randn(0f32, 0.1, (o, i, k, k), &Device::Cpu).unwrap()).unwrap();
        let step = |y: Tensor| drop(y.sum_all().unwrap().backward().unwrap());
        let candle = seconds(|| step(x.as_tensor().conv2d(w.as_tensor(), 1, stride, 1, 1).unwrap()));
        let ours = seconds(|| step(nn::ops::conv2d(x.as_tensor(), w.as_tensor(), 1, stride).unwrap()));
        let exec = nn::Exec { bf16: true, ..nn::Exec::default() };
        let bf16 = exec.run(|| seconds(|| step(nn::ops::conv2d(x.as_tensor(), w.as_tensor(), 1, stride).unwrap())));
        println!(
            "| {n} x {i} x {side}, {o}, {k}, {stride} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
            1e3 * candle,
            1e3 * ours,
            candle / ours,
            1e3 * bf16,
            candle / bf16
        );
    }
}
