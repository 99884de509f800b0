//! Interleaved sequences: text and pictures in order, with what is learned from marked.

use crate::{Error, Result};
use lm::loss::Targets;
use lm::{MergedVocab, Token};
use nn::ops::{Mask, Positions};

/// A part of a sequence, as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Text tokens, marks among them.
    Text(Vec<Token>),
    /// The codes of one picture; its marks are added.
    Image(Vec<u64>),
}

/// Token ids, and for each whether predicting it is learned.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// Ids in the merged vocabulary.
    pub ids: Vec<Token>,
    /// Whether the token is a target.
    pub learn: Vec<bool>,
    /// Sub-token of a visual token; nothing for text.
    pub visual: Vec<Option<usize>>,
    /// What each of its targets counts in the loss.
    pub weight: f32,
}

impl Default for Sequence {
    fn default() -> Self {
        Self { ids: Vec::new(), learn: Vec::new(), visual: Vec::new(), weight: 1.0 }
    }
}

impl Sequence {
    /// Appends a segment.
    pub fn push(&mut self, vocab: &MergedVocab, segment: &Segment, learn: bool) {
        match segment {
            Segment::Text(ids) => self.push_text(ids, learn),
            Segment::Image(codes) => {
                self.push_text(&[vocab.begin_image], learn);
                let tokens = vocab.to_tokens(codes);
                self.visual.extend((0..tokens.len()).map(|i| Some(i % vocab.groups())));
                self.ids.extend(tokens);
                self.learn.resize(self.ids.len(), learn);
                self.push_text(&[vocab.end_image], learn);
            }
        }
    }

    /// Keeps at most `length` tokens; a picture that would be cut goes as a whole.
    pub fn cut(&mut self, vocab: &MergedVocab, length: usize) {
        if self.ids.len() <= length {
            return;
        }
        let mut end = length;
        if self.visual[end].is_some() || self.ids[end] == vocab.end_image {
            while end > 0 && self.ids[end] != vocab.begin_image {
                end -= 1;
            }
        }
        self.truncate(end);
    }

    /// Keeps the first `length` tokens.
    pub fn truncate(&mut self, length: usize) {
        self.ids.truncate(length);
        self.learn.truncate(length);
        self.visual.truncate(length);
    }

    /// Appends text tokens.
    pub fn push_text(&mut self, ids: &[Token], learn: bool) {
        self.ids.extend(ids);
        self.learn.resize(self.ids.len(), learn);
        self.visual.resize(self.ids.len(), None);
    }
}

/// Sequences laid end to end in rows of equal length.
#[derive(Debug, Clone)]
pub struct Packed {
    /// Ids, rows * length.
    pub ids: Vec<Token>,
    /// Rows.
    pub rows: usize,
    /// Which of the given sequences come in which order.
    pub order: Vec<usize>,
    /// What is to be predicted where.
    pub targets: Targets,
    /// Position of each token.
    pub positions: Positions,
    /// Causal within each sequence, or within each row.
    pub mask: Mask,
}

/// Packs sequences into rows of `length` tokens, first fit in order. A sequence longer than a row is an error. With
/// `isolated` (a block-diagonal mask) none sees its neighbour and positions start again; without, a row is one text.
pub fn pack(sequences: &[Sequence], length: usize, pad: Token, isolated: bool) -> Result<Packed> {
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut room: Vec<usize> = Vec::new();
    for (n, s) in sequences.iter().enumerate() {
        if s.ids.len() > length {
            return Err(Error::invalid(format!(
                "a sequence of {} tokens does not fit a row of {length}; raise sequence_length",
                s.ids.len()
            )));
        }
        let at = room.iter().position(|&r| r >= s.ids.len()).unwrap_or_else(|| {
            rows.push(Vec::new());
            room.push(length);
            rows.len() - 1
        });
        room[at] -= s.ids.len();
        rows[at].push(n);
    }
    let n = rows.len() * length;
    let mut ids = Vec::with_capacity(n);
    let (mut positions, mut first) = (Vec::with_capacity(n), Vec::with_capacity(n));
    let mut targets = Targets::default();
    if sequences.iter().any(|s| s.weight != 1.0) {
        targets.weights = vec![1.0; n];
    }
    for (r, row) in rows.iter().enumerate() {
        let mut start = 0;
        for s in row.iter().map(|&n| &sequences[n]) {
            for (i, &id) in s.ids.iter().enumerate() {
                if (i > 0 || (start > 0 && !isolated)) && s.learn[i] {
                    let from = (r * length + start + i - 1) as u32;
                    if let Some(weight) = targets.weights.get_mut(from as usize) {
                        *weight = s.weight;
                    }
                    match s.visual[i] {
                        Some(sub) => targets.visual.push((from, id, sub)),
                        None => targets.text.push((from, id)),
                    }
                }
                ids.push(id);
                positions.push(if isolated { i } else { start + i } as u32);
                first.push(if isolated { start as u32 } else { 0 });
            }
            start += s.ids.len();
        }
        // padding: each token alone
        for t in start..length {
            ids.push(pad);
            positions.push(0);
            first.push(t as u32);
        }
    }
    Ok(Packed {
        ids,
        rows: rows.len(),
        order: rows.concat(),
        targets,
        positions: Positions::Each(positions.into()),
        mask: Mask::CausalFrom(first.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocab() -> MergedVocab {
        MergedVocab {
            text: 10,
            bits: 4,
            group_bits: 2,
            shared_table: false,
            bitwise: None,
            cell_positions: false,
            grid: 1,
            begin_image: 2,
            end_image: 3,
        }
    }

    #[test]
    fn packing_restarts_positions_and_hides_neighbours() {
        let v = vocab();
        let mut a = Sequence::default();
        a.push(&v, &Segment::Text(vec![5, 6]), false);
        a.push(&v, &Segment::Image(vec![0b0110]), true);
        assert_eq!(a.ids, [5, 6, 2, 11, 16, 3]);
        let mut b = Sequence::default();
        b.push(&v, &Segment::Text(vec![7, 8]), true);
        let p = pack(&[a.clone(), b.clone(), a.clone()], 9, 0, true).unwrap();
        assert_eq!(p.rows, 2);
        assert_eq!(p.ids, [5, 6, 2, 11, 16, 3, 7, 8, 0, 5, 6, 2, 11, 16, 3, 0, 0, 0]);
        let (Positions::Each(at), Mask::CausalFrom(first)) = (&p.positions, &p.mask) else { panic!("listed") };
        assert_eq!(at[..9], [0, 1, 2, 3, 4, 5, 0, 1, 0]);
        assert_eq!(first[..9], [0, 0, 0, 0, 0, 0, 6, 6, 8]);
        assert_eq!(p.targets.text, [(1, 2), (4, 3), (6, 8), (10, 2), (13, 3)]);
        assert_eq!(p.targets.visual, [(2, 11, 0), (3, 16, 1), (11, 11, 0), (12, 16, 1)]);
        let joined = pack(&[a.clone(), b.clone()], 9, 0, false).unwrap();
        let (Positions::Each(at), Mask::CausalFrom(first)) = (&joined.positions, &joined.mask) else {
            panic!("listed")
        };
        assert_eq!((&at[..9], &first[..9]), (&[0, 1, 2, 3, 4, 5, 6, 7, 0][..], &[0, 0, 0, 0, 0, 0, 0, 0, 8][..]));
        // a sequence's weight is that of all its targets; where every one counts alike none is written
        assert!(p.targets.weights.is_empty());
        let light = Sequence { weight: 0.1, ..b.clone() };
        let p = pack(&[a.clone(), light], 9, 0, true).unwrap();
        let weight = |row: u32| p.targets.weights[row as usize];
        assert_eq!(
            (p.targets.text.iter().map(|t| weight(t.0)).collect::<Vec<_>>(), weight(2)),
            (vec![1.0, 1.0, 0.1], 1.0)
        );
        // a cut leaves whole pictures
        for (length, want) in [(6, 6), (5, 2), (4, 2), (3, 2), (2, 2), (1, 1)] {
            let mut s = a.clone();
            s.cut(&v, length);
            assert_eq!(s.ids.len(), want, "{length}");
            assert_eq!((s.learn.len(), s.visual.len()), (want, want));
        }
        let mut long = Sequence::default();
        long.push_text(&[0; 10], false);
        assert!(pack(&[long], 9, 0, true).is_err());
    }
}
