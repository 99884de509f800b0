//! A fence around libraries that panic on bytes they did not expect.

use std::cell::Cell;
use std::sync::Once;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}
static HOOK: Once = Once::new();

/// What `f` gives, or the words of its panic, which nothing prints. For calls of a library with foreign bytes; what `f` changes is not to be
/// used after an error.
pub fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                before(info);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
    GUARDED.set(outer);
    done.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no reason").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_words() {
        assert_eq!(guarded(|| 3), Ok(3));
        let nothing: [u8; 0] = [];
        let e = guarded(|| nothing[std::hint::black_box(4)]).unwrap_err();
        assert!(e.contains("out of bounds"), "{e}");
        assert_eq!(guarded(|| -> u8 { panic!("in words") }), Err("in words".into()));
        assert!(!GUARDED.get());
    }
}
