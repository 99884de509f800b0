//! The program `unified`.

mod cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h, which the bindings do not name.
const PURGE_DELAY: i32 = 15;

#[allow(unsafe_code, reason = "settings that must be made before any other thread runs")]
fn main() -> std::process::ExitCode {
    // SAFETY: no other thread is running yet.
    unsafe {
        // `unified ... | head` ends quietly, as other programs do, instead of panicking in println!
        #[cfg(unix)]
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        // A training step frees and takes the same gigabyte again: giving it back to the system in between costs a
        // quarter of the step in page faults (docs/performance.md). Loading a large model must give it back: each
        // 8-bit weight would keep the pages around it that its float32 form had touched.
        if std::env::args_os().nth(1).is_some_and(|command| command == "train") {
            libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
        }
        // candle's own pool spins between its few element-wise operations, on the cores that the kernels need.
        if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
            std::env::set_var("CANDLE_NUM_THREADS", "1");
        }
    }
    cli::main()
}
