//! `eval tasks` and `eval probe`: which tasks there are, and which a folder's data serve.

use anyhow::{Result, bail};
use clap::Args;
use eval::bench::{Files, Notes, Task};
use std::path::PathBuf;

/// List the tasks.
#[derive(Args)]
pub struct Tasks {}

impl Tasks {
    pub fn run(&self) -> Result<()> {
        Task::all()?.iter().for_each(|t| println!("{:<17} {}", t.name(), t.about()));
        Ok(())
    }
}

/// Say which tasks a folder can serve, and what is wrong with its data.
#[derive(Args)]
pub struct Probe {
    /// The folder.
    dir: PathBuf,
}

impl Probe {
    pub fn run(&self) -> Result<()> {
        let files = Files::of(&self.dir)?;
        let mut served = 0;
        for task in Task::all()?.iter().filter(|t| t.needs_data()) {
            let mut notes = Notes::default();
            if let Ok(items) = task.load(&files, &mut notes)
                && !items.is_empty()
            {
                served += 1;
                println!("{:<17} {} items, {} rows left out", task.name(), items.len(), notes.left_out);
                notes.lines.iter().take(20).for_each(|l| println!("  {l}"));
            }
        }
        if served == 0 {
            bail!("{}: no task's data; `eval tasks` lists the tasks", self.dir.display());
        }
        Ok(())
    }
}
