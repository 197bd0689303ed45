//! The outputs of a recipe: printed lines, notes of dsr, progress.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use crate::hub::Progress;

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
        }
    }

    /// Prints one line (or several, separated by line ends).
    pub fn print(&self, line: &str) {
        self.printed.update(|bytes| bytes.saturating_add(line.len() as u64 + 1));
        if self.is_exceeded() {
            return;
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
