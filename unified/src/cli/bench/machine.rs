//! The machine's own ceilings, so that anyone sees how far a number is from them.

use std::hint::black_box;
use std::time::Instant;

/// Multiply-adds in registers on all threads, in GFLOP/s: a multiply-add is two.
pub fn multiply_adds() -> f64 {
    const ROUNDS: usize = 4_000_000;
    const LANES: usize = 128;
    let once = || {
        let threads = rayon::current_num_threads();
        let clock = Instant::now();
        nn::ops::parallel(threads, |i| {
            let mut acc = [i as f32 * 1e-3; LANES];
            let (a, b) = (black_box(0.999_f32), black_box(1e-7_f32));
            for _ in 0..ROUNDS {
                for v in &mut acc {
                    *v = v.mul_add(a, b);
                }
            }
            black_box(acc);
        });
        2.0 * (threads * ROUNDS * LANES) as f64 / clock.elapsed().as_secs_f64() / 1e9
    };
    (0..3).map(|_| once()).fold(0.0, f64::max)
}

/// A long read by all threads, in GB/s.
pub fn read() -> f64 {
    let words = vec![1u64; (512 << 20) / 8];
    let once = || {
        let threads = rayon::current_num_threads();
        let clock = Instant::now();
        let per = words.len() / threads;
        nn::ops::parallel(threads, |i| {
            black_box(words[i * per..(i + 1) * per].iter().fold(0, |a, w| a ^ w));
        });
        (words.len() * 8) as f64 / clock.elapsed().as_secs_f64() / 1e9
    };
    (0..5).map(|_| once()).fold(0.0, f64::max)
}
