//! `unified chat`

use super::common::{Common, free_name, out_dir};
use super::terminal::{Preview, show};
use anyhow::{Context, Result, bail};
use clap::Args;
use qlip::Image;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use unified::chat::ChatModel;
use unified::conversation::{Content, Event, Message, Reply, Request, Role, Window};

/// Talk with the model: words and pictures in, words and pictures out.
#[derive(Args)]
pub struct Chat {
    #[command(flatten)]
    common: Common,
    /// Answer this and leave; without it the conversation is interactive.
    #[arg(long)]
    prompt: Option<String>,
    /// Picture that goes with the prompt.
    #[arg(long, requires = "prompt")]
    image: Option<PathBuf>,
    /// Most words (text tokens) of an answer.
    #[arg(long, default_value_t = 512)]
    max_tokens: usize,
    /// Leave the oldest turns out when the conversation grows longer than the model can hold, instead of refusing.
    #[arg(long)]
    trim: bool,
    /// Folder for pictures that the model draws.
    #[arg(short, long, default_value = ".")]
    out: PathBuf,
}

const HELP: &str = "\
/image FILE   show the model a picture with your next message
/draw TEXT    draw TEXT
/save [FILE]  save the last picture as PNG
/seed [N]     use seed N from here on, or say which is used
/new          start a new conversation
/help         this list
Ctrl-C stops an answer, Ctrl-D leaves.";

impl Chat {
    pub fn run(&self) -> Result<()> {
        if self.prompt.as_ref().is_some_and(|p| p.trim().is_empty()) {
            bail!("--prompt is empty: say something, or leave --prompt out to chat");
        }
        // before the model is loaded, so that nothing is lost on a folder that cannot be written
        out_dir(&self.out)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut session = Session {
            model: self.common.chat_model()?,
            messages: Vec::new(),
            pending: Vec::new(),
            last: None,
            seed: self.common.seed,
            max_tokens: self.max_tokens,
            window: if self.trim { Window::Trim } else { Window::Refuse },
            json: self.common.json,
            out: &self.out,
            stop: stop.clone(),
        };
        if let Some(prompt) = &self.prompt {
            if let Some(path) = &self.image {
                session.pending.push(Image::open(path)?);
            }
            return session.say(prompt);
        }
        if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
            ctrlc::set_handler(move || stop.store(true, Ordering::Relaxed)).context("Ctrl-C cannot be caught")?;
            session.interactive()
        } else {
            session.lines()
        }
    }
}

struct Session<'a> {
    model: ChatModel,
    messages: Vec<Message>,
    pending: Vec<Image>,
    last: Option<Image>,
    seed: u64,
    max_tokens: usize,
    window: Window,
    json: bool,
    out: &'a Path,
    stop: Arc<AtomicBool>,
}

impl Session<'_> {
    /// Line editing and history.
    fn interactive(&mut self) -> Result<()> {
        use rustyline::error::ReadlineError;
        let mut editor = rustyline::DefaultEditor::new()?;
        let history = history_file();
        if let Some(h) = &history {
            let _ = editor.load_history(h);
        }
        println!("unified {} - /help lists the commands", env!("CARGO_PKG_VERSION"));
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
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let Some(command) = line.strip_prefix('/') else { return self.say(line) };
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match name {
            "image" if rest.is_empty() => bail!("/image needs a file"),
            "image" => {
                let image = Image::open(Path::new(rest))?;
                show(&image);
                self.pending.push(image);
            }
            "draw" if rest.is_empty() => bail!("/draw needs words, as in /draw a red circle"),
            "draw" => return self.say(&format!("draw {rest}")),
            "save" => {
                let image = self.last.as_ref().context("there is no picture to save yet")?;
                let path = if rest.is_empty() { free_name(self.out) } else { PathBuf::from(rest) };
                image.save_png(&path)?;
                println!("{}", path.display());
            }
            "seed" if rest.is_empty() => println!("seed {}", self.seed),
            "seed" => self.seed = rest.parse().context("/seed needs a whole number")?,
            "new" => {
                self.messages.clear();
                self.pending.clear();
            }
            "help" => println!("{HELP}"),
            _ => bail!("/{name} is no command; /help lists them"),
        }
        Ok(())
    }

    /// One turn: the words with the pictures shown since the last, and the answer as it comes.
    fn say(&mut self, text: &str) -> Result<()> {
        let mut content: Vec<Content> = self.pending.drain(..).map(Content::Image).collect();
        content.push(Content::Text(text.to_owned()));
        self.messages.push(Message { role: Role::User, content });
        self.stop.store(false, Ordering::Relaxed);
        let request = Request { max_tokens: self.max_tokens, window: self.window, ..self.model.request(self.seed) };
        let mut paths = Vec::new();
        let mut failed = None;
        let clock = Instant::now();
        let mut first = None;
        let (json, out, stop, model) = (self.json, self.out, self.stop.clone(), &self.model);
        let mut preview = Preview::default();
        let mut on = |event: Event| {
            first.get_or_insert_with(|| clock.elapsed().as_secs_f64());
            match event {
                Event::Text(t) if !json => {
                    print!("{t}");
                    let _ = std::io::stdout().flush();
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
                        Ok(()) if !json => {
                            show(image);
                            println!("{}", path.display());
                        }
                        Ok(()) => {}
                        Err(e) => failed = Some(e),
                    }
                    paths.push(path);
                }
                _ => {}
            }
            !stop.load(Ordering::Relaxed)
        };
        let answer = self.model.answer(&self.messages, &request, &mut on);
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
            println!(
                "{}",
                serde_json::json!({
                    "text": reply.text, "images": paths, "seed": self.seed, "text_tokens": reply.text_tokens,
                    "seconds_to_first": first, "seconds": clock.elapsed().as_secs_f64(),
                })
            );
        } else if !reply.text.is_empty() {
            println!();
        }
        self.last = reply.images.last().cloned().or(self.last.take());
        self.messages.push(Message { role: Role::Assistant, content: reply.content });
        Ok(())
    }
}

fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let dir = state.or_else(|| std::env::var_os("HOME").map(|h| Path::new(&h).join(".local/state")))?.join("unified");
    std::fs::create_dir_all(&dir).ok()?;
    Some(dir.join("history"))
}
