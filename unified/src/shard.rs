//! Work that a scheduler spreads over machines.

/// One of several parts of some inputs, `i/n` with i from 0: what a scheduler gives each of n machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Which part.
    pub part: usize,
    /// Of how many.
    pub parts: usize,
}

impl std::str::FromStr for Shard {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((part, parts)) if part < parts => Ok(Self { part, parts }),
            _ => Err("write i/n with i below n, as in 0/3".into()),
        }
    }
}

impl Shard {
    /// Its share of `n` things, which lie side by side.
    pub fn range(self, n: usize) -> std::ops::Range<usize> {
        let end = |part: usize| (n as u128 * part as u128 / self.parts as u128) as usize;
        end(self.part)..end(self.part + 1)
    }
}
