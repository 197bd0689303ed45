//! What else is wrong in a text that does not parse.
//!
//! Rhai's parser ends at its first error. Here the text is mended where the error is, so that every other
//! place keeps its line and column, and parsed anew. A later syntax error counts only where it is a habit
//! of another language: else it may come of the mending.

use std::collections::BTreeSet;

use rhai::{AST, EvalAltResult, ParseError, ParseErrorType, Position};

use super::{
    diagnostics::typed,
    error::AtPosition,
    habits::{end_of_statement, is_habit},
    sources::{Location, Sources},
};
use crate::error::Error;

/// How often a text is mended.
const MOST_ROUNDS: usize = 64;

/// A text, and its mistakes so far.
pub(crate) struct Recovery<'a> {
    sources: &'a Sources,
    name: &'a str,
    /// The text for Rhai; what is mended in it leaves every other place where it is.
    text: String,
    /// Lines of it that are no longer as they were written: their syntax errors are of our making.
    mended: BTreeSet<usize>,
    faults: Vec<Error>,
    /// Names that a mended line may have declared, and those that were told to be unknown.
    known: BTreeSet<String>,
}

impl<'a> Recovery<'a> {
    /// For the source called `name`, as it was written.
    pub(crate) fn new(sources: &'a Sources, name: &'a str, written: &str) -> Self {
        let text = sources.insert(name, written);
        let (mended, faults, known) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
        Self { sources, name, text, mended, faults, known }
    }

    /// The syntax tree of the text, which is mended until `engine` takes it; `None` where it never does.
    pub(crate) fn parse(&mut self, engine: &rhai::Engine) -> Option<AST> {
        for _ in 0..MOST_ROUNDS {
            match self.sources.compile_values(engine, self.name, &self.text) {
                Ok(ast) => return Some(ast),
                Err(error) => self.mend(engine, error)?,
            }
        }
        None
    }

    /// Notes the variables that do not exist for `engine`, and leaves the text as it is.
    pub(crate) fn find_unknown_names(&mut self, engine: &rhai::Engine) {
        let before = (self.text.clone(), self.mended.clone());
        self.parse(engine);
        (self.text, self.mended) = before;
    }

    /// All mistakes.
    pub(crate) fn into_faults(self) -> Vec<Error> {
        self.faults
    }

    /// Notes the error, and takes its cause out of the text.
    fn mend(
        &mut self,
        engine: &rhai::Engine,
        ParseError(kind, position): ParseError,
    ) -> Option<()> {
        let place = self.sources.place(self.name, position);
        let error = typed(engine, EvalAltResult::ErrorParsing((*kind).clone(), position));
        if let ParseErrorType::VariableUndefined(name) = &*kind {
            if self.known.insert(name.clone()) {
                self.faults.push(error.at(self.name, position));
            }
            let place = place?;
            return match self.without_name(position, name) {
                Some(text) => {
                    self.text = text;
                    Some(())
                }
                None => self.without_line(&place),
            };
        }
        let end = place.as_ref().and_then(|place| end_of_statement(error.message(), place));
        let shown = end.as_ref().or(place.as_ref());
        let is_written = shown.is_some_and(|shown| !self.mended.contains(&shown.line));
        if self.faults.is_empty()
            || is_written && place.as_ref().is_some_and(|place| is_habit(&error, place))
        {
            self.faults.push(error.at(self.name, position));
        }
        match end {
            // A `;` in a comment would be none.
            Some(end) => self.with_semicolon(end.line).or_else(|| self.without_line(&end)),
            None => self.without_line(&place?),
        }
    }

    /// The text with a value in the place of the name that Rhai found at a position.
    fn without_name(&self, position: Position, name: &str) -> Option<String> {
        let value = if name.len() < 2 { "0" } else { "()" };
        let start = offset(&self.text, position)?;
        let rest = self.text[start..].strip_prefix(name)?;
        let space = " ".repeat(name.chars().count() - value.len());
        Some(format!("{}{value}{space}{rest}", &self.text[..start]))
    }

    /// Ends the statement on a line.
    fn with_semicolon(&mut self, line: usize) -> Option<()> {
        let end = line_range(&self.text, line)?.end;
        let is_new = self.mended.insert(line) && !self.text[..end].trim_end().ends_with(';');
        is_new.then(|| self.text.insert(end, ';'))
    }

    /// Leaves of a line only the brackets that lines around it may close or open.
    fn without_line(&mut self, place: &Location) -> Option<()> {
        let range = line_range(&self.text, place.line)?;
        let line = &self.text[range.clone()];
        let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        self.known.extend(words.filter(|word| !word.is_empty()).map(str::to_owned));
        let open = unpaired(line);
        let kept = |(i, c): (usize, char)| if open.contains(&i) { c } else { ' ' };
        let mended: String = line.char_indices().map(kept).collect();
        if mended == line {
            return None;
        }
        self.text.replace_range(range, &mended);
        self.mended.insert(place.line);
        Some(())
    }
}

/// The offsets of the brackets of a line that have no partner in it.
fn unpaired(line: &str) -> BTreeSet<usize> {
    let mut open: Vec<(usize, char)> = Vec::new();
    let mut alone = BTreeSet::new();
    for (i, c) in line.char_indices() {
        match (c, open.last()) {
            ('(' | '[' | '{', _) => open.push((i, c)),
            (')', Some((_, '('))) | (']', Some((_, '['))) | ('}', Some((_, '{'))) => {
                open.pop();
            }
            (')' | ']' | '}', _) => {
                alone.insert(i);
            }
            _ => {}
        }
    }
    alone.extend(open.into_iter().map(|(i, _)| i));
    alone
}

fn line_range(text: &str, line: usize) -> Option<std::ops::Range<usize>> {
    let before: usize = text.split('\n').take(line - 1).map(|line| line.len() + 1).sum();
    let len = text.split('\n').nth(line - 1)?.len();
    Some(before..before + len)
}

fn offset(text: &str, position: Position) -> Option<usize> {
    let range = line_range(text, position.line()?)?;
    let column = text[range.clone()].char_indices().nth(position.position()?.checked_sub(1)?)?.0;
    Some(range.start + column)
}
