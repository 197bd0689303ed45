//! The outputs of a recipe: printed lines, notes of dsr, progress.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use crate::{
    error::{Error, Result},
    hub::Progress,
    run::OutputLog,
};

/// Bytes of lines that are kept until a run starts, whose log then has them.
const MOST_EARLY: usize = 1 << 20;

/// Takes lines without their ends.
type Sink = Box<dyn FnMut(&str)>;

/// Shows the progress of a run.
pub type ShowProgress = Box<dyn Fn(u64, u64, &str)>;

/// The outputs of a recipe.
pub struct Output {
    /// Bytes that the recipe may print; it then ends.
    pub limit: u64,
    /// Whether what is printed goes to a terminal that shows colours.
    pub has_colours: bool,
    /// Takes dsr's own lines, one at a time and without the line's end.
    pub notes: Box<dyn Fn(&str)>,
    /// Called with each step of a download from the hub.
    pub show_download: Rc<dyn Fn(&Progress<'_>)>,
    /// Called with each step of a run: steps done, all steps, and the progress line.
    pub show_progress: ShowProgress,
    /// Takes the lines of `print` and `debug`.
    sink: RefCell<Sink>,
    printed: Cell<u64>,
    log: RefCell<Log>,
}

/// Where printed lines are kept.
#[derive(Default)]
struct Log {
    /// The lines before the run.
    early: String,
    /// How many of them were too many.
    left_out: u64,
    /// The log of the run.
    of_run: Option<OutputLog>,
    /// The error of a line that could not be written, until the recipe ends with it.
    failed: Option<Error>,
}

impl Output {
    /// Prints through `sink`, without a limit. Notes and progress are not shown.
    pub fn new(sink: impl FnMut(&str) + 'static) -> Self {
        Self {
            limit: u64::MAX,
            has_colours: false,
            notes: Box::new(|_| ()),
            show_download: Rc::new(|_| ()),
            show_progress: Box::new(|_, _, _| ()),
            sink: RefCell::new(Box::new(sink)),
            printed: Cell::new(0),
            log: RefCell::default(),
        }
    }

    /// Prints one line (or several, separated by line ends).
    pub fn print(&self, line: &str) {
        self.printed.update(|bytes| bytes.saturating_add(line.len() as u64 + 1));
        if self.is_exceeded() {
            return;
        }
        if let Ok(mut log) = self.log.try_borrow_mut() {
            log.keep(line);
        }
        // A sink that prints through the host again would only lose its own line.
        if let Ok(mut sink) = self.sink.try_borrow_mut() {
            sink(line);
        }
    }

    /// Whether the recipe has printed more than it may, and is to end.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.printed.get() > self.limit
    }

    /// Counts the bytes from the start again, for the next input.
    pub(crate) fn restart(&self) {
        self.printed.set(0);
        let mut log = self.log.borrow_mut();
        (log.early, log.left_out) = Default::default();
    }

    /// Keeps what is printed from now on in the log of a run, behind what was printed before it.
    ///
    /// # Errors
    /// The log cannot be written.
    pub(crate) fn keep_in(&self, of_run: Option<OutputLog>) -> Result<()> {
        let mut log = self.log.borrow_mut();
        let (early, left_out) = (std::mem::take(&mut log.early), std::mem::take(&mut log.left_out));
        log.of_run = of_run;
        let Some(of_run) = &mut log.of_run else { return Ok(()) };
        early.strip_suffix('\n').map_or(Ok(()), |lines| of_run.append(lines))?;
        match left_out {
            0 => Ok(()),
            n => of_run.append(&format!("(and {n} more before the run)")),
        }
    }

    /// Keeps nothing of what is printed from now on.
    pub(crate) fn keep_no_more(&self) {
        self.log.borrow_mut().of_run = None;
    }

    /// The error of a line that could not be kept, once.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.log.borrow_mut().failed.take()
    }

    /// Tells the user one line that is no output of the recipe.
    pub fn note(&self, line: &str) {
        (self.notes)(line);
    }

    /// Shows that `done` of `total` steps of a run are done, with the progress line.
    pub fn progress(&self, done: u64, total: u64, line: &str) {
        (self.show_progress)(done, total, line);
    }
}

impl Log {
    fn keep(&mut self, line: &str) {
        match &mut self.of_run {
            Some(of_run) => {
                if let Err(e) = of_run.append(line) {
                    self.of_run = None;
                    self.failed = Some(e);
                }
            }
            None if self.early.len() + line.len() < MOST_EARLY && self.left_out == 0 => {
                self.early.push_str(line);
                self.early.push('\n');
            }
            None => self.left_out += 1,
        }
    }
}
