//! What may come next: after a begin-image mark exactly N visual tokens, then the end-image mark; text anywhere else.

use lm::{MergedVocab, Partition};

/// Where a sequence stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Among text.
    Text,
    /// Inside a picture, after this many visual tokens.
    Image(usize),
}

/// What the next token is drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The text rows; the end-image mark is not among them.
    Text,
    /// The rows of one sub-token.
    Visual(Partition),
    /// This token and no other.
    Only(u32),
}

impl State {
    /// What may follow.
    pub fn next(self, vocab: &MergedVocab) -> Next {
        match self {
            Self::Text => Next::Text,
            Self::Image(n) if n < vocab.tokens_per_image() => Next::Visual(vocab.visual(n)),
            Self::Image(_) => Next::Only(vocab.end_image),
        }
    }

    /// The state after a token, or `None` where the token may not stand.
    pub fn after(self, vocab: &MergedVocab, token: u32) -> Option<Self> {
        match self.next(vocab) {
            Next::Text if token == vocab.begin_image => Some(Self::Image(0)),
            Next::Text => ((token as usize) < vocab.text && token != vocab.end_image).then_some(Self::Text),
            Next::Visual(p) => match self {
                Self::Image(n) if vocab.range(p).contains(&(token as usize)) => Some(Self::Image(n + 1)),
                _ => None,
            },
            Next::Only(t) => (t == token).then_some(Self::Text),
        }
    }

    /// The state after a whole sequence that starts among text, or the place of its first wrong token.
    pub fn read(vocab: &MergedVocab, ids: &[u32]) -> Result<Self, usize> {
        ids.iter().enumerate().try_fold(Self::Text, |s, (i, &t)| s.after(vocab, t).ok_or(i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vocab() -> MergedVocab {
        MergedVocab {
            text: 10,
            bits: 4,
            group_bits: 2,
            shared_table: false,
            bitwise: None,
            grid: 2,
            begin_image: 2,
            end_image: 3,
        }
    }

    proptest! {
        /// Whatever is drawn, a sequence that follows `next` is accepted, and pictures in it decode.
        #[test]
        fn drawn_sequences_are_well_formed(draws in prop::collection::vec(any::<u32>(), 0..200)) {
            let v = vocab();
            let (mut state, mut ids) = (State::Text, Vec::new());
            for d in draws {
                let token = match state.next(&v) {
                    Next::Text => loop_until(d % 10, v.end_image),
                    Next::Visual(p) => v.range(p).start as u32 + d % 4,
                    Next::Only(t) => t,
                };
                state = state.after(&v, token).expect("an allowed token");
                ids.push(token);
            }
            prop_assert_eq!(State::read(&v, &ids), Ok(state));
            for part in ids.split(|&t| t == v.begin_image).skip(1) {
                if let Some(end) = part.iter().position(|&t| t == v.end_image) {
                    prop_assert!(v.to_codes(&part[..end]).is_ok());
                }
            }
        }

        /// A sequence with one token replaced by one of another kind is refused at that token.
        #[test]
        fn a_wrong_token_is_found(at in 0usize..10, token in 0u32..18) {
            let v = vocab();
            let mut ids = vec![2];
            ids.extend(v.to_tokens(&[1, 2, 3, 4]));
            ids.push(3);
            let right = std::mem::replace(&mut ids[at], token);
            let kind = |t: u32| (0..2).find(|&s| v.range(Partition::Visual(s)).contains(&(t as usize)));
            let same = token == right || (kind(token).is_some() && kind(token) == kind(right));
            match State::read(&v, &ids) {
                Ok(_) => prop_assert!(same || at == 0),
                Err(i) => prop_assert!(!same && (i == at || at == 0)),
            }
        }
    }

    fn loop_until(t: u32, not: u32) -> u32 {
        if t == not { 0 } else { t }
    }
}
