//! `unified completions SHELL` and `unified man`: what shells and `man` read.

use super::common::out_dir;
use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_complete::Shell;
use std::path::PathBuf;

/// Print completions for a shell: unified completions bash > ~/.local/share/bash-completion/completions/unified
#[derive(Args)]
pub struct Completions {
    /// bash, zsh, fish, elvish or powershell.
    shell: Shell,
}

impl Completions {
    pub fn run(&self, mut program: Command) -> Result<()> {
        let mut out = Vec::new();
        clap_complete::generate(self.shell, &mut program, "unified", &mut out);
        super::output::words(&String::from_utf8_lossy(&out))?;
        Ok(())
    }
}

/// Write the manual pages, one a command: unified man -o ~/.local/share/man/man1
#[derive(Args)]
pub struct Man {
    /// Folder of the pages.
    #[arg(short, long)]
    out: PathBuf,
}

impl Man {
    pub fn run(&self, program: Command) -> Result<()> {
        out_dir(&self.out)?;
        clap_mangen::generate_to(program, &self.out).with_context(|| self.out.display().to_string())?;
        super::output::line(format_args!("{}", self.out.display()))?;
        Ok(())
    }
}
