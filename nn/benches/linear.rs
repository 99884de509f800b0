//! Products of a small model's layers, ours in bfloat16 against the library's in float32: `cargo bench -p unified-nn`.
//! Prints GFLOP/s and the ratio; nothing is asserted.

use candle_core::{DType, Device, Tensor, Var};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn time(mut f: impl FnMut()) -> f64 {
    f();
    let mut best = f64::MAX;
    for _ in 0..7 {
        let t = Instant::now();
        f();
        best = best.min(t.elapsed().as_secs_f64());
    }
    best
}

fn main() -> candle_core::Result<()> {
    let dev = Device::Cpu;
    println!(
        "{:>24} {:>10} {:>10} {:>10}  GFLOP/s, forward; forward and backward in the last column",
        "rows x in x out", "candle f32", "bf16", "bf16 both"
    );
    for (m, k, n) in
        [(6240, 192, 192), (6240, 192, 512), (6240, 512, 192), (5120, 256, 1024), (5120, 256, 704), (1024, 1024, 1024)]
    {
        let x = Var::from_tensor(&Tensor::rand(-1f32, 1., (m, k), &dev)?)?;
        let w = Var::from_tensor(&Tensor::rand(-1f32, 1., (n, k), &dev)?)?;
        let g = Tensor::ones((m, n), DType::F32, &dev)?;
        let flops = 2.0 * (m * k * n) as f64 / 1e9;
        let candle = time(|| drop(x.as_detached_tensor().matmul(&w.as_detached_tensor().t().unwrap())));
        let exec = nn::Exec { bf16: true, ..nn::Exec::default() };
        let ours = exec.run(|| time(|| drop(nn::ops::linear(&x.as_detached_tensor(), &w.as_detached_tensor(), None))));
        let both = exec.run(|| {
            time(|| {
                let y = nn::ops::linear(&x, &w, None).unwrap();
                drop((y * &g).unwrap().sum_all().unwrap().backward());
            })
        });
        println!(
            "{:>24} {:>10.0} {:>10.0} {:>10.0}",
            format!("{m} x {k} x {n}"),
            flops / candle,
            flops / ours,
            3.0 * flops / both
        );
    }
    Ok(())
}
