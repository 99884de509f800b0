//! `eval run` and `eval score-run`: a model is asked, and its answers are scored.

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use eval::bench::asking::{Asking, ask, replayed};
use eval::bench::run::{Replay, replay, write};
use eval::bench::through::Through;
use eval::bench::{Files, Task};
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
