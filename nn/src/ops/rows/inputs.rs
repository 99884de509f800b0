//! Inputs of products with block weights: 8-bit integers, 32 to a scale, in tiles of rows that a kernel takes at once.

/// Some rows of the inputs. `m` rows; columns in chunks of four.
pub struct Tile {
    pub m: usize,
    /// First row of the inputs.
    pub from: usize,
    /// [columns / 4][m][4]
    pub q: Vec<i8>,
    /// Scale, [columns / 32][m].
    pub d: Vec<f32>,
    /// -128 times the sum of the block's integers: what q8_0's bytes, which are 128 too large, add; [columns / 32][m].
    pub offset: Vec<i32>,
    /// Scale times the sum of the block's integers: what q4_K's minima are multiplied by; [columns / 32][m].
    pub sum: Vec<f32>,
    /// -32 times the sums of the block's halves: what q6_K's values, which are 32 too large, add; [columns / 32][2][m].
    pub halves: Vec<i32>,
}

impl Tile {
    pub fn new(x: &[f32], from: usize, m: usize, k: usize) -> Self {
        let blocks = k / 32;
        let mut t = Self {
            m,
            from,
            q: vec![0; k * m],
            d: vec![0.0; blocks * m],
            offset: vec![0; blocks * m],
            sum: vec![0.0; blocks * m],
            halves: vec![0; blocks * 2 * m],
        };
        for i in 0..m {
            for (b, x) in x[(from + i) * k..(from + i + 1) * k].chunks_exact(32).enumerate() {
                let mut top = [0f32; 8];
                for x in x.chunks_exact(8) {
                    for j in 0..8 {
                        let v = x[j].abs();
                        top[j] = if v > top[j] { v } else { top[j] };
                    }
                }
                // a NaN or an infinity among the inputs must come out as one
                let finite = x.iter().all(|v| v.is_finite());
                let d = if finite { top.iter().fold(0f32, |m, v| m.max(*v)) / 127.0 } else { f32::NAN };
                let inv = if d > 0.0 && d.is_finite() { 1.0 / d } else { 0.0 };
                let mut q = [0i8; 32];
                for j in 0..32 {
                    q[j] = (x[j] * inv).round_ties_even() as i8;
                }
                let half = |h: usize| q[h * 16..h * 16 + 16].iter().map(|&v| i32::from(v)).sum::<i32>();
                let (lo, hi) = (half(0), half(1));
                t.d[b * m + i] = d;
                t.offset[b * m + i] = -128 * (lo + hi);
                t.sum[b * m + i] = d * (lo + hi) as f32;
                t.halves[b * 2 * m + i] = -32 * lo;
                t.halves[(b * 2 + 1) * m + i] = -32 * hi;
                for c in 0..8 {
                    t.q[((b * 8 + c) * m + i) * 4..][..4].copy_from_slice(&q[c * 4..c * 4 + 4]);
                }
            }
        }
        t
    }
}

/// All rows in tiles of at most `most`, as equal as can be.
pub fn tiles(x: &[f32], m: usize, k: usize, most: usize) -> Vec<Tile> {
    let n = m.div_ceil(most);
    let per = m.div_ceil(n.max(1)).max(1);
    let places: Vec<usize> = (0..m).step_by(per).collect();
    let mut out: Vec<Option<Tile>> = places.iter().map(|_| None).collect();
    let slots: Vec<_> = out.iter_mut().map(std::sync::Mutex::new).collect();
    super::super::pool::run(places.len(), |i| {
        let tile = Tile::new(x, places[i], per.min(m - places[i]), k);
        if let Ok(mut slot) = slots[i].lock() {
            **slot = Some(tile);
        }
    });
    drop(slots);
    out.into_iter().flatten().collect()
}
