//! How a computation is carried out: a value that is handed to it, and holds on this thread while it runs. Two trainings in one
//! process do not see each other's, and a step that fails leaves nothing switched on.

use std::cell::Cell;

/// Choices of a computation on the CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exec {
    /// Products and convolutions round their inputs to bfloat16 (sums stay float32), where the processor has instructions for
    /// it.
    pub bf16: bool,
    /// Blocks forget their inner values and compute them again in the backward pass: the memory of a training is then one input
    /// a branch, for a forward pass more.
    pub recompute: bool,
}

thread_local! {
    static NOW: Cell<Exec> = const { Cell::new(Exec { bf16: false, recompute: false }) };
}

/// Puts back what was before, also when the computation panics.
struct Before(Exec);

impl Drop for Before {
    fn drop(&mut self) {
        NOW.set(self.0);
    }
}

impl Exec {
    /// What holds on this thread now.
    pub fn now() -> Self {
        NOW.get()
    }

    /// Carries out `f` so.
    pub fn run<T>(self, f: impl FnOnce() -> T) -> T {
        let _before = Before(NOW.replace(self));
        f()
    }

    /// Carries out `f` as outside a training: codes of pictures, features of a frozen tower.
    pub fn exact<T>(f: impl FnOnce() -> T) -> T {
        Self::default().run(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_on_one_thread_and_ends() {
        let on = Exec { bf16: true, recompute: true };
        on.run(|| {
            assert_eq!(Exec::now(), on);
            Exec::exact(|| assert_eq!(Exec::now(), Exec::default()));
            assert_eq!(Exec::now(), on);
            std::thread::scope(|s| s.spawn(|| assert_eq!(Exec::now(), Exec::default())).join().unwrap());
        });
        assert!(std::panic::catch_unwind(|| on.run(|| panic!("in the middle"))).is_err());
        assert_eq!(Exec::now(), Exec::default());
    }
}
