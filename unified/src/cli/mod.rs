//! Commands: parse, call the library, print. One file a command.

mod train;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// A small model that sees, chats and draws; and everything to train, run and measure models like it.
#[derive(Parser)]
#[command(name = "unified", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(train::Train),
}

/// Parses the command line and runs the command; errors become one line on stderr.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // candle's backward pass recurses over the graph
    let worker = std::thread::Builder::new().stack_size(256 << 20).spawn(move || run(cli));
    let result = match worker.map(std::thread::JoinHandle::join) {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => return ExitCode::from(101),
        Err(e) => Err(anyhow::anyhow!("no thread could be started: {e}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Train(c) => c.run(),
    }
}
