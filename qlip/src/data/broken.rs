//! Samples that cannot be read: noted by number, passed over, and too many of them an error.

use nn::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Samples of a new source that may be broken before the share counts.
const AT_LEAST: usize = 3;

/// What could not be read of a source so far.
#[derive(Default)]
pub struct Broken {
    share: f64,
    notes: Mutex<BTreeMap<usize, String>>,
}

impl Broken {
    /// Of a source of which this share may be broken.
    pub fn allowing(share: f64) -> Self {
        Self { share, notes: Mutex::default() }
    }

    /// Notes that a sample of `all` could not be read; an error where more than the allowed share is broken by now.
    pub fn note(&self, at: usize, all: usize, e: &Error) -> Result<()> {
        let mut notes = self.lock();
        notes.insert(at, e.to_string());
        let n = notes.len();
        if n as f64 <= (self.share * all as f64).max(AT_LEAST.min(all.saturating_sub(1)) as f64) && n < all {
            return Ok(());
        }
        let share = self.share;
        Err(Error::invalid(format!(
            "{n} of {all} samples cannot be read, more than the allowed broken_share {share}; the last: {e}"
        )))
    }

    /// A message a sample.
    pub fn list(&self) -> Vec<String> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, String>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
