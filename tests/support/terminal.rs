//! `dsr` in a pseudo-terminal, and what stands on its screen.

use std::{
    io::{Read, Write},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use portable_pty::{Child, CommandBuilder, ExitStatus, MasterPty, PtySize, native_pty_system};

use super::picture;
use crate::support::program::DEVICE;

/// How long anything may take before a test gives up: a loaded machine is slow.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) const PROMPT: &str = "dsr> ";
pub(crate) const CTRL_C: &str = "\x03";
pub(crate) const CTRL_D: &str = "\x04";
pub(crate) const CTRL_R: &str = "\x12";
pub(crate) const ENTER: &str = "\r";
pub(crate) const TAB: &str = "\t";
pub(crate) const BACK_TAB: &str = "\x1b[Z";

/// A program with a terminal of its own.
pub(crate) struct Terminal {
    child: Box<dyn Child + Send + Sync>,
    master: Box<dyn MasterPty + Send>,
    writer: Box<dyn Write + Send>,
    screen: Arc<Mutex<vt100::Parser>>,
    pub(crate) started: Instant,
}

impl Terminal {
    /// Starts `dsr` with these arguments in `dir`, which is its home too.
    pub(crate) fn start(dir: &Path, args: &[&str]) -> Self {
        Self::sized(dir, args, (100, 40))
    }

    pub(crate) fn sized(dir: &Path, args: &[&str], size: (u16, u16)) -> Self {
        Self::with(dir, args, size, &[("HF_HUB_OFFLINE", "1")])
    }

    /// Starts it on a terminal of so many columns and rows, with more of an environment.
    pub(crate) fn with(
        dir: &Path,
        args: &[&str],
        (cols, rows): (u16, u16),
        env: &[(&str, &str)],
    ) -> Self {
        let size = PtySize { rows, cols, pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size).unwrap();
        let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_dsr"));
        command.args(args);
        command.cwd(dir);
        command.env_clear();
        for name in ["PATH", "OMP_NUM_THREADS", "LD_LIBRARY_PATH"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("TERM", "xterm-256color");
        command.env("HOME", dir);
        command.env(DEVICE.0, &DEVICE.1);
        env.iter().for_each(|(name, value)| command.env(name, value));
        let started = Instant::now();
        let child = pair.slave.spawn_command(command).unwrap();
        drop(pair.slave);
        let (height, width) = (rows.try_into().unwrap(), cols.try_into().unwrap());
        let screen = Arc::new(Mutex::new(vt100::Parser::new(height, width, 2000)));
        let (mut reader, shown) = (pair.master.try_clone_reader().unwrap(), Arc::clone(&screen));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n) = reader.read(&mut bytes) {
                if n == 0 {
                    break;
                }
                shown.lock().unwrap().process(&bytes[..n]);
            }
        });
        let writer = pair.master.take_writer().unwrap();
        Self { child, master: pair.master, writer, screen, started }
    }

    /// Starts a session, and waits for its prompt.
    pub(crate) fn session(dir: &Path, args: &[&str]) -> Self {
        let all: Vec<&str> = std::iter::once("repl").chain(args.iter().copied()).collect();
        let terminal = Self::start(dir, &all);
        terminal.wait_for_prompt();
        terminal
    }

    /// Types.
    pub(crate) fn send(&mut self, text: &str) {
        self.writer.write_all(text.as_bytes()).unwrap();
        self.writer.flush().unwrap();
    }

    /// Enters a line and waits for the next prompt. What the screen shows since then.
    pub(crate) fn enter(&mut self, line: &str) -> String {
        let before = self.prompts();
        self.send(line);
        self.send(ENTER);
        self.wait(&format!("the prompt after {line}"), |_| self.prompts() > before);
        self.answer()
    }

    /// Empties the screen.
    pub(crate) fn clear(&mut self) {
        self.send("\x15\x0c");
        self.wait("an empty screen", |screen| screen.trim_end() == PROMPT.trim_end());
    }

    /// Pastes a text as terminals do, without entering it.
    pub(crate) fn paste(&mut self, text: &str) {
        let text = text.replace('\n', "\r");
        self.send(&format!("\x1b[200~{text}\x1b[201~"));
    }

    pub(crate) fn wait_for_prompt(&self) {
        self.wait("a prompt", |_| self.is_at_prompt());
    }

    pub(crate) fn wait_for(&self, text: &str) {
        self.wait(text, |screen| screen.contains(text));
    }

    /// Waits until the screen is as it should be.
    pub(crate) fn wait(&self, what: &str, is_so: impl Fn(&str) -> bool) {
        let began = Instant::now();
        while !is_so(&self.screen()) {
            let screen = self.screen();
            assert!(began.elapsed() < PATIENCE, "waited for {what}; the screen:\n{screen}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The first rows of the screen as an SVG.
    pub(crate) fn picture(&self, rows: u16) -> String {
        self.steady_picture(rows, str::to_owned)
    }

    /// The first rows of the screen as an SVG, in which `steady` has replaced what is never the same.
    pub(crate) fn steady_picture(&self, rows: u16, steady: impl Fn(&str) -> String) -> String {
        picture::svg(self.screen.lock().unwrap().screen(), rows, steady)
    }

    /// The text on the screen, without blank lines at the end.
    pub(crate) fn screen(&self) -> String {
        let screen = self.screen.lock().unwrap();
        let lines: Vec<_> =
            screen.screen().contents().lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n").trim_end().to_owned()
    }

    /// What stands between the last two prompts.
    pub(crate) fn answer(&self) -> String {
        let screen = self.screen();
        let mut parts: Vec<_> = screen.split(PROMPT.trim_end()).collect();
        parts.pop();
        parts.pop().unwrap_or_default().trim().to_owned()
    }

    /// Empty prompts and entered lines that were ever shown on the screen or above it.
    fn prompts(&self) -> usize {
        let mut screen = self.screen.lock().unwrap();
        let rows = usize::from(screen.screen().size().0.get());
        screen.screen_mut().set_scrollback(usize::MAX);
        let above = screen.screen().scrollback();
        let mut count = 0;
        let mut offset = above;
        let begins = |line: &str| line.starts_with(PROMPT.trim_end());
        loop {
            screen.screen_mut().set_scrollback(offset);
            let contents = screen.screen().contents();
            let take = if offset == 0 { rows } else { offset.min(rows) };
            count += contents.lines().take(take).filter(|line| begins(line)).count();
            if offset == 0 {
                break;
            }
            offset = offset.saturating_sub(rows);
        }
        screen.screen_mut().set_scrollback(0);
        count
    }

    /// Whether the cursor stands behind an empty prompt.
    pub(crate) fn is_at_prompt(&self) -> bool {
        self.is_editing() && self.screen().ends_with(PROMPT.trim_end())
    }

    /// Whether the line editor has the terminal: it has asked for marks around what is pasted.
    pub(crate) fn is_editing(&self) -> bool {
        self.screen.lock().unwrap().screen().bracketed_paste()
    }

    /// Waits for the end of the program.
    pub(crate) fn end(mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "it does not end:\n{}", self.screen());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // One that has ended is none of ours any more: its number may be another's.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
        }
        let _ = self.master.get_size();
    }
}
