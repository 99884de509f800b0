//! `eval scenes`: the exact checker on pictures that any program drew.

use anyhow::{Context, Result};
use clap::Args;
use eval::bench::scenes::{judge, prompts};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Judge pictures of scenes by the exact checker, whichever model drew them.
#[derive(Args)]
pub struct Scenes {
    /// Folder with prompts.jsonl ({"prompt", "file"} a line) and the pictures, or NNNNN/samples/*.png as GenEval has them.
    #[arg(required_unless_present = "prompts")]
    dir: Option<PathBuf>,
    /// Print this many prompts to draw, a JSON object a line, instead.
    #[arg(long, value_name = "N")]
    prompts: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Scenes {
    pub fn run(&self) -> Result<()> {
        if let Some(n) = self.prompts {
            for (i, (category, _, p)) in prompts(n).iter().enumerate() {
                let line =
                    serde_json::json!({"prompt": p.text, "category": category.name(), "file": format!("{i:05}.png")});
                println!("{line}");
            }
            return Ok(());
        }
        let dir = self.dir.as_ref().context("give a folder")?;
        let found = judge(dir)?;
        let mut groups: BTreeMap<&str, (usize, f64, f64)> = BTreeMap::new();
        for (_, category, strict, soft) in &found {
            let keys = if category == "all" { vec!["all"] } else { vec![category.as_str(), "all"] };
            for key in keys {
                let g = groups.entry(key).or_default();
                *g = (g.0 + 1, g.1 + f64::from(*strict), g.2 + soft);
            }
        }
        if self.json {
            let pictures: Vec<Value> = found
                .iter()
                .map(|f| serde_json::json!({"file": f.0, "category": f.1, "strict": f.2, "soft": f.3}))
                .collect();
            let groups: serde_json::Map<String, Value> = groups
                .iter()
                .map(|(k, (n, s, f))| {
                    let n = *n as f64;
                    ((*k).to_owned(), serde_json::json!({"n": n, "strict": s / n, "soft": f / n}))
                })
                .collect();
            println!("{}", serde_json::json!({"version": 1, "groups": groups, "pictures": pictures}));
            return Ok(());
        }
        for (name, (n, strict, soft)) in groups {
            println!("{name:<12} strict {:.3}  soft {:.3}  of {n}", strict / n as f64, soft / n as f64);
        }
        Ok(())
    }
}
