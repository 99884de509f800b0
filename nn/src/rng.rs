//! Seeded random numbers: candle's CPU generator cannot be seeded, so initial values and noise are drawn here.

use rand::{RngExt, SeedableRng};
pub use rand_chacha::ChaCha8Rng as Rng;

/// A generator keyed by a seed and a path of counters (step, item, ..): the same key gives the same stream, whatever
/// was drawn before, so a resumed run sees what an uninterrupted one sees.
pub fn keyed(seed: u64, path: &[u64]) -> Rng {
    let mut h = mix(seed ^ 0x9E37_79B9_7F4A_7C15);
    for &p in path {
        h = mix(h ^ mix(p.wrapping_add(0xD1B5_4A32_D192_ED03)));
    }
    Rng::seed_from_u64(h)
}

/// A stable 64-bit hash of a name (FNV-1a), to key a stream by it.
pub fn name_key(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// SplitMix64's output function.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A standard normal value (Box-Muller).
pub fn normal(rng: &mut Rng) -> f32 {
    let u: f64 = rng.random::<f64>().max(1e-300);
    let v: f64 = rng.random();
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

/// Uniform in [0, 1).
pub fn uniform(rng: &mut Rng) -> f32 {
    rng.random()
}

/// A random order (Fisher and Yates).
pub fn shuffle<T>(rng: &mut Rng, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(rng, i + 1));
    }
}

/// Uniform integer in [0, n); n must be positive.
pub fn below(rng: &mut Rng, n: usize) -> usize {
    rng.random_range(0..n)
}
