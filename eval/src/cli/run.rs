//! `eval run`, `eval tasks`, `eval probe`, `eval compare`, `eval gate`.

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use eval::bench::asking::{Asking, ask, replayed};
use eval::bench::report::{Line, comparison};
use eval::bench::run::{Replay, replay, write};
use eval::bench::scenes::{judge, prompts};
use eval::bench::stats::{difference, holm};
use eval::bench::through::Through;
use eval::bench::{Files, Notes, Task};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use unified::Model;
use unified::artifact::{Placement, placement};

/// Ask a model the questions of benchmarks, or score somebody's answers to them, in whichever layout their data are.
#[derive(Args)]
pub struct Run {
    /// Tasks, as `eval tasks` lists them.
    #[arg(long, value_delimiter = ',', required = true)]
    tasks: Vec<String>,
    /// The model that is asked: a folder, a file or a hub id, `nano` for the embedded one; or replay:FILE, which scores the answers
    /// in a file, {"id": .., "answer": ..} a line.
    #[arg(long, default_value = "nano")]
    model: String,
    /// Folder of the benchmark's data; with several tasks the folder that holds one folder each.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Folder for answers/, samples/, summary.json and the reports (Markdown, CSV, LaTeX, HTML).
    #[arg(long)]
    out: PathBuf,
    /// Score what is answered although items are not.
    #[arg(long)]
    partial: bool,
    /// About this many items, whole groups of them, by a hash of their names.
    #[arg(long)]
    limit: Option<usize>,
    /// Go on where an earlier run in --out ended: what is in its log for this model, question and picture is not asked again.
    #[arg(long)]
    resume: bool,
    /// Items that are asked at once.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Threads that ask.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Ask the i-th of n parts of the items alone, as in 0/3; `eval score-run` scores them together.
    #[arg(long, value_name = "i/n")]
    shard: Option<String>,
    /// cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// How weights are kept: f32, f16, bf16, q8_0, q6_K, q4_K; as they are stored if absent.
    #[arg(long)]
    dtype: Option<String>,
    /// Seed of what is drawn; an item's own is added.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Guidance scale of drawings, instead of the model's own.
    #[arg(long)]
    guidance: Option<f32>,
    /// Temperature of drawings, instead of the model's own.
    #[arg(long)]
    temperature: Option<f32>,
    /// Sum of probabilities that drawings are chosen from, instead of the model's own.
    #[arg(long)]
    top_p: Option<f32>,
    /// Drawings for each picture, of which the model keeps its favourite, instead of the model's own number.
    #[arg(long)]
    best_of: Option<usize>,
    /// Folder of the classifier that looks at drawings of classes (class_pictures).
    #[arg(long, value_name = "DIR")]
    judge: Option<PathBuf>,
    /// Show the model every picture through this image tokenizer and back, with the first BITS of a token's bits; `eval compare` with a
    /// run without says what is kept.
    #[arg(long, value_name = "MODEL[:BITS]")]
    through: Option<String>,
    /// Ask some items again, one at a time, and fail where an answer differs.
    #[arg(long)]
    verify_batch_invariance: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// What a run was asked for, as `run.json` keeps it.
#[derive(serde::Serialize, serde::Deserialize)]
struct Asked {
    model: String,
    tasks: Vec<String>,
    data: Option<PathBuf>,
    partial: bool,
    limit: Option<usize>,
}

impl Asked {
    /// The folder of a task's data: with several tasks that have some the one of its name, if there is one.
    fn data(&self, task: &Task, all: &[Task]) -> Option<PathBuf> {
        let several = all.iter().filter(|t| t.needs_data()).count() > 1;
        let own = |d: &PathBuf| Some(d.join(task.name())).filter(|own| several && own.is_dir());
        self.data.as_ref().map(|d| own(d).unwrap_or_else(|| d.clone()))
    }
}

impl Run {
    pub fn run(&self) -> Result<()> {
        if self.limit == Some(0) {
            bail!("--limit 0: use 1 or more");
        }
        let asked = Asked {
            model: self.model.clone(),
            tasks: self.tasks.clone(),
            data: self.data.clone(),
            partial: self.partial,
            limit: self.limit,
        };
        let tasks = self.tasks.iter().map(|t| Task::of_name(t)).collect::<eval::Result<Vec<_>>>()?;
        if let Some(answers) = self.model.strip_prefix("replay:") {
            let answers = Replay::open(Path::new(answers))?;
            answers.notes.lines.iter().for_each(|l| eprintln!("note: {l}"));
            return scored(&asked, &self.out, &mut |_| Ok(None), Some(&answers), self.json);
        }
        let shard = self.shard()?;
        let model = self.open()?;
        std::fs::create_dir_all(&self.out).with_context(|| self.out.display().to_string())?;
        let json = serde_json::to_vec_pretty(&asked)?;
        nn::checkpoint::write_atomic(&self.out.join("run.json"), &json)?;
        let bar = Bar::default();
        let how = Asking {
            batch: self.batch,
            workers: self.workers,
            shard,
            seed: self.seed,
            resume: self.resume,
            limit: self.limit,
            partial: self.partial,
            guidance: self.guidance,
            temperature: self.temperature,
            top_p: self.top_p,
            best_of: self.best_of,
            judge: self.judge.clone(),
            through: self
                .through
                .as_ref()
                .map(|t| Through::open(t, &placement(&self.device)?))
                .transpose()?
                .map(Arc::new),
        };
        for task in &tasks {
            ask(task, asked.data(task, &tasks).as_deref(), &model, &self.out, &how, &|line| bar.tell(line))?;
        }
        bar.end();
        if self.verify_batch_invariance {
            self.verify(&asked, &tasks, &model, &how)?;
        }
        if shard.1 > 1 {
            eprintln!("part {} of {} is asked; when all are: eval score-run {}", shard.0, shard.1, self.out.display());
            return Ok(());
        }
        let out = &self.out;
        scored(&asked, out, &mut |task| Ok(Some(replayed(out, task)?)), None, self.json)
    }

    fn shard(&self) -> Result<(usize, usize)> {
        let Some(text) = &self.shard else { return Ok((0, 1)) };
        let shard: unified::shard::Shard = text.parse().map_err(|why| anyhow!("--shard {text}: {why}"))?;
        Ok((shard.part, shard.parts))
    }

    fn open(&self) -> Result<Model> {
        let model = if self.model == "nano" { Model::nano()? } else { Model::open(&self.model)? };
        let weights = self.dtype.as_deref().map(|t| {
            nn::WeightType::of_name(t).with_context(|| format!("--dtype {t}: use f32, f16, bf16, q8_0, q6_K or q4_K"))
        });
        let at = Placement { weights: weights.transpose()?, ..placement(&self.device)? };
        Ok(model.placed(at))
    }

    /// Asks the first items alone, into a folder that goes away.
    fn verify(&self, asked: &Asked, tasks: &[Task], model: &Model, how: &Asking) -> Result<()> {
        let alone = tempfile::tempdir()?;
        let few =
            Asking { batch: 1, workers: 1, limit: Some(how.limit.unwrap_or(16).min(16)), resume: false, ..how.clone() };
        for task in tasks {
            ask(task, asked.data(task, tasks).as_deref(), model, alone.path(), &few, &|_| ())?;
            let (one, many) = (replayed(alone.path(), task.name())?, replayed(&self.out, task.name())?);
            let different = one.different(&many);
            if !different.is_empty() {
                bail!("{}: answered otherwise alone than in a batch: {}", task.name(), different.join(", "));
            }
        }
        eprintln!("the same answers alone and in a batch");
        Ok(())
    }
}

/// A line on stderr that is written over in a terminal.
#[derive(Default)]
struct Bar(std::sync::Mutex<Option<std::time::Instant>>);

impl Bar {
    fn tell(&self, line: &str) {
        use std::io::IsTerminal;
        let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{line}");
            *last = Some(std::time::Instant::now());
        } else if last.is_none_or(|t| t.elapsed().as_secs() >= 10) {
            eprintln!("{line}");
            *last = Some(std::time::Instant::now());
        }
    }
    fn end(&self) {
        use std::io::IsTerminal;
        if std::io::stderr().is_terminal() {
            eprintln!();
        }
    }
}

/// Scores the answers of each task, and writes and prints what they come to.
fn scored(
    asked: &Asked,
    out: &Path,
    own: &mut dyn FnMut(&str) -> Result<Option<Replay>>,
    given: Option<&Replay>,
    json: bool,
) -> Result<()> {
    let mut outcomes = Vec::new();
    let tasks = asked.tasks.iter().map(|t| Task::of_name(t)).collect::<eval::Result<Vec<_>>>()?;
    for task in &tasks {
        let name = task.name();
        let files = Files::of_task(task, asked.data(task, &tasks).as_deref(), out)?;
        let answers = own(name)?;
        let Some(answers) = answers.as_ref().or(given) else { bail!("{name}: no answers") };
        let outcome = replay(task, &files, answers, asked.partial, asked.limit)?;
        outcome.notes.lines.iter().for_each(|l| eprintln!("note: {name}: {l}"));
        if outcome.notes.left_out > 0 {
            eprintln!("note: {name}: {} rows left out, {} scored", outcome.notes.left_out, outcome.scored);
        }
        outcomes.push((task, outcome));
    }
    write(out, &asked.model, &outcomes)?;
    if json {
        println!("{}", std::fs::read_to_string(out.join("summary.json"))?);
        return Ok(());
    }
    for (task, outcome) in &outcomes {
        println!("{} ({} items)", task.name(), outcome.scored);
        for (name, m) in outcome.results.as_object().into_iter().flatten() {
            let range = match (m["low"].as_f64(), m["high"].as_f64()) {
                (Some(l), Some(h)) => format!("  {l:.4} to {h:.4}"),
                _ => String::new(),
            };
            println!("  {name:<44} {:>10.4}{range}", m["value"].as_f64().unwrap_or(f64::NAN));
        }
    }
    println!("{}", out.join("report.html").display());
    Ok(())
}

/// Score what `eval run` asked, without asking again: all parts of a run, or after a change of the rules.
#[derive(Args)]
pub struct ScoreRun {
    /// The run's folder.
    dir: PathBuf,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

impl ScoreRun {
    pub fn run(&self) -> Result<()> {
        let path = self.dir.join("run.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}: no run", path.display()))?;
        let asked: Asked = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        scored(&asked, &self.dir, &mut |task| Ok(Some(replayed(&self.dir, task)?)), None, self.json)
    }
}

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
    d: eval::bench::stats::Difference,
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
