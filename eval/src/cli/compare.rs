//! `eval compare` and `eval gate`: two runs beside each other, item by item.

use anyhow::{Context, Result, bail};
use clap::Args;
use eval::bench::report::{Line, comparison};
use eval::bench::stats::{Difference, difference, holm};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

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
    /// Say which metrics are the same within so many hundredths, at 95% confidence (two one-sided tests).
    #[arg(long, value_name = "POINTS")]
    equiv: Option<f64>,
    /// Write one HTML file with the intervals and the items that changed.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
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
    d: Difference,
    p: f64,
}

impl Row {
    fn line(&self, same: Option<bool>) -> Line {
        let (task, metric) = (self.task.clone(), self.metric.clone());
        Line { task, metric, n: self.n, delta: self.d.delta, range: (self.d.low, self.d.high), p: self.p, same }
    }
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
        let metrics: BTreeSet<&String> = both.iter().flat_map(|p| p.0.1.keys()).collect();
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
        if self.equiv.is_some_and(|m| !(m.is_finite() && m > 0.0)) {
            bail!("--equiv: write more than 0 hundredths");
        }
        let rows = compared(&self.a, &self.b, self.draws)?;
        let same = |r: &Row| {
            // where no item differs the bootstrap knows no spread: of n equal pairs up to 3 / n may differ (the rule of three)
            let spread = if r.d.inner.0 == r.d.inner.1 { 3.0 / r.n as f64 } else { 0.0 };
            self.equiv.map(|m| -m / 100.0 < r.d.inner.0 - spread && r.d.inner.1 + spread < m / 100.0)
        };
        if let Some(path) = &self.html {
            let lines: Vec<Line> = rows.iter().map(|r| r.line(same(r))).collect();
            let page = comparison(&self.a, &self.b, &lines)?;
            nn::checkpoint::write_atomic(path, page.as_bytes())?;
            eprintln!("{}", path.display());
        }
        if self.json {
            let one = |r: &Row| {
                serde_json::json!({"task": r.task, "metric": r.metric, "n": r.n, "delta": r.d.delta, "low": r.d.low, "high": r.d.high,
                    "p": r.d.p, "p_holm": r.p, "detectable": r.d.detectable, "equivalent": same(r)})
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
            let said = match same(r) {
                Some(true) => "  the same",
                Some(false) => "  not shown to be the same",
                None => "",
            };
            println!(
                "{:<14} {:<40} {:>6} {:>+9.4}  {range:<20} {:>8.4} {:>8.4} {:>8.4}{said}",
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
