//! The next step's data made while the step computes.

use crate::{Error, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::cell::RefCell;
use std::sync::Arc;
use std::thread::{Scope, ScopedJoinHandle};

/// Makes items by number, the next one always before it is asked for. Its workers are its own, so that a step's kernels
/// do not wait behind pictures.
pub struct Ahead<'scope, 'env, T> {
    scope: &'scope Scope<'scope, 'env>,
    workers: Arc<ThreadPool>,
    make: &'env (dyn Fn(usize) -> Result<T> + Sync),
    end: usize,
    next: RefCell<Option<(usize, ScopedJoinHandle<'scope, Result<T>>)>>,
}

impl<'scope, 'env, T: Send + 'scope> Ahead<'scope, 'env, T> {
    /// Of items below `end`, which `make` makes from nothing but their number.
    pub fn new(
        scope: &'scope Scope<'scope, 'env>,
        end: usize,
        make: &'env (dyn Fn(usize) -> Result<T> + Sync),
    ) -> Result<Self> {
        let workers = ThreadPoolBuilder::new().num_threads(rayon::current_num_threads()).build();
        let workers = Arc::new(workers.map_err(|e| Error::invalid(format!("no threads for the data: {e}")))?);
        Ok(Self { scope, workers, make, end, next: RefCell::new(None) })
    }

    /// Item `n`; item `n + 1` is begun.
    pub fn take(&self, n: usize) -> Result<T> {
        let begun = self.next.take();
        let item = match begun {
            Some((at, made)) if at == n => {
                made.join().map_err(|_| Error::invalid(format!("making the data of step {n} failed")))?
            }
            // the first item, or one out of turn
            _ => (self.make)(n),
        };
        if n + 1 < self.end {
            let (make, workers) = (self.make, self.workers.clone());
            self.next.replace(Some((n + 1, self.scope.spawn(move || workers.install(|| make(n + 1))))));
        }
        item
    }
}

impl<T> Drop for Ahead<'_, '_, T> {
    fn drop(&mut self) {
        // an item that nobody asks for any more may fail as it likes
        if let Some((_, made)) = self.next.take() {
            let _ = made.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn items_come_in_any_order_and_none_is_made_beyond_the_end() {
        let made = AtomicUsize::new(0);
        let make = |n: usize| {
            made.fetch_max(n, Ordering::SeqCst);
            if n == 3 { Err(Error::invalid("three")) } else { Ok(10 * n) }
        };
        std::thread::scope(|scope| {
            let ahead = Ahead::new(scope, 6, &make).unwrap();
            assert_eq!(ahead.take(0).unwrap(), 0);
            assert_eq!(ahead.take(1).unwrap(), 10);
            // an error comes with its own item
            assert_eq!(ahead.take(2).unwrap(), 20);
            assert!(ahead.take(3).is_err());
            // a step that is repeated, then the last
            assert_eq!(ahead.take(2).unwrap(), 20);
            assert_eq!(ahead.take(5).unwrap(), 50);
        });
        assert_eq!(made.into_inner(), 5);
    }
}
