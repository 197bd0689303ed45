//! The state of a session, and its output.

use std::{
    cell::{Cell, RefCell, RefMut},
    path::PathBuf,
    rc::Rc,
};

use super::layout::{FAINT, Layout, TITLE};
use crate::{
    error::Code,
    live::{Live, Value, card::Table},
    recipe::{Failure, Recipe},
};

/// Columns where there is no terminal to ask.
const WIDTH: usize = 80;

/// Shows a failure, with its causes where the second is true.
pub type ShowFailure = Box<dyn Fn(&Failure, bool)>;

/// Where a session shows what it has to say.
pub struct Screen {
    /// Prints lines, without the last line's end.
    pub print: Box<dyn Fn(&str)>,
    /// Shows a failure.
    pub error: ShowFailure,
    /// Takes away what was drawn while an input ran, such as a bar.
    pub settle: Box<dyn Fn()>,
    /// Whether the terminal has colours.
    pub color: bool,
    /// Whether the greeting and the prompt are on the terminal already.
    pub greeted: bool,
    /// Whether causes are shown.
    pub verbose: Cell<bool>,
    /// The directory that dsr keeps its state in, if there is one.
    pub state: Option<PathBuf>,
}

/// A session with the user.
pub(super) struct Session {
    live: Rc<RefCell<Live>>,
    pub(super) screen: Screen,
    pub(super) width: usize,
    /// The recipe that was loaded last.
    pub(super) recipe: Option<Recipe>,
    /// The inputs that are remembered, the oldest first.
    pub(super) history: Vec<String>,
}

impl Session {
    pub(super) fn new(live: Rc<RefCell<Live>>, screen: Screen) -> Self {
        Self { live, screen, width: WIDTH, recipe: None, history: Vec::new() }
    }

    pub(super) fn live(&self) -> RefMut<'_, Live> {
        self.live.borrow_mut()
    }

    pub(super) fn layout(&self) -> Layout {
        Layout { width: self.width, color: self.screen.color }
    }

    /// The same words as in src/bridge/native/early.cpp.
    pub(super) fn greet(&self) {
        if self.screen.greeted {
            return;
        }
        let version = concat!("dsr ", env!("CARGO_PKG_VERSION"));
        let hint = self.layout().styled(FAINT, ":help   ?name   Tab   Ctrl-D");
        (self.screen.print)(&format!("{version}   {hint}"));
    }

    /// Runs a recipe as the first input.
    pub(super) fn load(&mut self, recipe: Recipe) -> Result<(), Failure> {
        let value = self.live().load(&recipe);
        self.recipe = Some(recipe);
        self.show(&value?);
        Ok(())
    }

    /// Shows a failure, unless the user interrupted the input.
    pub(super) fn tell(&self, outcome: Result<(), Failure>) {
        if let Err(failure) = outcome {
            if failure.code() == Code::Interrupted {
                // The terminal has shown the key on this line.
                (self.screen.print)("");
            }
            (self.screen.error)(&failure, self.screen.verbose.get());
            if failure.code() == Code::Interrupted {
                let hint = "variables are as they stand; a loop over the same loader goes on";
                (self.screen.print)(&self.layout().styled(FAINT, hint));
            }
        }
    }

    pub(super) fn show(&self, value: &Value) {
        if !value.is_nothing() {
            let card = self.live().card(value);
            (self.screen.print)(&self.layout().card(&card));
        }
    }

    pub(super) fn table(&self, table: &Table) {
        let lines = self.layout().table(table);
        (self.screen.print)(&lines.join("\n"));
    }

    /// Shows what there is to know of a name.
    pub(super) fn help(&self, name: &str) -> Result<(), Failure> {
        let found = self.live().help(name)?;
        let layout = self.layout();
        for (i, entry) in found.iter().enumerate() {
            let space = if i > 0 { "\n" } else { "" };
            let title = layout.styled(TITLE, &entry.signature);
            (self.screen.print)(&format!("{space}{title}\n{}", indented(&entry.doc)));
        }
        Ok(())
    }
}

/// A documentation below its signature; examples keep their lines and lose their fences.
fn indented(doc: &str) -> String {
    let lines = doc.lines().filter(|line| !line.starts_with("```"));
    let lines: Vec<_> = lines.map(|line| format!("  {line}").trim_end().to_owned()).collect();
    lines.join("\n")
}
