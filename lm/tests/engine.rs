//! The engine: what is in a batch changes no token, prompts that begin alike are read once, one request's end or failure
//! leaves the others as they are.

use candle_core::{DType, Device, Tensor};
use lm::engine::{Context, Done, Engine, Event, Finish, Next, Part, Request, RequestId, Shared, Source, Uncertain};
use lm::head::BitwiseConfig;
use lm::{Llama, LlamaConfig, MergedVocab, SampleSettings, Token};
use nn::{Params, WeightType};
use std::collections::HashMap;
use std::sync::Arc;

const VOCAB: usize = 96;

fn model(ty: WeightType) -> Arc<Llama> {
    let config: LlamaConfig = serde_json::from_str(
        r#"{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 300}"#,
    )
    .unwrap();
    let params = Params::made(5, DType::F32, &Device::Cpu).stored_as(Some(ty));
    Arc::new(Llama::new(&params, &config).unwrap())
}

fn prompt(n: usize, key: u64) -> Vec<Token> {
    (0..n as u64).map(|i| (nn::rng::mix(i ^ key << 20) % VOCAB as u64) as Token).collect()
}

fn hot() -> SampleSettings {
    SampleSettings { temperature: 1.5, top_p: 0.95, ..SampleSettings::default() }
}

fn request(ids: Vec<Token>, n: usize, seed: u64) -> Request {
    let rows = Source::rows(0..VOCAB);
    let grammar =
        Box::new(move |t: &[Token]| if t.len() < n { Next::Choose(rows) } else { Next::Done(Finish::Length) });
    Request::new(Context::new(vec![Part::tokens(ids)]), hot(), (seed, 0), grammar)
}

fn guided(ids: Vec<Token>, n: usize, seed: u64) -> Request {
    request(ids, n, seed).guided(Context::new(vec![Part::tokens(vec![1, 2])]), |_| Some(2.5))
}

fn alone(model: &Arc<Llama>, r: Request) -> Vec<Token> {
    Shared::new(model.clone()).run(vec![r], &mut |_, _, _| true).unwrap().remove(0).tokens
}

/// Runs an engine to the end of its requests.
fn finish(engine: &mut Engine) -> HashMap<RequestId, Result<Done, String>> {
    let mut out = HashMap::new();
    while engine.active() > 0 {
        for event in engine.step() {
            match event {
                Event::Done(id, done) => drop(out.insert(id, Ok(*done))),
                Event::Failed(id, e) => drop(out.insert(id, Err(e.to_string()))),
                Event::Token(..) => {}
            }
        }
    }
    out
}

#[test]
fn a_token_does_not_depend_on_the_batch() {
    for ty in [WeightType::F32, WeightType::Bf16, WeightType::Q8_0] {
        let model = model(ty);
        let all: Vec<(usize, usize, bool)> =
            vec![(3, 20, false), (40, 9, true), (1, 30, false), (97, 5, false), (12, 25, true), (64, 8, false)];
        let make = |i: usize| {
            let (len, n, guide) = all[i];
            let ids = prompt(len, i as u64);
            let mut r = if guide { guided(ids, n, i as u64) } else { request(ids, n, i as u64) };
            r.uncertain = (i > 2).then_some(Uncertain { scale: Some(6.0), temperature: Some(0.7), window: 3 });
            r
        };
        let want: Vec<Vec<Token>> = (0..all.len()).map(|i| alone(&model, make(i))).collect();
        // they join one after the other, while others are on their way
        let mut engine = Engine::new(model.clone());
        let mut ids = Vec::new();
        let mut done = HashMap::new();
        for i in 0..all.len() {
            ids.push(engine.submit(make(i)).unwrap());
            for event in engine.step() {
                if let Event::Done(id, d) = event {
                    done.insert(id, Ok(*d));
                }
            }
        }
        done.extend(finish(&mut engine));
        for (id, want) in ids.iter().zip(&want) {
            assert_eq!(&done[id].as_ref().unwrap().tokens, want, "{ty:?}");
        }
        // and from several threads at once
        let shared = Shared::new(model);
        std::thread::scope(|s| {
            for (i, want) in want.iter().enumerate() {
                let (shared, make) = (&shared, &make);
                s.spawn(move || {
                    let got = shared.run(vec![make(i)], &mut |_, _, _| true).unwrap().remove(0).tokens;
                    assert_eq!(&got, want);
                });
            }
        });
        assert_eq!(shared.load().0, 0);
    }
}

#[test]
fn uncertain_choices_have_their_own_scale_and_temperature() {
    let model = model(WeightType::F32);
    let draw = |scale: f32, temperature: f32, scales: Option<f32>, to: Option<f32>| {
        let mut r = request(prompt(9, 2), 30, 4);
        r.sample.temperature = temperature;
        r = r.guided(Context::new(vec![Part::tokens(vec![1, 2])]), move |_| Some(scale));
        r.uncertain = Some(Uncertain { scale: scales, temperature: to, window: 2 });
        alone(&model, r)
    };
    let plain = alone(&model, guided(prompt(9, 2), 30, 4));
    assert_eq!(draw(2.5, 1.5, None, None), plain);
    assert_eq!(draw(2.5, 1.5, Some(2.5), Some(1.5)), plain);
    assert_ne!(draw(2.5, 1.5, Some(40.0), None), plain);
    assert_ne!(draw(2.5, 1.5, None, Some(0.1)), plain);
    // the likeliest token is asked for
    assert_eq!(draw(2.5, 0.0, None, Some(3.0)), draw(2.5, 0.0, None, None));
}

#[test]
fn prompts_that_begin_alike_are_read_once() {
    let model = model(WeightType::F32);
    let ids = prompt(150, 1);
    let want: Vec<Vec<Token>> = (0..4).map(|s| alone(&model, request(ids.clone(), 6, s))).collect();
    let mut engine = Engine::new(model.clone());
    let each: Vec<RequestId> = (0..4).map(|s| engine.submit(request(ids.clone(), 6, s)).unwrap()).collect();
    let mut done = finish(&mut engine);
    let mut reused = Vec::new();
    for (id, want) in each.iter().zip(&want) {
        let d = done.remove(id).unwrap().unwrap();
        assert_eq!(&d.tokens, want);
        reused.push(d.reused);
    }
    assert_eq!(reused, [0, 149, 149, 149]);
    // a follow-up reads what is new; a prompt that parts earlier shares as far as it agrees
    let mut longer = ids.clone();
    longer.extend([7, 8, 9]);
    let mut other = ids.clone();
    other[100] = (other[100] + 1) % VOCAB as Token;
    for (ids, want_reused) in [(longer, 150), (other, 100)] {
        let want = alone(&model, request(ids.clone(), 5, 9));
        let id = engine.submit(request(ids, 5, 9)).unwrap();
        let d = finish(&mut engine).remove(&id).unwrap().unwrap();
        assert_eq!((d.tokens, d.reused), (want, want_reused));
    }
}

#[test]
fn one_request_takes_no_other_down() {
    let model = model(WeightType::F32);
    let mut engine = Engine::new(model.clone());
    // what cannot be is refused at the door
    for (ids, why) in [(vec![], "empty context"), (vec![500], "outside the vocabulary"), (prompt(301, 0), "301 tokens")]
    {
        let e = engine.submit(request(ids, 3, 0)).unwrap_err().to_string();
        assert!(e.contains(why), "{e}");
    }
    let bad = SampleSettings { top_p: 0.0, ..SampleSettings::default() };
    let mut r = request(vec![1], 3, 0);
    r.sample = bad;
    assert!(engine.submit(r).is_err());
    // not-a-number embeddings fail with the layer's name; the neighbour goes on
    let want = alone(&model, request(vec![4, 5], 12, 3));
    let good = engine.submit(request(vec![4, 5], 12, 3)).unwrap();
    let nan = Tensor::full(f32::NAN, (4, 64), &Device::Cpu).unwrap();
    let mut r = request(vec![1], 5, 0);
    r.context = Context::new(vec![Part::tokens(vec![1, 2]), Part::Embedded(nan, vec![1, 2, 3, 4])]);
    let broken = engine.submit(r).unwrap();
    let cancelled = engine.submit(request(vec![9], 100, 0)).unwrap();
    engine.step();
    engine.step();
    let Some(Event::Done(_, d)) = engine.cancel(cancelled) else { panic!("no end") };
    assert_eq!((d.finish, d.tokens.len()), (Finish::Cancelled, 2));
    let mut done = finish(&mut engine);
    assert_eq!(done.remove(&good).unwrap().unwrap().tokens, want);
    assert!(!done.contains_key(&broken), "it failed in the first step");
    // the window's end ends an answer
    let id = engine.submit(request(prompt(290, 3), 100, 0)).unwrap();
    let d = finish(&mut engine).remove(&id).unwrap().unwrap();
    assert_eq!((d.finish, d.tokens.len()), (Finish::Length, 11));
}

#[test]
fn numbers_that_are_none_name_the_layer() {
    let model = model(WeightType::F32);
    let mut engine = Engine::new(model);
    let nan = Tensor::full(f32::NAN, (1, 64), &Device::Cpu).unwrap();
    let mut r = request(vec![1], 5, 0);
    r.context = Context::new(vec![Part::Embedded(nan, vec![1])]);
    let id = engine.submit(r).unwrap();
    let why = finish(&mut engine).remove(&id).unwrap().unwrap_err();
    assert_eq!(why, "the logits after 1 tokens are not numbers (NaN); it began in layer 0");
}

#[test]
fn log_probabilities_are_those_of_the_softmax() {
    let model = model(WeightType::F32);
    let mut r = request(prompt(9, 2), 3, 1);
    r.logprobs = Some(VOCAB);
    let mut seen = 0;
    Shared::new(model)
        .run(vec![r], &mut |_, token, lp| {
            let lp = lp.unwrap();
            let sum: f64 = lp.top.iter().map(|t| f64::from(t.1).exp()).sum();
            assert!((sum - 1.0).abs() < 1e-4, "{sum}");
            assert!(lp.top.windows(2).all(|w| w[0].1 >= w[1].1));
            assert_eq!(lp.top.iter().find(|t| t.0 == token).unwrap().1, lp.chosen);
            seen += 1;
            true
        })
        .unwrap();
    assert_eq!(seen, 3);
}

/// Codes as bits go through the same engine: in, out, and guided.
#[test]
fn a_bitwise_head_draws_codes() {
    [false, true].into_iter().for_each(draws_codes);
}

fn draws_codes(cell_positions: bool) {
    let vocab = MergedVocab {
        cell_positions,
        text: 96,
        bits: 6,
        group_bits: 6,
        shared_table: false,
        bitwise: Some(BitwiseConfig { bits: 6, group_bits: 3, width: 16 }),
        grid: 2,
        begin_image: 2,
        end_image: 3,
    };
    vocab.check().unwrap();
    let config = model(WeightType::F32).config.clone();
    let params = Params::for_training(HashMap::new(), &[], 3, DType::F32, &Device::Cpu);
    let model = Arc::new(Llama::of_vocab(&params, &config, &vocab).unwrap());
    let draw = |seed| {
        let sources: Vec<Source> = (0..4).map(|n| vocab.visual_source(n)).collect();
        let grammar =
            Box::new(move |t: &[Token]| sources.get(t.len()).map_or(Next::Done(Finish::Stop), |s| Next::Choose(*s)));
        let mut r = guided(vec![5, 2], 0, seed);
        r.grammar = grammar;
        alone(&model, r)
    };
    let tokens = draw(1);
    let codes = vocab.to_codes(&tokens).unwrap();
    assert_eq!(vocab.to_tokens(&codes), tokens);
    assert!((2..20).any(|s| draw(s) != tokens), "different seeds draw differently");
    // words and codes in one sequence each have their own embedding
    let mixed = [5, tokens[0], 7, tokens[1]];
    let x = model.embed(&mixed, 1).unwrap().squeeze(0).unwrap();
    for (i, id) in mixed.iter().enumerate() {
        let one = model.embed(&[*id], 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(x.get(i).unwrap().to_vec1::<f32>().unwrap(), one);
    }
}
