//! Commands of the program: parse, measure, print. One file a command.

pub mod import;
pub mod nano;
pub mod pictures;
pub mod qlip;
pub mod run;
pub mod score;
pub mod text;

/// Says on stderr what is being measured, and how many seconds the command has run.
fn teller() -> impl FnMut(&str) {
    let clock = std::time::Instant::now();
    move |what| eprintln!("{:>6.0} s  {what}", clock.elapsed().as_secs_f64())
}
