//! `eval score KIND FILE..`: metrics of given inputs, in the format of tests/fixtures/metrics, for people who port metrics.

use super::drawings;
use anyhow::{Context, Result, bail};
use candle_core::{DType, Tensor};
use clap::{Args, ValueEnum};
use eval::frechet::Gaussian;
use eval::image::{Ssim, mae, ms_ssim, mse, psnr, ssim_of};
use eval::metrics::calibration::ece;
use eval::metrics::captions::{Case, score};
use eval::metrics::clipscore::clip_scores;
use eval::metrics::features::{inception_score, kid, precision_recall};
use eval::metrics::inception::Inception;
use eval::metrics::retrieval::{Ranks, Ties};
use eval::metrics::vqa::{Rule, accuracy, prepared};
use eval::metrics::yes_no;
use qlip::Image;
use qlip::loss::{Lpips, LpipsConfig, Trunk};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Compute metrics of given inputs and print the values that their reference files hold, as JSON.
#[derive(Args)]
pub struct Score {
    /// What the files hold.
    #[arg(value_enum)]
    kind: Kind,
    /// images, features, retrieval: a safetensors file (a0, b0, ..; real, fake, real_spatial, fake_spatial, logits; similarity, caption_owner).
    /// lpips: a safetensors file with a and b [pictures, 3, height, width] in -1..1, and --trunk. frechet: two .npz files of statistics (mu, sigma,
    /// mu_s, sigma_s) or features (arr_0). captions: JSON with `references` and `hypotheses`. vqa: JSON with `cases`. pope: JSON with `rows`.
    /// clipscore: a safetensors file with `image` and `text`, vectors of pictures and their captions. calibration: JSON with `probabilities`, rows, and `gold`. fid: a folder of pictures, or two of them (or an .npz of statistics), and --inception.
    /// drawings: a run's folder with answers to drawn_classes, --classifier and --data.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// fid: pytorch-fid's weights, pt_inception-2015-12-05-6726825d.pth.
    #[arg(long, value_name = "FILE")]
    inception: Option<PathBuf>,
    /// fid: write the last folder's statistics here, an .npz file in ADM's layout that `frechet` and `fid` read.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// lpips: the trunk's weights, torchvision's AlexNet or VGG16 as safetensors.
    #[arg(long, value_name = "FILE")]
    trunk: Option<PathBuf>,
    /// lpips: the heads' weights (lin0.model.1.weight, ..); the trunk's file if absent.
    #[arg(long, value_name = "FILE")]
    heads: Option<PathBuf>,
    /// lpips: which trunk, alex or vgg.
    #[arg(long, default_value = "alex")]
    net: String,
    /// drawings: folder of a classifier (`unified train`, kind = "classifier") that looks at them.
    #[arg(long, value_name = "DIR")]
    classifier: Option<PathBuf>,
    /// drawings: the photographs that they are beside, as `eval run --data` takes them.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print JSON; there is no other form.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Images,
    Features,
    Retrieval,
    Captions,
    Vqa,
    Pope,
    Lpips,
    Frechet,
    Fid,
    Clipscore,
    Calibration,
    Drawings,
}

impl Score {
    pub fn run(&self) -> Result<()> {
        match self.kind {
            Kind::Frechet => return print(&frechet(&self.files)?),
            Kind::Fid => return print(&self.fid()?),
            Kind::Drawings => return self.drawings(),
            _ => {}
        }
        for path in &self.files {
            let value = match self.kind {
                Kind::Images => images(path)?,
                Kind::Features => features(path)?,
                Kind::Retrieval => retrieval(path)?,
                Kind::Captions => captions(path)?,
                Kind::Vqa => vqa(path)?,
                Kind::Pope => pope(path)?,
                Kind::Lpips => self.lpips(path)?,
                Kind::Calibration => calibration(path)?,
                Kind::Clipscore => clipscore(path)?,
                Kind::Frechet | Kind::Fid | Kind::Drawings => continue,
            };
            print(&value)?;
        }
        Ok(())
    }
}

fn print(value: &Value) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

impl Score {
    /// Each run's drawings beside the same photographs.
    fn drawings(&self) -> Result<()> {
        let classifier = self.classifier.as_ref().context("drawings needs --classifier, its folder")?;
        let data = self.data.as_ref().context("drawings needs --data, the photographs' folder")?;
        // a run that is not there is said before ten thousand photographs are looked at
        let samples = self.files.iter().map(|run| drawings::samples(run)).collect::<Result<Vec<_>>>()?;
        let gallery = drawings::Gallery::open(classifier, data)?;
        self.files.iter().zip(&samples).try_for_each(|(run, samples)| print(&gallery.judged(run, samples)?))
    }

    /// The Frechet distance's network on folders of pictures.
    fn fid(&self) -> Result<Value> {
        if self.files.len() > 2 {
            bail!("fid takes one folder of pictures, or two");
        }
        let weights = self.inception.as_ref().context("fid needs --inception, pytorch-fid's weights")?;
        let net = Inception::open(weights)?;
        let (mut out, mut seen, mut statistics_of) = (Map::new(), Vec::new(), Vec::new());
        for path in &self.files {
            if path.extension().is_some_and(|e| e == "npz") {
                let spatial = statistics(path, "_s")?;
                let pooled = statistics(path, "")?.with_context(|| format!("{}: no mu and sigma", path.display()))?;
                statistics_of.push((pooled, spatial));
                continue;
            }
            let mut files: Vec<PathBuf> = std::fs::read_dir(path)
                .with_context(|| path.display().to_string())?
                .filter_map(|e| Some(e.ok()?.path()))
                .filter(|p| qlip::data::is_picture(p))
                .collect();
            files.sort();
            let features = net.features(files.iter().map(|f| Image::open(f)))?;
            let splits = if features.logits.len() >= 5000 { 10 } else { 1 };
            let logits: Vec<Vec<f64>> = wide(&features.logits);
            let (mean, std) = inception_score(&logits, splits);
            out.insert("inception_score@pt_inception".into(), json!({"mean": mean, "std": std, "splits": splits}));
            statistics_of.push((Gaussian::of(&features.pooled)?, Some(Gaussian::of(&features.spatial)?)));
            seen.push(features);
        }
        out.insert("n".into(), json!(seen.iter().map(|f| f.pooled.len()).collect::<Vec<_>>()));
        if let [(a, a_s), (b, b_s)] = statistics_of.as_slice() {
            out.insert("fid@pt_inception".into(), number(a.distance(b)?));
            if let (Some(a), Some(b)) = (a_s, b_s) {
                out.insert("sfid@mixed_6d".into(), number(a.distance(b)?));
            }
        }
        if let [real, fake] = seen.as_slice() {
            let (real, fake) = (wide(&real.pooled), wide(&fake.pooled));
            out.insert("kid@full_unbiased".into(), number(kid(&real, &fake)));
            let (precision, recall) = precision_recall(&real, &fake, 3);
            out.insert("precision_recall@k3".into(), json!({"precision": precision, "recall": recall}));
        }
        if let (Some(path), Some((pooled, spatial))) = (&self.save, statistics_of.last()) {
            let mut all = Vec::new();
            for (end, g) in [("", Some(pooled)), ("_s", spatial.as_ref())] {
                let Some(g) = g else { continue };
                let (mean, covariance) = g.statistics();
                let n = mean.len();
                all.push((format!("mu{end}"), Tensor::from_vec(mean, n, &candle_core::Device::Cpu)?));
                all.push((format!("sigma{end}"), Tensor::from_vec(covariance, (n, n), &candle_core::Device::Cpu)?));
            }
            let whole = tempfile::NamedTempFile::new()?;
            Tensor::write_npz(&all, whole.path())?;
            nn::checkpoint::write_atomic(path, &std::fs::read(whole.path())?)?;
        }
        Ok(Value::Object(out))
    }

    fn lpips(&self, path: &Path) -> Result<Value> {
        let net = match self.net.as_str() {
            "alex" => Trunk::Alex,
            "vgg" => Trunk::Vgg,
            other => bail!("--net {other}: alex or vgg"),
        };
        let trunk = self.trunk.clone().context("lpips needs --trunk, the trunk's weights")?;
        let model = Lpips::load(&LpipsConfig { net, trunk, heads: self.heads.clone() }, &candle_core::Device::Cpu)?;
        let all = tensors(path)?;
        let picture = |name: &str| -> Result<Tensor> {
            let t = all.get(name).with_context(|| format!("{}: no tensor `{name}`", path.display()))?;
            match t.dims4() {
                Ok((_, 3, ..)) => Ok(t.to_dtype(DType::F32)?),
                _ => bail!("{}: `{name}` must be [pictures, 3, height, width] in -1..1", path.display()),
            }
        };
        let (distance, layers) = model.distance(&model.features(&picture("a")?)?, &model.features(&picture("b")?)?)?;
        let values =
            |t: &Tensor| Ok::<_, anyhow::Error>(json!(t.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?));
        let mut out = Map::from_iter([("distance".to_owned(), values(&distance)?)]);
        for (n, layer) in layers.iter().enumerate() {
            out.insert(format!("layer{n}"), values(layer)?);
        }
        Ok(Value::Object(out))
    }
}

fn wide(rows: &[Vec<f32>]) -> Vec<Vec<f64>> {
    rows.iter().map(|r| r.iter().map(|v| f64::from(*v)).collect()).collect()
}

/// Mean and covariance in a file of ADM's layout, or features to make them of.
fn statistics(path: &Path, end: &str) -> Result<Option<Gaussian>> {
    let all: HashMap<String, Tensor> =
        Tensor::read_npz(path).with_context(|| format!("{}: no .npz file", path.display()))?.into_iter().collect();
    if let (Some(mu), Some(sigma)) = (all.get(&format!("mu{end}")), all.get(&format!("sigma{end}"))) {
        let mean = mu.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?;
        let covariance =
            sigma.to_dtype(DType::F64)?.to_vec2().with_context(|| format!("{}: sigma{end}", path.display()))?;
        return Ok(Some(Gaussian::from_statistics(&mean, &covariance).with_context(|| path.display().to_string())?));
    }
    match all.get("arr_0").filter(|t| end.is_empty() && t.rank() == 2) {
        Some(rows) => Ok(Some(Gaussian::of(&rows.to_dtype(DType::F64)?.to_vec2::<f64>()?)?)),
        None => Ok(None),
    }
}

fn frechet(files: &[PathBuf]) -> Result<Value> {
    let [a, b] = files else { bail!("frechet takes two .npz files") };
    let mut out = Map::new();
    for (name, end) in [("fid", ""), ("sfid", "_s")] {
        if let (Some(a), Some(b)) = (statistics(a, end)?, statistics(b, end)?) {
            out.insert(name.into(), number(a.distance(&b)?));
        }
    }
    if out.is_empty() {
        bail!("{}: neither mu and sigma nor arr_0 [rows, features] in both files", a.display());
    }
    Ok(Value::Object(out))
}

fn clipscore(path: &Path) -> Result<Value> {
    let all = tensors(path)?;
    let rows = |name: &str| -> Result<Vec<Vec<f64>>> {
        let t = all.get(name).with_context(|| format!("{}: no tensor `{name}`", path.display()))?;
        t.to_dtype(DType::F64)?.to_vec2().with_context(|| format!("{}: `{name}` must be [rows, width]", path.display()))
    };
    let (images, texts) = (rows("image")?, rows("text")?);
    if images.len() != texts.len() || images.first().map(Vec::len) != texts.first().map(Vec::len) {
        bail!("{}: `image` and `text` must have the same shape, a picture and its caption a row", path.display());
    }
    let s = clip_scores(&images, &texts);
    Ok(json!({"clipscore@hessel": s.hessel, "clipscore@torchmetrics": s.torchmetrics, "clipscore@gigagan": s.gigagan}))
}

fn calibration(path: &Path) -> Result<Value> {
    #[derive(serde::Deserialize)]
    struct Rows {
        probabilities: Vec<Vec<f64>>,
        gold: Vec<usize>,
    }
    let rows: Rows = serde_json::from_value(parse(path)?).with_context(|| path.display().to_string())?;
    if rows.probabilities.len() != rows.gold.len() {
        bail!("{}: {} rows and {} `gold`", path.display(), rows.probabilities.len(), rows.gold.len());
    }
    let of = |bins: usize| (format!("ece_{bins}"), number(ece(&rows.probabilities, &rows.gold, bins)));
    Ok(Value::Object([10, 15].map(of).into_iter().collect()))
}

fn tensors(path: &Path) -> Result<HashMap<String, Tensor>> {
    Ok(nn::checkpoint::load(path)?)
}

fn parse(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(text.trim_start_matches('\u{feff}')).with_context(|| path.display().to_string())
}

/// A number as JSON has it; infinities by name.
fn number(v: f64) -> Value {
    if v.is_finite() { json!(v) } else { json!(v.to_string()) }
}

fn images(path: &Path) -> Result<Value> {
    let all = tensors(path)?;
    let image = |name: &str| -> Result<Option<Image>> {
        let Some(t) = all.get(name) else { return Ok(None) };
        let (h, w, c) =
            t.dims3().with_context(|| format!("{}: `{name}` must be [height, width, 3]", path.display()))?;
        if c != 3 || t.dtype() != DType::U8 {
            bail!("{}: `{name}` must be uint8 [height, width, 3]", path.display());
        }
        Ok(Some(Image::from_rgb(w, h, t.flatten_all()?.to_vec1()?)))
    };
    let mut rows = Vec::new();
    for i in 0.. {
        let (Some(a), Some(b)) = (image(&format!("a{i}"))?, image(&format!("b{i}"))?) else { break };
        if (a.width(), a.height()) != (b.width(), b.height()) {
            bail!("{}: `a{i}` and `b{i}` differ in size", path.display());
        }
        rows.push(pair(json!(i), &a, &b));
    }
    if let Some(a) = image("a0")? {
        rows.push(pair(json!("a0 with itself"), &a, &a));
    }
    if rows.is_empty() {
        bail!("{}: no pairs a0 and b0, a1 and b1, ..", path.display());
    }
    Ok(Value::Array(rows))
}

fn pair(i: Value, a: &Image, b: &Image) -> Value {
    let mut row = Map::from_iter([
        ("i".to_owned(), i),
        ("shape".to_owned(), json!([a.height(), a.width()])),
        ("mse".to_owned(), number(mse(a, b))),
        ("mae".to_owned(), number(mae(a, b))),
        ("psnr".to_owned(), number(psnr(a, b))),
    ]);
    for (name, kind) in [
        ("ssim_gauss11", Ssim::Gauss11),
        ("ssim_uni7", Ssim::Uni7),
        ("ssim_llamagen", Ssim::LlamaGen),
        ("ssim_luma", Ssim::Luma),
        ("ssim_torchmetrics", Ssim::TorchMetrics),
    ] {
        if let Some(v) = ssim_of(a, b, kind) {
            row.insert(name.into(), number(v));
        }
    }
    for (name, torchmetrics) in [("ms_ssim", false), ("ms_ssim_torchmetrics", true)] {
        if let Some(v) = ms_ssim(a, b, torchmetrics) {
            row.insert(name.into(), number(v));
        }
    }
    Value::Object(row)
}

fn features(path: &Path) -> Result<Value> {
    let all = tensors(path)?;
    let rows = |name: &str| -> Result<Option<Vec<Vec<f64>>>> {
        let t = all.get(name).map(|t| t.to_dtype(DType::F64)?.to_vec2::<f64>()).transpose();
        t.with_context(|| format!("{}: `{name}` must be [rows, features]", path.display()))
    };
    let mut out = Map::new();
    for (real, fake, fid_name, kid_name) in
        [("real", "fake", "fid", "kid_full_unbiased"), ("few_real", "few_fake", "fid_few", "kid_few")]
    {
        let (Some(real), Some(fake)) = (rows(real)?, rows(fake)?) else { continue };
        let distance = Gaussian::of(&real)?.distance(&Gaussian::of(&fake)?)?;
        out.insert(fid_name.into(), number(distance));
        out.insert(kid_name.into(), number(kid(&real, &fake)));
        if fid_name == "fid" {
            let (precision, recall) = precision_recall(&real, &fake, 3);
            out.insert("precision_recall_k3".into(), json!({"precision": precision, "recall": recall}));
        }
    }
    if let (Some(real), Some(fake)) = (rows("real_spatial")?, rows("fake_spatial")?) {
        out.insert("sfid".into(), number(Gaussian::of(&real)?.distance(&Gaussian::of(&fake)?)?));
    }
    if let Some(logits) = rows("logits")? {
        for splits in [1, 10].into_iter().filter(|s| *s <= logits.len()) {
            let (mean, std) = inception_score(&logits, splits);
            out.insert(format!("inception_score_{splits}"), json!({"mean": mean, "std": std}));
        }
    }
    if out.is_empty() {
        bail!("{}: neither `real` and `fake` nor `logits`", path.display());
    }
    Ok(Value::Object(out))
}

fn retrieval(path: &Path) -> Result<Value> {
    let all = tensors(path)?;
    let matrix = |name: &str| -> Result<Option<Vec<Vec<f64>>>> {
        Ok(all.get(name).map(|t| t.to_dtype(DType::F64)?.to_vec2::<f64>()).transpose()?)
    };
    let owner = all.get("caption_owner").with_context(|| format!("{}: no tensor `caption_owner`", path.display()))?;
    let owner: Vec<usize> = owner.to_dtype(DType::I64)?.to_vec1::<i64>()?.into_iter().map(|v| v as usize).collect();
    let mut out = Map::new();
    for (name, tensor, ties) in [
        ("no_ties", "similarity", Ties::Pessimistic),
        ("ties_pessimistic", "similarity_with_ties", Ties::Pessimistic),
        ("ties_optimistic", "similarity_with_ties", Ties::Optimistic),
    ] {
        let Some(scores) = matrix(tensor)? else { continue };
        let pictures = scores.first().map_or(0, Vec::len);
        if scores.len() != owner.len() || owner.iter().any(|&o| o >= pictures) {
            bail!("{}: `{tensor}` [captions, pictures] and `caption_owner` do not fit", path.display());
        }
        let ranks = Ranks::of(&scores, &owner, ties);
        let mut one: Map<String, Value> = ranks.scores().into_iter().map(|(k, v)| (k, number(v))).collect();
        one.insert("image_ranks".into(), json!(ranks.images));
        one.insert("text_ranks".into(), json!(ranks.texts));
        out.insert(name.into(), Value::Object(one));
    }
    Ok(Value::Object(out))
}

fn captions(path: &Path) -> Result<Value> {
    let json = parse(path)?;
    let (Some(references), Some(hypotheses)) = (json["references"].as_object(), json["hypotheses"].as_object()) else {
        bail!("{}: needs `references` and `hypotheses`, by picture", path.display());
    };
    let mut cases = Vec::new();
    for (id, refs) in references {
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let hypothesis = hypotheses.get(id).and_then(text);
        let refs = refs.as_array().and_then(|r| r.iter().map(text).collect::<Option<Vec<_>>>());
        let (Some(hypothesis), Some(references)) = (hypothesis, refs) else {
            bail!("{}: picture `{id}` has no hypothesis or no list of references", path.display());
        };
        cases.push(Case { hypothesis, references });
    }
    let s = score(&cases);
    let bleu = |m: &BTreeMap<&str, f64>| json!([m["bleu1"], m["bleu2"], m["bleu3"], m["bleu4"]]);
    let one = |m: &BTreeMap<&'static str, f64>| json!({"cider": m["cider"], "rouge_l": m["rouge_l"], "bleu": bleu(m)});
    let each: Map<String, Value> = references.keys().cloned().zip(s.each.iter().map(one)).collect();
    let mut all = one(&s.corpus);
    all["per_image"] = Value::Object(each);
    Ok(json!({"expected": all}))
}

fn vqa(path: &Path) -> Result<Value> {
    let json = parse(path)?;
    let cases = json["cases"].as_array().with_context(|| format!("{}: no list `cases`", path.display()))?;
    const RULES: [(&str, &str, Rule); 3] = [
        ("official", "processed", Rule::Official),
        ("lmms", "processed_lmms", Rule::Lmms),
        ("textvqa", "processed_textvqa", Rule::M4c),
    ];
    let mut sums = BTreeMap::new();
    let mut out = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let prediction = case["prediction"].as_str().with_context(|| format!("case {i}: no `prediction`"))?;
        let answers =
            case["answers"].as_array().and_then(|a| a.iter().map(|v| v.as_str().map(str::to_owned)).collect());
        let answers: Vec<String> = answers.with_context(|| format!("case {i}: no list `answers` of texts"))?;
        let mut one = json!({"prediction": prediction, "answers": answers});
        for (name, processed, rule) in RULES {
            let value = accuracy(rule, prediction, &answers);
            *sums.entry(name).or_insert(0.0) += value;
            one[name] = json!(value);
            // what the rule makes of it where it processes at all
            let shown = if rule == Rule::Official { Rule::Lmms } else { rule };
            one[processed] = json!(prepared(shown, prediction, &answers).0);
        }
        out.push(one);
    }
    let mean: Map<String, Value> =
        sums.into_iter().map(|(k, v)| (k.to_owned(), json!(v / cases.len().max(1) as f64))).collect();
    Ok(json!({"cases": out, "mean": mean}))
}

fn pope(path: &Path) -> Result<Value> {
    let json = parse(path)?;
    let rows = json["rows"].as_array().with_context(|| format!("{}: no list `rows`", path.display()))?;
    let mut answers = Vec::new();
    let mut out = Vec::new();
    let word = |s: yes_no::Said| match s {
        yes_no::Said::Yes => "yes",
        yes_no::Said::No => "no",
        yes_no::Said::Unknown => "other",
    };
    for (i, row) in rows.iter().enumerate() {
        let (Some(text), Some(label)) = (row["text"].as_str(), row["label"].as_str()) else {
            bail!("{}: row {i} has no `text` and `label`", path.display());
        };
        answers.push((text.to_owned(), label == "yes"));
        // what each program calls an answer that it cannot read
        let vlmevalkit = word(yes_no::vlmevalkit(text)).replace("other", "unknown");
        out.push(
            json!({"text": text, "label": label, "llava": word(yes_no::llava(text)), "lmms": word(yes_no::lmms(text)),
            "vlmevalkit": vlmevalkit}),
        );
    }
    let mut expected = Map::new();
    for rule in ["llava", "lmms", "vlmevalkit", "strict"] {
        let mut one: Map<String, Value> =
            yes_no::pope(rule, &answers).into_iter().map(|(k, v)| (k.to_owned(), json!(v))).collect();
        if rule == "llava" {
            let c = yes_no::Counts::of(answers.iter().map(|(t, l)| (yes_no::llava(t), *l)));
            for (name, v) in [("tp", c.tp), ("fp", c.fp), ("tn", c.tn), ("fn", c.fn_)] {
                one.insert(name.into(), json!(v as u64));
            }
        }
        expected.insert(rule.into(), Value::Object(one));
    }
    Ok(json!({"rows": out, "expected": expected}))
}
