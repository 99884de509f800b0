//! `unified bench JOB --shape NAME`: how fast this machine is with a shape, beside the machine's own ceilings.

mod jobs;
mod machine;
mod shapes;

use super::common::Type;
use crate::cli::output::say;
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use shapes::Shape;

/// Time a job with random weights of a published shape.
#[derive(Args)]
pub struct Bench {
    /// What is timed.
    job: Job,
    /// The model's shape: qlip-b16, qlip-b8, qlip-l14, llama-3.2-1b, llava-7b, llamagen-b, janus-1b (its language model),
    /// nano.
    #[arg(long)]
    shape: String,
    /// How weights are kept; f32 if not given.
    #[arg(long, value_enum, default_value_t = Type::Auto)]
    dtype: Type,
    /// Pictures, sequences or drawings at once.
    #[arg(long)]
    batch: Option<usize>,
    /// Tokens of the prompt (prefill 128, decode 32) or of a training's row (128).
    #[arg(long)]
    prompt: Option<usize>,
    /// Adapters of this rank instead of all weights, for train-step of a language model.
    #[arg(long, value_name = "RANK")]
    lora: Option<usize>,
    /// So many of the shape's layers, where memory does not hold the whole (llama shapes).
    #[arg(long)]
    layers: Option<usize>,
    /// Timed repeats after one that warms up; the median counts.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// One JSON object instead of a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Job {
    /// Pictures to codes.
    Encode,
    /// Codes to pictures.
    Reconstruct,
    /// Prompts read.
    Prefill,
    /// Tokens after each other.
    Decode,
    /// Guided pictures.
    Generate,
    /// Forward, backward and optimiser.
    TrainStep,
    /// A file that export wrote to a model.
    Load,
    /// The program's start to its first word.
    Startup,
    /// The first token of a follow-up question about the same picture.
    Turn,
}

/// What a job gives.
#[derive(Default)]
struct Measured {
    seconds: Vec<f64>,
    /// How much was done in one repeat.
    items: f64,
    unit: &'static str,
    /// Whether seconds are the value.
    is_time: bool,
    /// Floating-point operations of products in one repeat, and bytes of weights read.
    flops: f64,
    bytes: f64,
    /// Seconds to the first token of the first question.
    first_turn: Option<f64>,
}

impl Bench {
    pub fn run(&self) -> Result<()> {
        if self.repeats == 0 || self.batch == Some(0) || self.prompt == Some(0) || self.lora == Some(0) {
            bail!("--repeats, --batch, --prompt and --lora begin at 1");
        }
        let mut shape = Shape::of(&self.shape)?;
        match (&mut shape, self.layers) {
            (Shape::Llama(c), Some(n)) if (1..=c.num_hidden_layers).contains(&n) => c.num_hidden_layers = n,
            (_, Some(n)) => bail!("--layers {n}: for a llama shape, 1 up to its own number"),
            (_, None) => {}
        }
        let llama = || shape.llama().with_context(|| format!("{:?}: use a shape with a language model", self.job));
        let m = match (self.job, &shape) {
            (Job::Encode, Shape::Qlip(c)) => self.pictures(c, false)?,
            (Job::Reconstruct, Shape::Qlip(c)) => self.pictures(c, true)?,
            (Job::Encode | Job::Reconstruct, _) => bail!("encode and reconstruct: use a qlip shape"),
            (Job::Prefill, _) => self.prefill(llama()?)?,
            (Job::Decode, _) => self.decode(llama()?)?,
            (Job::Generate, Shape::LlamaGen(c)) => self.draw(c)?,
            (Job::Generate, Shape::Nano) => self.draw_nano()?,
            (Job::Generate, _) => bail!("generate: use llamagen-b or nano"),
            (Job::TrainStep, _) => self.train(&shape)?,
            (Job::Load, _) => self.load(&shape)?,
            (Job::Startup, _) => self.startup(&shape)?,
            (Job::Turn, _) => self.turn(&shape)?,
        };
        let mut sorted = m.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted[sorted.len() / 2];
        let value = if m.is_time { median } else { m.items / median };
        let (gflops, gbs) = (m.flops / median / 1e9, m.bytes / median / 1e9);
        let (top_flops, top_bytes) = (machine::multiply_adds(), machine::read());
        let peak = nn::train::peak_memory_bytes();
        if self.json {
            let mut json = serde_json::json!({
                "version": 1, "job": format!("{:?}", self.job), "shape": self.shape,
                "dtype": self.dtype.weights().map_or("f32", nn::WeightType::name),
                "value": value, "unit": m.unit, "seconds": m.seconds, "median_seconds": median,
                "peak_bytes": peak, "gflops": gflops, "gb_per_s": gbs,
                "ceiling_gflops": top_flops, "ceiling_gb_per_s": top_bytes,
                "kernels": nn::ops::kernels().name, "threads": rayon::current_num_threads(),
            });
            if let Some(first) = m.first_turn {
                json["first_turn_seconds"] = first.into();
            }
            say!("{json}");
            return Ok(());
        }
        say!("{value:.3} {} (median of {}, {:.1} ms each)", m.unit, m.seconds.len(), median * 1e3);
        if let Some(first) = m.first_turn {
            say!("first turn: {first:.3} s to its first token; this is {:.1}% of it", 100.0 * value / first);
        }
        if m.flops > 0.0 {
            say!("products: {gflops:.0} GFLOP/s; float32 multiply-adds reach {top_flops:.0} here");
        }
        if m.bytes > 0.0 {
            say!("weights: {gbs:.1} GB/s; a long read reaches {top_bytes:.1} here");
        }
        if let Some(peak) = peak {
            say!("peak memory: {:.0} MiB; kernels {}", peak as f64 / f64::from(1 << 20), nn::ops::kernels().name);
        }
        Ok(())
    }
}
