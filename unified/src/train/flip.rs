//! Bits that are flipped in what is read, never in what is to be drawn: a drawing learns to go on from its own mistakes
//! (bitwise self-correction; Infinity, arXiv 2412.04431, section 3.3).

use crate::sequence::Packed;
use crate::{Error, Result};
use lm::{MergedVocab, Token};
use nn::rng::{self, Rng};

/// Whether a share of flipped bits can be meant.
pub fn check(bit_flip: f64, bitwise: bool) -> Result<()> {
    if !(0.0..=0.5).contains(&bit_flip) || (bit_flip > 0.0 && !bitwise) {
        let why = "write a share from 0 to 0.5, with head = \"bits\"";
        return Err(Error::invalid(format!("bit_flip = {bit_flip}: {why}")));
    }
    Ok(())
}

/// Flips up to `most` of the bits of a picture's tokens at `places`, a share drawn for the picture; `first` is the token of code 0.
pub fn flip(ids: &mut [Token], places: impl Iterator<Item = usize>, first: Token, bits: usize, most: f64, r: &mut Rng) {
    let share = most * f64::from(rng::uniform(r));
    for place in places {
        let mut code = ids[place] - first;
        for bit in 0..bits {
            if f64::from(rng::uniform(r)) < share {
                code ^= 1 << bit;
            }
        }
        ids[place] = first + code;
    }
}

/// The same for every picture of packed rows that is to be drawn; what is only shown stays as it is.
pub fn flip_drawn(packed: &mut Packed, vocab: &MergedVocab, most: f64, r: &mut Rng) {
    let first = vocab.text as Token;
    for picture in packed.targets.visual.chunks(vocab.tokens_per_image()) {
        // a target is told from the place before it
        flip(&mut packed.ids, picture.iter().map(|t| t.0 as usize + 1), first, vocab.bits, most, r);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::{Segment, Sequence, pack};
    use lm::head::BitwiseConfig;

    #[test]
    fn drawn_pictures_are_read_with_flipped_bits_and_shown_ones_as_they_are() {
        let vocab = MergedVocab {
            text: 10,
            bits: 20,
            group_bits: 20,
            shared_table: false,
            grid: 4,
            bitwise: Some(BitwiseConfig::of(20, 8)),
            cell_positions: true,
            begin_image: 3,
            end_image: 4,
        };
        vocab.check().unwrap();
        let codes: Vec<u64> = (0..16).map(|i| i * 54_321 % (1 << 20)).collect();
        let mut s = Sequence::default();
        s.push(&vocab, &Segment::Image(codes.clone()), false);
        s.push(&vocab, &Segment::Text(vec![5, 6]), true);
        s.push(&vocab, &Segment::Image(codes.clone()), true);
        let before = pack(&[s], 40, 0, true).unwrap();
        let mut after = before.clone();
        flip_drawn(&mut after, &vocab, 0.5, &mut rng::keyed(1, &[]));
        assert_eq!(before.targets.visual, after.targets.visual);
        let picture = |p: &Packed, from: usize| vocab.to_codes(&p.ids[from..from + 16]);
        assert_eq!(picture(&after, 1).unwrap(), codes, "shown");
        let drawn = picture(&after, 21).unwrap();
        let flipped: u32 = drawn.iter().zip(&codes).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert!(flipped > 0 && flipped < 320 * 6 / 10, "{flipped} of 320");
        let text = |p: &Packed| (p.ids[..1].to_vec(), p.ids[17..21].to_vec(), p.ids[37..].to_vec());
        assert_eq!(text(&before), text(&after));
        assert!(check(0.6, true).is_err() && check(0.1, false).is_err() && check(0.0, false).is_ok());
    }
}
