//! `eval run`, `eval tasks`, `eval probe`, `eval compare`, `eval gate`.

use anyhow::{Context, Result, bail};
use clap::Args;
use eval::bench::run::{Replay, replay, write};
use eval::bench::stats::{difference, holm};
use eval::bench::{Files, Notes, TASKS, Task};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Score answers to published benchmarks, in whichever layout their data are.
#[derive(Args)]
pub struct Run {
    /// Tasks, as `eval tasks` lists them.
    #[arg(long, value_delimiter = ',', required = true)]
    tasks: Vec<String>,
    /// replay:FILE scores the answers in a file, {"id": .., "answer": ..} a line.
    #[arg(long)]
    model: String,
    /// Folder of the benchmark's data; with several tasks the folder that holds one folder each.
    #[arg(long)]
    data: PathBuf,
    /// Folder for summary.json, report.md and samples/.
    #[arg(long)]
    out: PathBuf,
    /// Score what is answered although items are not.
    #[arg(long)]
    partial: bool,
    /// About this many items, whole groups of them, by a hash of their names.
    #[arg(long)]
    limit: Option<usize>,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

fn task(name: &str) -> Result<&'static Task> {
    let all: Vec<&str> = TASKS.iter().map(|t| t.name).collect();
    TASKS.iter().find(|t| t.name == name).with_context(|| format!("no task `{name}`; there are: {}", all.join(", ")))
}

impl Run {
    pub fn run(&self) -> Result<()> {
        let Some(answers) = self.model.strip_prefix("replay:") else {
            bail!("--model {}: answers are replayed so far: give replay:ANSWERS.jsonl", self.model);
        };
        if self.limit == Some(0) {
            bail!("--limit 0: use 1 or more");
        }
        let answers = Replay::open(Path::new(answers))?;
        answers.notes.lines.iter().for_each(|l| eprintln!("note: {l}"));
        let mut outcomes = Vec::new();
        for name in &self.tasks {
            let task = task(name)?;
            let dir = if self.tasks.len() > 1 { self.data.join(name) } else { self.data.clone() };
            let outcome = replay(task, &dir, &answers, self.partial, self.limit)?;
            outcome.notes.lines.iter().for_each(|l| eprintln!("note: {name}: {l}"));
            if outcome.notes.left_out > 0 {
                eprintln!("note: {name}: {} rows left out, {} scored", outcome.notes.left_out, outcome.scored);
            }
            outcomes.push((task, outcome));
        }
        write(&self.out, &self.model, &outcomes)?;
        if self.json {
            println!("{}", std::fs::read_to_string(self.out.join("summary.json"))?);
            return Ok(());
        }
        for (task, outcome) in &outcomes {
            println!("{} ({} items)", task.name, outcome.scored);
            for (name, m) in outcome.results.as_object().into_iter().flatten() {
                let range = match (m["low"].as_f64(), m["high"].as_f64()) {
                    (Some(l), Some(h)) => format!("  {l:.4} to {h:.4}"),
                    _ => String::new(),
                };
                println!("  {name:<44} {:>10.4}{range}", m["value"].as_f64().unwrap_or(f64::NAN));
            }
        }
        println!("{}", self.out.join("report.md").display());
        Ok(())
    }
}

/// List the tasks.
#[derive(Args)]
pub struct Tasks {}

impl Tasks {
    pub fn run(&self) -> Result<()> {
        TASKS.iter().for_each(|t| println!("{:<14} {}", t.name, t.about));
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
        for task in TASKS {
            let mut notes = Notes::default();
            if let Ok(items) = (task.load)(&files, &mut notes)
                && !items.is_empty()
            {
                served += 1;
                println!("{:<14} {} items, {} rows left out", task.name, items.len(), notes.left_out);
                notes.lines.iter().take(20).for_each(|l| println!("  {l}"));
            }
        }
        if served == 0 {
            bail!("{}: no task's data; `eval tasks` lists the tasks", self.dir.display());
        }
        Ok(())
    }
}

/// Compare two runs, item by item.
#[derive(Args)]
pub struct Compare {
    /// Folder of the first run.
    a: PathBuf,
    /// Folder of the second run.
    b: PathBuf,
    /// Bootstrap samples.
    #[arg(long, default_value_t = 10_000)]
    draws: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A sample's cluster and scores.
type Sample = (String, HashMap<String, f64>);

fn samples(dir: &Path, task: &str) -> Result<BTreeMap<String, Sample>> {
    let path = dir.join("samples").join(format!("{task}.jsonl"));
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut out = BTreeMap::new();
    for line in text.lines() {
        let v: Value = serde_json::from_str(line).with_context(|| path.display().to_string())?;
        let scores = v["scores"].as_object().into_iter().flatten();
        let scores = scores.filter_map(|(k, v)| Some((k.clone(), v.as_f64()?))).collect();
        let text = |k: &str| v[k].as_str().unwrap_or_default().to_owned();
        out.insert(text("id"), (text("cluster"), scores));
    }
    Ok(out)
}

struct Row {
    task: String,
    metric: String,
    n: usize,
    d: eval::bench::stats::Difference,
    p: f64,
}

fn compared(a: &Path, b: &Path, draws: usize) -> Result<Vec<Row>> {
    let summary = |dir: &Path| -> Result<Value> {
        let path = dir.join("summary.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    };
    if draws == 0 {
        bail!("--draws 0: use 1 or more");
    }
    let (sa, sb) = (summary(a)?, summary(b)?);
    let mut rows = Vec::new();
    for (name, _) in sa["results"].as_object().into_iter().flatten().filter(|t| sb["results"].get(t.0).is_some()) {
        let (of_a, of_b) = (samples(a, name)?, samples(b, name)?);
        let both: Vec<(&Sample, &Sample)> = of_a.iter().filter_map(|(id, s)| Some((s, of_b.get(id)?))).collect();
        let metrics: std::collections::BTreeSet<&String> = both.iter().flat_map(|p| p.0.1.keys()).collect();
        for metric in metrics {
            let of: Vec<(f64, f64, &str)> =
                both.iter().filter_map(|(x, y)| Some((*x.1.get(metric)?, *y.1.get(metric)?, x.0.as_str()))).collect();
            let (x, y): (Vec<f64>, Vec<f64>) = of.iter().map(|o| (o.0, o.1)).unzip();
            let clusters: Vec<&str> = of.iter().map(|o| o.2).collect();
            if let Some(d) = difference(&x, &y, &clusters, draws, 0) {
                rows.push(Row { task: name.clone(), metric: metric.clone(), n: of.len(), p: d.p, d });
            }
        }
    }
    if rows.is_empty() {
        bail!("{} and {} have no items in common", a.display(), b.display());
    }
    let corrected = holm(&rows.iter().map(|r| r.p).collect::<Vec<_>>());
    rows.iter_mut().zip(corrected).for_each(|(r, p)| r.p = p);
    Ok(rows)
}

impl Compare {
    pub fn run(&self) -> Result<()> {
        let rows = compared(&self.a, &self.b, self.draws)?;
        if self.json {
            let one = |r: &Row| {
                serde_json::json!({"task": r.task, "metric": r.metric, "n": r.n, "delta": r.d.delta, "low": r.d.low, "high": r.d.high,
                    "p": r.d.p, "p_holm": r.p, "detectable": r.d.detectable})
            };
            println!("{}", serde_json::to_string_pretty(&rows.iter().map(one).collect::<Vec<_>>())?);
            return Ok(());
        }
        println!(
            "{:<14} {:<40} {:>6} {:>9}  {:<20} {:>8} {:>8} {:>8}",
            "task", "metric", "n", "B - A", "95%", "p", "Holm", "80% at"
        );
        for r in &rows {
            let range = format!("{:+.4} to {:+.4}", r.d.low, r.d.high);
            println!(
                "{:<14} {:<40} {:>6} {:>+9.4}  {range:<20} {:>8.4} {:>8.4} {:>8.4}",
                r.task, r.metric, r.n, r.d.delta, r.d.p, r.p, r.d.detectable
            );
        }
        Ok(())
    }
}

/// Fail where a run is worse than another by more than it may be: for CI.
#[derive(Args)]
pub struct Gate {
    /// Folder of the run to compare with.
    a: PathBuf,
    /// Folder of the run to be judged.
    b: PathBuf,
    /// TASK=POINTS: most hundredths that any of a task's metrics may lose on average; the run fails where it loses more for sure (the whole
    /// 95% interval lies below).
    #[arg(long, value_delimiter = ',', required = true)]
    max_drop: Vec<String>,
}

impl Gate {
    pub fn run(&self) -> Result<()> {
        let rows = compared(&self.a, &self.b, 10_000)?;
        let mut failed = Vec::new();
        for rule in &self.max_drop {
            let parts = rule.split_once('=').and_then(|(t, p)| Some((t, p.parse::<f64>().ok().filter(|p| *p >= 0.0)?)));
            let Some((name, points)) = parts else { bail!("--max-drop {rule}: write TASK=POINTS, as in pope=0.5") };
            let of: Vec<&Row> = rows.iter().filter(|r| r.task == name).collect();
            if of.is_empty() {
                bail!("--max-drop {rule}: the runs have no task `{name}` in common");
            }
            for r in of.into_iter().filter(|r| r.d.high * 100.0 < -points) {
                failed.push(format!(
                    "{name} {}: {:+.2} points (95%: {:+.2} to {:+.2})",
                    r.metric,
                    r.d.delta * 100.0,
                    r.d.low * 100.0,
                    r.d.high * 100.0
                ));
            }
        }
        if failed.is_empty() {
            println!("passed: no metric fell by more than it may");
            return Ok(());
        }
        bail!("{}", failed.join("; "));
    }
}
