//! Tasks about image tokenizers and drawings of classes on tiny trainings, from files to the rows of the tables in docs/.

use qlip::Image;
use std::path::{Path, PathBuf};
use std::process::Command;
use unified::train::{Run, Training};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Two classes that a colour tells apart, in both splits.
fn photographs(dir: &Path) {
    for split in ["train", "test"] {
        for (class, blue) in [("night", 200u8), ("day", 30)] {
            let folder = dir.join(split).join(class);
            std::fs::create_dir_all(&folder).unwrap();
            for i in 0..12u8 {
                let rgb = (0..32 * 32).flat_map(|p| [i * 9, (p % 32) as u8 * 3, blue]).collect();
                Image::from_rgb(32, 32, rgb).save_png(&folder.join(format!("{i}.png"))).unwrap();
            }
        }
    }
}

fn train(config: &str, out: &Path, photos: &Path, sets: &[&str]) {
    let photos = format!("data.pictures.path={}", photos.display());
    let mut all = vec![photos, "run.steps=6".into(), "run.batch_size=4".into(), "run.precision=f32".into()];
    all.extend(sets.iter().map(|s| (*s).to_owned()));
    let training = Training::from_file(&root().join("configs").join(config), &all).unwrap();
    let device = candle_core::Device::Cpu;
    training
        .run(&mut Run {
            out,
            resume: false,
            device,
            world: &nn::parallel::World::Alone,
            progress: &mut |_| true,
            say: &mut |_| {},
        })
        .unwrap();
}

fn eval(args: &[&str]) -> (bool, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_eval")).args(args).output().unwrap();
    let text = if out.status.success() { out.stdout } else { out.stderr };
    (out.status.success(), String::from_utf8(text).unwrap())
}

/// A run of tasks: the values of its summary.
fn run(tasks: &str, model: &Path, data: &Path, out: &Path, more: &[&str]) -> serde_json::Value {
    let [model, data, out] = [model, data, out].map(|p| p.to_str().unwrap());
    let (ok, text) =
        eval(&[&["run", "--tasks", tasks, "--model", model, "--data", data, "--out", out, "--json"], more].concat());
    assert!(ok, "{text}");
    serde_json::from_str::<serde_json::Value>(&text).unwrap()["results"].clone()
}

/// A row of `eval table` under the columns of a script fits the header that the script writes above it; `more` columns come from elsewhere.
fn fits(out: &Path, script: &str, more: usize) {
    let script = std::fs::read_to_string(root().join(script)).unwrap();
    let header = script.lines().find(|l| l.trim_start().starts_with("echo '|")).unwrap();
    let of = |l: &str| l.strip_prefix("columns=").map(|c| c.trim_start_matches("$columns,").to_owned());
    let columns = script.lines().filter_map(of).collect::<Vec<_>>().join(",");
    let (ok, row) = eval(&["table", out.to_str().unwrap(), "--metrics", &columns, "--as", "tiny", "--no-head"]);
    assert!(ok && !row.contains(" - "), "{row}");
    assert_eq!(row.matches('|').count() + more, header.matches('|').count(), "{row} under {header}");
}

#[test]
fn a_tokenizer_and_its_raw_weights_are_measured() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    photographs(&at("photos"));
    let words = format!("tokenizer={}", root().join("unified/assets/nano/qlip/tokenizer.json").display());
    let layers = ["model.vision_config.num_hidden_layers=1", "model.decoder_config.num_hidden_layers=1"];
    train("ablation/stage1.toml", &at("qlip"), &at("photos"), &[&[words.as_str()][..], &layers].concat());
    let tasks = "reconstruction,imagefolder,probe";
    let report = run(tasks, &at("qlip"), &at("photos"), &at("out"), &[]);
    // a colour is what a linear layer can read off the latents even of random weights
    assert!(report["probe"]["latents@linear_probe"]["value"].as_f64().unwrap() > 0.9, "{report}");
    assert_eq!(report["reconstruction"]["psnr@rgb8"]["n"], 24);
    assert!(report["reconstruction"]["code_entropy@bits_a_token"]["value"].as_f64().unwrap() <= 20.0);
    fits(&at("out"), "configs/ablation/run.sh", 2);
    let model = unified::artifact::Artifact::at(&at("qlip")).unwrap();
    assert_eq!(model.architecture, unified::artifact::Architecture::Qlip);
    // what reconstructions keep of a zero-shot score, whole and with three of its bits
    for through in [at("qlip").display().to_string(), format!("{}:3", at("qlip").display())] {
        let out = at(&format!("through-{}", through.len()));
        let kept = run("imagefolder", &at("qlip"), &at("photos"), &out, &["--through", &through]);
        assert_eq!(kept["imagefolder"]["acc1@clip_benchmark"]["n"], 24, "{kept}");
    }
    let (ok, error) = eval(&[
        "run",
        "--tasks",
        "imagefolder",
        "--out",
        at("no").to_str().unwrap(),
        "--data",
        at("photos").to_str().unwrap(),
        "--through",
        "nano:99",
    ]);
    assert!(!ok && error.contains("1 to 48 bits"), "{error}");
}

#[test]
fn drawings_are_measured_by_a_classifier() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    photographs(&at("photos"));
    train("llamagen/compare/classifier.toml", &at("classifier"), &at("photos"), &["image_size=16", "widths=[8,16]"]);
    let small = ["image_size=16", "model.encoder_ch_mult=[1,1,1]", "model.decoder_ch_mult=[1,1,1]"];
    train("llamagen/compare/vq.toml", &at("vq"), &at("photos"), &small);
    let tokenizer = format!("image_tokenizer={}", at("vq").display());
    let decoder = [tokenizer.as_str(), "grid=4", "model.n_layer=1", "model.dim=32", "model.n_head=2"];
    train("llamagen/compare/llamagen-vq.toml", &at("model"), &at("photos"), &decoder);
    let judge = at("classifier").display().to_string();
    let more = ["--judge", judge.as_str(), "--limit", "6", "--guidance", "2"];
    let report = run("class_pictures", &at("model"), &at("photos"), &at("out"), &more);
    assert_eq!(report["class_pictures"]["tokens_a_picture@decoder"]["value"], 16.0);
    fits(&at("out"), "configs/llamagen/compare/run.sh", 0);
    // and those of a model that draws from words, after its run
    let (classes, photos) = (at("classes").display().to_string(), at("photos").display().to_string());
    run("drawn_classes", &root().join("unified/assets/nano"), &at("photos"), &at("classes"), &["--limit", "6"]);
    let (ok, said) = eval(&["score", "drawings", &classes, "--classifier", &judge, "--data", &photos]);
    assert!(ok && said.contains("\"drawings@count\": 6") && said.contains("feature_frechet@classifier"), "{said}");
    let (ok, error) = eval(&["score", "drawings", &photos, "--classifier", &judge, "--data", &photos]);
    assert!(!ok && error.contains("eval run --tasks drawn_classes"), "{error}");
    // pictures of other classes than the classifier knows
    std::fs::rename(at("photos/test/day"), at("photos/test/dawn")).unwrap();
    let (model, data, out) = (at("model"), at("photos"), at("other"));
    let paths = [model.to_str().unwrap(), data.to_str().unwrap(), out.to_str().unwrap()];
    let base = ["run", "--tasks", "class_pictures", "--model", paths[0], "--data", paths[1], "--out", paths[2]];
    let (ok, error) = eval(&[&base[..], &more].concat());
    assert!(!ok && error.contains("dawn") && error.matches("error:").count() == 1, "{error}");
}
