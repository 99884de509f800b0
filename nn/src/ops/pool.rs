//! Threads for short pieces of work: they spin for some microseconds after a piece before they sleep, so that the hundred
//! products of one decoded token are not a hundred wake-ups (docs/performance.md has the ratio to rayon's).
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long an idle thread looks for work before it sleeps.
const SPIN: Duration = Duration::from_micros(60);

type Work = dyn Fn(usize) + Sync;

/// A piece of work that is being done.
struct Pool {
    /// Held by the caller whose work this is.
    turn: Mutex<()>,
    /// The work; valid while `open` or `active` says that somebody may use it.
    work: Mutex<Option<&'static Work>>,
    pieces: AtomicUsize,
    next: AtomicUsize,
    open: AtomicBool,
    /// Threads that may be looking at the work.
    active: AtomicUsize,
    /// Counts the works, so that a sleeper sees that there is a new one.
    epoch: AtomicUsize,
    sleepers: Mutex<usize>,
    wake: Condvar,
    panicked: AtomicBool,
}

static POOL: OnceLock<&'static Pool> = OnceLock::new();

/// Threads that work together, the caller among them.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Calls `f` with each of 0..pieces, on the caller's thread and the pool's. A caller that finds the pool at work does all
/// pieces itself.
pub fn run(pieces: usize, f: impl Fn(usize) + Sync) {
    let alone = || (0..pieces).for_each(&f);
    if pieces < 2 || threads() < 2 {
        return alone();
    }
    let pool = *POOL.get_or_init(|| Pool::start(threads() - 1));
    let turn = match pool.turn.try_lock() {
        Ok(turn) => turn,
        Err(std::sync::TryLockError::Poisoned(e)) => e.into_inner(),
        Err(std::sync::TryLockError::WouldBlock) => return alone(),
    };
    pool.run(pieces, &f);
    drop(turn);
}

fn locked<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    fn start(workers: usize) -> &'static Self {
        let pool: &'static Self = Box::leak(Box::new(Self {
            turn: Mutex::new(()),
            work: Mutex::new(None),
            pieces: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            open: AtomicBool::new(false),
            active: AtomicUsize::new(0),
            epoch: AtomicUsize::new(0),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
            panicked: AtomicBool::new(false),
        }));
        for i in 0..workers {
            // without a thread the caller does the work alone
            let _ = std::thread::Builder::new().name(format!("kernel-{i}")).spawn(move || pool.serve());
        }
        pool
    }

    fn run<'a>(&self, pieces: usize, f: &'a (dyn Fn(usize) + Sync + 'a)) {
        // SAFETY: the reference is only used between `open` and the moment when no thread is active any more, and this
        // function does not return before that.
        let f: &'static Work = unsafe { std::mem::transmute::<&'a (dyn Fn(usize) + Sync + 'a), &'static Work>(f) };
        *locked(&self.work) = Some(f);
        self.next.store(0, SeqCst);
        self.pieces.store(pieces, SeqCst);
        self.panicked.store(false, SeqCst);
        self.open.store(true, SeqCst);
        self.epoch.fetch_add(1, SeqCst);
        if *locked(&self.sleepers) > 0 {
            self.wake.notify_all();
        }
        let mine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.take(f)));
        self.open.store(false, SeqCst);
        while self.active.load(SeqCst) != 0 {
            std::hint::spin_loop();
        }
        *locked(&self.work) = None;
        if let Err(e) = mine {
            std::panic::resume_unwind(e);
        }
        assert!(!self.panicked.load(SeqCst), "a kernel's thread panicked");
    }

    fn take(&self, f: &Work) {
        let pieces = self.pieces.load(SeqCst);
        loop {
            let i = self.next.fetch_add(1, SeqCst);
            if i >= pieces {
                return;
            }
            f(i);
        }
    }

    fn serve(&self) {
        let mut seen = 0;
        let mut idle = Instant::now();
        loop {
            let epoch = self.epoch.load(SeqCst);
            if epoch == seen {
                if idle.elapsed() < SPIN {
                    std::hint::spin_loop();
                    continue;
                }
                let mut sleepers = locked(&self.sleepers);
                *sleepers += 1;
                while self.epoch.load(SeqCst) == seen {
                    sleepers = self.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
                }
                *sleepers -= 1;
                continue;
            }
            seen = epoch;
            self.active.fetch_add(1, SeqCst);
            if self.open.load(SeqCst) {
                let f = *locked(&self.work);
                if let Some(f) = f
                    && std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.take(f))).is_err()
                {
                    self.panicked.store(true, SeqCst);
                }
            }
            self.active.fetch_sub(1, SeqCst);
            idle = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once_whoever_asks() {
        let ask = |n: usize| {
            let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            run(n, |i| {
                counts[i].fetch_add(1, SeqCst);
            });
            assert!(counts.iter().all(|c| c.load(SeqCst) == 1));
        };
        std::thread::scope(|s| {
            for t in 0..3 {
                s.spawn(move || {
                    for n in 0..300 {
                        ask(n % 17 + t);
                        if n % 50 == 0 {
                            std::thread::sleep(Duration::from_micros(200));
                        }
                    }
                });
            }
        });
    }
}
