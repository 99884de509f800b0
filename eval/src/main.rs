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
    Score(cli::score::Score),
    Run(Box<cli::run::Run>),
    ScoreRun(cli::run::ScoreRun),
    Scenes(cli::scenes::Scenes),
    Table(cli::table::Table),
    Tasks(cli::tasks::Tasks),
    Probe(cli::tasks::Probe),
    Compare(cli::compare::Compare),
    Gate(cli::compare::Gate),
    Import(cli::import::Import),
}

fn main() -> std::process::ExitCode {
    unified::process::prepare();
    let done = match Cli::parse().command {
        Command::Score(s) => s.run(),
        Command::Run(r) => r.run(),
        Command::ScoreRun(s) => s.run(),
        Command::Scenes(s) => s.run(),
        Command::Table(t) => t.run(),
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
