//! Data as people bring them (../shared/field/README.md): `unified data` says what a training would find, and trainings pass over what is broken.

use super::{fails, fixture, ok};
use serde_json::Value;

fn data(path: &str) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let path = fixture(&format!("field/{path}")).display().to_string();
    serde_json::from_str(&ok(dir.path(), &["data", &path, "--json", "--samples", "8"])).unwrap()
}

/// What one source holds: pictures, with words, conversations, passed over.
fn holds(path: &str, pictures: u64, words: u64, conversations: u64, skipped: usize) -> Value {
    let d = data(path);
    let n = |k: &str| d[k].as_u64().unwrap();
    let found = (n("pictures"), n("with_words"), n("conversations"), d["skipped"].as_array().unwrap().len());
    assert_eq!(found, (pictures, words, conversations, skipped), "{path}: {d}");
    d
}

const FIRST: &str = "a red cat on the grass";

#[test]
fn shards_lose_no_words_and_take_no_masks() {
    let plain = holds("shards/plain.tar", 8, 8, 0, 0);
    assert_eq!(plain["samples"][0]["words"], FIRST);
    let mask = holds("shards/image-and-mask.tar", 8, 8, 0, 1);
    for (a, b) in plain["samples"].as_array().unwrap().iter().zip(mask["samples"].as_array().unwrap()) {
        assert_eq!(a["sha256"], b["sha256"], "the picture and not the mask");
    }
    for (name, skipped) in [("unsorted", 0), ("dots-in-stem", 0), ("caption-list", 0), ("macos", 16)] {
        let d = holds(&format!("shards/{name}.tar"), 8, 8, 0, skipped);
        assert_eq!(d["samples"][0]["words"], FIRST, "{name}");
    }
    holds("shards/input-jpg-outputs-txt.tar", 8, 0, 0, 0);
    let dir = tempfile::tempdir().unwrap();
    let cut = fixture("field/shards/cut.tar").display().to_string();
    fails(dir.path(), &["data", &cut], &["cut.tar", "a cut one"]);
}

#[test]
fn folders_tables_and_lines() {
    for name in [
        "folders/metadata",
        "folders/jfif",
        "tables/ref.csv",
        "tables/UPPER.CSV",
        "tables/quote.tsv",
        "tables/newline.csv",
        "jsonl/ref.jsonl",
        "jsonl/bom.jsonl",
        "jsonl/crlf.jsonl",
    ] {
        assert_eq!(holds(name, 8, 8, 0, 0)["samples"][0]["words"], FIRST, "{name}");
    }
    holds("folders/dsstore", 8, 8, 0, 9);
    holds("folders/nocaptions", 8, 0, 0, 0);
    assert_eq!(holds("folders/multiline", 8, 8, 0, 0)["samples"][0]["words"], "a red cat on the grass\nsecond line");
    assert_eq!(data("folders/classes")["classes"], serde_json::json!(["Hour-Glass", "n01440764", "ünïcode katze"]));
    holds("tables/missing1.csv", 8, 8, 0, 1);
    assert!(holds("jsonl/null1.jsonl", 7, 7, 0, 1)["skipped"][0]["why"] == "no caption");
    let dir = tempfile::tempdir().unwrap();
    let semicolon = fixture("field/tables/semicolon.csv").display().to_string();
    fails(dir.path(), &["data", &semicolon], &["semicolon.csv", "columns are parted by ';'"]);
}

#[test]
fn parquet_by_its_schema() {
    for name in ["codec-gzip", "codec-zstd", "sub-data", "two-images-after"] {
        assert_eq!(holds(&format!("parquet/{name}"), 8, 8, 0, 0)["samples"][0]["words"], FIRST, "{name}");
    }
    let d = holds("parquet/id-before-label", 8, 0, 0, 0);
    assert_eq!((d["classes"][0].clone(), d["samples"][0]["class"].clone()), ("cat".into(), "cat".into()));
    // the first picture column, as in the folder whose pictures these are
    let plain = data("shards/plain.tar");
    assert_eq!(data("parquet/two-images-after")["samples"][0]["sha256"], plain["samples"][0]["sha256"]);
    holds("parquet/null-image1", 7, 7, 0, 1);
    holds("parquet/captions-none", 8, 0, 0, 0);
    let d = holds("parquet/name-prompt", 8, 0, 0, 0);
    assert!(d["taken"].as_str().unwrap().contains("no words among the columns image, prompt"));
    let dir = tempfile::tempdir().unwrap();
    for (name, said) in [("list-of-images", "has: images, text"), ("cut", "not a parquet file")] {
        let path = fixture(&format!("field/parquet/{name}")).display().to_string();
        fails(dir.path(), &["data", &path], &[name, said]);
    }
}

/// Found by fuzz/run.sh pictures: a page's header with a list of a length that the file has not, which the library skipped element by element.
#[test]
fn a_damaged_page_ends() {
    let (dir, path) = (tempfile::tempdir().unwrap(), fixture("field/parquet/endless-page").display().to_string());
    let said = ok(dir.path(), &["data", &path]);
    assert!(said.contains("the file ends here"), "{said}");
}

#[test]
fn conversations_and_documents_without_their_pictures_are_counted() {
    for name in ["bom", "len", "ref"] {
        holds(&format!("llava/{name}.json"), 8, 8, 8, 0);
    }
    holds("llava/textonly-null.json", 7, 7, 8, 0);
    holds("llava/two.json", 9, 9, 8, 0);
    let d = holds("llava/missingfile.json", 7, 7, 7, 1);
    assert!(d["skipped"][0]["why"].as_str().unwrap().contains("gone.png"));
    assert_eq!(data("documents/obelics.jsonl")["documents"], 8);
    assert_eq!(data("documents/mmc4.jsonl")["documents"], 8);
    let d = data("documents/obelics-halfmissing.jsonl");
    assert_eq!((d["documents"].as_u64(), d["skipped"].as_array().map(Vec::len)), (Some(4), Some(4)));
}

#[test]
fn pictures_that_are_cut_or_of_another_kind_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| fixture(&format!("field/pictures/{name}")).display().to_string();
    for name in ["whole.jpg", "no-eoi.jpg", "trailing-junk.jpg", "really-webp.jpg"] {
        ok(dir.path(), &["tokenize", &path(name), "-o", "codes.safetensors"]);
    }
    for (name, said) in [
        ("cut60.jpg", "cut short"),
        ("cut60.png", "cut60.png"),
        ("p.heic", "HEIC"),
        ("heic-named.jpg", "HEIC"),
        ("p.avif", "AVIF"),
        ("svg.svg", "SVG"),
    ] {
        fails(dir.path(), &["tokenize", &path(name), "-o", "codes.safetensors"], &[name, said]);
    }
}

/// A loss that needs words does not begin without any, and one that needs none does.
#[test]
fn trainings_say_what_they_find_before_they_begin() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let photos = format!("data.pictures.path={}", fixture("field/folders/nocaptions").display());
    let vq = fixture("../../configs/llamagen/compare/vq.toml").display().to_string();
    if std::path::Path::new(&vq).is_file() {
        let run = super::unified(
            d,
            &["train", &vq, "--out", "vq", "--set", &photos, "--set", "run.steps=1", "--set", "run.batch_size=2"],
        );
        assert!(super::text(&run.stderr).contains("8 pictures, 0 with words"), "{}", super::text(&run.stderr));
    }
    let qlip = fixture("../../configs/nano/qlip-stage1.toml").display().to_string();
    let tokenizer = format!("tokenizer={}", super::nano().join("tokenizer.json").display());
    fails(
        d,
        &[
            "train",
            &qlip,
            "--out",
            "q",
            "--set",
            &photos,
            "--set",
            &tokenizer,
            "--set",
            "run.steps=1",
            "--set",
            "run.batch_size=2",
        ],
        &["0 of 8 pictures have words"],
    );
}

/// A training's config is reported source by source.
#[test]
fn a_config_reports_its_sources() {
    let dir = tempfile::tempdir().unwrap();
    let photos = fixture("photos").display().to_string();
    let config = format!(
        "kind = \"classifier\"\nimage_size = 16\nwidths = [8]\n[run]\nsteps = 1\nbatch_size = 1\n[optim]\nlr = 1.0\nlr_floor = 0.0\nwarmup = 1\n\
         weight_decay = 0.0\nclip = 1.0\n[[data]]\nkind = \"pictures\"\npath = \"{photos}\"\n[[data]]\nkind = \"scenes\"\nstart = 0.5\n"
    );
    std::fs::write(dir.path().join("c.toml"), config).unwrap();
    let json: Value = serde_json::from_str(&ok(dir.path(), &["data", "c.toml", "--json"])).unwrap();
    assert_eq!((&json["sources"][0]["pictures"], &json["sources"][1]["source"]), (&64.into(), &"scenes".into()));
    let said = ok(dir.path(), &["data", "c.toml"]);
    assert!(said.contains("(share 0.5 to 0.5)"), "{said}");
}
