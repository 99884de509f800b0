//! Cross-entropy of rows of logits against one class each.

use super::{is_fused, rows_per_task, values, vector, with_values};
use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// Target that takes no part in the loss: its row's loss and gradient are zero.
pub const IGNORE: u32 = u32::MAX;

/// Loss of each row in nats: logits [n, classes], n targets in 0..classes or [`IGNORE`]; returns [n].
///
/// The mean is left to the caller, who knows by how many rows to divide.
pub fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let (n, classes) = logits.dims2()?;
    if targets.len() != n {
        candle_core::bail!("{} targets for {n} rows of logits", targets.len());
    }
    if let Some(&bad) = targets.iter().find(|&&t| t != IGNORE && t as usize >= classes) {
        candle_core::bail!("target {bad} among {classes} classes");
    }
    if is_fused(logits) {
        return logits.contiguous()?.apply_op1(CrossEntropy { targets: targets.into() });
    }
    let max = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&max)?;
    let lse = shifted.exp()?.sum(D::Minus1)?.log()?;
    let keep: Vec<f32> = targets.iter().map(|&t| f32::from(u8::from(t != IGNORE))).collect();
    let index: Vec<u32> = targets.iter().map(|&t| if t == IGNORE { 0 } else { t }).collect();
    let index = Tensor::from_vec(index, (n, 1), logits.device())?;
    let keep = Tensor::from_vec(keep, n, logits.device())?.to_dtype(logits.dtype())?;
    (lse - shifted.gather(&index, 1)?.squeeze(1)?)? * keep
}

struct CrossEntropy {
    targets: Arc<[u32]>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }
    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, lx)?;
        let n = self.targets.len();
        let v = x.len() / n.max(1);
        let mut loss = vec![0f32; n];
        let rows = rows_per_task(n, v);
        loss.par_chunks_mut(rows).zip(x.par_chunks((rows * v).max(1))).zip(self.targets.par_chunks(rows)).for_each(
            |((loss, x), t)| {
                for ((loss, row), &t) in loss.iter_mut().zip(x.chunks_exact(v)).zip(t) {
                    if t != IGNORE {
                        let max = vector::max(row);
                        let sum: f32 = row
                            .chunks(256)
                            .map(|c| {
                                let mut e = [0f32; 256];
                                for (e, &x) in e.iter_mut().zip(c) {
                                    *e = vector::exp(x - max);
                                }
                                vector::sum(&e)
                            })
                            .sum();
                        *loss = sum.ln() + max - row[t as usize];
                    }
                }
            },
        );
        Ok((CpuStorage::F32(loss), Shape::from(n)))
    }
    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_values([x, &g.contiguous()?], |[x, g]| {
            let n = self.targets.len();
            let v = x.len() / n.max(1);
            let mut dx = vector::zeros(x.len());
            let rows = rows_per_task(n, v);
            dx.par_chunks_mut((rows * v).max(1))
                .zip(x.par_chunks((rows * v).max(1)))
                .zip(self.targets.par_chunks(rows).zip(g.par_chunks(rows)))
                .for_each(|((dx, x), (t, g))| {
                    for (((dx, x), &t), &g) in dx.chunks_exact_mut(v).zip(x.chunks_exact(v)).zip(t).zip(g) {
                        if t != IGNORE {
                            dx.copy_from_slice(x);
                            vector::softmax(dx);
                            dx[t as usize] -= 1.0;
                            for d in dx.iter_mut() {
                                *d *= g;
                            }
                        }
                    }
                });
            dx
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
