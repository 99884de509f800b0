//! Symmetric InfoNCE (QLIP equation 2), where equal captions in a batch are positives of each other.

use super::softplus;
use candle_core::{D, DType, Tensor};
use nn::{Result, ops};

/// Mean of both directions' cross-entropy over logits = scale * text x image.
///
/// `caption_of` gives each pair's caption an id; pairs with the same id (a class name that occurs many times in a batch)
/// share the target evenly, as in UniCL (arXiv 2204.03610, equation 3). With all ids distinct this is plain InfoNCE.
pub fn info_nce(text: &Tensor, image: &Tensor, logit_scale: &Tensor, caption_of: &[usize]) -> Result<Tensor> {
    let n = caption_of.len();
    let logits = text.matmul(&image.t()?)?.broadcast_mul(&logit_scale.exp()?)?;
    let distinct = caption_of.iter().collect::<std::collections::HashSet<_>>().len() == n;
    if distinct {
        let diagonal: Vec<u32> = (0..n as u32).collect();
        let a = ops::cross_entropy(&logits, &diagonal)?.mean_all()?;
        let b = ops::cross_entropy(&logits.t()?.contiguous()?, &diagonal)?.mean_all()?;
        return Ok(((a + b)? * 0.5)?);
    }
    let mut weights = vec![0f32; n * n];
    for i in 0..n {
        let same = caption_of.iter().filter(|&&c| c == caption_of[i]).count() as f32;
        for j in 0..n {
            if caption_of[i] == caption_of[j] {
                weights[i * n + j] = 1.0 / same;
            }
        }
    }
    // the weights are symmetric, so one matrix serves both directions
    let weights = Tensor::from_vec(weights, (n, n), logits.device())?.to_dtype(logits.dtype())?;
    let direction = |l: &Tensor| -> Result<Tensor> {
        let shifted = l.broadcast_sub(&l.max_keepdim(D::Minus1)?.detach())?;
        let log_p = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?;
        Ok((log_p * &weights)?.sum(D::Minus1)?.mean_all()?.neg()?)
    };
    Ok(((direction(&logits)? + direction(&logits.t()?.contiguous()?)?)? * 0.5)?)
}

/// Share of images whose best caption in the batch is theirs.
pub fn accuracy(text: &Tensor, image: &Tensor, caption_of: &[usize]) -> Result<f64> {
    let best = image.matmul(&text.t()?)?.argmax(D::Minus1)?.to_dtype(DType::U32)?.to_vec1::<u32>()?;
    let right = best.iter().enumerate().filter(|&(i, &b)| caption_of[i] == caption_of[b as usize]).count();
    Ok(right as f64 / caption_of.len().max(1) as f64)
}

/// Mean over pictures of the summed logistic losses of all pairs (SigLIP, Zhai et al. 2023, equation 1), logits = scale *
/// text x image + bias; a pair belongs together where the captions are equal.
pub fn sigmoid(
    text: &Tensor,
    image: &Tensor,
    logit_scale: &Tensor,
    bias: &Tensor,
    caption_of: &[usize],
) -> Result<Tensor> {
    let n = caption_of.len();
    let logits = text.matmul(&image.t()?)?.broadcast_mul(&logit_scale.exp()?)?.broadcast_add(bias)?;
    let signs: Vec<f32> = (0..n * n).map(|i| if caption_of[i / n] == caption_of[i % n] { 1.0 } else { -1.0 }).collect();
    let signs = Tensor::from_vec(signs, (n, n), logits.device())?.to_dtype(logits.dtype())?;
    // -log sigmoid(x) = softplus(-x)
    let all = softplus(&(logits * signs)?.neg()?)?;
    Ok((all.sum_all()? / n as f64)?)
}
