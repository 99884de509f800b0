//! `eval qlip` and `eval pictures` on tiny trainings, from files to the rows of the tables in docs/.

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

/// A row fits the header that the script writes above it.
fn fits(row: &str, script: &str) {
    let script = std::fs::read_to_string(root().join(script)).unwrap();
    let header = script.lines().find(|l| l.trim_start().starts_with("echo '|")).unwrap();
    assert_eq!(row.matches('|').count(), header.matches('|').count(), "{row} under {header}");
}

#[test]
fn a_tokenizer_and_its_raw_weights_are_measured() {
    let dir = tempfile::tempdir().unwrap();
    let photos = dir.path().join("photos");
    photographs(&photos);
    let model = dir.path().join("qlip");
    let words = format!("tokenizer={}", root().join("unified/assets/nano/qlip/tokenizer.json").display());
    let layers = ["model.vision_config.num_hidden_layers=1", "model.decoder_config.num_hidden_layers=1"];
    train("ablation/stage1.toml", &model, &photos, &[&[words.as_str()][..], &layers].concat());
    let (model, photos) = (model.to_str().unwrap(), photos.to_str().unwrap());
    let base = ["qlip", "--model", model, "--photos", photos, "--limit", "20", "--probe", "24"];
    let json = |more: &[&str]| -> serde_json::Value {
        let (ok, text) = eval(&[&base[..], &["--json"], more].concat());
        assert!(ok, "{text}");
        serde_json::from_str(&text).unwrap()
    };
    let report = json(&[]);
    // a colour is what a linear layer can read off the latents even of random weights
    assert!(report["probe_latents"].as_f64().unwrap() > 0.9, "{report}");
    assert_eq!((&report["photos"], &report["bits"]), (&20.into(), &20.into()));
    assert!(report["code_entropy"].as_f64().unwrap() <= 20.0);
    assert_ne!(report["psnr"], json(&["--raw"])["psnr"], "the average is not the weights");
    let (ok, row) = eval(&[&base[..], &["--row", "tiny"]].concat());
    assert!(ok, "{row}");
    // speed and memory come from elsewhere
    fits(&format!("{row} 1 | 2 |"), "configs/ablation/run.sh");
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
    let (model, classifier, photos) = (at("model"), at("classifier"), at("photos"));
    let paths = [model.to_str().unwrap(), classifier.to_str().unwrap(), photos.to_str().unwrap()];
    let base = ["pictures", "--model", paths[0], "--classifier", paths[1], "--photos", paths[2], "--per-class", "3"];
    let (ok, text) = eval(&[&base[..], &["--json"]].concat());
    assert!(ok, "{text}");
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&report["drawings"], &report["tokens"]), (&6.into(), &16.into()));
    assert_eq!(report["tokenizer"]["n"], 24);
    let (ok, row) = eval(&[&base[..], &["--row", "tiny"]].concat());
    assert!(ok, "{row}");
    fits(&row, "configs/llamagen/compare/run.sh");
    // pictures of other classes than the classifier knows
    std::fs::rename(at("photos/test/day"), at("photos/test/dawn")).unwrap();
    let (ok, error) = eval(&base);
    assert!(!ok && error.contains("dawn") && error.lines().count() == 1, "{error}");
}
