//! What a training would take on other machines: parameters, operations, memory and traffic of a config, from formulas whose constants were
//! measured here (docs/scale.md).

use super::{LlavaTraining, Training};
use crate::artifact::Artifact;
use crate::template::Marks;
use crate::words::Words;
use crate::{Error, Result};
use lm::LlamaConfig;
use lm::llamagen::{LlamaGenConfig, ModelType};
use nn::optim::Rule;
use nn::params::{Lora, fitting};
use nn::train::{OptimConfig, RunConfig};
use qlip::config::QlipConfig;
use serde::Serialize;

/// The machines.
#[derive(Debug, Clone, Copy)]
pub struct Machines {
    /// How many devices.
    pub devices: usize,
    /// Operations a second that a device sustains in products.
    pub flops: f64,
    /// Bytes a second that a device reads from its memory.
    pub bandwidth: f64,
    /// Bytes a second between devices.
    pub link: f64,
}

/// What it would take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Numbers that are trained.
    pub trained_parameters: f64,
    /// Numbers that are held.
    pub held_parameters: f64,
    /// Operations an update, over all devices.
    pub flops_per_update: f64,
    /// Bytes a device holds: weights, gradients, its share of the optimiser's state, averages.
    pub state_bytes: f64,
    /// Bytes of one part's graph on a device.
    pub activation_bytes: f64,
    /// Both together.
    pub memory_bytes: f64,
    /// Bytes that a device sends an update.
    pub traffic_bytes: f64,
    /// Seconds of products.
    pub compute_seconds: f64,
    /// Seconds of reading and writing weights and state.
    pub memory_seconds: f64,
    /// Seconds of traffic, none of it hidden behind the products, as this program does it.
    pub traffic_seconds: f64,
    /// Seconds an update.
    pub update_seconds: f64,
    /// Share of the time in which products run.
    pub efficiency: f64,
    /// Days of the whole training.
    pub days: f64,
}

/// Blocks of one width that see so many tokens a sample.
#[derive(Debug, Clone, Copy)]
struct Stack {
    layers: f64,
    width: f64,
    inner: f64,
    /// Width of keys and values as a share of the queries'.
    kv: f64,
    tokens: f64,
    causal: bool,
    trained: bool,
}

/// Numbers of a table or head, and how many tokens a sample go through it as a product.
#[derive(Debug, Clone, Copy)]
struct Table {
    numbers: f64,
    tokens: f64,
    trained: bool,
}

/// Values that a block keeps for its backward pass, a token: so many times its width, and its inner width (measured, docs/scale.md).
const KEPT: (f64, f64) = (15.0, 6.0);

/// The same where the block computes them again.
const KEPT_RECOMPUTED: f64 = 6.0;

/// Bytes a trained number that an update takes for a while beside weights, gradients and state, and as many again where a batch comes in
/// parts and their gradients are summed (measured, docs/scale.md).
const PASSING: f64 = 6.0;

impl Stack {
    fn numbers(&self) -> f64 {
        self.layers
            * (self.width * self.width * (2.0 + 2.0 * self.kv) + 3.0 * self.width * self.inner + 2.0 * self.width)
    }

    /// Numbers of adapters of this rank in all seven layers of its blocks.
    fn adapters(&self, rank: f64) -> f64 {
        let (q, kv, mlp) = (2.0 * self.width, self.width * (1.0 + self.kv), self.width + self.inner);
        self.layers * rank * (2.0 * q + 2.0 * kv + 3.0 * mlp)
    }

    /// Operations of a forward pass, a sample.
    fn forward(&self) -> f64 {
        let pairs = self.tokens * self.tokens * if self.causal { 0.5 } else { 1.0 };
        2.0 * self.numbers() * self.tokens + self.layers * 4.0 * pairs * self.width
    }

    /// Bytes kept, a sample.
    fn kept(&self, recompute: bool) -> f64 {
        if !self.trained {
            return 0.0;
        }
        let whole = KEPT.0 * self.width + KEPT.1 * self.inner;
        let values = match recompute {
            // the inner values of one block at a time
            true => self.layers * KEPT_RECOMPUTED * self.width + whole,
            false => self.layers * whole,
        };
        4.0 * self.tokens * values
    }
}

/// What a training computes.
struct Work<'a> {
    stacks: Vec<Stack>,
    tables: Vec<Table>,
    /// Adapters in the first stack, which is then held.
    lora: Option<Lora>,
    run: &'a RunConfig,
    optim: &'a OptimConfig,
}

/// What a training would take on these machines.
pub fn plan(training: &Training, on: &Machines) -> Result<Plan> {
    let work = match training {
        Training::Unified(t) => {
            let model = match (&t.model, &t.start) {
                (Some(m), _) => m.clone(),
                (None, Some(dir)) => text_config(&dir.to_string_lossy())?,
                (None, None) => {
                    return Err(Error::invalid("give either `start` (a checkpoint folder) or a section [model]"));
                }
            };
            let eyes = Artifact::open(&t.image_tokenizer.to_string_lossy())?.config::<serde_json::Value>()?;
            let eyes: QlipConfig = qlip_of(eyes)?;
            // the text's rows are the tokenizer's, as the training counts them
            let text = std::fs::read(&t.tokenizer).map_err(Error::io(&t.tokenizer))?;
            let words = Words::from_bytes(&t.tokenizer, &text)?.with_marks(&Marks::default().all())?;
            let mut work = llama(&model, (t.sequence_length, model.vocab_size.max(words.len())), &t.run, &t.optim);
            work.lora = t.lora;
            // pictures of a batch are encoded too, about one a row
            work.stacks.push(Stack { trained: false, ..tower(&eyes.vision_config) });
            work
        }
        Training::Llava(t) => llava(t)?,
        Training::Qlip(t) => {
            let config = match (&t.model, &t.start) {
                (Some(m), _) => m.clone(),
                (None, Some(dir)) => QlipConfig::from_file(&dir.join("config.json"))?,
                (None, None) => {
                    return Err(Error::invalid("give either `start` (a checkpoint folder) or a section [model]"));
                }
            };
            let mut stacks = vec![Stack { trained: t.stage == 1, ..tower(&config.vision_config) }];
            stacks.push(tower(&config.decoder_config));
            let text = &config.text_config;
            let (width, tokens) = (text.hidden_size as f64, text.max_position_embeddings as f64);
            let inner = text.intermediate_size as f64 * 2.0 / 3.0;
            let words = Stack {
                layers: text.num_hidden_layers as f64,
                width,
                inner,
                kv: 1.0,
                tokens,
                causal: true,
                trained: true,
            };
            stacks.extend((t.stage == 1).then_some(words));
            let table = Table { numbers: text.vocab_size as f64 * width, tokens: 0.0, trained: t.stage == 1 };
            Work { stacks, tables: vec![table], lora: None, run: &t.run, optim: &t.optim }
        }
        Training::LlamaGen(t) => {
            let size = match (&t.preset, &t.model) {
                (Some(name), _) => LlamaGenConfig::preset(name, ModelType::C2i, t.grid.unwrap_or(16))?,
                (None, Some(m)) => m.clone(),
                (None, None) => return Err(Error::invalid("give either `preset` or a section [model]")),
            };
            let tokens = size.block_size.max(1) as f64;
            let (width, rows) = (size.dim as f64, size.vocab_size.max(1) as f64);
            let heads = size.n_head.max(1) as f64;
            let stack = Stack {
                layers: size.n_layer as f64,
                width,
                inner: size.ffn_dim() as f64,
                kv: size.n_kv_head.map_or(1.0, |n| n as f64 / heads),
                tokens,
                causal: true,
                trained: true,
            };
            let read = Table { numbers: rows * width, tokens: 0.0, trained: true };
            let tables = vec![read, Table { tokens, ..read }];
            Work { stacks: vec![stack], tables, lora: None, run: &t.run, optim: &t.optim }
        }
        _ => return Err(Error::invalid("plan: there are formulas for qlip, unified, llava and llamagen trainings")),
    };
    work.check()?;
    Ok(work.on(on))
}

fn qlip_of(value: serde_json::Value) -> Result<QlipConfig> {
    qlip::config::parse_json(std::path::Path::new("config.json"), &value.to_string())
}

/// The language model of a checkpoint.
fn text_config(place: &str) -> Result<LlamaConfig> {
    let config: serde_json::Value = Artifact::open(place)?.config()?;
    let text = if config["text_config"].is_object() { config["text_config"].clone() } else { config };
    qlip::config::parse_json(std::path::Path::new("config.json"), &text.to_string())
}

fn tower(t: &qlip::config::TowerConfig) -> Stack {
    let grid = (t.image_size / t.patch_size.max(1)) as f64;
    Stack {
        layers: t.num_hidden_layers as f64,
        width: t.hidden_size as f64,
        inner: t.intermediate_size as f64 * if t.swiglu { 1.0 } else { 2.0 / 3.0 },
        kv: 1.0,
        tokens: grid * grid + 1.0,
        causal: false,
        trained: true,
    }
}

fn llama<'a>(m: &LlamaConfig, (tokens, rows): (usize, usize), run: &'a RunConfig, optim: &'a OptimConfig) -> Work<'a> {
    let (width, heads) = (m.hidden_size as f64, m.num_attention_heads.max(1) as f64);
    let stack = Stack {
        layers: m.num_hidden_layers as f64,
        width,
        inner: m.intermediate_size as f64,
        kv: m.num_key_value_heads.map_or(1.0, |n| n as f64 / heads),
        tokens: tokens as f64,
        causal: true,
        trained: true,
    };
    let table = Table { numbers: rows as f64 * width, tokens: tokens as f64, trained: true };
    let read = (!m.tie_word_embeddings).then_some(Table { tokens: 0.0, ..table });
    Work { stacks: vec![stack], tables: std::iter::once(table).chain(read).collect(), lora: None, run, optim }
}

/// Stage 2 of a whole language model; the tower and the projector are small beside it and left out.
fn llava(t: &LlavaTraining) -> Result<Work<'_>> {
    if t.stage == 1 {
        return Err(Error::invalid("plan: there are formulas for stage 2 of a LLaVA alone"));
    }
    let place = t.language_model.as_ref().or(t.start.as_ref());
    let place = place.ok_or_else(|| Error::invalid("give either `start`, or `tower` and `language_model`"))?;
    let model = text_config(&place.to_string_lossy())?;
    let mut work = llama(&model, (t.sequence_length, model.vocab_size), &t.run, &t.optim);
    work.lora = t.lora;
    // beside adapters a LLaVA's tables are held too
    work.tables.iter_mut().for_each(|table| table.trained = t.lora.is_none());
    Ok(work)
}

impl Work<'_> {
    fn check(&self) -> Result<()> {
        self.run.check()
    }

    fn on(&self, m: &Machines) -> Plan {
        let devices = m.devices.max(1) as f64;
        let batch = self.run.batch_size as f64;
        let share = batch / devices;
        let micro = self.run.micro_batch.map_or(share, |n| share.min(n as f64));
        let adapters = self.lora.zip(self.stacks.first()).map(|(l, s)| (l, s.numbers(), s.adapters(l.rank as f64)));
        let numbers = |trained: bool| {
            self.stacks.iter().filter(|s| s.trained == trained).map(Stack::numbers).sum::<f64>()
                + self.tables.iter().filter(|t| t.trained == trained).map(|t| t.numbers).sum::<f64>()
        };
        let (mut trained, mut held) = (numbers(true), numbers(false));
        let mut held_bytes = held * 4.0;
        if let Some((lora, beside, small)) = adapters {
            trained += small - beside;
            held += beside;
            // the tensors that training began with stay, for the checkpoint; as they are stored, or in blocks beside them
            held_bytes += beside * (4.0 + lora.base.map_or(4.0, bytes_a_number));
        }
        let recomputed = if self.run.recompute { 1.0 } else { 0.0 };
        // forward, and twice that backward; again forward where inner values were forgotten. What is held is read forward
        let flops: f64 = self
            .stacks
            .iter()
            .enumerate()
            .map(|(i, s)| {
                // a held weight beside adapters has no gradient, what goes into it has
                let less = if adapters.is_some() && i == 0 { 1.0 } else { 0.0 };
                s.forward() * if s.trained { 3.0 + recomputed - less } else { 1.0 }
            })
            .chain(self.tables.iter().map(|t| 2.0 * t.numbers * t.tokens * if t.trained { 3.0 } else { 1.0 }))
            .sum::<f64>()
            * batch;
        let moments = if self.optim.rule == Rule::Muon { 4.0 } else { 8.0 };
        let average = if self.optim.ema.is_some() { 4.0 } else { 0.0 };
        let passing = if micro < share { 2.0 * PASSING } else { PASSING };
        let state = trained * (4.0 + 4.0 + moments / devices + average + passing) + held_bytes;
        let activations = self.stacks.iter().map(|s| s.kept(self.run.recompute)).sum::<f64>() * micro;
        // gradients are summed in a ring and updated weights go round once more
        let traffic = if devices > 1.0 { 3.0 * 4.0 * trained * (devices - 1.0) / devices } else { 0.0 };
        let compute_seconds = flops / devices / m.flops;
        let parts = (share / micro.max(1e-9)).ceil().max(1.0);
        let memory_seconds =
            (trained + held) * 4.0 * 3.0 * parts / m.bandwidth + trained * (16.0 + average) / m.bandwidth;
        let traffic_seconds = traffic / m.link;
        let update_seconds = compute_seconds.max(memory_seconds) + traffic_seconds;
        Plan {
            trained_parameters: trained,
            held_parameters: held,
            flops_per_update: flops,
            state_bytes: state,
            activation_bytes: activations,
            memory_bytes: state + activations,
            traffic_bytes: traffic,
            compute_seconds,
            memory_seconds,
            traffic_seconds,
            update_seconds,
            efficiency: compute_seconds / update_seconds,
            days: update_seconds * self.run.steps as f64 / 86_400.0,
        }
    }
}

/// Bytes that a number takes in a weight held as this type.
fn bytes_a_number(ty: nn::WeightType) -> f64 {
    const COLUMNS: usize = 4096;
    fitting(ty, COLUMNS).bytes(16, COLUMNS) as f64 / (16 * COLUMNS) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use nn::Params;
    use std::collections::HashMap;

    fn config(name: &str, sets: &[&str]) -> Training {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(name);
        Training::from_file(&path, &sets.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    const HERE: Machines = Machines { devices: 1, flops: 1e11, bandwidth: 1e10, link: 1e9 };

    /// Counted against the variables of a real training.
    #[test]
    fn parameters_are_those_of_the_model() {
        let Training::Qlip(t) = config("nano/qlip-stage1.toml", &[]) else { panic!() };
        let params = Params::for_training(HashMap::new(), &[], 1, DType::F32, &Device::Cpu);
        qlip::Qlip::new(&params, t.model.as_ref().unwrap(), true).unwrap();
        let real: usize = params.vars().values().map(|v| v.elem_count()).sum();
        let said = plan(&Training::Qlip(t), &HERE).unwrap().trained_parameters;
        // patches, positions and projections are left out
        assert!((said / real as f64 - 1.0).abs() < 0.1, "{said} for {real}");
    }

    #[test]
    fn more_devices_share_the_work_and_pay_for_the_traffic() {
        let t = config("nano/qlip-stage1.toml", &["run.batch_size=1024"]);
        let (one, eight) = (plan(&t, &HERE).unwrap(), plan(&t, &Machines { devices: 8, ..HERE }).unwrap());
        assert_eq!(one.flops_per_update, eight.flops_per_update);
        assert!((one.compute_seconds / eight.compute_seconds - 8.0).abs() < 1e-9);
        assert!(one.traffic_bytes == 0.0 && eight.traffic_bytes > 0.0 && eight.memory_bytes < one.memory_bytes);
        let again = plan(&config("nano/qlip-stage1.toml", &["run.recompute=true"]), &HERE).unwrap();
        let plain = plan(&config("nano/qlip-stage1.toml", &[]), &HERE).unwrap();
        assert!(
            again.activation_bytes < 0.5 * plain.activation_bytes && again.flops_per_update > plain.flops_per_update
        );
        assert!(plan(&config("nano/tokenizer.toml", &[]), &HERE).is_err());
    }
}
