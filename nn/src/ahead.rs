//! The next step's data made while the step computes.

use crate::{Error, Result};
use std::cell::RefCell;
use std::thread::{Scope, ScopedJoinHandle};

/// Makes items by number, the next one always on a thread of its own before it is asked for.
pub struct Ahead<'scope, 'env, T> {
    scope: &'scope Scope<'scope, 'env>,
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
    ) -> Self {
        Self { scope, make, end, next: RefCell::new(None) }
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
            let make = self.make;
            self.next.replace(Some((n + 1, self.scope.spawn(move || make(n + 1)))));
        }
        item
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
            let ahead = Ahead::new(scope, 6, &make);
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
