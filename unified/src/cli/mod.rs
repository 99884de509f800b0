//! Commands: parse, call the library, print. One file a command, or a family that shares its shape.

mod bench;
mod chat;
mod common;
mod data;
mod features;
mod forward;
mod generate;
mod images;
mod info;
mod merge;
mod output;
mod plan;
mod recipe;
#[cfg(feature = "serve")]
mod serve;
mod shell;
mod terminal;
mod train;

use clap::{CommandFactory, Parser, Subcommand};
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
    Chat(chat::Chat),
    Generate(generate::Generate),
    Describe(images::Describe),
    Tokenize(images::Tokenize),
    Detokenize(images::Detokenize),
    Reconstruct(images::Reconstruct),
    Classify(images::Classify),
    Features(features::Features),
    Merge(merge::Merge),
    Train(train::Train),
    Plan(plan::PlanArgs),
    Data(data::Data),
    Forward(forward::Forward),
    Info(info::Info),
    Export(info::Export),
    Bench(bench::Bench),
    #[cfg(feature = "serve")]
    Serve(serve::Serve),
    Completions(shell::Completions),
    Man(shell::Man),
}

/// Parses the command line and runs the command; errors become one line on stderr.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log_as_asked();
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
            eprintln!("error: {}", one_line(&e));
            ExitCode::FAILURE
        }
    }
}

/// What RUST_LOG asks for goes to stderr; without it nothing is logged.
fn log_as_asked() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    if let Ok(filter) = filter {
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    }
}

/// An error and its causes in one line, without the backtraces that tensor errors may carry.
fn one_line(e: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in e.chain() {
        let text = cause.to_string();
        let line = text.lines().next().unwrap_or("").trim().to_owned();
        if !parts.last().is_some_and(|p| p.contains(&line)) {
            parts.push(line);
        }
    }
    parts.join(": ")
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Chat(c) => c.run(),
        Command::Generate(c) => c.run(),
        Command::Describe(c) => c.run(),
        Command::Tokenize(c) => c.run(),
        Command::Detokenize(c) => c.run(),
        Command::Reconstruct(c) => c.run(),
        Command::Classify(c) => c.run(),
        Command::Features(c) => c.run(),
        Command::Merge(c) => c.run(),
        Command::Train(c) => c.run(),
        Command::Plan(c) => c.run(),
        Command::Data(c) => c.run(),
        Command::Forward(c) => c.run(),
        Command::Info(c) => c.run(),
        Command::Export(c) => c.run(),
        Command::Bench(c) => c.run(),
        #[cfg(feature = "serve")]
        Command::Serve(s) => s.run(),
        Command::Completions(c) => c.run(Cli::command()),
        Command::Man(c) => c.run(Cli::command()),
    }
}
