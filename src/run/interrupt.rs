//! Interruption of the training loop by a signal, and the notice to the user.
//!
//! A signal handler may do next to nothing, so it sets a flag; the loop looks at it between steps,
//! saves a checkpoint and ends with [`Interrupt::error`]. A step that takes longer than [`PATIENCE`]
//! is given up where that is possible. Catching the signal is `cli`'s part.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::error::{Code, Error};

/// The time that is given to the step under way after a request to stop.
const PATIENCE: Duration = Duration::from_secs(3);

/// A request to stop. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    flag: Arc<AtomicBool>,
    /// When somebody looked first, since it was made.
    seen: Arc<Mutex<Option<Instant>>>,
    /// Whether an operation is under way that ends early and keeps what is there.
    keeps: Arc<AtomicBool>,
    /// Whether the request has ended such an operation.
    has_kept: Arc<AtomicBool>,
}

/// The time in which an operation runs that ends early and keeps what is there.
#[derive(Debug)]
pub struct Keeping {
    interrupt: Interrupt,
    before: bool,
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.interrupt.keeps.store(self.before, Ordering::Relaxed);
    }
}

impl Interrupt {
    /// Nothing is requested yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// True once the user has asked to stop.
    pub fn requested(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// True once the user has asked to stop and what is under way has had its time.
    pub fn is_overdue(&self) -> bool {
        let seen = || *self.seen().get_or_insert_with(Instant::now);
        self.requested() && seen().elapsed() >= PATIENCE
    }

    /// Until the result is dropped an operation runs that ends early on a request. Its caller then has time to
    /// use what is there.
    pub fn keep(&self) -> Keeping {
        let before = self.keeps.swap(true, Ordering::Relaxed);
        Keeping { interrupt: self.clone(), before }
    }

    /// Notes that the request ends such an operation.
    pub fn end_early(&self) {
        self.has_kept.store(true, Ordering::Relaxed);
    }

    /// Whether the request has ended such an operation.
    pub fn has_kept(&self) -> bool {
        self.requested() && self.has_kept.load(Ordering::Relaxed)
    }

    /// Whether the request has ended such an operation, or finds one under way.
    pub fn is_kept(&self) -> bool {
        self.has_kept() || (self.requested() && self.keeps.load(Ordering::Relaxed))
    }

    fn seen(&self) -> MutexGuard<'_, Option<Instant>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks to stop.
    pub fn request(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }

    /// Takes the request back, before something else is begun.
    pub fn clear(&self) {
        self.flag.store(false, Ordering::Relaxed);
        self.has_kept.store(false, Ordering::Relaxed);
        *self.seen() = None;
    }

    /// The flag itself, for a signal handler to set.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.flag)
    }

    /// The error with which an interrupted run ends. `command` is the command line of this
    /// process, `saved` the step of the newest checkpoint, `from` the run where `--resume auto` would look for
    /// another one.
    pub fn error(step: u64, saved: Option<u64>, command: &[String], from: Option<&Path>) -> Error {
        match saved {
            Some(saved) => Error::new(
                Code::Interrupted,
                format!("stopped after step {step}; the checkpoint of step {saved} is saved"),
            )
            .hint(format!("go on with: {}", resume_command(command, from))),
            None => Error::new(
                Code::Interrupted,
                format!("stopped after step {step}; no checkpoint is saved"),
            ),
        }
    }
}

/// The command line that goes on where `command` stopped, ready for a shell: with the run `from`, or with the
/// newest of its name.
pub fn resume_command(command: &[String], from: Option<&Path>) -> String {
    // Arguments after `--` are not dsr's.
    let end = command.iter().position(|word| word == "--").unwrap_or(command.len());
    let (ours, rest) = command.split_at(end);
    let mut words = Vec::new();
    let mut ours = ours.iter();
    while let Some(word) = ours.next() {
        if word == "--resume" {
            // Its value goes too.
            ours.next();
        } else if !word.starts_with("--resume=") {
            words.push(word.clone());
        }
    }
    let from = from.map_or_else(|| "auto".to_owned(), |path| path.display().to_string());
    words.extend(["--resume".to_owned(), from]);
    words.extend(rest.iter().cloned());
    shell_line(&words)
}

/// Words as one line for a shell: quoted where the shell would otherwise change them.
pub fn shell_line(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    let quoted = words.iter().map(|word| match word {
        word if !word.is_empty() && word.chars().all(plain) => word.clone(),
        word => format!("'{}'", word.replace('\'', r"'\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_clone_sees_the_request() {
        let interrupt = Interrupt::new();
        let seen_by_the_loop = interrupt.clone();
        assert!(!seen_by_the_loop.requested());
        interrupt.flag().store(true, Ordering::Relaxed);
        assert!(seen_by_the_loop.requested());
    }

    /// An operation within another one leaves the mark of the outer one.
    #[test]
    fn an_operation_that_is_interrupted_keeps_what_is_there() {
        let interrupt = Interrupt::new();
        let outer = interrupt.keep();
        drop(interrupt.keep());
        assert!(!interrupt.is_kept(), "nobody asked");
        interrupt.request();
        assert!(interrupt.is_kept() && !interrupt.has_kept());
        interrupt.end_early();
        drop(outer);
        assert!(interrupt.has_kept() && !interrupt.is_overdue(), "there is time to use it");
        interrupt.clear();
        drop(interrupt.keep());
        interrupt.request();
        assert!(!interrupt.is_kept(), "it was over by then");
    }

    #[test]
    fn the_message_says_how_to_go_on() {
        let e = Interrupt::error(7, Some(6), &words("dsr run a.rhai -p lr=1e-4"), None);
        assert_eq!(e.code(), Code::Interrupted);
        assert_eq!(e.message(), "stopped after step 7; the checkpoint of step 6 is saved");
        assert_eq!(e.hints(), ["go on with: dsr run a.rhai -p lr=1e-4 --resume auto"]);
        let e = Interrupt::error(7, Some(6), &words("dsr run a.rhai"), Some(Path::new("runs/b-2")));
        assert_eq!(e.hints(), ["go on with: dsr run a.rhai --resume runs/b-2"]);
        assert!(Interrupt::error(7, None, &words("dsr run a.rhai"), None).hints().is_empty());
    }

    #[test]
    fn an_earlier_resume_is_replaced_and_other_words_stay() {
        let cases = [
            ("dsr run a.rhai --resume runs/a -p n=2", "dsr run a.rhai -p n=2 --resume auto"),
            ("dsr run --resume=auto a.rhai", "dsr run a.rhai --resume auto"),
            ("dsr run a.rhai -- --resume x", "dsr run a.rhai --resume auto -- --resume x"),
            ("dsr run a.rhai --resume", "dsr run a.rhai --resume auto"),
        ];
        for (given, expected) in cases {
            assert_eq!(resume_command(&words(given), None), expected);
        }
    }

    #[test]
    fn words_with_meaning_to_a_shell_are_quoted() {
        let given = ["a b".to_owned(), String::new(), "it's".to_owned(), "$HOME".to_owned()];
        assert_eq!(shell_line(&given), r"'a b' '' 'it'\''s' '$HOME'");
    }
}
