//! Where lines and the progress bar meet.
//!
//! Standard output belongs to the recipe. The bar is drawn on standard error, and only when that is
//! a terminal; a line that is printed meanwhile goes above it.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The terminal of a run. Clones share the bar.
#[derive(Clone)]
pub struct Console {
    bar: ProgressBar,
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    /// A console without a bar until [`progress`](Self::progress) is called.
    pub fn new() -> Self {
        Self { bar: ProgressBar::hidden() }
    }

    /// Prints a line (or several) to standard output.
    pub fn print(&self, line: &str) {
        self.bar.suspend(|| out(&format!("{line}\n")));
    }

    /// Prints a line of dsr's own to standard error.
    pub fn note(&self, line: &str) {
        self.bar.suspend(|| err(&format!("{line}\n")));
    }

    /// Shows how far the run is: `done` of `total` steps and a few words.
    pub fn progress(&self, done: u64, total: u64, words: &str) {
        if self.bar.is_hidden() && std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}");
            self.bar.set_style(style.expect("the template is a constant"));
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_message(words.to_owned());
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Writes to standard output. A reader that went away does not stop a training run.
pub(super) fn out(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes to standard error.
pub(super) fn err(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}
