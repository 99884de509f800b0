//! `unified chat`

use super::common::{Common, Sampling, free_name, out_dir, read_picture};
use super::output::{self, say};
use super::terminal::{Preview, show};
use anyhow::{Context, Result, bail};
use clap::Args;
use qlip::Image;
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use unified::conversation::{Content, Event, Message, Reply, Request, Role, Window};
use unified::llamagen::Wanted;
use unified::loaded::Loaded;

/// Talk with the model: words and pictures in, words and pictures out.
#[derive(Args)]
pub struct Chat {
    #[command(flatten)]
    common: Common,
    /// Answer this and leave; without it the conversation is interactive.
    #[arg(long)]
    prompt: Option<String>,
    /// How the model is to behave: a message before the conversation, where its template has a place for one.
    #[arg(long, value_name = "WORDS")]
    system: Option<String>,
    /// Picture that goes with the prompt; may be given several times, - for standard input.
    #[arg(long, requires = "prompt")]
    image: Vec<PathBuf>,
    #[command(flatten)]
    sampling: Sampling,
    /// Words that were said are so many times less likely to come again; 1 is none.
    #[arg(long)]
    repeat_penalty: Option<f32>,
    /// Words that end an answer; may be given several times.
    #[arg(long, value_name = "WORDS")]
    stop: Vec<String>,
    /// Most words (text tokens) of an answer.
    #[arg(long, default_value_t = 512)]
    max_tokens: usize,
    /// Leave the oldest turns out when the conversation grows longer than the model can hold, instead of refusing.
    #[arg(long)]
    trim: bool,
    /// With --json: a line for each piece of the answer as it comes, before the line of the whole.
    #[arg(long, requires = "json")]
    stream: bool,
    /// Folder for pictures that the model draws.
    #[arg(short, long, default_value = ".")]
    out: PathBuf,
}

const HELP: &str = "\
/image FILE   show the model a picture with your next message
/draw TEXT    draw TEXT
/save [FILE]  save the last picture as PNG
/seed [N]     use seed N from here on, or say which is used
/retry        answer the last message again, with the next seed
/undo         take the last message and its answer back
/system [WORDS]  how the model is to behave, from here on; without words: as before
/new          start a new conversation
/quit         leave, as Ctrl-D does
/help         this list
Ctrl-C stops an answer.";

impl Chat {
    pub fn run(&self) -> Result<()> {
        if self.prompt.as_ref().is_some_and(|p| p.trim().is_empty()) {
            bail!("--prompt is empty: say something, or leave --prompt out to chat");
        }
        // before the model is loaded, so that nothing is lost on a folder that cannot be written
        out_dir(&self.out)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut session = Session {
            model: self.common.talking()?,
            messages: self.system.iter().map(|s| unified::system(s.as_str())).collect(),
            pending: Vec::new(),
            last: None,
            seed: self.common.seed,
            max_tokens: self.max_tokens,
            window: if self.trim { Window::Trim } else { Window::Refuse },
            json: self.common.json,
            out: &self.out,
            stop: stop.clone(),
            asked: self,
            left: false,
        };
        session.request().generation.text.check()?;
        if let Some(prompt) = &self.prompt {
            for path in &self.image {
                session.pending.push(read_picture(path)?);
            }
            return session.say(prompt);
        }
        if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
            session.interactive(stop)
        } else {
            session.lines()
        }
    }
}

struct Session<'a> {
    model: Loaded,
    messages: Vec<Message>,
    pending: Vec<Image>,
    last: Option<Image>,
    seed: u64,
    max_tokens: usize,
    window: Window,
    json: bool,
    out: &'a Path,
    stop: Arc<AtomicBool>,
    /// How the person wants words to be drawn.
    asked: &'a Chat,
    /// Whether the person is done.
    left: bool,
}

impl Session<'_> {
    /// Line editing and history.
    fn interactive(&mut self, stop: Arc<AtomicBool>) -> Result<()> {
        use rustyline::error::ReadlineError;
        let mut editor = rustyline::DefaultEditor::new()?;
        // after the editor, which takes the signal for itself when it begins
        ctrlc::set_handler(move || stop.store(true, Ordering::Relaxed)).context("Ctrl-C cannot be caught")?;
        let history = history_file();
        if let Some(h) = &history {
            let _ = editor.load_history(h);
        }
        say!("unified {} - /help lists the commands", env!("CARGO_PKG_VERSION"));
        loop {
            match editor.readline("> ") {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => {
                    let _ = editor.add_history_entry(line.as_str());
                    if let Some(h) = &history {
                        let _ = editor.save_history(h);
                    }
                    if let Err(e) = self.line(line.trim()) {
                        eprintln!("error: {}", super::one_line(&e));
                    }
                    if self.left {
                        return Ok(());
                    }
                }
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// A message a line, from a pipe; an error ends it.
    fn lines(&mut self) -> Result<()> {
        for line in std::io::stdin().lock().lines() {
            let line = line.context("standard input")?;
            if !line.trim().is_empty() {
                self.line(line.trim())?;
            }
            if self.left {
                break;
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let Some(command) = line.strip_prefix('/') else {
            // what people type to leave other programs
            self.left = ["quit", "exit"].contains(&line);
            return if self.left { Ok(()) } else { self.say(line) };
        };
        // a path that was pasted or dropped is no command
        if command.contains('/') && typed_path(line).is_file() {
            return self.line(&format!("/image {line}"));
        }
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match name {
            "image" if rest.is_empty() => bail!("/image needs a file"),
            "image" => {
                let image = Image::open(&typed_path(rest))?;
                show(&image);
                self.pending.push(image);
            }
            "draw" if rest.is_empty() => bail!("/draw needs words, as in /draw a red circle"),
            "draw" => return self.draw(rest),
            "save" => {
                let image = self.last.as_ref().context("there is no picture to save yet")?;
                let path = if rest.is_empty() { free_name(self.out) } else { typed_path(rest) };
                let ending = path.extension().and_then(|e| e.to_str()).unwrap_or("png").to_ascii_lowercase();
                if ending != "png" {
                    bail!("/save {}: pictures are saved as PNG; name it .png", path.display());
                }
                image.save_png(&path)?;
                say!("{}", path.display());
            }
            "seed" if rest.is_empty() => say!("seed {}", self.seed),
            "seed" => self.seed = rest.parse().context("/seed needs a whole number")?,
            "new" => {
                self.messages.retain(|m| m.role == Role::System);
                self.pending.clear();
            }
            "system" => {
                self.messages.retain(|m| m.role != Role::System);
                if !rest.is_empty() {
                    self.messages.insert(0, unified::system(rest));
                }
            }
            "undo" | "retry" => {
                let last = self.messages.iter().rposition(|m| m.role == Role::User);
                let at = last.with_context(|| format!("/{name}: nothing was said yet"))?;
                let asked = self.messages.drain(at..).next();
                if let (Some(asked), "retry") = (asked, name) {
                    // another draw of the same
                    self.seed = self.seed.wrapping_add(1);
                    return self.ask(asked);
                }
            }
            "quit" | "exit" => self.left = true,
            "help" => say!("{HELP}"),
            _ => bail!("/{name} is no command; /help lists them"),
        }
        Ok(())
    }

    /// One turn: the words with the pictures shown since the last.
    fn say(&mut self, text: &str) -> Result<()> {
        let mut content: Vec<Content> = self.pending.drain(..).map(Content::Image).collect();
        content.push(Content::Text(text.to_owned()));
        self.ask(Message { role: Role::User, content })
    }

    /// A picture of the words, whatever was said before; it becomes a turn like any other.
    fn draw(&mut self, words: &str) -> Result<()> {
        if self.model.rows() == 0 {
            bail!("/draw: this model does not draw");
        }
        self.stop.store(false, Ordering::Relaxed);
        let (settings, best_of) = self.model.drawing();
        let mut preview = Preview::default();
        let (json, stop, model) = (self.json, &self.stop, &self.model);
        let wanted = [Wanted::Words(words.to_owned())];
        let drawn = model.draw(&wanted, &[self.seed], (&settings, best_of), &mut |tokens| {
            if !json
                && preview.is_due()
                && let Ok(sketch) = model.sketch_tokens(&tokens[0])
            {
                preview.show(&sketch);
            }
            !stop.load(Ordering::Relaxed)
        })?;
        preview.clear();
        // Ctrl-C
        let Some(image) = drawn.into_iter().next() else { return Ok(()) };
        let path = free_name(self.out);
        image.save_png(&path)?;
        if json {
            let images = [output::path(&path)];
            output::json(serde_json::json!({"event": "done", "text": "", "images": images, "seed": self.seed}))?;
        } else {
            show(&image);
            say!("{}", path.display());
        }
        self.messages.push(Message::user(format!("draw {words}")));
        self.messages.push(Message { role: Role::Assistant, content: vec![Content::Image(image.clone())] });
        self.last = Some(image);
        Ok(())
    }

    /// The model's own settings, and what the person wants otherwise.
    fn request(&self) -> Request {
        let asked = self.asked;
        let mut r = self.model.request(self.seed);
        (r.max_tokens, r.window, r.stop) = (self.max_tokens, self.window, asked.stop.clone());
        let text = &mut r.generation.text;
        asked.sampling.apply(text);
        text.repetition_penalty = asked.repeat_penalty.unwrap_or(text.repetition_penalty);
        r
    }

    /// A turn of the person's, and the answer as it comes.
    fn ask(&mut self, message: Message) -> Result<()> {
        self.messages.push(message);
        self.stop.store(false, Ordering::Relaxed);
        let request = self.request();
        let mut paths = Vec::new();
        let mut failed = None;
        let clock = Instant::now();
        let mut first = None;
        let (json, out, stop, model) = (self.json, self.out, self.stop.clone(), &self.model);
        let mut preview = Preview::default();
        let stream = self.asked.stream;
        let mut closed = None;
        let mut on = |event: Event| {
            first.get_or_insert_with(|| clock.elapsed().as_secs_f64());
            let mut tell = |value: serde_json::Value| closed = closed.take().or(output::json(value).err());
            match event {
                Event::Text(t) if stream => tell(serde_json::json!({"event": "text", "text": t})),
                Event::Text(t) if !json => closed = closed.take().or(output::words(t).err()),
                Event::ImageStarted if stream => tell(serde_json::json!({"event": "image_started"})),
                Event::RowDone { done, rows, .. } if stream => {
                    tell(serde_json::json!({"event": "image_row", "done": done, "rows": rows}));
                }
                Event::RowDone { done, rows, codes } if !json && done < rows && preview.is_due() => {
                    if let Some(Ok(sketch)) = model.sketch(codes) {
                        preview.show(&sketch);
                    }
                }
                Event::ImageFinished(image) => {
                    preview.clear();
                    let path = free_name(out);
                    match image.save_png(&path) {
                        Ok(()) if stream => {
                            tell(serde_json::json!({"event": "image", "path": output::path(&path)}));
                        }
                        Ok(()) if !json => {
                            show(image);
                            closed = closed.take().or(output::line(format_args!("{}", path.display())).err());
                        }
                        Ok(()) => {}
                        Err(e) => failed = Some(e),
                    }
                    paths.push(path);
                }
                _ => {}
            }
            !stop.load(Ordering::Relaxed) && closed.is_none()
        };
        let answer = self.model.answer(&self.messages, &request, &mut on);
        if let Some(e) = closed {
            return Err(e.into());
        }
        let reply: Reply = match answer {
            Ok(r) => r,
            Err(e) => {
                self.messages.pop();
                return Err(e.into());
            }
        };
        if let Some(e) = failed {
            self.messages.pop();
            return Err(e.into());
        }
        if json {
            let paths: Vec<String> = paths.iter().map(|p| output::path(p)).collect();
            output::json(serde_json::json!({
                "event": "done", "text": reply.text, "images": paths, "seed": self.seed, "text_tokens": reply.text_tokens,
                "prompt_tokens": reply.prompt_tokens, "reused_tokens": reply.reused_tokens,
                "finish_reason": reply.finish.map(|f| f.name()),
                "seconds_to_first": first, "seconds": clock.elapsed().as_secs_f64(),
            }))?;
        } else if !reply.text.is_empty() {
            say!("");
        }
        self.last = reply.images.last().cloned().or(self.last.take());
        self.messages.push(Message { role: Role::Assistant, content: reply.content });
        Ok(())
    }
}

/// A path as people type, paste and drop it: quotes around it, blanks behind backslashes, `~`, `file://`.
fn typed_path(text: &str) -> PathBuf {
    let text = text.trim();
    let quoted = ['\'', '"'].iter().find_map(|q| text.strip_prefix(*q)?.strip_suffix(*q));
    let plain = match (quoted, text.strip_prefix("file://")) {
        (Some(inner), _) => inner.to_owned(),
        (None, Some(url)) => percent_decoded(url),
        (None, None) if cfg!(unix) => {
            text.replace("\\ ", " ").replace("\\(", "(").replace("\\)", ")").replace("\\'", "'")
        }
        (None, None) => text.to_owned(),
    };
    match (plain.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(plain),
    }
}

/// %20 and its like as what they stand for.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes
            .get(i + 1..i + 3)
            .and_then(|h| std::str::from_utf8(h).ok())
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[i], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 3;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let dir = state.or_else(|| std::env::var_os("HOME").map(|h| Path::new(&h).join(".local/state")))?.join("unified");
    std::fs::create_dir_all(&dir).ok()?;
    Some(dir.join("history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_they_are_pasted() {
        for (typed, path) in [
            ("'/a b/c.png'", "/a b/c.png"),
            ("\"/a b/c.png\"", "/a b/c.png"),
            ("/a\\ b/c\\(1\\).png ", "/a b/c(1).png"),
            ("file:///a%20b/c.png", "/a b/c.png"),
            ("plain.png", "plain.png"),
        ] {
            assert_eq!(typed_path(typed), Path::new(path), "{typed}");
        }
        let home = std::env::var("HOME").unwrap_or_default();
        assert_eq!(typed_path("~/x.png"), Path::new(&home).join("x.png"));
    }
}
