//! The program `unified`.

mod cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h, which the bindings do not name.
const PURGE_DELAY: i32 = 15;

#[allow(unsafe_code, reason = "a setting of the allocator")]
fn main() -> std::process::ExitCode {
    unified::process::prepare();
    // A training step frees and takes the same gigabyte again: giving it back to the system in between costs a quarter of
    // the step in page faults (docs/performance.md). Loading a large model must give it back: each 8-bit weight would keep
    // the pages around it that its float32 form had touched.
    let mut command = std::env::args_os().skip(1);
    let trains = match command.next() {
        Some(first) if first == "bench" => command.next().is_some_and(|job| job == "train-step"),
        first => first.is_some_and(|first| first == "train"),
    };
    if trains {
        // SAFETY: no other thread is running yet.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    }
    cli::main()
}
