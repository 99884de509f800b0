//! What is timed. Each job gives the seconds of each repeat and how much was done in one.

use super::shapes::{Shape, llama_weights};
use super::{Bench, Measured};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use lm::draw::{DrawSettings, draw};
use lm::engine::{Finish, Next};
use lm::llamagen::{Condition, LlamaGen, LlamaGenConfig};
use lm::vocab::table_rows;
use lm::{Llama, LlamaConfig, Part, Request, SampleSettings, Shared, Source, Token};
use nn::cache::Slot;
use nn::optim::{Group, Optimizer, Rule, Settings};
use nn::params::Lora;
use nn::{Params, WeightType};
use qlip::{Pixels, Qlip, QlipConfig};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use unified::artifact::{Artifact, ModelFiles, Placement};
use unified::conversation::{Event, Message};
use unified::llava::{Llava, LlavaChat};
use unified::runner::Unified;

/// Seconds of each repeat after one that is not counted.
fn repeat(n: usize, mut f: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    f()?;
    (0..n)
        .map(|_| {
            let clock = Instant::now();
            f()?;
            Ok(clock.elapsed().as_secs_f64())
        })
        .collect()
}

fn token(i: usize, vocab: usize) -> Token {
    (nn::rng::mix(i as u64) % vocab as u64) as Token
}

/// Values of a picture that nobody has seen.
fn pixels(batch: usize, side: usize) -> Result<Pixels> {
    let n = batch * 3 * side * side;
    let values: Vec<f32> = (0..n as u64).map(|i| (nn::rng::mix(i) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect();
    Ok(Pixels(Tensor::from_vec(values, (batch, 3, side, side), &Device::Cpu)?))
}

impl Bench {
    fn params(&self) -> Params {
        Params::made(1, DType::F32, &Device::Cpu).stored_as(self.dtype.weights().or(Some(WeightType::F32)))
    }

    fn weight_type(&self) -> WeightType {
        self.dtype.weights().unwrap_or(WeightType::F32)
    }

    pub(super) fn pictures(&self, c: &QlipConfig, decode: bool) -> Result<Measured> {
        let batch = self.batch.unwrap_or(4);
        let params = Params::made(1, DType::F32, &Device::Cpu).stored_as(Some(self.weight_type().for_pictures()));
        let model = Qlip::new(&params, c, false)?;
        let x = pixels(batch, c.vision_config.image_size)?;
        let codes = model.codes(&model.encode(&x)?.latents)?;
        let seconds = repeat(self.repeats, || {
            if decode {
                drop(model.decode(&codes)?)
            } else {
                drop(model.codes(&model.encode(&x)?.latents)?)
            }
            Ok(())
        })?;
        let tower = if decode { &c.decoder_config } else { &c.vision_config };
        let (d, f, n) = (tower.hidden_size, tower.intermediate_size, tower.grid() * tower.grid());
        let flops = batch * n * tower.num_hidden_layers * 2 * (4 * d * d + 3 * d * f + 2 * n * d);
        Ok(Measured { seconds, items: batch as f64, unit: "pictures/s", flops: flops as f64, ..Measured::default() })
    }

    pub(super) fn prefill(&self, c: &LlamaConfig) -> Result<Measured> {
        let (batch, prompt) = (self.batch.unwrap_or(1), self.prompt.unwrap_or(128));
        let model = Arc::new(Llama::new(&self.params(), c)?);
        let mut round = 0;
        let seconds = repeat(self.repeats, || {
            let engine = Shared::new(model.clone());
            round += 1;
            let part = |b: usize| {
                let ids: Vec<Token> = (0..prompt).map(|i| token(i + prompt * (b + 97 * round), c.vocab_size)).collect();
                Part::tokens(ids)
            };
            let requests = (0..batch).map(|b| free(vec![part(b)], c.vocab_size, 1)).collect();
            engine.run(requests, &mut |_, _, _| true)?;
            Ok(())
        })?;
        let tokens = (batch * prompt) as f64;
        let flops = 2.0 * tokens * (llama_weights(c) - c.hidden_size * c.vocab_size) as f64;
        Ok(Measured { seconds, items: tokens, unit: "tokens/s", flops, ..Measured::default() })
    }

    pub(super) fn decode(&self, c: &LlamaConfig) -> Result<Measured> {
        let (batch, prompt, new) = (self.batch.unwrap_or(1), self.prompt.unwrap_or(32), 24);
        let model = Arc::new(Llama::new(&self.params(), c)?);
        let engine = Shared::new(model);
        let mut round = 0;
        // the prompt is read before the clock runs
        let mut slots: Vec<Slot> = Vec::new();
        let mut seconds = Vec::new();
        for n in 0..=self.repeats {
            if slots.is_empty() || n == 1 {
                round += 1;
                let requests = (0..batch)
                    .map(|b| {
                        let ids: Vec<Token> =
                            (0..prompt).map(|i| token(i + prompt * (b + 89 * round), c.vocab_size)).collect();
                        free(vec![Part::tokens(ids)], c.vocab_size, 1)
                    })
                    .collect();
                slots = engine.run(requests, &mut |_, _, _| true)?.into_iter().map(|d| d.slot).collect();
            }
            let requests: Vec<Request> = slots
                .iter()
                .enumerate()
                .map(|(b, slot)| {
                    let mut r = free(vec![Part::tokens(vec![token(b, c.vocab_size)])], c.vocab_size, new);
                    r.context.read = Some(slot.clone());
                    r.share = false;
                    r
                })
                .collect();
            let clock = Instant::now();
            engine.run(requests, &mut |_, _, _| true)?;
            if n > 0 {
                seconds.push(clock.elapsed().as_secs_f64());
            }
        }
        let tokens = (batch * new) as f64;
        let weights = llama_weights(c);
        let bytes = new as f64 * self.weight_type().bytes(weights / 256, 256) as f64;
        Ok(Measured {
            seconds,
            items: tokens,
            unit: "tokens/s",
            flops: 2.0 * tokens * weights as f64,
            bytes,
            ..Measured::default()
        })
    }

    pub(super) fn draw(&self, c: &LlamaGenConfig) -> Result<Measured> {
        let batch = self.batch.unwrap_or(1);
        let model = Arc::new(LlamaGen::new(&self.params(), c)?);
        let settings = DrawSettings::constant(SampleSettings::default(), 4.0);
        let classes = Condition::Classes((0..batch as u32).map(|b| b % c.num_classes as u32).collect());
        let seeds: Vec<u64> = (0..batch as u64).collect();
        let seconds = repeat(self.repeats, || {
            draw(&model, &classes, &seeds, &settings, &mut |_| true)?;
            Ok(())
        })?;
        let weights = c.n_layer * (4 * c.dim * c.dim + 3 * c.dim * c.ffn_dim()) + c.dim * c.vocab_size;
        let steps = c.block_size as f64;
        let flops = 2.0 * steps * (2 * batch * weights) as f64;
        let bytes = steps * self.weight_type().bytes(weights / 256, 256) as f64;
        Ok(Measured { seconds, items: batch as f64, unit: "pictures/s", flops, bytes, ..Measured::default() })
    }

    fn nano(&self) -> Result<Unified> {
        let placement = Placement { weights: self.dtype.weights(), ..Placement::cpu() };
        Ok(Unified::load(&Artifact::nano()?, &placement)?)
    }

    pub(super) fn draw_nano(&self) -> Result<Measured> {
        let batch = self.batch.unwrap_or(1);
        let model = self.nano()?;
        let contexts = vec![model.drawing_context("a red circle above a blue square")?; batch];
        let g = unified::config::Generation { best_of: 1, ..model.config.generation };
        let seeds: Vec<u64> = (0..batch as u64).collect();
        let seconds = repeat(self.repeats, || {
            let codes = model.draw_images(&contexts, &seeds, &g, &mut |_| true)?;
            model.decode(&codes)?;
            Ok(())
        })?;
        Ok(Measured { seconds, items: batch as f64, unit: "pictures/s", ..Measured::default() })
    }

    /// One whole step: forward, backward, optimiser.
    pub(super) fn train(&self, shape: &Shape) -> Result<Measured> {
        let step = |params: &Params, loss: &mut dyn FnMut() -> Result<Tensor>| -> Result<Vec<f64>> {
            let vars = params.vars();
            let groups = [Group { prefix: String::new(), lr_scale: 1.0, weight_decay: 0.01 }];
            let settings = Settings { rule: Rule::Adamw, betas: (0.9, 0.95), eps: 1e-8 };
            let mut optimizer = Optimizer::new(settings, vars, &groups)?;
            repeat(self.repeats, || {
                let grads = nn::train::StepOutput::of(&loss()?, Vec::new())?.grads;
                optimizer.step(&grads, 1e-5, |_| 1.0)?;
                Ok(())
            })
        };
        match shape {
            Shape::Qlip(c) => {
                let batch = self.batch.unwrap_or(4);
                let params = Params::for_training(HashMap::new(), &[], 1, DType::F32, &Device::Cpu);
                let model = Qlip::new(&params, c, true)?;
                let x = pixels(batch, c.vision_config.image_size)?;
                let tokens = c.text_config.max_position_embeddings;
                let ids: Vec<u32> = (0..batch * tokens)
                    .map(|i| if (i + 1) % tokens == 0 { c.text_config.eos_token_id } else { token(i, 40_000) as u32 })
                    .collect();
                let seconds = step(&params, &mut || {
                    let seen = model.encode(&x)?;
                    let codes = model.bsq.quantize(&seen.latents)?;
                    let (drawn, _) = model.paint(&model.expand(&codes)?)?;
                    let pixel = (drawn.0 - &x.0)?.sqr()?.mean_all()?;
                    let (image, text) = (model.embed_image(&seen.pooled)?, model.embed_text(&ids, tokens)?);
                    let logits = image.matmul(&text.t()?)?.broadcast_mul(&model.logit_scale.exp()?)?;
                    let targets: Vec<u32> = (0..batch as u32).collect();
                    let align = nn::ops::cross_entropy(&logits, &targets)?.mean_all()?;
                    Ok((pixel + align)?)
                })?;
                Ok(Measured { seconds, items: batch as f64, unit: "pictures/s", ..Measured::default() })
            }
            Shape::Llama(c) => {
                let (batch, tokens) = (self.batch.unwrap_or(1), self.prompt.unwrap_or(128));
                let lora = self.lora.map(|rank| Lora { rank, alpha: rank as f64, base: None });
                let freeze: &[&str] = if lora.is_some() { &["model.", "lm_head."] } else { &[] };
                let params = Params::made_for_training(freeze, 1, DType::F32, &Device::Cpu)
                    .stored_as(Some(self.weight_type()))
                    .adapted(lora);
                let model = Llama::new(&params, c)?;
                let ids: Vec<Token> = (0..batch * tokens).map(|i| token(i, c.vocab_size)).collect();
                let seconds = step(&params, &mut || {
                    let logits = model.forward(&ids, batch)?.flatten_to(1)?;
                    Ok(nn::ops::cross_entropy(&logits, &table_rows(&ids)?)?.mean_all()?)
                })?;
                Ok(Measured { seconds, items: (batch * tokens) as f64, unit: "tokens/s", ..Measured::default() })
            }
            Shape::LlamaGen(c) => {
                let batch = self.batch.unwrap_or(4);
                let params = Params::for_training(HashMap::new(), &[], 1, DType::F32, &Device::Cpu);
                let model = LlamaGen::new(&params, c)?;
                let tokens: Vec<Token> = (0..batch * c.block_size).map(|i| token(i, c.vocab_size)).collect();
                let classes = Condition::Classes((0..batch as u32).collect());
                let seconds = step(&params, &mut || {
                    Ok(model.train_loss(&classes, &vec![false; batch], &tokens, &tokens, None)?)
                })?;
                Ok(Measured { seconds, items: batch as f64, unit: "pictures/s", ..Measured::default() })
            }
            _ => bail!("train-step: use a qlip, llamagen or llama shape"),
        }
    }

    /// From a file that export wrote to a model that has answered a token.
    pub(super) fn load(&self, shape: &Shape) -> Result<Measured> {
        let c = shape.llama().context("load: use a shape with a language model")?;
        let dir = Scratch::new()?;
        let path = dir.0.join("model.safetensors");
        {
            let made = self.params();
            let held: Vec<(String, nn::Packed)> = super::shapes::llama_tensors(c)
                .into_iter()
                .map(|(name, rows, cols)| {
                    let weight = made.weight((rows, cols), &name, nn::Init::Normal(0.02))?;
                    match weight {
                        nn::Weight::Packed(p) => Ok((name, p)),
                        _ => Err(nn::Error::invalid("a weight that is not packed")),
                    }
                })
                .collect::<nn::Result<_>>()?;
            let norms: Vec<(String, Tensor)> = super::shapes::llama_norms(c)
                .into_iter()
                .map(|n| Ok((n, Tensor::ones(c.hidden_size, DType::F32, &Device::Cpu)?)))
                .collect::<candle_core::Result<_>>()?;
            let mut contents = std::collections::BTreeMap::new();
            contents.extend(held.iter().map(|(n, p)| (n.clone(), nn::checkpoint::Content::Packed(p))));
            contents.extend(norms.iter().map(|(n, t)| (n.clone(), nn::checkpoint::Content::Tensor(t))));
            nn::checkpoint::save_packed(&path, &contents, &[])?;
        }
        let seconds = repeat(self.repeats, || {
            let params = Params::from_dir(&dir.0, DType::F32, &Device::Cpu)?;
            drop(Llama::new(&params, c)?);
            Ok(())
        })?;
        Ok(Measured { seconds, items: 1.0, unit: "s", is_time: true, ..Measured::default() })
    }

    /// The program's start to the first word of an answer.
    pub(super) fn startup(&self, shape: &Shape) -> Result<Measured> {
        if !matches!(shape, Shape::Nano) {
            bail!("startup: use --shape nano, the model in the program");
        }
        let program = std::env::current_exe()?;
        let seconds = repeat(self.repeats, || {
            use std::io::Read;
            let mut child = std::process::Command::new(&program)
                .args(["chat", "--prompt", "hello", "--max-tokens", "1"])
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::null())
                .spawn()?;
            let mut first = [0u8; 1];
            if let Some(out) = &mut child.stdout {
                out.read_exact(&mut first)?;
            }
            child.wait()?;
            Ok(())
        })?;
        Ok(Measured { seconds, items: 1.0, unit: "s", is_time: true, ..Measured::default() })
    }

    /// Time to the first token of a follow-up question about a picture, and of the first question.
    pub(super) fn turn(&self, shape: &Shape) -> Result<Measured> {
        let picture = {
            let side = 336;
            let rgb = (0..side * side * 3).map(|i| (nn::rng::mix(i as u64) >> 56) as u8).collect();
            qlip::Image::from_rgb(side, side, rgb)
        };
        enum Any {
            Llava(Box<LlavaChat>),
            Nano(Box<Unified>),
        }
        let model = match shape {
            Shape::Llava(c) => {
                let model = Llava::new(&self.params(), c)?;
                Any::Llava(Box::new(LlavaChat::of(model, &ModelFiles::nano(), &Placement::cpu())?))
            }
            Shape::Nano => Any::Nano(Box::new(self.nano()?)),
            _ => bail!("turn: use llava-7b or nano"),
        };
        let first_token = |messages: &[Message], max_tokens: usize| -> Result<(f64, String)> {
            let clock = Instant::now();
            let mut first = None;
            let mut on = |_: Event| {
                first.get_or_insert_with(|| clock.elapsed().as_secs_f64());
                true
            };
            let reply = match &model {
                Any::Llava(m) => m.answer(messages, &unified::conversation::Request::greedy(max_tokens), &mut on)?,
                Any::Nano(m) => {
                    let r = unified::conversation::Request { max_tokens, ..m.request(0) };
                    m.answer(messages, &r, &mut on)?
                }
            };
            Ok((first.unwrap_or_else(|| clock.elapsed().as_secs_f64()), reply.text))
        };
        let mut messages = vec![Message::user_with_image(picture, "what is this?")];
        let (whole, text) = first_token(&messages, 8)?;
        let mut seconds = Vec::new();
        let mut last = text;
        for n in 0..self.repeats {
            messages.push(Message::assistant(last.clone()));
            messages.push(Message::user(format!("and what else, number {n}?")));
            let (t, text) = first_token(&messages, 8)?;
            seconds.push(t);
            last = text;
        }
        Ok(Measured { seconds, items: 1.0, unit: "s", is_time: true, first_turn: Some(whole), ..Measured::default() })
    }
}

/// Any `new` tokens after a prompt, the likeliest.
fn free(prompt: Vec<Part>, vocab: usize, new: usize) -> Request {
    let source = Source::rows(0..vocab);
    let grammar = Box::new(move |tokens: &[Token]| match tokens.len() < new {
        true => Next::Choose(source),
        false => Next::Done(Finish::Length),
    });
    Request::new(lm::Context::new(prompt), SampleSettings::greedy(), (0, 0), grammar)
}

/// A folder that goes when it is no longer needed.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("unified-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
