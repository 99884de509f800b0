//! What a run's folder says to people: Markdown, CSV, LaTeX, and one HTML file with its charts and pictures inside.

use base64::Engine;
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

/// Samples of a task that the HTML shows; the whole is in samples/.
const SHOWN: usize = 240;

/// A metric's row.
struct Row<'a> {
    task: &'a str,
    metric: &'a str,
    value: f64,
    range: Option<(f64, f64)>,
    n: u64,
}

fn rows(summary: &Value) -> Vec<Row<'_>> {
    let mut out = Vec::new();
    for (task, metrics) in summary["results"].as_object().into_iter().flatten() {
        for (metric, m) in metrics.as_object().into_iter().flatten() {
            let range = m["low"].as_f64().zip(m["high"].as_f64());
            let (value, n) = (m["value"].as_f64().unwrap_or(f64::NAN), m["n"].as_u64().unwrap_or(0));
            out.push(Row { task, metric, value, range, n });
        }
    }
    out
}

/// A table for spreadsheets.
pub fn csv(summary: &Value) -> String {
    let mut out = String::from("task,metric,value,low,high,n\n");
    for r in rows(summary) {
        let (low, high) = r.range.map_or((String::new(), String::new()), |(l, h)| (l.to_string(), h.to_string()));
        let _ = writeln!(out, "{},\"{}\",{},{low},{high},{}", r.task, r.metric.replace('"', "\"\""), r.value, r.n);
    }
    out
}

/// A table for papers (booktabs).
pub fn latex(summary: &Value) -> String {
    let plain = |t: &str| t.replace('\\', "\\textbackslash{}").replace(['_', '#', '%', '&', '$'], " ");
    let mut out = String::from("\\begin{tabular}{llrr}\n\\toprule\ntask & metric & value & 95\\% \\\\\n\\midrule\n");
    for r in rows(summary) {
        let range = r.range.map_or(String::new(), |(l, h)| format!("{l:.3} to {h:.3}"));
        let _ = writeln!(out, "{} & {} & {:.4} & {range} \\\\", plain(r.task), plain(r.metric), r.value);
    }
    out + "\\bottomrule\n\\end{tabular}\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A bar with its interval; none for values outside 0 to 1.
fn bar(r: &Row) -> String {
    if !(0.0..=1.0).contains(&r.value) {
        return String::new();
    }
    let (low, high) = r.range.unwrap_or((r.value, r.value));
    format!(
        "<svg viewBox='0 0 200 14' width='200' height='14' role='img' aria-label='{:.3}'><rect width='200' height='14' class='ground'/>\
         <rect width='{:.1}' height='14' class='bar'/><line x1='{:.1}' x2='{:.1}' y1='7' y2='7' class='range'/></svg>",
        r.value,
        200.0 * r.value,
        200.0 * low.max(0.0),
        200.0 * high.min(1.0)
    )
}

/// A metric of two runs.
pub struct Line {
    /// The task.
    pub task: String,
    /// The metric.
    pub metric: String,
    /// Items that both answered.
    pub n: usize,
    /// The second run's mean less the first's.
    pub delta: f64,
    /// 95% interval.
    pub range: (f64, f64),
    /// Probability of so large a difference by chance, corrected over all metrics.
    pub p: f64,
    /// Whether they are the same within the margin that was asked for.
    pub same: Option<bool>,
}

/// Changed items of a metric that the page shows.
const CHANGED: usize = 40;

/// One page of what differs between two runs: intervals, and the items whose scores changed.
pub fn comparison(a: &Path, b: &Path, lines: &[Line]) -> crate::Result<String> {
    let name = |p: &Path| escaped(&p.display().to_string());
    let mut page = format!(
        "<!doctype html>\n<html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>\
         <title>eval: {0} and {1}</title><style>{STYLE}</style>\n<main><h1>{1} less {0}</h1>\n",
        name(a),
        name(b)
    );
    let widest = lines.iter().flat_map(|l| [l.range.0.abs(), l.range.1.abs()]).fold(1e-9, f64::max);
    let x = |v: f64| 100.0 + 100.0 * v / widest;
    page.push_str(
        "<table><thead><tr><th>task<th>metric<th>n<th>difference<th>95%<th>p (Holm)<th><th></tr></thead><tbody>",
    );
    for l in lines {
        let same = match l.same {
            Some(true) => "the same",
            Some(false) => "not shown to be the same",
            None => "",
        };
        let _ = write!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{:+.4}<td>{:+.4} to {:+.4}<td>{:.4}<td>\
             <svg viewBox='0 0 200 14' width='200' height='14' role='img' aria-label='{:+.3}'>\
             <rect width='200' height='14' class='ground'/><line x1='100' x2='100' y1='0' y2='14' class='range'/>\
             <line x1='{:.1}' x2='{:.1}' y1='7' y2='7' class='range'/><circle cx='{:.1}' cy='7' r='4' class='bar'/></svg><td>{same}</tr>",
            escaped(&l.task),
            escaped(&l.metric),
            l.n,
            l.delta,
            l.range.0,
            l.range.1,
            l.p,
            l.delta,
            x(l.range.0),
            x(l.range.1),
            x(l.delta)
        );
    }
    page.push_str("</tbody></table>\n");
    let tasks: std::collections::BTreeSet<&str> = lines.iter().map(|l| l.task.as_str()).collect();
    for task in tasks {
        changed(&mut page, (a, b), task)?;
    }
    Ok(page + "</main></html>\n")
}

/// Items of a task whose scores changed, both answers beside each other.
fn changed(page: &mut String, (a, b): (&Path, &Path), task: &str) -> crate::Result<()> {
    let read = |dir: &Path| -> crate::Result<std::collections::BTreeMap<String, Value>> {
        let path = dir.join("samples").join(format!("{task}.jsonl"));
        let text = std::fs::read_to_string(&path).map_err(crate::Error::io(&path))?;
        let of = |l: &str| serde_json::from_str::<Value>(l).ok();
        let named = |v: Value| Some((v["id"].as_str()?.to_owned(), v));
        Ok(text.lines().filter_map(of).filter_map(named).collect())
    };
    let (of_a, of_b) = (read(a)?, read(b)?);
    let both = of_a.iter().filter_map(|(id, x)| Some((id, x, of_b.get(id)?)));
    let all: Vec<_> = both.filter(|(_, x, y)| x["scores"] != y["scores"]).collect();
    let _ = write!(page, "<section><h2>{}</h2><p>{} items changed</p><table>", escaped(task), all.len());
    page.push_str("<thead><tr><th>item<th>first<th>second</tr></thead><tbody>");
    let said = |v: &Value| v["answer"].as_str().map_or_else(|| v["scores"].to_string(), str::to_owned);
    for (id, x, y) in all.into_iter().take(CHANGED) {
        let _ = write!(page, "<tr><td>{}<td>{}<td>{}</tr>", escaped(id), escaped(&said(x)), escaped(&said(y)));
    }
    page.push_str("</tbody></table></section>\n");
    Ok(())
}

/// One page that needs nothing else.
pub fn html(out: &Path, summary: &Value) -> String {
    let model = summary["model"].as_str().unwrap_or_default();
    let mut page = format!(
        "<!doctype html>\n<html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>\
         <title>eval: {0}</title><style>{STYLE}</style>\n<main><h1>{0}</h1>\n",
        escaped(model)
    );
    for (task, metrics) in summary["results"].as_object().into_iter().flatten() {
        let about = &summary["tasks"][task];
        let _ = write!(
            page,
            "<section><h2>{}</h2><p>{} scored, {} unanswered, {} rows left out</p>",
            escaped(task),
            about["scored"],
            about["unanswered"],
            about["left_out"]
        );
        for note in about["notes"].as_array().into_iter().flatten().take(20) {
            let _ = write!(page, "<p class='note'>{}</p>", escaped(note.as_str().unwrap_or_default()));
        }
        page.push_str("<table><thead><tr><th>metric<th>value<th>95%<th>n<th></tr></thead><tbody>");
        let one = serde_json::json!({"results": {task.as_str(): metrics}});
        for r in rows(&one) {
            let range = r.range.map_or(String::new(), |(l, h)| format!("{l:.3} to {h:.3}"));
            let _ = write!(
                page,
                "<tr><td>{}<td>{:.4}<td>{range}<td>{}<td>{}</tr>",
                escaped(r.metric),
                r.value,
                r.n,
                bar(&r)
            );
        }
        page.push_str("</tbody></table>");
        samples(&mut page, out, task);
        page.push_str("</section>\n");
    }
    page + "</main><script>" + SCRIPT + "</script></html>\n"
}

/// Question, answer, what was right, and the picture; wrong ones can be shown alone.
fn samples(page: &mut String, out: &Path, task: &str) {
    let Ok(text) = std::fs::read_to_string(out.join("samples").join(format!("{task}.jsonl"))) else { return };
    let all: Vec<Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    if all.is_empty() {
        return;
    }
    // spread over the whole task
    let step = all.len().div_ceil(SHOWN);
    let _ = write!(
        page,
        "<details><summary>{} of {} samples</summary><label><input type='checkbox' class='wrong-only'> wrong ones alone</label>\
         <div class='samples'>",
        all.len().div_ceil(step),
        all.len()
    );
    for s in all.iter().step_by(step) {
        let scores: Vec<f64> = s["scores"].as_object().into_iter().flatten().filter_map(|v| v.1.as_f64()).collect();
        let wrong = !scores.is_empty() && scores.iter().all(|v| *v < 0.5);
        let facts = &s["facts"];
        let gold = ["gold", "label", "answer", "references", "answers", "name"].iter().find_map(|k| facts.get(*k));
        let picture = s["picture"].as_str().and_then(|p| std::fs::read(out.join(p)).ok());
        let picture = picture.map_or(String::new(), |bytes| {
            let data = base64::engine::general_purpose::STANDARD.encode(bytes);
            format!("<img alt='drawn' src='data:image/png;base64,{data}'>")
        });
        let _ = write!(
            page,
            "<figure class='{}'>{picture}<figcaption><b>{}</b> {}<br>said: {}<br>right: {}</figcaption></figure>",
            if wrong { "wrong" } else { "right" },
            escaped(s["id"].as_str().unwrap_or_default()),
            escaped(facts["question"].as_str().unwrap_or_default()),
            escaped(s["answer"].as_str().unwrap_or_default()),
            escaped(&gold.map_or(String::new(), |g| g.as_str().map_or_else(|| g.to_string(), str::to_owned)))
        );
    }
    page.push_str("</div></details>");
}

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --bar: #3a7bd5; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
.ground { fill: var(--line); } .bar { fill: var(--bar); } .range { stroke: currentColor; stroke-width: 2; }
.note { color: #b35900; margin: .2rem 0; }
.samples { display: flex; flex-wrap: wrap; gap: .6rem; margin-top: .6rem; }
figure { margin: 0; padding: .5rem; border: 1px solid var(--line); border-left: 4px solid #2a8a3e; max-width: 16rem; }
figure.wrong { border-left-color: #c0392b; }
figure img { width: 8rem; image-rendering: pixelated; display: block; }
.hide-right figure.right { display: none; }
summary { cursor: pointer; padding: .5rem 0; }
";

const SCRIPT: &str = "
for (const box of document.querySelectorAll('.wrong-only'))
  box.addEventListener('change', () => box.closest('details').querySelector('.samples').classList.toggle('hide-right', box.checked));
";
