//! The page in a real browser (page.mjs): draw, ask about the drawing, drag a photograph in, stop, reload; accessibility by axe-core.

use super::{Server, node_modules, red_circle};
use std::path::Path;
use std::process::Command;

#[test]
fn the_page_in_a_browser() {
    let chromium = std::env::var("UNIFIED_TEST_CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".into());
    let Some(folder) = node_modules("playwright-core").filter(|_| node_modules("axe-core").is_some()) else {
        eprintln!(
            "skipped: no playwright-core and axe-core (npm install both in a folder, and UNIFIED_TEST_NODE=FOLDER)"
        );
        return;
    };
    if !Path::new(&chromium).exists() {
        eprintln!("skipped: no browser at {chromium} (apt install chromium, or UNIFIED_TEST_CHROMIUM=PATH)");
        return;
    }
    let server = Server::start(&["--ui"]);
    let picture = red_circle(server.dir.path());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/serve/page.mjs");
    let shots = std::env::var("UNIFIED_SCREENSHOTS").unwrap_or_else(|_| server.dir.path().display().to_string());
    let out = Command::new("node")
        .arg(script)
        .arg(format!("http://127.0.0.1:{}/", server.port))
        .args([picture.display().to_string(), folder, chromium, shots])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
}
