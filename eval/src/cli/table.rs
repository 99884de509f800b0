//! `eval table`: metrics of runs, a row each.

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;
use std::path::PathBuf;

/// Print metrics of runs as a Markdown table, a row a run.
#[derive(Args)]
pub struct Table {
    /// Folders of runs.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Metrics as TASK.METRIC@VARIANT; `:2` behind one is its number of digits, `:1%` a percentage.
    #[arg(long, value_delimiter = ',', required = true)]
    metrics: Vec<String>,
    /// What a row begins with instead of the run's folder, one a run.
    #[arg(long = "as", value_name = "WORDS")]
    names: Vec<String>,
    /// Leave out the two lines of the head.
    #[arg(long)]
    no_head: bool,
}

impl Table {
    pub fn run(&self) -> Result<()> {
        if !self.names.is_empty() && self.names.len() != self.runs.len() {
            bail!("--as: {} names for {} runs", self.names.len(), self.runs.len());
        }
        let asked: Vec<(&str, &str)> = self.metrics.iter().map(|m| m.rsplit_once(':').unwrap_or((m, "4"))).collect();
        if !self.no_head {
            println!("| run | {} |", asked.iter().map(|a| a.0).collect::<Vec<_>>().join(" | "));
            println!("|---|{}", "---|".repeat(asked.len()));
        }
        for (n, run) in self.runs.iter().enumerate() {
            let path = run.join("summary.json");
            let text = std::fs::read_to_string(&path).with_context(|| format!("{}: no run", path.display()))?;
            let summary: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
            let cells = asked.iter().map(|(metric, form)| {
                let (task, name) =
                    metric.split_once('.').with_context(|| format!("{metric}: write TASK.METRIC@VARIANT"))?;
                let value = summary["results"][task][name]["value"].as_f64();
                let digits =
                    form.trim_end_matches('%').parse().with_context(|| format!("{metric}:{form}: digits, as in :2"))?;
                Ok(match value {
                    None => "-".to_owned(),
                    Some(v) if form.ends_with('%') => format!("{:.digits$}%", 100.0 * v),
                    Some(v) => format!("{v:.digits$}"),
                })
            });
            let name = self.names.get(n).cloned().unwrap_or_else(|| run.display().to_string());
            println!("| {name} | {} |", cells.collect::<Result<Vec<_>>>()?.join(" | "));
        }
        Ok(())
    }
}
