//! Trainings that are killed and go on, and what they leave.

use super::{fails, fixture, nano, nano_bits, ok, resumes, tiny};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

#[test]
fn tokenizer_training_resumes_exactly() {
    let mut sets = tiny();
    for tower in ["vision_config", "decoder_config"] {
        sets.extend([format!("model.{tower}.num_hidden_layers=1"), format!("model.{tower}.image_size=16")]);
    }
    resumes("nano/qlip-stage1.toml", &sets);
}

#[test]
fn the_balance_of_pixels_and_alignment_is_probed_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/nano/qlip-stage1.toml");
    std::fs::copy(&config, d.join("c.toml")).unwrap();
    let mut sets = tiny();
    for tower in ["vision_config", "decoder_config"] {
        sets.extend([format!("model.{tower}.num_hidden_layers=1"), format!("model.{tower}.image_size=16")]);
    }
    let mut args = vec!["train", "c.toml", "--out", "p", "--probe-balance"];
    sets.iter().for_each(|s| args.extend(["--set", s]));
    let said = ok(d, &args);
    let same = std::fs::read(d.join("c.toml")).unwrap() == std::fs::read(&config).unwrap();
    assert!(same, "the config that was given is as it was");
    let config = std::fs::read_to_string(d.join("p/balanced.toml")).unwrap();
    let line = config.lines().find(|l| l.starts_with("reconstruction = ")).unwrap();
    assert!(said.contains(line) && line != "reconstruction = 10.0", "{said}");
    let value: f64 = line.trim_start_matches("reconstruction = ").parse().unwrap();
    assert!(value > 0.01 && value < 1000.0, "{value}");
    fails(
        d,
        &["train", "c.toml", "--out", "q", "--probe-balance", "--set", "stage=2", "--set", "start=x"],
        &["stage 1"],
    );
}

#[test]
fn tokenizer_training_with_every_term_resumes_exactly() {
    let mut sets = tiny();
    for tower in ["vision_config", "decoder_config"] {
        sets.push(format!("model.{tower}.num_hidden_layers=2"));
    }
    let more = [
        "loss.quantized_alignment=0.5",
        "loss.distillation=0.5",
        "loss.quantized_distillation=0.5",
        "loss.consistency=0.2",
        "loss.balance=running",
        "loss.adversarial=0.1",
        "loss.alignment_loss=sigmoid",
        "loss.proximal_steps=3",
        "loss.proximal_ramp=3",
        "adversary={net={kind=\"patch\",width=4,layers=2},r1_gamma=1.0,r1_every=2}",
        "model.vision_config.quantizer_levels=[1]",
        "run.micro_batch=3",
        "run.recompute=true",
        "sample_every=5",
    ];
    sets.extend(more.map(str::to_owned));
    sets.push(format!("teacher={}", nano().join("qlip").display()));
    resumes("nano/qlip-stage1.toml", &sets);
}

#[test]
fn unified_training_resumes_exactly() {
    let mut sets = tiny();
    sets.push(format!("image_tokenizer={}", nano().join("qlip").display()));
    sets.extend(["model.num_hidden_layers=1", "model.hidden_size=64", "model.intermediate_size=64"].map(str::to_owned));
    resumes("nano/unified.toml", &sets);
}

#[test]
fn a_text_model_grows_into_a_unified_one() {
    const GROUP: usize = 4;
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    // the nano model's text rows as a Llama of its own
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(nano().join("config.json")).unwrap()).unwrap();
    let text = config["vocabulary"]["text"].as_u64().unwrap() as usize;
    let mut llama = config["text_config"].clone();
    llama["model_type"] = "llama".into();
    llama["vocab_size"] = text.into();
    llama["qk_norm"] = false.into();
    llama["tie_word_embeddings"] = true.into();
    std::fs::create_dir(d.join("llama")).unwrap();
    std::fs::write(d.join("llama/config.json"), llama.to_string()).unwrap();
    let mut tensors: BTreeMap<String, Tensor> = nn::checkpoint::load_dir(&nano()).unwrap().into_iter().collect();
    tensors.retain(|k, _| !k.contains("_norm.weight") || k.contains("layernorm") || k == "model.norm.weight");
    let table = tensors["model.embed_tokens.weight"].narrow(0, 0, text).unwrap().contiguous().unwrap();
    tensors.insert("model.embed_tokens.weight".into(), table);
    tensors.remove("lm_head.weight");
    nn::checkpoint::save(&d.join("llama/model.safetensors"), &tensors, &[]).unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/nano/unified.toml");
    let sets = [
        format!("data.pictures.path={}", fixture("photos").display()),
        format!("tokenizer={}", nano().join("tokenizer.json").display()),
        format!("image_tokenizer={}", nano().join("qlip").display()),
        "start=llama".to_owned(),
        "head=tokens".to_owned(),
        format!("group_bits={GROUP}"),
        "sequence_length=2048".to_owned(),
        "run.steps=2".to_owned(),
        "run.batch_size=2".to_owned(),
    ];
    let mut args = vec!["train", config.to_str().unwrap(), "--out", "um"];
    for s in &sets {
        args.extend(["--set", s]);
    }
    fails(d, &args, &["either `start`", "[model]"]);
    let without_model = std::fs::read_to_string(&config).unwrap();
    std::fs::write(d.join("start.toml"), without_model.split("[model]").next().unwrap()).unwrap();
    args[1] = "start.toml";
    ok(d, &args);
    let rows = nn::checkpoint::load_dir(&d.join("um")).unwrap()["model.embed_tokens.weight"].dim(0).unwrap();
    assert_eq!(rows, text + ((nano_bits() / GROUP) << GROUP));
    ok(d, &["chat", "--model", "um", "--prompt", "hello", "--max-tokens", "4"]);
}

/// A token a code instead of two, no visual rows, and no photographs where the mixture has none.
#[test]
fn a_unified_model_with_a_bitwise_head_trains_resumes_and_draws() {
    let mut sets = tiny();
    sets.push(format!("image_tokenizer={}", nano().join("qlip").display()));
    sets.extend(["model.num_hidden_layers=1", "model.hidden_size=64", "model.intermediate_size=64"].map(str::to_owned));
    sets.extend(["head=bits", "head_width=16", "shared_bits=false", "run.recompute=true"].map(str::to_owned));
    resumes("nano/unified.toml", &sets);
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/nano/unified.toml");
    let mut args = vec!["train", config.to_str().unwrap(), "--out", "um"];
    sets.retain(|s| !s.starts_with("data."));
    let none = ["data.pictures.path=nowhere", "data.pictures.start=0.0", "data.pictures.end=0.0"];
    sets.extend(none.map(str::to_owned));
    sets.iter().for_each(|s| args.extend(["--set", s]));
    ok(d, &args);
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(d.join("um/config.json")).unwrap()).unwrap();
    assert_eq!(config["text_config"]["vocab_size"], config["vocabulary"]["text"]);
    let weights = nn::checkpoint::load_dir(&d.join("um")).unwrap();
    assert!(weights.contains_key("bit_head.output.weight"));
    ok(d, &["generate", "a red circle", "--model", "um", "-n", "3", "-o", "out"]);
    assert_eq!(std::fs::read_dir(d.join("out")).unwrap().count(), 3);
    ok(d, &["describe", "--model", "um", "out/unified-0001.png"]);
    ok(d, &["export", "um", "small", "--dtype", "q8_0"]);
    ok(d, &["generate", "a red circle", "--model", "small", "-o", "again"]);
    fails(d, &["export", "um", "um"], &["export writes a copy"]);
    let without = std::fs::read_to_string(d.join("um/training.toml")).unwrap();
    let without: String = without.lines().filter(|l| *l != "path = \"nowhere\"").map(|l| format!("{l}\n")).collect();
    std::fs::write(d.join("c.toml"), without).unwrap();
    fails(d, &["train", "c.toml", "--out", "no"], &["pictures to describe: path is missing"]);
}

/// A unified model goes on by adapters, with its cells told: what is written is whole, and the adapters belong to the model they came from.
#[test]
fn a_unified_model_learns_by_adapters() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/nano/unified-copy.toml");
    let train = |out: &str, more: &[&str]| {
        let mut sets = tiny();
        sets.push(format!("image_tokenizer={}", nano().join("qlip").display()));
        sets.extend(["run.steps=2", "run.batch_size=2"].map(str::to_owned));
        sets.extend(more.iter().map(|s| (*s).to_owned()));
        let mut args = vec!["train", config.to_str().unwrap(), "--out", out];
        sets.iter().for_each(|s| args.extend(["--set", s]));
        ok(d, &args);
    };
    let nano = format!("start={}", nano().display());
    train("cells", &[&nano]);
    let cells: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(d.join("cells/config.json")).unwrap()).unwrap();
    assert_eq!(cells["vocabulary"]["cell_positions"], true);
    let positions = "bit_embeddings.position_embedding.weight";
    assert_eq!(nn::checkpoint::load_dir(&d.join("cells")).unwrap()[positions].dims(), [64, 256]);
    train("more", &["start=cells", "lora={rank=4,alpha=8.0}"]);
    let (before, after) =
        (nn::checkpoint::load_dir(&d.join("cells")).unwrap(), nn::checkpoint::load_dir(&d.join("more")).unwrap());
    let names = |m: &std::collections::HashMap<String, candle_core::Tensor>| {
        m.keys().cloned().collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names(&before), names(&after), "adapters are merged");
    let drawn = |model: &str, out: &str| {
        ok(d, &["generate", "a red circle", "--model", model, "-o", out]);
        std::fs::read(d.join(out).join("unified-0001.png")).unwrap().len()
    };
    drawn("more", "a");
    drawn("more/adapter", "b");
    ok(d, &["describe", "--model", "more/adapter", "a/unified-0001.png"]);
    fails(
        d,
        &["train", config.to_str().unwrap(), "--out", "x", "--set", &nano, "--set", "lora={rank=0,alpha=1.0}"],
        &["[lora] rank 0"],
    );
}

/// Small grey pictures in a gzip parquet with a ClassLabel, as Fashion-MNIST's: four trainings, with no other change than the path.
#[test]
fn grey_pictures_go_through_every_picture_training() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let grey = format!("data.pictures.path={}", fixture("field/parquet/grey").display());
    let train = |config: &str, out: &str, sets: &[&str]| {
        let path = configs.join(config);
        let mut args = vec!["train", path.to_str().unwrap(), "--out", out, "--set", &grey];
        let short = ["run.steps=3", "run.batch_size=4", "optim.warmup=1"];
        short.iter().chain(sets).for_each(|s| args.extend(["--set", s]));
        ok(d, &args);
    };
    let words = format!("tokenizer={}", nano().join("qlip/tokenizer.json").display());
    let layers = ["model.vision_config.num_hidden_layers=1", "model.decoder_config.num_hidden_layers=1"];
    train("ablation/stage1.toml", "qlip", &[&[words.as_str()][..], &layers].concat());
    train("llamagen/compare/vq.toml", "vq", &["model.ch=32", "model.num_res_blocks=1", "model.z_channels=16"]);
    train("llamagen/compare/classifier.toml", "classifier", &["widths=[8,16]"]);
    train(
        "llamagen/compare/llamagen-vq.toml",
        "drawer",
        &["image_tokenizer=vq", "model.n_layer=1", "model.dim=64", "model.n_head=2"],
    );
    ok(d, &["generate", "--model", "drawer", "--class", "boot", "-o", "out"]);
    ok(d, &["reconstruct", "out/unified-0001.png", "--model", "qlip", "-o", "again"]);
    let names: Vec<String> =
        serde_json::from_str(&std::fs::read_to_string(d.join("drawer/classes.json")).unwrap()).unwrap();
    assert_eq!(names, ["top", "bag", "boot", "coat"]);
}

/// Samples that are never trained on are measured, the best checkpoint stays, and a training that gets no better ends.
#[test]
fn held_out_samples_are_measured_and_the_best_stays() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/llamagen/compare/classifier.toml");
    let photos = format!("data.pictures.path={}", fixture("photos").display());
    let validation = "run.validation={every=2,samples=8,held_out=0.2,best=\"accuracy\",patience=2}";
    let train = |out: &str, more: &[&str]| {
        let mut args = vec!["train", config.to_str().unwrap(), "--out", out];
        let sets = [
            "run.steps=40",
            "run.batch_size=4",
            "image_size=16",
            "widths=[8,16]",
            "optim.lr=0.0",
            "optim.lr_floor=0.0",
        ];
        sets.iter().chain(&[photos.as_str(), validation]).chain(more).for_each(|s| args.extend(["--set", s]));
        super::unified(d, &args)
    };
    let run = train("m", &[]);
    let err = super::text(&run.stderr);
    // nothing is learned: the first validation is the best, and two more end it
    assert!(run.status.success() && err.contains("ended after update 6"), "{err}");
    let log = std::fs::read_to_string(d.join("m/metrics.jsonl")).unwrap();
    assert_eq!(log.matches("val_accuracy").count(), 3, "{log}");
    assert!(d.join("m/best/config.json").is_file() && d.join("m/best/model.safetensors").is_file());
    let err = super::text(&train("n", &["run.validation.best=beauty"]).stderr);
    assert!(err.contains("there are accuracy, loss"), "{err}");
    let err = super::text(&train("o", &["run.validation.held_out=0.001"]).stderr);
    assert!(err.contains("both parts need some"), "{err}");
}

/// A batch in parts has the whole batch's gradient.
#[test]
fn a_batch_in_parts_trains_as_a_whole_one() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let eyes = format!("image_tokenizer={}", nano().join("qlip").display());
    let unified = ["model.num_hidden_layers=1", "model.hidden_size=64", "model.intermediate_size=64", &eyes];
    for (config, sets) in [
        ("nano/unified.toml", tiny().into_iter().chain(unified.map(str::to_owned)).collect::<Vec<_>>()),
        ("llamagen/cifar-qlip.toml", super::llamagen_sets()),
    ] {
        let losses = |out: &str, micro: &str| {
            let path = configs.join(config);
            let mut args =
                vec!["train", path.to_str().unwrap(), "--out", out, "--set", "run.precision=f32", "--set", micro];
            sets.iter().for_each(|s| args.extend(["--set", s]));
            ok(d, &args);
            let all = super::losses(&d.join(out));
            all.iter().map(|l| l.split_once(' ').unwrap().1.parse::<f64>().unwrap()).collect::<Vec<_>>()
        };
        let name = config.replace('/', "-");
        let (whole, parts) =
            (losses(&format!("{name}-4"), "run.micro_batch=4"), losses(&format!("{name}-1"), "run.micro_batch=1"));
        for (a, b) in whole.iter().zip(&parts) {
            assert!((a - b).abs() < 1e-4 * a.abs().max(1.0), "{config}: {whole:?} and {parts:?}");
        }
    }
}

/// The image tokenizer gets more bits, and the unified model that spoke in fewer goes on with them. The nano journey's own configs.
#[test]
fn a_tokenizer_of_more_bits_and_a_model_that_goes_on_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let config = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/nano").join(name);
    let train = |name: &str, out: &str, more: &[String]| {
        let path = config(name);
        let mut sets = tiny();
        sets.extend(["run.steps=1", "run.batch_size=2"].map(str::to_owned));
        sets.extend(more.iter().cloned());
        let mut args = vec!["train".to_owned(), path.display().to_string(), "--out".into(), out.into()];
        sets.iter().for_each(|s| args.extend(["--set".to_owned(), s.clone()]));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        ok(d, &args);
    };
    // whatever the embedded model has, four bits more
    let more = nano_bits() + 4;
    let start = format!("start={}", nano().join("qlip").display());
    let sizes = [format!("quantizer.embed_dim={more}"), "quantizer.group_size=4".to_owned()];
    train("qlip-kept.toml", "kept", &[&[start][..], &sizes].concat());
    let eyes = "image_tokenizer=kept".to_owned();
    train("unified-kept.toml", "um", &[format!("start={}", nano().display()), eyes]);
    let weights = nn::checkpoint::load_dir(&d.join("um")).unwrap();
    assert_eq!(weights["bit_embeddings.weight"].dims()[1], more);
    assert_eq!(weights["bit_head.output.weight"].dims()[0], more / 4 * 16);
    ok(d, &["generate", "a red circle", "--model", "um", "-o", "out"]);
    ok(d, &["describe", "--model", "um", "out/unified-0001.png"]);
    let path = config("qlip-kept.toml").display().to_string();
    let fewer = ["--set", "quantizer.embed_dim=8", "--set", "quantizer.group_size=4", "--set", "run.steps=1"];
    let start = format!("start={}", nano().join("qlip").display());
    fails(d, &[&["train", &path, "--out", "no", "--set", &start][..], &fewer].concat(), &["becomes one of more"]);
}
