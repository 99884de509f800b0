//! Products of float rows, the same on every vector width: written once, made for each instruction set.

/// Makes `float_rows` of a set of instructions: `load` widens a vector of weights of a type, the other names are the set's
/// intrinsics, and the tiles say how many rows of inputs are taken at once of those that are left.
macro_rules! float_products {
    ($features:literal, $lanes:literal, $zero:ident, $inputs:ident, $multiply_add:ident, $total:ident,
     { $($left:pat => $tile:literal),+ $(,)? }) => {
        /// R rows of a weight times M rows of inputs: one sum of vectors each, in the order of the columns whatever R and M are,
        /// so that a row's result does not depend on what it is computed with.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn dots<const T: u8, const R: usize, const M: usize, const AHEAD: bool>(
            w: *const u8,
            x: *const f32,
            k: usize,
            out: *mut f32,
        ) {
            let size = if T == WeightType::F32 as u8 { 4 } else { 2 };
            let mut acc = [[$zero(); M]; R];
            let whole = k / $lanes * $lanes;
            // SAFETY: the caller has R rows of k values at w, M rows at x and a place for M rows of four sums at out.
            unsafe {
                let mut c = 0;
                while c < whole {
                    let mut row = [$zero(); R];
                    for r in 0..R {
                        let p = w.add((r * k + c) * size);
                        // the rows after these: a row is about a page, where the processor's own prefetching ends
                        if AHEAD {
                            _mm_prefetch(p.wrapping_add(R * k * size).cast(), _MM_HINT_T1);
                        }
                        row[r] = load::<T>(p);
                    }
                    for i in 0..M {
                        let v = $inputs(x.add(i * k + c));
                        for r in 0..R {
                            acc[r][i] = $multiply_add(row[r], v, acc[r][i]);
                        }
                    }
                    c += $lanes;
                }
                for r in 0..R {
                    for i in 0..M {
                        let mut sum = $total(acc[r][i]);
                        for c in whole..k {
                            sum += super::portable::value(T, w.add((r * k + c) * size)) * *x.add(i * k + c);
                        }
                        *out.add(i * 4 + r) = sum;
                    }
                }
            }
        }

        /// M rows of inputs; the first few of a product read ahead.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn tile<const T: u8, const M: usize>(
            w: *const u8,
            rows: usize,
            x: *const f32,
            k: usize,
            ahead: bool,
            out: *mut f32,
        ) -> usize {
            let size = if T == WeightType::F32 as u8 { 4 } else { 2 };
            // SAFETY: passed on.
            unsafe {
                match (rows == 4, ahead) {
                    (true, true) => dots::<T, 4, M, true>(w, x, k, out),
                    (true, false) => dots::<T, 4, M, false>(w, x, k, out),
                    (false, _) => {
                        (0..rows).for_each(|r| dots::<T, 1, M, false>(w.add(r * k * size), x, k, out.add(r)));
                    }
                }
            }
            M
        }

        #[target_feature(enable = $features)]
        unsafe fn float<const T: u8>(w: *const u8, rows: usize, x: *const f32, m: usize, k: usize, out: *mut f32) {
            // SAFETY: passed on.
            unsafe {
                let mut i = 0;
                while i < m {
                    let (x, out, ahead) = (x.add(i * k), out.add(i * 4), i == 0 && m <= 16);
                    i += match m - i {
                        $($left => tile::<T, $tile>(w, rows, x, k, ahead, out)),+
                    };
                }
            }
        }

        /// See [`super::Kernels::float`].
        pub unsafe fn float_rows(
            ty: WeightType,
            w: *const u8,
            rows: usize,
            x: *const f32,
            m: usize,
            k: usize,
            out: *mut f32,
        ) {
            // SAFETY: this level is only chosen on processors that have the instructions; the rest is passed on.
            unsafe {
                match ty {
                    WeightType::F32 => float::<{ WeightType::F32 as u8 }>(w, rows, x, m, k, out),
                    WeightType::Bf16 => float::<{ WeightType::Bf16 as u8 }>(w, rows, x, m, k, out),
                    _ => float::<{ WeightType::F16 as u8 }>(w, rows, x, m, k, out),
                }
            }
        }
    };
}

pub(super) use float_products;
