//! The pre-norm transformer block that the vision tower, the text tower, the pixel decoder and the language model share.
//!
//! x += out(inner_norm(attention(norm1 x))); x += mlp(norm2 x). What differs between the published models (norms,
//! biases, rope, grouped heads, gates, names) is configuration.

use crate::Result;
use crate::cache::StepCache;
pub use crate::linear::Linear;
use crate::ops::{self, Activation, AttentionBranch, Flat, Mask, MlpBranch, NormAt, Positions, Rope};
use crate::params::{Init, Params};
use candle_core::Tensor;

/// Which norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NormKind {
    /// Mean and variance, with bias.
    Layer,
    /// Root mean square, no bias.
    Rms,
}

/// Which feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MlpKind {
    /// down(norm(act(up x)))
    Plain(Activation),
    /// down(norm(silu(gate x) * up x))
    SwiGlu,
}

/// Norm of each head's queries and keys, with its epsilon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum QkNorm {
    /// Root mean square, one vector for all heads.
    Rms(f64),
    /// Mean and variance, with a weight and a bias for each head (Chameleon).
    LayerByHead(f64),
}

/// Everything that differs between blocks.
#[derive(Debug, Clone)]
pub struct BlockConfig {
    /// Width of the residual stream.
    pub width: usize,
    /// Inner width of the feed-forward network.
    pub mlp_width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Norm of the residual stream.
    pub norm: NormKind,
    /// Its epsilon.
    pub eps: f64,
    /// Feed-forward network.
    pub mlp: MlpKind,
    /// Bias of the query, key, value, output projections and of the feed-forward network.
    pub bias: [bool; 5],
    /// Layer norms inside attention and feed-forward ("sub-LN", EVA-02).
    pub sub_norm: bool,
    /// Norm of each head's queries and keys, before rope, where there is one.
    pub qk_norm: Option<QkNorm>,
    /// Whether the two norms follow attention and feed-forward instead of coming before them (Swin v2, Chameleon 30B).
    pub norm_after: bool,
    /// Deviation of the initial weights.
    pub init_std: f32,
    /// Deviation of the initial weights of the two projections that write to the residual stream.
    pub residual_std: f32,
}

/// Published tensor names of a block.
#[derive(Debug)]
pub struct BlockNames {
    norm1: &'static str,
    norm2: &'static str,
    qkv: Projections,
    out: &'static str,
    gate: &'static str,
    up: &'static str,
    down: &'static str,
    plain_up: &'static str,
    plain_down: &'static str,
}

/// How the query, key and value projections are stored.
#[derive(Debug)]
enum Projections {
    /// A tensor each.
    Apart([&'static str; 3]),
    /// The rows of one tensor: queries, then keys, then values.
    Joined(&'static str),
}

const APART: Projections = Projections::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]);

/// Names of CLIP and QLIP.
pub const CLIP_NAMES: BlockNames = BlockNames {
    norm1: "layer_norm1",
    norm2: "layer_norm2",
    qkv: APART,
    out: "self_attn.out_proj",
    gate: "mlp.w1",
    up: "mlp.w2",
    down: "mlp.w3",
    plain_up: "mlp.fc1",
    plain_down: "mlp.fc2",
};

/// Names of Llama in the Hugging Face layout.
pub const LLAMA_NAMES: BlockNames = BlockNames {
    norm1: "input_layernorm",
    norm2: "post_attention_layernorm",
    qkv: APART,
    out: "self_attn.o_proj",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    plain_up: "mlp.up_proj",
    plain_down: "mlp.down_proj",
};

/// Names of LlamaGen.
pub const LLAMAGEN_NAMES: BlockNames = BlockNames {
    norm1: "attention_norm",
    norm2: "ffn_norm",
    qkv: Projections::Joined("attention.wqkv"),
    out: "attention.wo",
    gate: "feed_forward.w1",
    up: "feed_forward.w3",
    down: "feed_forward.w2",
    plain_up: "feed_forward.w1",
    plain_down: "feed_forward.w2",
};

/// Layer norm or root-mean-square norm over the last dimension.
#[derive(Debug, Clone)]
pub struct Norm {
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f64,
}

impl Norm {
    /// Takes `weight` and, for a layer norm, `bias` at this place.
    pub fn new(p: &Params, kind: NormKind, width: usize, eps: f64) -> Result<Self> {
        let weight = p.get(width, "weight", Init::Const(1.0))?;
        let bias = if kind == NormKind::Layer { Some(p.get(width, "bias", Init::Const(0.0))?) } else { None };
        Ok(Self { weight, bias, eps })
    }
    fn place(&self, p: &mut Flat) -> Result<NormAt> {
        Ok(p.norm(&self.weight, self.bias.as_ref(), self.eps)?)
    }
    /// [.., width] to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match &self.bias {
            Some(b) => ops::layer_norm(x, &self.weight, b, self.eps)?,
            None => ops::rms_norm(x, &self.weight, self.eps)?,
        })
    }
}

/// Norm of queries or keys, as it is stored.
#[derive(Debug, Clone)]
enum HeadNorm {
    Same(Norm),
    /// Weight and bias [heads, head width] after a plain norm.
    Each {
        plain: Norm,
        weight: Tensor,
        bias: Tensor,
    },
}

impl HeadNorm {
    fn new(p: &Params, kind: QkNorm, heads: usize, width: usize) -> Result<Self> {
        Ok(match kind {
            QkNorm::Rms(eps) => Self::Same(Norm::new(p, NormKind::Rms, width, eps)?),
            QkNorm::LayerByHead(eps) => {
                let weight = p.get((heads, width), "weight", Init::Const(1.0))?;
                let ones = Tensor::ones(width, weight.dtype(), weight.device())?;
                let plain = Norm { bias: Some(ones.zeros_like()?), weight: ones, eps };
                Self::Each { plain, weight, bias: p.get((heads, width), "bias", Init::Const(0.0))? }
            }
        })
    }

    /// [.., heads, width] to the same shape.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Same(norm) => norm.forward(x),
            Self::Each { plain, weight, bias } => Ok(plain.forward(x)?.broadcast_mul(weight)?.broadcast_add(bias)?),
        }
    }
}

/// What a block needs besides its input.
pub struct BlockContext<'a> {
    /// Rotary table and the rows of the tokens.
    pub rope: Option<(&'a Rope, &'a Positions)>,
    /// Which keys a query sees.
    pub mask: &'a Mask,
}

/// Projections to queries, keys and values, as they are stored.
#[derive(Debug, Clone)]
enum Projected {
    Apart(Box<[Linear; 3]>),
    Joined(Box<Linear>),
}

/// One transformer block.
#[derive(Debug, Clone)]
pub struct Block {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    norm1: Norm,
    norm2: Norm,
    qkv: Projected,
    out: Linear,
    qk_norm: Option<(HeadNorm, HeadNorm)>,
    norm_after: bool,
    inner_norm: Option<Norm>,
    ffn_norm: Option<Norm>,
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
    act: Activation,
}

impl Block {
    /// Takes the block's tensors at this place.
    pub fn new(p: &Params, c: &BlockConfig, names: &BlockNames) -> Result<Self> {
        let (d, f, qw, kw) = (c.width, c.mlp_width, c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let [qb, kb, vb, ob, mb] = c.bias;
        let std = c.init_std;
        let inner = |name: &str, width| -> Result<Option<Norm>> {
            if c.sub_norm { Ok(Some(Norm::new(&p.at(name), NormKind::Layer, width, c.eps)?)) } else { Ok(None) }
        };
        let qk_norm = match c.qk_norm {
            Some(kind) => {
                let norm = |n, heads| HeadNorm::new(&p.at("self_attn").at(n), kind, heads, c.head_dim);
                Some((norm("q_norm", c.heads)?, norm("k_norm", c.kv_heads)?))
            }
            None => None,
        };
        let qkv = match names.qkv {
            Projections::Apart([q, k, v]) => Projected::Apart(Box::new([
                Linear::new(&p.at(q), d, qw, qb, std)?,
                Linear::new(&p.at(k), d, kw, kb, std)?,
                Linear::new(&p.at(v), d, kw, vb, std)?,
            ])),
            Projections::Joined(name) => {
                let qkv = Linear::new(&p.at(name), d, qw + 2 * kw, false, std)?;
                Projected::Joined(Box::new(qkv))
            }
        };
        let (gate, up, down, act) = match c.mlp {
            MlpKind::SwiGlu => {
                let gate = Linear::new(&p.at(names.gate), d, f, mb, std)?;
                (Some(gate), names.up, names.down, Activation::Silu)
            }
            MlpKind::Plain(act) => (None, names.plain_up, names.plain_down, act),
        };
        Ok(Self {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            norm1: Norm::new(&p.at(names.norm1), c.norm, d, c.eps)?,
            norm2: Norm::new(&p.at(names.norm2), c.norm, d, c.eps)?,
            qkv,
            out: Linear::new(&p.at(names.out), qw, d, ob, c.residual_std)?,
            qk_norm,
            norm_after: c.norm_after,
            inner_norm: inner("self_attn.inner_attn_ln", qw)?,
            ffn_norm: inner("mlp.ffn_ln", f)?,
            gate,
            up: Linear::new(&p.at(up), d, f, mb, std)?,
            down: Linear::new(&p.at(down), f, d, mb, c.residual_std)?,
            act,
        })
    }

    /// x [batch, tokens, width] to the same shape.
    pub fn forward(&self, x: &Tensor, ctx: &BlockContext) -> Result<Tensor> {
        self.feed_forward(&self.attend(x, ctx)?)
    }

    /// The first half: x + attention(norm1 x).
    pub fn attend(&self, x: &Tensor, ctx: &BlockContext) -> Result<Tensor> {
        if self.norm_after {
            return Ok((x + self.norm1.forward(&self.attention(x, ctx)?)?)?);
        }
        if !self.runs_as_branches(x) {
            return Ok((x + self.attention(&self.norm1.forward(x)?, ctx)?)?);
        }
        let mut p = Flat::default();
        let attention = AttentionBranch {
            norm: self.norm1.place(&mut p)?,
            projections: match &self.qkv {
                Projected::Apart(qkv) => [qkv[0].place(&mut p)?, qkv[1].place(&mut p)?, qkv[2].place(&mut p)?],
                Projected::Joined(all) => all.place(&mut p)?.split(self.widths()),
            },
            out: self.out.place(&mut p)?,
            qk_norm: match &self.qk_norm {
                Some((HeadNorm::Same(q), HeadNorm::Same(k))) => Some((q.place(&mut p)?, k.place(&mut p)?)),
                _ => None,
            },
            inner_norm: self.inner_norm.as_ref().map(|n| n.place(&mut p)).transpose()?,
            heads: (self.heads, self.kv_heads, self.head_dim),
            rope: ctx.rope.map(|(r, at)| (r.clone(), at.clone())),
            mask: ctx.mask.clone(),
        };
        Ok(ops::branch(x, &p, attention)?)
    }

    /// The second half: x + mlp(norm2 x).
    pub fn feed_forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.norm_after || !self.runs_as_branches(x) {
            let h = if self.norm_after { x.clone() } else { self.norm2.forward(x)? };
            let gate = self.gate.as_ref().map(|gate| gate.forward(&h)).transpose()?;
            let y = self.down.forward(&self.activate(gate, self.up.forward(&h)?)?)?;
            return Ok((x + if self.norm_after { self.norm2.forward(&y)? } else { y })?);
        }
        let mut p = Flat::default();
        let mlp = MlpBranch {
            norm: self.norm2.place(&mut p)?,
            gate: self.gate.as_ref().map(|g| g.place(&mut p)).transpose()?,
            up: self.up.place(&mut p)?,
            act: self.act,
            inner_norm: self.ffn_norm.as_ref().map(|n| n.place(&mut p)).transpose()?,
            down: self.down.place(&mut p)?,
        };
        Ok(ops::branch(x, &p, mlp)?)
    }

    /// The next tokens of the sequences of a cache, x [tokens, width] to the same shape: each token sees what its sequence
    /// holds up to itself. `layer` is this block's place in the cache. For inference: a token's result does not depend on
    /// what else is in the batch.
    pub fn step(
        &self,
        x: &Tensor,
        rope: Option<(&Rope, &Positions)>,
        cache: &mut StepCache,
        layer: usize,
    ) -> Result<Tensor> {
        let t = x.dim(0)?;
        let before = |norm: &Norm, x: &Tensor| if self.norm_after { Ok(x.clone()) } else { norm.forward(x) };
        let after = |norm: &Norm, y: Tensor| if self.norm_after { norm.forward(&y) } else { Ok(y) };
        let h = before(&self.norm1, x)?;
        let [q, k, v] = match &self.qkv {
            Projected::Apart(qkv) => Linear::together([&qkv[0], &qkv[1], &qkv[2]], &h)?,
            Projected::Joined(all) => self.split(&all.by_rows(&h)?)?,
        };
        let [q, k, v] = self.heads([q, k, v], (1, t), rope)?;
        let scale = (self.head_dim as f64).powf(-0.5) as f32;
        let mut y = cache.attend(layer, &q, &k, &v, scale)?.reshape((t, self.heads * self.head_dim))?;
        if let Some(n) = &self.inner_norm {
            y = n.forward(&y)?;
        }
        let x = (x + after(&self.norm1, self.out.by_rows(&y)?)?)?;
        let h = before(&self.norm2, &x)?;
        let y = match &self.gate {
            Some(gate) => {
                let [gate, up] = Linear::together([gate, &self.up], &h)?;
                self.activate(Some(gate), up)?
            }
            None => self.activate(None, self.up.by_rows(&h)?)?,
        };
        Ok((x + after(&self.norm2, self.down.by_rows(&y)?)?)?)
    }

    /// Whether each half runs as one operation that keeps its inner tensors to itself: training on the CPU.
    fn runs_as_branches(&self, x: &Tensor) -> bool {
        let by_head = matches!(self.qk_norm, Some((HeadNorm::Each { .. }, _)));
        ops::is_fused(x) && self.out.is_trained() && !by_head
    }

    fn widths(&self) -> [usize; 3] {
        let kv = self.kv_heads * self.head_dim;
        [self.heads * self.head_dim, kv, kv]
    }

    fn split(&self, qkv: &Tensor) -> Result<[Tensor; 3]> {
        let [q, k, v] = self.widths();
        let part = |from, len| qkv.narrow(candle_core::D::Minus1, from, len)?.contiguous();
        Ok([part(0, q)?, part(q, k)?, part(q + k, v)?])
    }

    /// Queries, keys and values [.., width] as heads, normed and turned.
    fn heads(
        &self,
        [q, k, v]: [Tensor; 3],
        (b, t): (usize, usize),
        rope: Option<(&Rope, &Positions)>,
    ) -> Result<[Tensor; 3]> {
        let mut q = q.reshape((b, t, self.heads, self.head_dim))?;
        let mut k = k.reshape((b, t, self.kv_heads, self.head_dim))?;
        let v = v.reshape((b, t, self.kv_heads, self.head_dim))?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        if let Some((rope, positions)) = rope {
            (q, k) = (rope.apply(&q, positions)?, rope.apply(&k, positions)?);
        }
        Ok([q, k, v])
    }

    fn attention(&self, x: &Tensor, ctx: &BlockContext) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let qkv = match &self.qkv {
            Projected::Apart(qkv) => [qkv[0].forward(x)?, qkv[1].forward(x)?, qkv[2].forward(x)?],
            Projected::Joined(all) => self.split(&all.forward(x)?)?,
        };
        let [q, k, v] = self.heads(qkv, (b, t), ctx.rope)?;
        let scale = (self.head_dim as f64).powf(-0.5) as f32;
        let y = ops::attention(&q, &k, &v, scale, ctx.mask)?.reshape((b, t, self.heads * self.head_dim))?;
        let y = match &self.inner_norm {
            Some(n) => n.forward(&y)?,
            None => y,
        };
        self.out.forward(&y)
    }

    fn activate(&self, gate: Option<Tensor>, up: Tensor) -> Result<Tensor> {
        let y = match gate {
            Some(gate) => ops::gated_silu(&gate, &up)?,
            None => self.act.forward(&up)?,
        };
        match &self.ffn_norm {
            Some(n) => n.forward(&y),
            None => Ok(y),
        }
    }
}
