//! Products of few rows and many with every type of weight, 8192 x 2048 if not told otherwise, cold: `cargo bench --workspace --bench rows`. Prints
//! milliseconds, GB/s of weights and GFLOP/s; `UNIFIED_KERNELS=avx2` forces an instruction set. Nothing is asserted.

use candle_core::{Device, Tensor};
use nn::{Packed, Weight, WeightType};
use std::time::Instant;

fn main() -> nn::Result<()> {
    // `cargo bench .. -- 2048 8192` times another shape
    let sizes: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let (n, k) = if let [n, k] = sizes[..] { (n, k) } else { (8192, 2048) };
    println!("kernels: {}, threads: {}", nn::ops::kernels().name, rayon::current_num_threads());
    println!("{:>6} {:>6} {:>9} {:>9} {:>9}", "type", "rows", "ms", "GB/s", "GFLOP/s");
    for ty in WeightType::ALL {
        let bytes = ty.bytes(n, k);
        let copies = ((256 << 20) / bytes).max(2);
        let make = |c: usize| {
            Packed::from_rows(ty, n, k, move |i, out| {
                for (j, o) in out.iter_mut().enumerate() {
                    *o = ((i * 31 + j * 17 + c) % 255) as f32 / 127.0 - 1.0;
                }
            })
        };
        let first = make(0)?;
        let weights: Vec<Weight> =
            (0..copies).map(|_| Packed::copy(&first).map(Weight::Packed)).collect::<nn::Result<_>>()?;
        for m in [1, 2, 4, 8, 16, 128, 1024] {
            let x = Tensor::rand(-1f32, 1.0, (m, k), &Device::Cpu)?;
            let mut best = f64::MAX;
            let rounds = if m < 128 { 5 * copies } else { 6 };
            for i in 0..rounds {
                let t = Instant::now();
                std::hint::black_box(weights[i % copies].product(&x, 0..n)?);
                best = best.min(t.elapsed().as_secs_f64());
            }
            let (gb, gf) = (bytes as f64 / best / 1e9, 2.0 * (m * n * k) as f64 / best / 1e9);
            println!("{:>6} {m:>6} {:>9.2} {gb:>9.1} {gf:>9.0}", ty.name(), best * 1e3);
        }
    }
    Ok(())
}
