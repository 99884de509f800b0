//! The program `eval`.

mod cli;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measure models.
#[derive(Parser)]
#[command(name = "eval", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Nano(cli::nano::Nano),
    Qlip(cli::qlip::Qlip),
    Pictures(Box<cli::pictures::Pictures>),
    Text(cli::text::Text),
    Score(cli::score::Score),
    Run(cli::run::Run),
    ScoreRun(cli::run::ScoreRun),
    Scenes(cli::run::Scenes),
    Tasks(cli::run::Tasks),
    Probe(cli::run::Probe),
    Compare(cli::run::Compare),
    Gate(cli::run::Gate),
    Import(cli::import::Import),
}

fn main() -> std::process::ExitCode {
    unified::process::prepare();
    let done = match Cli::parse().command {
        Command::Nano(n) => n.run(),
        Command::Qlip(q) => q.run(),
        Command::Pictures(p) => p.run(),
        Command::Text(t) => t.run(),
        Command::Score(s) => s.run(),
        Command::Run(r) => r.run(),
        Command::ScoreRun(s) => s.run(),
        Command::Scenes(s) => s.run(),
        Command::Tasks(t) => t.run(),
        Command::Probe(p) => p.run(),
        Command::Compare(c) => c.run(),
        Command::Gate(g) => g.run(),
        Command::Import(i) => i.run(),
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {}", format!("{e:#}").lines().next().unwrap_or(""));
            std::process::ExitCode::FAILURE
        }
    }
}
