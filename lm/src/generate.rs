//! The likeliest continuation of several contexts at once.

use crate::engine::{Context, Finish, Model, Next, Request, Shared, Source};
use crate::sample::SampleSettings;
use crate::vocab::Token;
use nn::Result;
use std::sync::Arc;

/// `count` tokens after each context, each the likeliest among the rows of `source`.
pub fn likeliest(
    model: Arc<dyn Model>,
    contexts: Vec<Context>,
    source: Source,
    count: usize,
) -> Result<Vec<Vec<Token>>> {
    let request = |context| {
        let grammar = Box::new(move |tokens: &[Token]| match tokens.len() < count {
            true => Next::Choose(source),
            false => Next::Done(Finish::Length),
        });
        let mut request = Request::new(context, SampleSettings::greedy(), (0, 0), grammar);
        request.share = false;
        request
    };
    let requests = contexts.into_iter().map(request).collect();
    let done = Shared::new(model).run(requests, &mut |_, _, _| true)?;
    Ok(done.into_iter().map(|d| d.tokens).collect())
}
