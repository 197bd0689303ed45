//! Lines and the progress bar, which must not overwrite each other.
//!
//! Standard output belongs to the recipe. The bar is drawn on standard error, and only when that is
//! a terminal; a line that is printed meanwhile goes above it.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

use anstream::{AutoStream, ColorChoice};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::io::Errno;

use super::style;
use crate::{
    error::{Error, Result, io_error},
    foreign::{self, Foreign},
};

/// The terminal of a run. Clones share the bar.
#[derive(Clone)]
pub struct Console {
    bar: ProgressBar,
    /// The [`Unit`] of the bar.
    unit: Arc<AtomicU8>,
    raw: bool,
}

/// Settles where there are colours: by `--color`, or by NO_COLOR, CLICOLOR_FORCE, CLICOLOR and TERM, and
/// without these on terminals.
pub(super) fn choose_colours(choice: clap::ColorChoice) {
    let choice = match choice {
        clap::ColorChoice::Auto => ColorChoice::Auto,
        clap::ColorChoice::Always => ColorChoice::Always,
        clap::ColorChoice::Never => ColorChoice::Never,
    };
    choice.write_global();
}

/// The choice as an argument for another process of dsr, where one was made.
pub(super) fn colour_argument() -> Option<String> {
    match ColorChoice::global() {
        ColorChoice::Auto => None,
        ColorChoice::Always | ColorChoice::AlwaysAnsi => Some("--color=always".to_owned()),
        ColorChoice::Never => Some("--color=never".to_owned()),
    }
}

/// Whether standard error takes colours.
pub(super) fn colors() -> bool {
    AutoStream::choice(&std::io::stderr()) != ColorChoice::Never
}

/// Whether standard output takes colours.
pub(super) fn has_colours() -> bool {
    AutoStream::choice(&std::io::stdout()) != ColorChoice::Never
}

/// Whether standard output is a terminal, on which a screen can be drawn.
pub(super) fn is_screen() -> bool {
    std::io::stdout().is_terminal()
}

/// The unit that the bar counts.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Unit {
    /// There is no bar.
    None,
    Steps,
    Bytes,
}

impl Unit {
    fn template(self) -> &'static str {
        match self {
            Self::None => "",
            // Beside the words, green where there are colours.
            Self::Steps if colors() => "\u{1b}[32m{bar:20}\u{1b}[0m  {msg}",
            Self::Steps => "{bar:20}  {msg}",
            Self::Bytes => {
                "{msg}  {wide_bar} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}"
            }
        }
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    /// A console without a bar until [`progress`](Self::progress) is called.
    pub fn new() -> Self {
        Self {
            bar: ProgressBar::hidden(),
            unit: Arc::new(AtomicU8::new(Unit::None as u8)),
            raw: false,
        }
    }

    /// Prints a line (or several) of a recipe to standard output: as text, with its colours. What would move
    /// the cursor, set the title or write to the clipboard is shown, unless the user wants it
    /// [raw](Self::raw).
    pub fn print(&self, line: &str) {
        let shown = if self.raw { line.to_owned() } else { foreign::styled(line) };
        self.bar.suspend(|| out_bytes(format!("{shown}\n").as_bytes()));
    }

    /// The same console, which prints the text of recipes as it is.
    #[must_use]
    pub fn raw(mut self, raw: bool) -> Self {
        self.raw = raw;
        self
    }

    /// Prints a line of dsr's own to standard error.
    pub fn note(&self, line: &str) {
        let shown = if colors() { style::note(line) } else { line.to_owned() };
        self.bar.suspend(|| err(&format!("{shown}\n")));
    }

    /// Shows how far the run is: `done` of `total` steps and a few words.
    pub fn progress(&self, done: u64, total: u64, words: &str) {
        self.draw(Unit::Steps, done, total, words);
    }

    /// Whether there is a terminal for a bar.
    pub(super) fn has_bar(&self) -> bool {
        std::io::stderr().is_terminal()
    }

    /// Shows how far a download is: `done` of `total` bytes of the file `name`. False where there
    /// is no terminal to show it on.
    pub(super) fn bytes(&self, done: u64, total: u64, name: &str) -> bool {
        self.draw(Unit::Bytes, done, total, name)
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.unit.store(Unit::None as u8, Ordering::Relaxed);
        self.bar.finish_and_clear();
    }

    fn draw(&self, unit: Unit, done: u64, total: u64, words: &str) -> bool {
        if !self.has_bar() {
            return false;
        }
        let is_new = self.unit.swap(unit as u8, Ordering::Relaxed) != unit as u8;
        if is_new {
            let style = ProgressStyle::with_template(unit.template());
            self.bar.set_style(style.expect("the templates are constants"));
            self.bar.reset();
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_message(Foreign(words).to_string());
        if is_new {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        true
    }
}

/// Writes to standard output. A failure does not stop a training run: [`lost_output`] tells of it. Whatever
/// of others has come into the text is shown and not performed; a style is there only where there are colours.
pub(super) fn out(text: &str) {
    out_bytes(shown(text, has_colours()).as_bytes());
}

/// Writes JSON to standard output, on a line of its own.
pub(super) fn out_json(json: impl Display) {
    out_bytes((foreign::json(&json.to_string()) + "\n").as_bytes());
}

/// As [`out`], to standard error.
pub(super) fn err(text: &str) {
    err_bytes(shown(text, colors()).as_bytes());
}

fn shown(text: &str, has_colours: bool) -> String {
    if has_colours { foreign::styled(text) } else { foreign::lines(text) }
}

/// As [`out`], for text in any encoding.
pub(super) fn out_bytes(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    if let Err(e) = out.write_all(bytes).and_then(|()| out.flush())
        && !is_without_reader(&e)
    {
        LOST_OUTPUT.get_or_init(|| e);
    }
}

/// The first failure to write to standard output, if its end was lost by one.
pub(super) fn lost_output() -> Result<()> {
    match LOST_OUTPUT.get() {
        None => Ok(()),
        Some(e) => {
            let e = io_error(e, "write to", Path::new("standard output"));
            Err(Error::new(e.code(), e.message())
                .hint("the output is not whole: write it elsewhere"))
        }
    }
}

static LOST_OUTPUT: OnceLock<io::Error> = OnceLock::new();

/// Whether nobody is left to read: a pipe is closed, or the terminal is.
fn is_without_reader(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::BrokenPipe || e.raw_os_error() == Some(Errno::IO.raw_os_error())
}

/// As [`err`], for text in any encoding.
pub(super) fn err_bytes(bytes: &[u8]) {
    let _ = std::io::stderr().lock().write_all(bytes);
}
