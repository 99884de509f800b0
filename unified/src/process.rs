//! Settings of the whole process that the kernels want, for programs that use this library.
#![allow(unsafe_code, reason = "settings that must be made before any other thread runs")]

/// Call it first in `main`, while no other thread is running: `program | head` ends quietly, and candle's own threads
/// leave the cores to the kernels.
pub fn prepare() {
    // SAFETY: the caller has no other thread yet.
    unsafe {
        // as other programs end, instead of panicking in println!
        #[cfg(unix)]
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        // candle's own pool spins between its few element-wise operations, on the cores that the kernels need.
        if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
            std::env::set_var("CANDLE_NUM_THREADS", "1");
        }
    }
}
