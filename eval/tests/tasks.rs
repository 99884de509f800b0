//! Declared tasks, drawings that are asked about, texts, and what no answer alone shows, on the embedded model.

use qlip::Image;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn eval(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_eval")).args(args).output().unwrap()
}

fn run(task: &str, data: Option<&Path>, out: &Path, more: &[&str]) -> (Value, String) {
    let mut args = vec!["run", "--tasks", task, "--out", out.to_str().unwrap(), "--json"];
    if let Some(data) = data {
        args.extend(["--data", data.to_str().unwrap()]);
    }
    args.extend(more);
    let done = eval(&args);
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{args:?}: {said}");
    (serde_json::from_slice::<Value>(&done.stdout).unwrap()["results"].clone(), said)
}

fn write(path: PathBuf, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A picture of one colour with a grey level of its own.
fn picture(path: PathBuf, rgb: [u8; 3]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    Image::from_rgb(64, 64, rgb.repeat(64 * 64)).save_png(&path).unwrap();
}

#[test]
fn a_task_of_the_users_own_with_a_join_and_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let at = |n: &str| dir.path().join(n);
    picture(at("data/pics/7.png"), [200, 30, 30]);
    picture(at("data/pics/8.png"), [30, 30, 200]);
    write(
        at("data/q.json"),
        &json!({"questions": [{"qid": 1, "q": "what colour?", "img": 7}, {"qid": 2, "q": "what colour?", "img": 8},
        {"qid": 3, "q": "lost?", "img": 9}, {"qid": 4, "q": "no answer?", "img": 7}]})
        .to_string(),
    );
    write(
        at("data/a.json"),
        &json!({"annotations": [{"qid": 1, "answers": [{"answer": "red"}, {"answer": "dark red"}], "kind": "warm"},
        {"qid": 2, "answers": ["blue"], "kind": "cold"}, {"qid": 3, "answers": ["x"], "kind": "cold"}]})
        .to_string(),
    );
    write(
        at("own.toml"),
        r#"
name = "own"
about = "colours"

[[data]]
files = "other.jsonl"

[[data]]
files = "q.json"
rows = "questions"
join = { files = "a.json", rows = "annotations", on = "qid" }
id = "qid"
cluster = "img"
group = ["kind"]
image_file = "{{ img }}.png"
answer = "answers"

[ask]
kind = "words"
prompt = "{{ q | upper }}"

[score]
metrics = ["contains@lowercase", "vqa_acc@official", "cider@pycocoevalcap"]
"#,
    );
    let task = at("own.toml").display().to_string();
    // somebody's answers need no pictures
    write(
        at("said.jsonl"),
        "{\"id\": \"1\", \"answer\": \"dark red\"}\n{\"id\": \"2\", \"answer\": \"red\"}\n{\"id\": \"3\", \"answer\": \"an x\"}\n",
    );
    let replay = format!("replay:{}", at("said.jsonl").display());
    let (r, said) = run(&task, Some(&at("data")), &at("replayed"), &["--model", &replay]);
    assert_eq!(r["own"]["contains@lowercase"]["value"], 2.0 / 3.0);
    assert_eq!(
        (&r["own"]["contains/kind=cold@lowercase"]["value"], &r["own"]["contains/kind=warm@lowercase"]["value"]),
        (&json!(0.5), &json!(1.0))
    );
    assert!(said.contains("nothing in a.json with its `qid`"), "{said}");
    // a model is asked only where the picture is
    let (r, said) = run(&task, Some(&at("data")), &at("asked"), &[]);
    assert_eq!(r["own"]["contains@lowercase"]["n"], 2);
    assert!(said.contains("picture 9.png missing"), "{said}");
    let log = std::fs::read_to_string(at("asked/answers/own.jsonl")).unwrap();
    assert!(log.lines().all(|l| serde_json::from_str::<Value>(l).unwrap()["pictures"] == 1));
    // a column that is not there
    write(
        at("wrong.toml"),
        &std::fs::read_to_string(at("own.toml")).unwrap().replace("cluster = \"img\"", "cluster = \"image\""),
    );
    let done = eval(&[
        "run",
        "--tasks",
        at("wrong.toml").to_str().unwrap(),
        "--data",
        at("data").to_str().unwrap(),
        "--out",
        at("w").to_str().unwrap(),
    ]);
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(!done.status.success() && said.contains("column `image` missing") && said.lines().count() == 1, "{said}");
}

#[test]
fn choices_texts_and_sheets() {
    let dir = tempfile::tempdir().unwrap();
    let at = |n: &str| dir.path().join(n);
    let task = |name: &str, ask: &str, data: &str, metrics: &str| {
        let text = format!(
            "name = \"{name}\"\nabout = \"a test\"\n[[data]]\nfiles = \"rows.csv\"\n{data}\n[ask]\n{ask}\n[score]\nmetrics = [{metrics}]\n"
        );
        write(at(&format!("{name}.toml")), &text);
        at(&format!("{name}.toml")).display().to_string()
    };
    write(
        at("data/rows.csv"),
        "q,a,b,right\n\"hello, you\",hello! show me a picture,zz zz,a\nhi,qq,hi! i can look,2\nbad,x,y,third\n",
    );
    let ask = "kind = \"likelihood\"\nprompt = \"{{ q }}\"";
    let choice = task(
        "choice",
        ask,
        "choices = [\"a\", \"b\"]\nanswer = \"right\"\nfirst_choice = 1",
        "\"acc@lm_eval\", \"ece@15bins\"",
    );
    // `a` is neither a number nor a letter nor the choice's words
    let (r, said) = run(&choice, Some(&at("data")), &at("1"), &[]);
    assert_eq!(r["choice"]["acc@lm_eval"]["n"], 1, "{r} {said}");
    assert_eq!(said.matches("is none of 2 choices").count(), 2, "{said}");
    write(
        at("texts/docs.jsonl"),
        "{\"text\": \"hello! show me a picture, or ask me to draw something.\"}\n{\"text\": \"xq zv jj\"}\n",
    );
    let (r, _) = run("text,perplexity", Some(&at("texts")), &at("2"), &[]);
    let value = |task: &str, metric: &str| r[task][metric]["value"].as_f64().unwrap();
    assert!(value("text", "nats_per_token@model") > 0.0 && value("perplexity", "word_perplexity@lm_eval") > 1.0);
    // the same texts, and one more token is predicted in a rolling window: the first
    assert!(value("perplexity", "bits_per_byte@lm_eval") > value("text", "bits_per_byte@model"));
    write(
        at("parti/PartiPrompts.tsv"),
        "Prompt\tCategory\tChallenge\tNote\na red circle\tAbstract\tBasic\t\na blue square\tAbstract\tColor\t\n",
    );
    let (r, said) = run("partiprompts", Some(&at("parti")), &at("3"), &[]);
    assert_eq!(r["partiprompts"]["drawn@sheet"]["value"], 1.0);
    assert!(said.contains("3 sheets"), "{said}");
    assert!(at("3/sheets/partiprompts-Category-Abstract.png").is_file());
}

#[test]
fn drawings_of_others_are_asked_about() {
    let dir = tempfile::tempdir().unwrap();
    let at = |n: &str| dir.path().join(n);
    write(
        at("dpg/dpg_bench.csv"),
        "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n\
         a,t,,1,0,entity,whole,entity - whole (circle),is there a red circle?\na,t,,2,1,attribute,color,attribute - color (circle),is there a blue star?\n\
         b,t,,1,0,global,,global (x),is there a red circle?\nc,t,,1,0,global,,global (x),is there a red circle?\n",
    );
    let scene = |name: &str, seed: u64| {
        let mut r = unified::scenes::SceneRng::new(unified::scenes::Split::Train, seed, 0);
        let scene = unified::scenes::Scene::random(&mut r, unified::scenes::Split::Train, 1, 3);
        std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        unified::scenes::render(&scene, 64).save_png(&at(name)).unwrap();
    };
    (0..2).for_each(|n| scene(&format!("dpg/images/a/{n}.png"), n));
    scene("dpg/grids/b.png", 5);
    let (r, said) = run("dpg", Some(&at("dpg")), &at("1"), &[]);
    assert_eq!(r["dpg"]["dpg@strict"]["n"], 2);
    assert!(said.contains("picture c.png missing"), "{said}");
    let log = std::fs::read_to_string(at("1/answers/dpg.jsonl")).unwrap();
    let drawings: Vec<usize> =
        log.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["answers"].as_array().unwrap().len()).collect();
    // two files of a, twice; four quarters of b
    assert_eq!(drawings, [2, 2, 4]);
    scene("t2i/samples/0.png", 3);
    write(
        at("t2i/annotation1_blip/vqa_test.json"),
        &json!([{"image": "samples/0.png", "question_id": 0, "question": "is there a red circle?"},
        {"image": "samples/1.png", "question_id": 1, "question": "lost?"}])
        .to_string(),
    );
    let (r, said) = run("t2i_compbench", Some(&at("t2i")), &at("2"), &[]);
    assert_eq!(r["t2i_compbench"]["attribute@yes_no"]["n"], 1);
    assert!(said.contains("samples/1.png missing"), "{said}");
}

#[test]
fn round_trips_and_reconstructions() {
    let dir = tempfile::tempdir().unwrap();
    let at = |n: &str| dir.path().join(n);
    for i in 0..6u8 {
        picture(
            at(&format!("photos/test/{}/{i}.png", if i % 2 == 0 { "night" } else { "day" })),
            [40 * i, 30, 200 - 30 * i],
        );
    }
    let tasks = "cycle,self_check,scenes_kept,codes_kept,reconstruction,imagefolder,drawn_classes";
    let (r, _) = run(tasks, Some(&at("photos")), &at("out"), &["--limit", "6"]);
    let (same, bits) = (&r["codes_kept"]["same_code@exact"], &r["codes_kept"]["changed_bits@a_code"]);
    assert!(same["value"].as_f64().unwrap() > 0.5 && bits["value"].as_f64().unwrap() < 1.0, "{r}");
    assert!(r["scenes_kept"]["kept@checker"]["value"].as_f64().unwrap() > 0.5, "{r}");
    assert_eq!(r["reconstruction"]["psnr@rgb8"]["n"], 6);
    assert!(r["self_check"]["sees_its_drawing@checker"]["value"].as_f64().unwrap() >= 0.5, "{r}");
    assert!(
        r["cycle"]["described@checker"]["n"] == 6 && r["drawn_classes"]["asked_class@own_zero_shot"]["n"] == 6,
        "{r}"
    );
    // the same questions about reconstructions are other questions, and are compared pair by pair
    let (through, _) = run("imagefolder", Some(&at("photos")), &at("through"), &["--through", "nano:4"]);
    assert_eq!(through["imagefolder"]["acc1@clip_benchmark"]["n"], 6);
    let done = eval(&["compare", at("out").to_str().unwrap(), at("through").to_str().unwrap(), "--draws", "100"]);
    assert!(done.status.success() && String::from_utf8_lossy(&done.stdout).contains("acc1@clip_benchmark"));
    let text = |n: &str| std::fs::read_to_string(at(n)).unwrap();
    let inputs = |t: String| -> Vec<String> {
        t.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["input"].as_str().unwrap().to_owned()).collect()
    };
    assert_ne!(inputs(text("out/answers/imagefolder.jsonl")), inputs(text("through/answers/imagefolder.jsonl")));
    // other sampling asks again, and the same does not
    let drawn = |more: &[&str]| run("cycle", None, &at("out"), &[&["--limit", "6", "--resume"], more].concat());
    let asked = || text("out/answers/cycle.jsonl").lines().count();
    drawn(&[]);
    assert_eq!(asked(), 6);
    drawn(&["--guidance", "1.5"]);
    assert_eq!(asked(), 12);
}
