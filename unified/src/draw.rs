//! Drawing: guided sampling of visual tokens on a conversation's cache, and the choice among several drawings.

use crate::config::Generation;
use crate::conversation::Message;
use crate::grammar::{Next, State};
use crate::runner::Unified;
use crate::{Error, Result};
use candle_core::Tensor;
use lm::{Decoding, Sampler};

/// A drawn picture.
#[derive(Debug, Clone, Default)]
pub(crate) struct Drawn {
    /// Its tokens; the last of them is not read yet.
    pub tokens: Vec<u32>,
    /// Its codes.
    pub codes: Vec<u64>,
}

impl Unified {
    /// The context of guidance's other half: the same request with its words left out.
    fn unconditional(&self) -> Result<Vec<u32>> {
        self.words.encode(&format!("{}{}", self.config.marks.user, self.config.marks.assistant))
    }

    /// Whether pictures and words can be sampled so.
    pub(crate) fn check(&self, g: &Generation) -> Result<()> {
        g.text.check()?;
        g.image.check()?;
        match (g.best_of, &self.config.self_check) {
            (0, _) => Err(Error::invalid("best_of 0: draw at least one")),
            (1, _) | (_, Some(_)) => Ok(()),
            (n, None) => Err(Error::invalid(format!(
                "best_of {n}: this model did not learn to judge its drawings (no `self_check` in config.json); use 1"
            ))),
        }
    }

    /// Draws one picture for each context (which ends with the begin-image mark), all in one batch. `on_row` sees the
    /// tokens of every drawing as far as they are, after each row, and may stop, which then returns nothing.
    pub fn draw_images(
        &self,
        contexts: &[Vec<u32>],
        seeds: &[u64],
        g: &Generation,
        on_row: &mut dyn FnMut(&[Vec<u32>]) -> bool,
    ) -> Result<Vec<Vec<u64>>> {
        self.check(g)?;
        let (mut decoding, hidden) = Decoding::start(&self.model, contexts)?;
        let drawn = self.draw_best(&mut decoding, hidden, seeds, g, on_row)?;
        Ok(drawn.into_iter().map(|d| d.codes).collect())
    }

    /// Draws one picture for each row of a decoding whose last token is the begin-image mark: the best of
    /// `g.best_of`, by the model's own judgement. The decoding is left as after [`Self::draw_on`].
    pub(crate) fn draw_best(
        &self,
        decoding: &mut Decoding,
        hidden: Tensor,
        seeds: &[u64],
        g: &Generation,
        on_row: &mut dyn FnMut(&[Vec<u32>]) -> bool,
    ) -> Result<Vec<Drawn>> {
        let (n, tries) = (seeds.len(), g.best_of);
        if tries == 1 {
            return self.draw_on(decoding, hidden, seeds, g, on_row);
        }
        let rows: Vec<usize> = (0..n * tries).map(|i| i / tries).collect();
        decoding.select(&rows)?;
        let each = rows.iter().map(|&r| r as u32).collect::<Vec<_>>();
        let hidden = hidden.index_select(&Tensor::new(each, hidden.device())?, 0)?;
        let seeds: Vec<u64> = (0..n * tries).map(|i| try_seed(seeds[i / tries], i % tries)).collect();
        let mut drawn = self.draw_on(decoding, hidden, &seeds, g, on_row)?;
        if drawn.is_empty() {
            return Ok(drawn);
        }
        let scores = self.judge(decoding.clone(), &drawn)?;
        let best: Vec<usize> =
            (0..n).map(|i| i * tries + lm::sample::argmax(&scores[i * tries..(i + 1) * tries])).collect();
        decoding.select(&best)?;
        Ok(best.into_iter().map(|i| std::mem::take(&mut drawn[i])).collect())
    }

    /// How sure the model is of each drawing in its place in the conversation: it is asked the question that it was
    /// trained on, and says yes or no (log-odds of yes, as VQAScore, Lin et al. 2024, of its own pictures). All zero where
    /// the window has no room for the question.
    fn judge(&self, mut decoding: Decoding, drawn: &[Drawn]) -> Result<Vec<f32>> {
        let (v, m) = (&self.config.vocabulary, &self.config.marks);
        let question = self.config.self_check.as_deref().unwrap_or_default();
        let ask = self.words.encode(&format!("{}{}{question}{}", m.end, m.user, m.assistant))?;
        let first = |word: &str| -> Result<usize> {
            let ids = self.words.encode(word)?;
            ids.first().map(|&id| id as usize).ok_or_else(|| Error::invalid(format!("no tokens for `{word}`")))
        };
        let (yes, no) = (first("yes")?, first("no")?);
        if decoding.len() + 2 + ask.len() > self.model.max_positions() {
            return Ok(vec![0.0; drawn.len()]);
        }
        let row = |d: &Drawn| {
            let last = d.tokens.last().copied();
            last.into_iter().chain([v.end_image]).chain(ask.iter().copied()).collect::<Vec<u32>>()
        };
        let hidden = decoding.advance(&drawn.iter().flat_map(row).collect::<Vec<_>>())?;
        let logits = self.rows(&hidden, v.range(lm::Partition::Text).start..yes.max(no) + 1)?;
        Ok(logits.iter().map(|row| row[yes] - row[no]).collect())
    }

    /// Draws one picture for each row of a decoding whose last token is the begin-image mark: its tokens, the last of
    /// which is not read yet, and its codes. Guidance's unconditional halves have a short cache of their own, which joins
    /// the batch while the picture is drawn, so that a long conversation is read once.
    fn draw_on(
        &self,
        decoding: &mut Decoding,
        mut hidden: Tensor,
        seeds: &[u64],
        g: &Generation,
        on_row: &mut dyn FnMut(&[Vec<u32>]) -> bool,
    ) -> Result<Vec<Drawn>> {
        let v = &self.config.vocabulary;
        let n = seeds.len();
        let guided = g.guidance_scale != 1.0;
        if guided {
            let mut other = self.unconditional()?;
            other.push(v.begin_image);
            let (other, other_hidden) = Decoding::start(&self.model, &vec![other; n])?;
            decoding.join(&other)?;
            hidden = Tensor::cat(&[hidden, other_hidden], 0)?;
        }
        let mut samplers: Vec<Sampler> = seeds.iter().map(|&s| Sampler::new(s, 1)).collect();
        let mut tokens = vec![Vec::new(); n];
        let mut state = State::Image(0);
        while let Next::Visual(partition) = state.next(v) {
            let range = v.range(partition);
            let logits = self.rows(&hidden, range.clone())?;
            let mut next = Vec::with_capacity(logits.len());
            for (i, sampler) in samplers.iter_mut().enumerate() {
                let row = if guided {
                    let mix = |(c, u): (&f32, &f32)| u + g.guidance_scale * (c - u);
                    logits[i].iter().zip(&logits[n + i]).map(mix).collect()
                } else {
                    logits[i].clone()
                };
                let id = (range.start + sampler.sample(&row, &[], &g.image)) as u32;
                tokens[i].push(id);
                next.push(id);
            }
            if guided {
                next.extend_from_within(..);
            }
            state = next.first().and_then(|&t| state.after(v, t)).ok_or_else(|| Error::invalid("nothing to draw"))?;
            let per_row = v.grid * v.groups();
            if tokens[0].len().is_multiple_of(per_row) && !on_row(&tokens) {
                return Ok(Vec::new());
            }
            if state != State::Image(v.tokens_per_image()) {
                hidden = decoding.advance(&next)?;
            }
        }
        decoding.select(&(0..n).collect::<Vec<_>>())?;
        tokens.into_iter().map(|tokens| v.to_codes(&tokens).map(|codes| Drawn { tokens, codes })).collect()
    }

    /// The context in which the model draws `words`.
    pub fn drawing_context(&self, words: &str) -> Result<Vec<u32>> {
        let mut ids = self.context(&[Message::user(format!("draw {words}"))])?;
        ids.push(self.config.vocabulary.begin_image);
        Ok(ids)
    }
}

/// The seed of the n-th picture of an answer.
pub(crate) fn picture_seed(seed: u64, n: usize) -> u64 {
    if n == 0 { seed } else { nn::rng::mix(seed ^ n as u64) }
}

/// The seed of a picture's n-th drawing.
fn try_seed(seed: u64, n: usize) -> u64 {
    if n == 0 { seed } else { nn::rng::mix(nn::rng::mix(seed) ^ n as u64) }
}
