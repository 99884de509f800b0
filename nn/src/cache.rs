//! Keys and values of sequences of different lengths. A sequence's cache is made of pages of 64 tokens; sequences that begin
//! alike share pages, and a shared page is copied when one of them writes to it. Nothing is concatenated, and a fork costs a
//! page at most.

use crate::ops::{self, PageShape};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// What a model's caches hold, for each token.
#[derive(Debug, Clone)]
pub struct CacheShape {
    /// Blocks.
    pub layers: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Where the model computes.
    pub device: Device,
    /// Type of its activations.
    pub dtype: DType,
}

impl CacheShape {
    /// Bytes of a token.
    pub fn token_bytes(&self) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim * self.dtype.size_in_bytes()
    }

    fn page(&self) -> PageShape {
        PageShape { kv_heads: self.kv_heads, head_dim: self.head_dim }
    }
}

/// The cache of one sequence.
#[derive(Debug, Clone)]
pub struct Slot {
    shape: Arc<CacheShape>,
    len: usize,
    kept: Kept,
}

#[derive(Debug, Clone)]
enum Kept {
    /// On the CPU in float32: pages that the attention kernel reads where they lie.
    Pages(Vec<Arc<Vec<f32>>>),
    /// Elsewhere: keys and values of each layer, [1, room, kv_heads, head_dim].
    Tensors(Vec<(Tensor, Tensor)>),
}

impl Slot {
    /// An empty one.
    pub fn new(shape: &Arc<CacheShape>) -> Self {
        let pages = shape.device.is_cpu() && shape.dtype == DType::F32;
        let kept = if pages { Kept::Pages(Vec::new()) } else { Kept::Tensors(Vec::new()) };
        Self { shape: shape.clone(), len: 0, kept }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets the tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        if let Kept::Pages(pages) = &mut self.kept {
            pages.truncate(self.len.div_ceil(ops::PAGE));
        }
    }

    /// Bytes that it would take by itself.
    pub fn bytes(&self) -> usize {
        self.len.next_multiple_of(ops::PAGE) * self.shape.token_bytes()
    }

    /// The first layer among whose keys and values is one that is no finite number.
    pub fn first_broken_layer(&self) -> Option<usize> {
        let layer = self.shape.page().layer_len();
        match &self.kept {
            Kept::Pages(pages) => (0..self.shape.layers)
                .find(|l| pages.iter().any(|p| p[l * layer..(l + 1) * layer].iter().any(|v| !v.is_finite()))),
            Kept::Tensors(layers) => layers.iter().position(|(k, v)| {
                let sum = |t: &Tensor| t.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>();
                [k, v].into_iter().any(|t| !sum(t).is_ok_and(f32::is_finite))
            }),
        }
    }

    /// Room for `more` tokens that this sequence alone writes to.
    fn grow(&mut self, more: usize) -> Result<()> {
        let to = self.len + more;
        match &mut self.kept {
            Kept::Pages(pages) => {
                let size = self.shape.layers * self.shape.page().layer_len();
                // pages before are read by others too; this one is written
                if let Some(page) = pages.get_mut(self.len / ops::PAGE) {
                    Arc::make_mut(page);
                }
                pages.resize_with(to.div_ceil(ops::PAGE), || Arc::new(vec![0f32; size]));
            }
            Kept::Tensors(layers) => {
                let room = layers.first().map_or(Ok(0), |l| l.0.dim(1))?;
                if to > room {
                    let s = &self.shape;
                    let room = to.next_power_of_two().max(ops::PAGE);
                    let grown = |old: Option<&Tensor>| -> Result<Tensor> {
                        let new = Tensor::zeros((1, room, s.kv_heads, s.head_dim), s.dtype, &s.device)?;
                        if let Some(old) = old.filter(|_| self.len > 0) {
                            new.slice_set(&old.narrow(1, 0, self.len)?.contiguous()?, 1, 0)?;
                        }
                        Ok(new)
                    };
                    let pairs = (0..s.layers).map(|l| {
                        let pair = layers.get(l);
                        Ok((grown(pair.map(|p| &p.0))?, grown(pair.map(|p| &p.1))?))
                    });
                    *layers = pairs.collect::<Result<Vec<_>>>()?;
                } else {
                    // a fork shares the tensors: what is written goes into a copy
                    for (k, v) in layers {
                        (*k, *v) = (k.copy()?, v.copy()?);
                    }
                }
            }
        }
        self.len = to;
        Ok(())
    }
}

/// The caches of the sequences of one forward pass, and which rows of its input are theirs.
pub struct StepCache<'a> {
    slots: Vec<&'a mut Slot>,
    rows: Vec<Range<usize>>,
}

impl<'a> StepCache<'a> {
    /// Sequences and how many new tokens each has; their rows follow each other in that order.
    pub fn new(parts: Vec<(&'a mut Slot, usize)>) -> Result<Self> {
        let mut this = Self { slots: Vec::new(), rows: Vec::new() };
        let mut at = 0;
        for (slot, tokens) in parts {
            slot.grow(tokens)?;
            this.slots.push(slot);
            this.rows.push(at..at + tokens);
            at += tokens;
        }
        Ok(this)
    }

    /// Takes the new keys and values [1, tokens, kv_heads, head_dim] of a layer, and lets the new queries
    /// [1, tokens, heads, head_dim] attend to what their sequences hold up to themselves.
    pub fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor, scale: f32) -> Result<Tensor> {
        let (_, tokens, heads, d) = q.dims4()?;
        let (_, _, kv, _) = k.dims4()?;
        let Some(shape) = self.slots.first().map(|s| s.shape.clone()) else {
            return Err(Error::invalid("attention without sequences"));
        };
        let fits = (kv, d) == (shape.kv_heads, shape.head_dim) && heads.is_multiple_of(kv.max(1));
        if !fits || k.dims() != v.dims() || self.rows.last().map(|r| r.end) != Some(tokens) || layer >= shape.layers {
            let (q, k) = (q.dims(), k.dims());
            return Err(Error::invalid(format!("attention of q {q:?}, k {k:?}, layer {layer}, cache {shape:?}")));
        }
        if self.slots.iter().any(|s| matches!(s.kept, Kept::Tensors(_))) {
            return self.attend_tensors(layer, q, k, v, scale);
        }
        if d > ops::MAX_HEAD {
            let most = ops::MAX_HEAD;
            return Err(Error::invalid(format!("heads of {d} values; attention on the CPU takes up to {most}")));
        }
        let page = shape.page();
        let place = layer * page.layer_len()..(layer + 1) * page.layer_len();
        let out = ops::with_values([&q.contiguous()?, &k.contiguous()?, &v.contiguous()?], |[q, k, v]| {
            for (slot, rows) in self.slots.iter_mut().zip(&self.rows) {
                let first = slot.len - rows.len();
                let Kept::Pages(pages) = &mut slot.kept else { continue };
                for (token, row) in (first..).zip(rows.clone()) {
                    // the pages from the first new token on are this sequence's own since `grow`
                    if let Some(own) = pages.get_mut(token / ops::PAGE).and_then(Arc::get_mut) {
                        let at = row * kv * d..(row + 1) * kv * d;
                        ops::write_token(page, &mut own[place.clone()], token % ops::PAGE, &k[at.clone()], &v[at]);
                    }
                }
            }
            let sequences: Vec<ops::Sequence> = self
                .slots
                .iter()
                .zip(&self.rows)
                .map(|(slot, rows)| ops::Sequence {
                    pages: match &slot.kept {
                        Kept::Pages(pages) => pages.iter().map(|p| &p[place.clone()]).collect(),
                        Kept::Tensors(_) => Vec::new(),
                    },
                    before: slot.len - rows.len(),
                    rows: rows.clone(),
                })
                .collect();
            ops::attend_pages(page, heads, &sequences, q, scale)
        })?;
        Ok(Tensor::from_vec(out, q.shape(), q.device())?)
    }

    fn attend_tensors(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor, scale: f32) -> Result<Tensor> {
        let mut outs = Vec::with_capacity(self.rows.len());
        for (slot, rows) in self.slots.iter_mut().zip(&self.rows) {
            let (first, len) = (slot.len - rows.len(), slot.len);
            let Kept::Tensors(layers) = &slot.kept else { continue };
            let (keys, values) = &layers[layer];
            let part = |t: &Tensor| t.narrow(1, rows.start, rows.len())?.contiguous();
            keys.slice_set(&part(k)?, 1, first)?;
            values.slice_set(&part(v)?, 1, first)?;
            let (keys, values) = (keys.narrow(1, 0, len)?, values.narrow(1, 0, len)?);
            outs.push(ops::attention(&part(q)?, &keys, &values, scale, &ops::Mask::Causal)?);
        }
        Ok(Tensor::cat(&outs, 1)?)
    }
}
