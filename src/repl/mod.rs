//! A session on a terminal, or of a script on standard input.
//!
//! [`live`](crate::live) runs the inputs; here is the terminal's part:
//! the prompt, completion, colours, cards, curves and commands.

mod commands;
mod highlight;
mod indent;
mod inputs;
mod layout;
mod lines;
mod plot;
mod prompt;
mod saving;
mod session;
mod timing;

use std::{cell::RefCell, rc::Rc};

pub(crate) use self::plot::curve;
use self::{
    commands::{enter, is_command},
    prompt::{Entered, Prompt, history_file},
    session::Session,
};
pub use self::{
    lines::Lines,
    session::{Screen, ShowFailure},
};
use crate::{
    live::Live,
    recipe::{Failure, Recipe},
};

/// Runs a script, input by input, up to the first error.
pub fn run_script(
    live: Live,
    screen: Screen,
    recipe: Option<Recipe>,
    text: &str,
) -> Result<(), Failure> {
    let mut session = Session::new(Rc::new(RefCell::new(live)), screen);
    if let Some(recipe) = recipe {
        session.load(recipe)?;
    }
    for input in inputs::of(text) {
        if enter(&mut session, &input)? {
            break;
        }
    }
    Ok(())
}

/// Talks with the user until there is no more to say.
pub fn converse(live: Live, screen: Screen, recipe: Option<Recipe>) -> Result<(), Failure> {
    let live = Rc::new(RefCell::new(live));
    let dir = std::env::current_dir().unwrap_or_default();
    let history = screen.state.as_ref().map(|state| history_file(state, &dir));
    live.borrow().read_ahead();
    let mut prompt = Prompt::new(Rc::clone(&live), history, screen.color)?;
    let mut session = Session::new(live, screen);
    session.width = prompt.width();
    session.greet();
    if let Some(recipe) = recipe {
        let outcome = session.load(recipe);
        session.tell(outcome);
    }
    loop {
        let entered = prompt.read()?;
        session.width = prompt.width();
        match entered {
            Entered::End => return Ok(()),
            Entered::GivenUp => {}
            Entered::Input(text) => {
                if is_command(&text) {
                    session.history = prompt.history();
                }
                let outcome = enter(&mut session, &text);
                (session.screen.settle)();
                match outcome {
                    Ok(true) => return Ok(()),
                    outcome => session.tell(outcome.map(drop)),
                }
            }
        }
    }
}
