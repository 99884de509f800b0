//! Finished caches that prompts which begin alike go on from.

use nn::cache::Slot;

/// Bytes of caches that are kept.
const BYTES: usize = 2 << 30;

/// Caches that are kept at most.
const MOST: usize = 64;

/// Caches with the keys of what they hold, the last used last.
#[derive(Default)]
pub(super) struct Kept(Vec<(Vec<u64>, Slot)>);

/// Tokens that two prompts begin with alike, of those that a cache of the second holds. The last of the first is always read:
/// its hidden state is wanted.
pub(super) fn common(keys: &[u64], other: &[u64], held: usize) -> usize {
    let same = keys.iter().zip(other).take_while(|(a, b)| a == b).count();
    same.min(held).min(keys.len() - 1)
}

impl Kept {
    /// Keeps a cache for prompts that begin as `keys` do; what it holds more of is forgotten, and the longest unused.
    pub fn keep(&mut self, keys: Vec<u64>, slot: Slot) {
        self.0.retain(|k| !keys.starts_with(&k.0));
        self.0.push((keys, slot));
        while self.0.len() > MOST || self.bytes() > BYTES {
            self.0.remove(0);
        }
    }

    /// The cache that holds most of a prompt's beginning, and how much.
    pub fn best(&self, keys: &[u64]) -> (usize, Option<&Slot>) {
        let mut best = (0, None);
        for (other, slot) in &self.0 {
            let n = common(keys, other, slot.len());
            if n > best.0 {
                best = (n, Some(slot));
            }
        }
        best
    }

    /// A cache that holds `n` tokens of a prompt's beginning was used now.
    pub fn used(&mut self, keys: &[u64], n: usize) {
        if let Some(at) = self.0.iter().rposition(|(other, slot)| common(keys, other, slot.len()) == n) {
            let kept = self.0.remove(at);
            self.0.push(kept);
        }
    }

    /// Bytes of the caches, as if none were shared.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|k| k.1.bytes()).sum()
    }
}
