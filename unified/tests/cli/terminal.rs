//! The chat in a real terminal (tmux).

use super::{nano, ok};
use std::process::Command;
use std::time::{Duration, Instant};

const QUESTION: &str = "tell me a long story";
/// Nearly every token is as likely as another, the end mark among them: an answer of hundreds of tokens, whatever the weights.
const LONG: [&str; 4] = ["--temperature", "1000", "--max-tokens", "1800"];

struct Tmux(String);

impl Tmux {
    fn run(&self, args: &[&str]) -> String {
        let out = Command::new("tmux").args(["-L", &self.0]).args(args).output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    }
    fn screen(&self) -> String {
        self.run(&["capture-pane", "-p", "-J", "-S", "-200"])
    }
    /// The screen once its last line is this.
    fn wait(&self, last: &str) -> String {
        let begin = Instant::now();
        loop {
            let screen = self.screen();
            if screen.trim_end().lines().last().map(str::trim_end) == Some(last)
                || begin.elapsed() > Duration::from_secs(60)
            {
                return screen;
            }
            std::thread::sleep(Duration::from_millis(30));
        }
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        self.run(&["kill-server"]);
    }
}

#[test]
fn ctrl_c_stops_an_answer_and_quit_leaves() {
    if Command::new("tmux").arg("-V").output().is_err() {
        println!("skipped: no tmux");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let whole = ok(
        dir.path(),
        &[&["chat", "--model", &nano().display().to_string(), "--prompt", QUESTION][..], &LONG].concat(),
    );
    let tmux = Tmux(format!("unified-test-{}", std::process::id()));
    let program = env!("CARGO_BIN_EXE_unified");
    let command = format!("cd {0}; HOME={0} {program} chat {1}; echo left", dir.path().display(), LONG.join(" "));
    tmux.run(&["-f", "/dev/null", "new-session", "-d", "-x", "200", "-y", "50", "sh"]);
    tmux.run(&["send-keys", &command, "Enter"]);
    tmux.wait(">");
    // on a busy machine the key may come after the answer's end: another try then
    let stopped = (0..5).any(|_| {
        tmux.run(&["send-keys", "/new", "Enter"]);
        tmux.wait(">");
        tmux.run(&["send-keys", QUESTION, "Enter"]);
        // until something of the answer is there
        let begin = Instant::now();
        let waits = |screen: &str| screen.trim_end().lines().last().is_none_or(|l| l.starts_with('>'));
        while waits(&tmux.screen()) && begin.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
        tmux.run(&["send-keys", "C-c"]);
        let screen = tmux.wait(">");
        let answer = screen.rsplit(QUESTION).next().unwrap_or_default().to_owned();
        answer.contains("^C") && answer.chars().count() < whole.chars().count()
    });
    assert!(stopped, "{}", tmux.screen());
    tmux.run(&["send-keys", "/quit", "Enter"]);
    let begin = Instant::now();
    while !tmux.screen().lines().any(|l| l.trim() == "left") && begin.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(30));
    }
    assert!(tmux.screen().lines().any(|l| l.trim() == "left"), "{}", tmux.screen());
}
