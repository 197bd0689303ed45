//! A live session: one input after another, over variables and functions that stay.
//!
//! There is one scope for all inputs and one syntax tree of all functions. An input is read like a
//! recipe: it is parsed, its parameters are declared, its names are checked against those of the
//! session; only then does it run. An input that fails leaves variables, functions, imports and
//! parameters as they were, also those of its own statements before the fault. An interrupted input
//! keeps its effects: a loop that the user stops is no mistake.
//!
//! Nothing here prints; a value is shown as a [`Card`](card::Card).

pub mod card;
pub mod complete;
pub mod curves;
pub mod input;
pub mod inspect;
pub mod session;

mod chain;
mod cursor;
mod help;
mod names;
mod record;
mod statements;
mod trial;
mod undo;

pub use self::{
    inspect::Variable,
    session::{Live, Value},
};
pub use crate::recipe::lexer::{Class, KEYWORDS, Token, tokens, word};
