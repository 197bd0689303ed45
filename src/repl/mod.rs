//! A session on a terminal, or of a script on standard input.
//!
//! What the inputs mean is [`live`](crate::live)'s; here is what the user sees of it:
//! the prompt, completion, colours, cards, curves and commands.

mod commands;
mod highlight;
mod indent;
mod inputs;
mod layout;
mod plot;
mod prompt;
mod saving;
mod timing;

use std::{
    cell::{Cell, RefCell, RefMut},
    path::PathBuf,
    rc::Rc,
};

use self::{
    layout::{Layout, Style},
    prompt::{Entered, Prompt, history_file},
};
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
struct Session {
    live: Rc<RefCell<Live>>,
    screen: Screen,
    prompt: Option<Prompt>,
    width: usize,
    /// The recipe that was loaded last.
    recipe: Option<Recipe>,
}

/// Runs a script, input by input, up to the first error.
///
/// # Errors
/// That error.
pub fn run_script(
    live: Live,
    screen: Screen,
    recipe: Option<Recipe>,
    text: &str,
) -> Result<(), Failure> {
    let mut session = Session::new(Rc::new(RefCell::new(live)), screen, None);
    if let Some(recipe) = recipe {
        session.load(recipe)?;
    }
    for input in inputs::of(text) {
        if session.enter(&input)? {
            break;
        }
    }
    Ok(())
}

/// Talks with the user until there is no more to say.
///
/// # Errors
/// The terminal cannot be used.
pub fn converse(live: Live, screen: Screen, recipe: Option<Recipe>) -> Result<(), Failure> {
    let live = Rc::new(RefCell::new(live));
    let dir = std::env::current_dir().unwrap_or_default();
    let history = screen.state.as_ref().map(|state| history_file(state, &dir));
    live.borrow().read_ahead();
    let prompt = Prompt::new(Rc::clone(&live), history, screen.color)?;
    let mut session = Session::new(live, screen, Some(prompt));
    session.greet();
    if let Some(recipe) = recipe {
        let outcome = session.load(recipe);
        session.tell(outcome);
    }
    loop {
        let Some(prompt) = &mut session.prompt else { return Ok(()) };
        let entered = prompt.read()?;
        session.width = prompt.width();
        match entered {
            Entered::End => return Ok(()),
            Entered::GivenUp => {}
            Entered::Input(text) => {
                let outcome = session.enter(&text);
                (session.screen.settle)();
                match outcome {
                    Ok(true) => return Ok(()),
                    outcome => session.tell(outcome.map(drop)),
                }
            }
        }
    }
}

impl Session {
    fn new(live: Rc<RefCell<Live>>, screen: Screen, prompt: Option<Prompt>) -> Self {
        Self { live, screen, prompt, width: WIDTH, recipe: None }
    }

    fn live(&self) -> RefMut<'_, Live> {
        self.live.borrow_mut()
    }

    fn layout(&self) -> Layout {
        Layout { width: self.width, color: self.screen.color }
    }

    /// The same words as in src/bridge/native/early.cpp.
    fn greet(&mut self) {
        if let Some(prompt) = &mut self.prompt {
            self.width = prompt.width();
        }
        if self.screen.greeted {
            return;
        }
        let version = concat!("dsr ", env!("CARGO_PKG_VERSION"));
        let hint = self.layout().styled(Style::Faint, ":help   ?name   Tab   Ctrl-D");
        (self.screen.print)(&format!("{version}   {hint}"));
    }

    /// Runs a recipe as the first input.
    fn load(&mut self, recipe: Recipe) -> Result<(), Failure> {
        let value = self.live().load(&recipe);
        self.recipe = Some(recipe);
        self.show(&value?);
        Ok(())
    }

    /// Does what was entered; true ends the session.
    fn enter(&mut self, text: &str) -> Result<bool, Failure> {
        let text = text.trim_end();
        if ["exit", "quit", "exit()", "quit()"].contains(&text.trim()) {
            return Ok(true);
        }
        if text.starts_with(':') {
            return commands::run(self, text);
        }
        if let Some(name) = text.strip_prefix('?') {
            let name = name.trim();
            return if name.is_empty() {
                commands::run(self, ":help")
            } else {
                self.help(name).map(|()| false)
            };
        }
        if !text.trim().is_empty() {
            let value = self.live().eval(text)?;
            self.show(&value);
        }
        Ok(false)
    }

    /// Shows a failure. What the user stopped is none.
    fn tell(&self, outcome: Result<(), Failure>) {
        if let Err(failure) = outcome {
            if failure.code() == Code::Interrupted {
                // The terminal has shown the key on this line.
                (self.screen.print)("");
            }
            (self.screen.error)(&failure, self.screen.verbose.get());
            if failure.code() == Code::Interrupted {
                let hint = "variables are as they stand; a loop over the same loader goes on";
                (self.screen.print)(&self.layout().styled(Style::Faint, hint));
            }
        }
    }

    fn show(&self, value: &Value) {
        if !value.is_nothing() {
            let card = self.live().card(value);
            (self.screen.print)(&self.layout().card(&card));
        }
    }

    fn table(&self, table: &Table) {
        let lines = self.layout().table(table);
        (self.screen.print)(&lines.join("\n"));
    }

    /// Shows what there is to know of a name.
    fn help(&self, name: &str) -> Result<(), Failure> {
        let found = self.live().help(name)?;
        let layout = self.layout();
        for (i, entry) in found.iter().enumerate() {
            let space = if i > 0 { "\n" } else { "" };
            let title = layout.styled(Style::Title, &entry.signature);
            (self.screen.print)(&format!("{space}{title}\n{}", indented(&entry.doc)));
        }
        Ok(())
    }

    fn history(&self) -> Vec<String> {
        self.prompt.as_ref().map_or_else(Vec::new, Prompt::history)
    }
}

/// A documentation below its signature; examples keep their lines and lose their fences.
fn indented(doc: &str) -> String {
    let lines = doc.lines().filter(|line| !line.starts_with("```"));
    let lines: Vec<_> = lines.map(|line| format!("  {line}").trim_end().to_owned()).collect();
    lines.join("\n")
}
