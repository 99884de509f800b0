//! Words through the engine: what every family's answers are made of.

use crate::Result;
use crate::conversation::{Event, Reply, Request, TextStream};
use crate::words::Words;
use lm::Token;
use lm::engine::{self, Context, Done, Finish, LogProb, Next, Part, Shared, Source};

/// How a model's words are drawn.
pub(crate) struct Saying<'a> {
    pub engine: &'a Shared,
    pub words: &'a Words,
    /// Rows of its words.
    pub rows: Source,
    /// Tokens that never come.
    pub banned: Vec<Token>,
    /// Tokens that end the words; they come out of the engine and belong to no text.
    pub ends: Vec<Token>,
}

impl Saying<'_> {
    /// The engine's request for at most `most` tokens after a context.
    fn request(&self, context: Context, r: &Request, stream: u64, most: usize) -> engine::Request {
        let (rows, ends) = (self.rows, self.ends.clone());
        let grammar = Box::new(move |tokens: &[Token]| match tokens.last() {
            Some(t) if ends.contains(t) => Next::Done(Finish::Stop),
            _ if tokens.len() >= most => Next::Done(Finish::Length),
            _ => Next::Choose(rows),
        });
        let mut request = engine::Request::new(context, r.generation.text, (r.seed, stream), grammar);
        request.banned = self.banned.clone();
        request.logprobs = r.logprobs;
        request
    }

    /// Goes on from a text as it is, without a conversation around it.
    pub fn complete(
        &self,
        begin: Option<Token>,
        text: &str,
        r: &Request,
        on: &mut dyn FnMut(Event) -> bool,
    ) -> Result<Reply> {
        r.generation.text.check()?;
        let ids: Vec<Token> = begin.into_iter().chain(self.words.encode(&self.words.typed(text))?).collect();
        self.answer(vec![Part::tokens(ids)], r, on)
    }

    /// Answers a conversation with words; a later one that begins with it and the answer reads only what is new.
    pub fn answer(&self, mut parts: Vec<Part>, r: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        let mut reply = Reply { prompt_tokens: parts.iter().map(Part::len).sum(), ..Reply::default() };
        let mut stream = TextStream::new(self.words, &r.stop);
        // the penalty speaks of the prompt's words too, as transformers' does
        let seen = parts.iter().flat_map(Part::ids).copied().collect();
        let done = self.say(Context::new(parts.clone()), r, (0, seen), r.max_tokens, &mut stream, on)?;
        reply.tokens = done.tokens;
        if reply.tokens.last().is_some_and(|t| self.ends.contains(t)) {
            reply.tokens.pop();
        }
        // a stop word is an end, not somebody's change of mind
        let finish = if stream.is_stopped() { Finish::Stop } else { done.finish };
        (reply.finish, reply.reused_tokens) = (Some(finish), done.reused);
        stream.finish(&mut reply, on)?;
        parts.push(Part::tokens(reply.tokens.clone()));
        self.engine.remember(&parts, &done.slot);
        Ok(reply)
    }

    /// Words after a context, into a stream; tokens that were seen before count for the penalty.
    pub fn say(
        &self,
        context: Context,
        r: &Request,
        (stream_key, seen): (u64, Vec<Token>),
        most: usize,
        stream: &mut TextStream,
        on: &mut dyn FnMut(Event) -> bool,
    ) -> Result<Done> {
        let mut request = self.request(context, r, stream_key, most);
        request.seen = seen;
        let mut error = None;
        let mut take = |_: usize, id: Token, p: Option<LogProb>| {
            // an end that is an ordinary word is said, as transformers shows it; a mark says nothing
            if self.ends.contains(&id) && stream.is_silent(id) {
                return true;
            }
            if let Some(p) = p {
                stream.likely(id, p);
            }
            stream.push(id, on).unwrap_or_else(|e| {
                error = Some(e);
                false
            })
        };
        let done = self.engine.run(vec![request], &mut take)?.pop();
        match (error, done) {
            (Some(e), _) => Err(e),
            (None, Some(done)) => Ok(done),
            (None, None) => Err(crate::Error::invalid("no answer")),
        }
    }

    /// The likeliest words after each of several contexts, up to an end.
    pub fn likeliest(&self, contexts: Vec<Vec<Part>>, max_tokens: usize) -> Result<Vec<String>> {
        let r = Request::greedy(max_tokens);
        let requests = contexts.into_iter().map(|c| self.request(Context::new(c), &r, 0, max_tokens)).collect();
        let done = self.engine.run(requests, &mut |_, _, _| true)?;
        let words = |d: Done| -> Vec<Token> { d.tokens.into_iter().take_while(|t| !self.ends.contains(t)).collect() };
        done.into_iter().map(|d| self.words.decode(&words(d))).collect()
    }
}
