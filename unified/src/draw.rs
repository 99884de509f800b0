//! Drawing: guided sampling of visual tokens on a conversation's cache, and the choice among several drawings.

use crate::config::Generation;
use crate::conversation::Message;
use crate::runner::Unified;
use crate::template::Marks;
use crate::words::Words;
use crate::{Error, Result};
use lm::draw::pictures;
use lm::engine::{Finish, Next, Request, in_turn};
use lm::{Context, MergedVocab, Part, SampleSettings, Source, Token};
use nn::cache::Slot;

/// A drawn picture.
#[derive(Debug, Clone)]
pub(crate) struct Drawn {
    /// Its tokens; the last of them is not read yet.
    pub tokens: Vec<Token>,
    /// Its codes.
    pub codes: Vec<u64>,
    /// What was read.
    pub slot: Slot,
}

impl Unified {
    /// Whether pictures and words can be sampled so.
    pub(crate) fn check(&self, g: &Generation) -> Result<()> {
        g.text.check()?;
        g.drawing().check()?;
        match (g.best_of, &self.config.self_check) {
            (0, _) => Err(Error::invalid("best_of 0: draw at least one")),
            (1, _) | (_, Some(_)) => Ok(()),
            (n, None) => Err(Error::invalid(format!(
                "best_of {n}: this model did not learn to judge its drawings (no `self_check` in config.json); use 1"
            ))),
        }
    }

    /// A picture that is wanted after a context whose tokens, read before or not, are `ids`.
    pub(crate) fn wish(&self, context: Context, ids: &[Token], g: &Generation) -> Result<Wish> {
        Wish::new(&self.config.vocabulary, &self.words, &self.config.marks, context, ids, g)
    }

    /// Draws one picture for each context (which ends with the begin-image mark), all in one batch. `on_row` sees the
    /// tokens of every drawing as far as they are, after each row, and may stop, which then returns nothing.
    pub fn draw_images(
        &self,
        contexts: &[Vec<Token>],
        seeds: &[u64],
        g: &Generation,
        on_row: &mut dyn FnMut(&[Vec<Token>]) -> bool,
    ) -> Result<Vec<Vec<u64>>> {
        self.check(g)?;
        if contexts.len() != seeds.len() {
            return Err(Error::invalid(format!("{} seeds for {} pictures", seeds.len(), contexts.len())));
        }
        let begin = self.config.vocabulary.begin_image;
        if contexts.iter().any(|c| c.last() != Some(&begin)) {
            return Err(Error::invalid("a context of a drawing ends with the begin-image mark"));
        }
        let wish = |c: &Vec<Token>| self.wish(Context::new(vec![Part::tokens(c.clone())]), c, g);
        let drawn = self.draw_best(contexts.iter().map(wish).collect::<Result<_>>()?, seeds, g, on_row)?;
        Ok(drawn.into_iter().map(|d| d.codes).collect())
    }

    /// Draws one picture after each context (whose last token is the begin-image mark): the best of `g.best_of`, by the
    /// model's own judgement.
    pub(crate) fn draw_best(
        &self,
        wishes: Vec<Wish>,
        seeds: &[u64],
        g: &Generation,
        on_row: &mut dyn FnMut(&[Vec<Token>]) -> bool,
    ) -> Result<Vec<Drawn>> {
        let tries = g.best_of;
        let seeds: Vec<u64> = seeds.iter().flat_map(|&s| (0..tries).map(move |t| try_seed(s, t))).collect();
        let wishes = wishes.into_iter().flat_map(|w| std::iter::repeat_n(w, tries)).collect();
        // of several drawings the first is shown while they come
        let mut first = |all: &[Vec<Token>]| match tries {
            1 => on_row(all),
            _ => on_row(&all.iter().step_by(tries).cloned().collect::<Vec<_>>()),
        };
        let drawn = self.draw_on(wishes, &seeds, g, &mut first)?;
        if tries == 1 || drawn.is_empty() {
            return Ok(drawn);
        }
        let scores = self.judge(&drawn)?;
        let best = |i: usize| i * tries + lm::sample::argmax(&scores[i * tries..(i + 1) * tries]);
        Ok((0..drawn.len() / tries).map(|i| drawn[best(i)].clone()).collect())
    }

    /// How sure the model is of each drawing in its place in the conversation: it is asked the question that it was
    /// trained on, and says yes or no (log-odds of yes, as VQAScore, Lin et al. 2024, of its own pictures). All zero where
    /// the window has no room for the question.
    fn judge(&self, drawn: &[Drawn]) -> Result<Vec<f32>> {
        let (v, m) = (&self.config.vocabulary, &self.config.marks);
        let question = self.config.self_check.as_deref().unwrap_or_default();
        let ask = self.words.encode(&format!("{}{}{question}{}", m.end, m.user, m.assistant))?;
        let first = |word: &str| -> Result<Token> {
            let ids = self.words.encode(word)?;
            ids.first().copied().ok_or_else(|| Error::invalid(format!("no tokens for `{word}`")))
        };
        let (yes, no) = (first("yes")?, first("no")?);
        let longest = drawn.iter().map(|d| d.slot.len()).max().unwrap_or(0);
        if longest + 2 + ask.len() > self.model.max_positions() {
            return Ok(vec![0.0; drawn.len()]);
        }
        let rows = Source::rows(v.range(lm::Partition::Text).start..yes.max(no) as usize + 1);
        let asked = |d: &Drawn| {
            let last = d.tokens.last().copied();
            let ids: Vec<Token> = last.into_iter().chain([v.end_image]).chain(ask.iter().copied()).collect();
            let grammar = Box::new(move |t: &[Token]| match t.is_empty() {
                true => Next::Choose(rows),
                false => Next::Done(Finish::Stop),
            });
            let context = Context::after(d.slot.clone(), vec![Part::tokens(ids)]);
            let mut r = Request::new(context, SampleSettings::greedy(), (0, 0), grammar);
            r.logprobs = Some(rows.rows as usize);
            r
        };
        let mut scores = vec![0.0; drawn.len()];
        self.engine.run(drawn.iter().map(asked).collect(), &mut |i, _, logprob| {
            let of = |token: Token| {
                let top = logprob.iter().flat_map(|l| &l.top);
                top.clone().find(|t| t.0 == token).map_or(f32::NEG_INFINITY, |t| t.1)
            };
            scores[i] = of(yes) - of(no);
            true
        })?;
        Ok(scores)
    }

    /// Draws one picture after each context: its tokens, the last of which is not read yet, and its codes. Guidance's
    /// unconditional half is a short context of its own, so that a long conversation is read once.
    fn draw_on(
        &self,
        wishes: Vec<Wish>,
        seeds: &[u64],
        g: &Generation,
        on_row: &mut dyn FnMut(&[Vec<Token>]) -> bool,
    ) -> Result<Vec<Drawn>> {
        let v = &self.config.vocabulary;
        let requests = drawing(v, wishes, seeds, g);
        let done = pictures(&self.engine, requests, v.grid * v.groups(), &|_, token| token, on_row)?;
        done.into_iter()
            .map(|d| v.to_codes(&d.tokens).map(|codes| Drawn { tokens: d.tokens, codes, slot: d.slot }))
            .collect()
    }

    /// The context in which the model draws `words`.
    pub fn drawing_context(&self, words: &str) -> Result<Vec<Token>> {
        self.context_to_draw(&[Message::user(format!("draw {words}"))])
    }

    /// The context of a picture that answers a conversation.
    pub fn context_to_draw(&self, messages: &[Message]) -> Result<Vec<Token>> {
        let mut ids = self.context(messages)?;
        ids.push(self.config.vocabulary.begin_image);
        Ok(ids)
    }
}

/// A picture that is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// Up to the begin-image mark.
    context: Context,
    /// Guidance's other half, likewise.
    wordless: Vec<Token>,
    /// Whether the conversation shows a picture already.
    after_picture: bool,
}

impl Wish {
    /// A picture after a context whose tokens, read before or not, are `ids`.
    pub fn new(
        v: &MergedVocab,
        words: &Words,
        marks: &Marks,
        context: Context,
        ids: &[Token],
        g: &Generation,
    ) -> Result<Self> {
        let wordless = wordless(v, words, marks, ids, g)?;
        Ok(Self { context, wordless, after_picture: ids.contains(&v.end_image) })
    }
}

/// Requests for pictures.
pub(crate) fn drawing(v: &MergedVocab, wishes: Vec<Wish>, seeds: &[u64], g: &Generation) -> Vec<Request> {
    let sources: Vec<Source> = (0..v.tokens_per_image()).map(|n| v.visual_source(n)).collect();
    let choices = v.bitwise.map_or(1, |b| b.groups());
    let one = |(wish, &seed): (Wish, &u64)| {
        let mut s = g.drawing();
        if let Some(after) = s.after_picture.filter(|_| wish.after_picture) {
            (s.guidance_scale, s.guidance_uncertain) = (after.guidance_scale, after.guidance_uncertain);
        }
        let mut r = Request::new(wish.context, s.sample, (seed, 1), in_turn(sources.clone()));
        r.uncertain = s.uncertain(choices);
        if s.is_guided() {
            r = r.guided(Context::new(vec![Part::tokens(wish.wordless)]), move |_| Some(s.guidance_scale));
        }
        r
    };
    wishes.into_iter().zip(seeds).map(one).collect()
}

/// A request with its words left out, up to the begin-image mark; the last picture of `ids` stays where the model learned that.
fn wordless(v: &MergedVocab, words: &Words, marks: &Marks, ids: &[Token], g: &Generation) -> Result<Vec<Token>> {
    let last = ids.iter().rposition(|&t| t == v.end_image).filter(|_| g.guidance_keeps_picture).and_then(|end| {
        let begin = end.checked_sub(v.tokens_per_image() + 1)?;
        (ids[begin] == v.begin_image).then(|| &ids[begin..=end])
    });
    let (user, assistant) = (words.encode(&marks.user)?, words.encode(&marks.assistant)?);
    Ok([&user, last.unwrap_or_default(), &assistant, &[v.begin_image]].concat())
}

/// The seed of the n-th picture of an answer.
pub(crate) fn picture_seed(seed: u64, n: usize) -> u64 {
    if n == 0 { seed } else { nn::rng::mix(seed ^ n as u64) }
}

/// The seed of a picture's n-th drawing.
fn try_seed(seed: u64, n: usize) -> u64 {
    if n == 0 { seed } else { nn::rng::mix(nn::rng::mix(seed) ^ n as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Model;
    use crate::loaded::Loaded;
    use lm::draw::AfterPicture;

    #[test]
    fn the_last_picture_stays_in_guidances_other_half() {
        let loaded = Model::nano().unwrap().loaded().unwrap();
        let Loaded::Unified(m) = &*loaded else { panic!("the embedded model is a unified one") };
        let v = &m.config.vocabulary;
        let picture = |code: u64| {
            let mut ids = vec![v.begin_image];
            ids.extend(v.to_tokens(&vec![code; v.grid * v.grid]));
            ids.push(v.end_image);
            ids
        };
        let words = m.words().encode("make it red").unwrap();
        let ids = [picture(3), words.clone(), picture(5), words, vec![v.begin_image]].concat();
        let other = |keeps: bool, ids: &[Token]| {
            let g = Generation { guidance_keeps_picture: keeps, ..m.config.generation };
            m.wish(Context::new(Vec::new()), ids, &g).unwrap().wordless
        };
        let empty = other(false, &ids);
        let kept = other(true, &ids);
        assert!(kept.windows(picture(5).len()).any(|w| w == picture(5)) && !empty.contains(&v.end_image));
        assert_eq!(kept.len(), empty.len() + picture(5).len());
        assert_eq!(other(true, &[v.begin_image]), empty);
    }

    #[test]
    fn guidance_is_another_one_where_the_conversation_shows_a_picture() {
        let loaded = Model::nano().unwrap().loaded().unwrap();
        let Loaded::Unified(m) = &*loaded else { panic!("the embedded model is a unified one") };
        let v = &m.config.vocabulary;
        let mut ids = vec![v.begin_image];
        ids.extend(v.to_tokens(&vec![7; v.grid * v.grid]));
        ids.extend([v.end_image, v.begin_image]);
        let after = AfterPicture { guidance_scale: 1.0, guidance_uncertain: None };
        let g = Generation {
            guidance_scale: 3.0,
            guidance_uncertain: Some(5.0),
            temperature_uncertain: None,
            after_picture: Some(after),
            ..m.config.generation
        };
        let request = |ids: &[Token], g: &Generation| {
            let wish = m.wish(Context::new(vec![Part::tokens(ids.to_vec())]), ids, g).unwrap();
            drawing(v, vec![wish], &[0], g).remove(0)
        };
        let scales = |r: &Request| (r.peers.len(), r.uncertain.and_then(|u| u.scale));
        assert_eq!(scales(&request(&ids, &g)), (0, None));
        assert_eq!(scales(&request(&[v.begin_image], &g)), (1, Some(5.0)));
        assert_eq!(scales(&request(&ids, &Generation { after_picture: None, ..g })), (1, Some(5.0)));
        // what is asked for holds there, too
        let asked = g.drawn(&g.drawing().guided(Some(2.0)));
        assert_eq!(scales(&request(&ids, &asked)), (1, None));
    }
}
