//! LlamaGen's decoder (Sun et al. 2024, section 2.2): a Llama over one picture's tokens, after a class or a caption,
//! with 2-D rotary positions. Published tensor names. Beyond the paper, tokens may go in and out as bits ([`crate::head`]).

mod config;

pub use config::{LlamaGenConfig, ModelType, PRESETS};

use crate::engine::{Choose, Model, Source};
use crate::head::BitwiseHead;
use crate::trunk::Trunk;
use crate::vocab::{Token, table_rows};
use candle_core::{DType, Tensor};
use nn::block::{Block, BlockContext, LLAMAGEN_NAMES, Linear, Norm, NormKind};
use nn::dropout::Dropout;
use nn::ops::{self, Activation, Mask, Positions};
use nn::{Error, Init, Params, Result, Weight};

/// What pictures are drawn from.
#[derive(Debug, Clone)]
pub enum Condition {
    /// A class a picture.
    Classes(Vec<u32>),
    /// Caption features [pictures, positions, caption_dim], padding first, and how many positions of each are padding.
    Captions(Tensor, Vec<usize>),
}

impl Condition {
    /// Pictures.
    pub fn len(&self) -> usize {
        match self {
            Self::Classes(c) => c.len(),
            Self::Captions(_, pads) => pads.len(),
        }
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Some neighbours of them.
    pub fn range(&self, r: std::ops::Range<usize>) -> Result<Self> {
        Ok(match self {
            Self::Classes(c) => Self::Classes(c[r].to_vec()),
            Self::Captions(f, pads) => Self::Captions(f.narrow(0, r.start, r.len())?, pads[r].to_vec()),
        })
    }
}

#[derive(Debug, Clone)]
enum Embedder {
    /// [classes + 1, dim]: the last row is "no class".
    Classes(Tensor),
    /// Two layers, and the features of "no caption" [positions, caption_dim].
    Captions { fc1: Linear, fc2: Linear, none: Tensor },
}

/// How tokens go in and out.
#[derive(Debug, Clone)]
enum Codebook {
    /// Rows [rows, dim] of embeddings and of the output.
    Table {
        tokens: Weight,
        output: Weight,
    },
    Bits(Box<BitwiseHead>),
}

/// The decoder.
#[derive(Debug, Clone)]
pub struct LlamaGen {
    /// Its configuration.
    pub config: LlamaGenConfig,
    embedder: Embedder,
    codebook: Codebook,
    trunk: Trunk,
}

impl LlamaGen {
    /// Takes the model's tensors.
    pub fn new(p: &Params, config: &LlamaGenConfig) -> Result<Self> {
        config.check()?;
        let (d, std) = (config.dim, config.initializer_range);
        let init = Init::Normal(std);
        let c = p.at("cls_embedding");
        let embedder = match config.model_type {
            ModelType::C2i => {
                let rows = config.num_classes + usize::from(config.class_dropout_prob > 0.0);
                Embedder::Classes(c.at("embedding_table").get((rows, d), "weight", init)?)
            }
            ModelType::T2i => Embedder::Captions {
                fc1: Linear::new(&c.at("cap_proj.fc1"), config.caption_dim, d, false, std)?,
                fc2: Linear::new(&c.at("cap_proj.fc2"), d, d, false, std)?,
                none: c.get((config.cls_token_num, config.caption_dim), "uncond_embedding", init)?,
            },
        };
        let codebook = match &config.bitwise {
            Some(b) => Codebook::Bits(Box::new(BitwiseHead::new(p, b, d, 0)?)),
            None => Codebook::Table {
                tokens: p.at("tok_embeddings").weight((config.rows(), d), "weight", init)?,
                output: p.at("output").weight((config.rows(), d), "weight", Init::Const(0.0))?,
            },
        };
        let block = config.block();
        let layers = (0..config.n_layer)
            .map(|i| Block::new(&p.at("layers").at(i), &block, &LLAMAGEN_NAMES))
            .collect::<Result<_>>()?;
        let norm = Norm::new(&p.at("norm"), NormKind::Rms, d, config.norm_eps)?;
        let kv = (config.n_kv_head.unwrap_or(config.n_head), config.dim / config.n_head);
        let trunk = Trunk::new(p, layers, norm, config.rope(), kv, d);
        Ok(Self { embedder, codebook, trunk, config: config.clone() })
    }

    /// The same model with other tables [rows, dim] of tokens in and out.
    pub fn with_tables(&self, tokens: Tensor, output: Tensor) -> Result<Self> {
        let shape = [self.config.rows(), self.config.dim];
        if self.config.bitwise.is_some() || tokens.dims() != shape || output.dims() != shape {
            return Err(Error::invalid(format!(
                "other tables must be of the shape {shape:?}, in a model that has them"
            )));
        }
        let (tokens, output) = (Weight::Dense(tokens), Weight::Dense(output));
        Ok(Self { codebook: Codebook::Table { tokens, output }, ..self.clone() })
    }

    /// Where it computes.
    pub fn device(&self) -> &candle_core::Device {
        &self.trunk.cache_shape().device
    }

    /// Embeddings of conditions [pictures, positions, dim]; where `drop` says so, of no condition.
    pub fn condition(&self, condition: &Condition, drop: &[bool]) -> Result<Tensor> {
        let n = condition.len();
        if drop.len() != n {
            return Err(Error::invalid(format!("{} drops for {n} conditions", drop.len())));
        }
        match (&self.embedder, condition) {
            (Embedder::Classes(table), Condition::Classes(classes)) => {
                let none = self.config.num_classes as u32;
                if drop.contains(&true) && table.dim(0)? as u32 == none {
                    return Err(Error::invalid("this model has no embedding of \"no class\"; use guidance scale 1"));
                }
                if let Some(bad) = classes.iter().find(|&&c| c >= none) {
                    return Err(Error::invalid(format!("class {bad} is beyond the {none} classes of the model")));
                }
                let ids: Vec<u32> = classes.iter().zip(drop).map(|(&c, &d)| if d { none } else { c }).collect();
                let ids = Tensor::from_vec(ids, n, table.device())?;
                Ok(table.index_select(&ids, 0)?.unsqueeze(1)?)
            }
            (Embedder::Captions { fc1, fc2, none }, Condition::Captions(features, _)) => {
                let shape = (n, self.config.cls_token_num, self.config.caption_dim);
                if features.dims3()? != shape {
                    let found = features.dims();
                    return Err(Error::invalid(format!("caption features {found:?}; the model takes {shape:?}")));
                }
                let rows = (0..n).map(|i| if drop[i] { Ok(none.clone()) } else { features.get(i) });
                let x = Tensor::stack(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
                fc2.forward(&Activation::GeluTanh.forward(&fc1.forward(&x)?)?)
            }
            (Embedder::Classes(_), _) => Err(Error::invalid("this model draws classes, not captions")),
            (Embedder::Captions { .. }, _) => Err(Error::invalid("this model draws captions, not classes")),
        }
    }

    /// Embeddings [pictures, tokens, dim] of tokens, as many for each picture; `from` is the place of the first in its
    /// picture.
    pub fn embed(&self, tokens: &[Token], pictures: usize, from: usize) -> Result<Tensor> {
        let (v, d) = (self.config.vocab_size, self.config.dim);
        let per = tokens.len() / pictures.max(1);
        let x = match &self.codebook {
            Codebook::Bits(head) => head.embed(tokens)?,
            Codebook::Table { tokens: table, .. } => {
                if let Some(bad) = tokens.iter().find(|&&t| t as usize >= v) {
                    return Err(Error::invalid(format!("token {bad} is outside the codebook of {v}")));
                }
                let first = |i: usize| self.first_row(from + i % per.max(1)) as u32;
                let rows: Vec<u32> = table_rows(tokens)?.into_iter().enumerate().map(|(i, t)| t + first(i)).collect();
                table.rows(&rows)?
            }
        };
        Ok(x.reshape((pictures, per, d))?)
    }

    /// The row of the table at which the rows of a picture's n-th token begin.
    fn first_row(&self, token: usize) -> usize {
        if self.config.shared_table { 0 } else { token % self.config.sub_tokens * self.config.vocab_size }
    }

    /// Embeddings [pictures, positions, dim] of whole sequences to hidden states of the same shape, after the last norm;
    /// `pads` are the hidden positions at the start of each.
    pub fn hidden(&self, x: &Tensor, pads: &[usize], mut noise: Option<&mut Dropout>) -> Result<Tensor> {
        let t = x.dim(1)?;
        let mask = if pads.iter().all(|&p| p == 0) {
            Mask::Causal
        } else {
            // a hidden position sees itself, so that no query is without keys
            Mask::CausalFrom(pads.iter().flat_map(|&p| (0..t).map(move |i| p.min(i) as u32)).collect())
        };
        let at = Positions::From(0);
        let Trunk { layers, norm, rope, .. } = &self.trunk;
        let ctx = BlockContext { rope: Some((rope, &at)), mask: &mask };
        let mut x = x.clone();
        let mut thin = |before: &Tensor, after: Tensor, layer: usize| match &mut noise {
            Some(n) => n.branch(before, &after, layer, layers.len()),
            None => Ok(after),
        };
        for (i, layer) in layers.iter().enumerate() {
            let y = thin(&x, layer.attend(&x, &ctx)?, i)?;
            x = thin(&y, layer.feed_forward(&y)?, i)?;
        }
        norm.forward(&x)
    }

    /// Hidden states [pictures, positions, dim] to logits [pictures, positions, vocabulary] of the next token in float32;
    /// `from` is the position of the first.
    fn logits(&self, hidden: &Tensor, output: &Weight, from: usize) -> Result<Tensor> {
        let mut parts = self.by_table(hidden, output, from)?;
        if parts.len() == 1 {
            return Ok(parts.remove(0).1);
        }
        // back into the order of the positions
        let positions: Vec<u32> = parts.iter().flat_map(|p| p.0.iter().copied()).collect();
        let mut order = vec![0; positions.len()];
        positions.iter().enumerate().for_each(|(at, &position)| order[position as usize] = at as u32);
        let all = Tensor::cat(&parts.iter().map(|p| &p.1).collect::<Vec<_>>(), 1)?;
        Ok(all.index_select(&Tensor::from_vec(order, positions.len(), all.device())?, 1)?)
    }

    /// The same in parts: a position speaks of the next token, and of that token's table alone. For each table the
    /// positions that speak of it, counted from `from`, and their logits.
    fn by_table(&self, hidden: &Tensor, output: &Weight, from: usize) -> Result<Vec<(Vec<u32>, Tensor)>> {
        let (t, rows) = (hidden.dim(1)?, self.config.vocab_size);
        let tables = output.shape()?.0 / rows.max(1);
        let speaks_of = |i: usize| (from + i + 1).saturating_sub(self.config.cls_token_num) % tables;
        let mut parts = Vec::new();
        for table in 0..tables {
            let positions: Vec<u32> = (0..t).filter(|&i| speaks_of(i) == table).map(|i| i as u32).collect();
            let x = match positions.len() {
                0 => continue,
                n if n == t => hidden.clone(),
                n => hidden.index_select(&Tensor::from_vec(positions.clone(), n, hidden.device())?, 1)?,
            };
            let logits = output.product(&x, table * rows..(table + 1) * rows)?;
            parts.push((positions, logits.to_dtype(DType::F32)?));
        }
        Ok(parts)
    }

    /// Embeddings of whole sequences to logits [pictures, positions, vocabulary] of the next token at every position, for a
    /// model with a table of tokens.
    pub fn forward(&self, x: &Tensor, pads: &[usize]) -> Result<Tensor> {
        match &self.codebook {
            Codebook::Table { output, .. } => self.logits(&self.hidden(x, pads, None)?, output, 0),
            Codebook::Bits(_) => {
                Err(Error::invalid("a model with a bitwise head has no logits over a table of tokens"))
            }
        }
    }

    /// What the n-th token of a picture is drawn from.
    pub fn source(&self, token: usize) -> Source {
        match &self.codebook {
            Codebook::Bits(_) => Source { head: 1, start: 0, rows: 0 },
            Codebook::Table { .. } => {
                let from = self.first_row(token);
                Source::rows(from..from + self.config.vocab_size)
            }
        }
    }

    /// The code of the n-th token of a picture, from the token that was drawn.
    pub fn code(&self, token: usize, drawn: Token) -> Token {
        drawn - self.source(token).start
    }

    /// Hidden states [pictures, tokens, dim] that each token of whole pictures is predicted from: the condition's last,
    /// then those of the tokens `before`.
    fn train_hidden(
        &self,
        condition: &Condition,
        drop: &[bool],
        before: &[Token],
        mut noise: Option<&mut Dropout>,
    ) -> Result<Tensor> {
        let n = condition.len();
        let mut tokens = self.embed(before, n, 0)?;
        if let Some(noise) = &mut noise {
            tokens = noise.tokens(&tokens)?;
        }
        let per = tokens.dim(1)? + 1;
        let x = Tensor::cat(&[&self.condition(condition, drop)?, &tokens], 1)?;
        let hidden = self.hidden(&x, &condition.pads(), noise)?;
        Ok(hidden.narrow(1, self.config.cls_token_num - 1, per)?.contiguous()?)
    }

    /// Logits [pictures, tokens, vocabulary] of each token of whole pictures, from the condition and the tokens before.
    pub fn train_logits(&self, condition: &Condition, drop: &[bool], tokens: &[Token]) -> Result<Tensor> {
        let Codebook::Table { output, .. } = &self.codebook else {
            return Err(Error::invalid("a model with a bitwise head has no logits over a table of tokens"));
        };
        let hidden = self.train_hidden(condition, drop, &all_but_last(tokens, condition.len()), None)?;
        self.logits(&hidden, output, self.config.cls_token_num - 1)
    }

    /// Mean over tokens of the cross-entropy of whole pictures' `targets`, in nats, read after `seen`: the same tokens, or
    /// the same with some bits flipped, so that a drawing learns to go on from its own mistakes.
    pub fn train_loss(
        &self,
        condition: &Condition,
        drop: &[bool],
        seen: &[Token],
        targets: &[Token],
        noise: Option<&mut Dropout>,
    ) -> Result<Tensor> {
        let n = condition.len();
        if n == 0 || seen.len() != targets.len() || !targets.len().is_multiple_of(n) {
            let (seen, targets) = (seen.len(), targets.len());
            return Err(Error::invalid(format!("{seen} tokens seen and {targets} to learn, of {n} pictures")));
        }
        let hidden = self.train_hidden(condition, drop, &all_but_last(seen, n), noise)?;
        match &self.codebook {
            Codebook::Bits(head) => head.loss(&hidden.flatten_to(1)?, targets),
            Codebook::Table { output, .. } => {
                let per = hidden.dim(1)?;
                let mut sum = None;
                for (positions, logits) in self.by_table(&hidden, output, self.config.cls_token_num - 1)? {
                    let of = |picture: &[Token]| positions.iter().map(|&i| picture[i as usize]).collect::<Vec<_>>();
                    let wanted: Vec<Token> = targets.chunks(per).flat_map(of).collect();
                    let losses = ops::cross_entropy(&logits.flatten_to(1)?, &table_rows(&wanted)?)?;
                    ops::add_term(&mut sum, losses.sum_all()?)?;
                }
                let sum = sum.ok_or_else(|| Error::invalid("no tokens to learn"))?;
                Ok((sum / targets.len() as f64)?)
            }
        }
    }
}

impl Model for LlamaGen {
    fn trunk(&self) -> &Trunk {
        &self.trunk
    }
    fn embed(&self, _head: u8, tokens: &[Token]) -> Result<Tensor> {
        match &self.codebook {
            Codebook::Bits(head) => head.embed(tokens),
            Codebook::Table { tokens: table, .. } => table.rows(&table_rows(tokens)?),
        }
    }
    fn next(&self, source: Source, hidden: &Tensor, choose: &mut Choose) -> Result<Vec<Token>> {
        match &self.codebook {
            Codebook::Bits(head) => head.draw(hidden, choose),
            Codebook::Table { output, .. } => {
                let from = source.start as usize;
                let chosen = choose(&output.product(hidden, from..from + source.rows as usize)?)?;
                Ok(chosen.into_iter().map(|i| source.start + Token::from(i)).collect())
            }
        }
    }
}

/// The tokens of each picture without its last.
fn all_but_last(tokens: &[Token], pictures: usize) -> Vec<Token> {
    let per = (tokens.len() / pictures.max(1)).max(1);
    tokens.chunks(per).flat_map(|t| t[..t.len() - 1].iter().copied()).collect()
}

impl Condition {
    /// Hidden positions at the start of each.
    pub fn pads(&self) -> Vec<usize> {
        match self {
            Self::Classes(c) => vec![0; c.len()],
            Self::Captions(_, pads) => pads.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use std::collections::HashMap;

    fn near(a: &Tensor, b: &Tensor) {
        let off = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(off < 1e-5, "off by {off}");
    }

    /// A position speaks of the table of the token after it, whole or one by one through the cache.
    #[test]
    fn sub_tokens_have_tables_of_their_own() {
        let config = LlamaGenConfig {
            dim: 16,
            n_layer: 1,
            n_head: 2,
            multiple_of: 8,
            vocab_size: 6,
            block_size: 8,
            sub_tokens: 2,
            num_classes: 3,
            ..LlamaGenConfig::default()
        };
        let params = Params::for_training(HashMap::new(), &[], 9, DType::F32, &Device::Cpu);
        let model = LlamaGen::new(&params, &config).unwrap();
        let output = Tensor::randn(0f32, 1.0, (12, 16), &Device::Cpu).unwrap();
        let model =
            model.with_tables(params.vars()["tok_embeddings.weight"].as_tensor().clone(), output.clone()).unwrap();
        let (n, per) = (2, 8);
        let tokens: Vec<Token> = (0..n * per).map(|i| (i * 5 % 6) as Token).collect();
        let (classes, keep) = (Condition::Classes(vec![2, 0]), [false, true]);
        let logits = model.train_logits(&classes, &keep, &tokens).unwrap();
        let hidden = model.train_hidden(&classes, &keep, &all_but_last(&tokens, n), None).unwrap();
        for i in 0..per {
            let table = output.narrow(0, i % 2 * 6, 6).unwrap();
            let want = hidden.get_on_dim(1, i).unwrap().matmul(&table.t().unwrap()).unwrap();
            near(&logits.get_on_dim(1, i).unwrap(), &want);
        }
        let loss = model.train_loss(&classes, &keep, &tokens, &tokens, None).unwrap();
        let want = ops::cross_entropy(&logits.flatten_to(1).unwrap(), &table_rows(&tokens).unwrap())
            .unwrap()
            .mean_all()
            .unwrap();
        near(&loss, &want);
        let mut slots = [model.trunk.slot(), model.trunk.slot()];
        for i in 0..per {
            let x = match i {
                0 => model.condition(&classes, &keep).unwrap(),
                _ => model.embed(&[tokens[i - 1], tokens[per + i - 1]], n, i - 1).unwrap(),
            };
            let parts = slots.iter_mut().map(|s| (s, 1)).collect();
            let hidden = model.trunk.step(&x.squeeze(1).unwrap(), vec![i as u32; 2], parts).unwrap();
            let mut one = None;
            model
                .next(model.source(i), &hidden, &mut |l| {
                    one = Some(l.clone());
                    Ok(vec![0; 2])
                })
                .unwrap();
            near(&one.unwrap(), &logits.get_on_dim(1, i).unwrap());
        }
        assert!(model.train_loss(&classes, &keep, &tokens[..8], &tokens, None).is_err());
        assert!(model.train_loss(&classes, &keep, &tokens[..15], &tokens[..15], None).is_err());
    }
}
