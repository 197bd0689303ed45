//! The texts of a recipe and of its imports, kept so that an error can show its line.
//!
//! Rhai reports a place as a source name with a line and a column. The syntax tree is kept beside the
//! text, because `locate` finds the place of an option in it.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use rhai::{AST, Position};

use super::indices::{Added, as_values};

/// One file (or embedded module) of Rhai code.
#[derive(Debug)]
pub struct Source {
    /// Its name for the user: a path, or `dsr:NAME`.
    pub name: String,
    /// Its whole text.
    pub text: String,
}

/// A place in a source.
#[derive(Debug, Clone)]
pub struct Location {
    /// The source.
    pub source: Rc<Source>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Location {
    /// The text of the line.
    pub fn line_text(&self) -> &str {
        self.source.text.split('\n').nth(self.line.saturating_sub(1)).unwrap_or_default()
    }

    /// The number of characters of the token here, one at least.
    pub fn length(&self) -> usize {
        let rest: String = self.line_text().chars().skip(self.column.saturating_sub(1)).collect();
        token_length(&rest).max(1)
    }
}

/// The length of the word, number or string that `text` begins with; one character otherwise.
fn token_length(text: &str) -> usize {
    let mut chars = text.chars();
    match chars.next() {
        Some(quote @ ('"' | '`')) => {
            let mut escaped = false;
            let inside = chars.take_while(|&c| {
                let closes = c == quote && !escaped;
                escaped = c == '\\' && !escaped;
                !closes
            });
            (inside.count() + 2).min(text.chars().count())
        }
        Some(first) if first.is_ascii_digit() || first == '-' => {
            let is_number = |&c: &char| c.is_ascii_alphanumeric() || c == '.' || c == '_';
            1 + chars.take_while(is_number).count()
        }
        Some(first) if first.is_alphabetic() || first == '_' => {
            1 + chars.take_while(|&c| c.is_alphanumeric() || c == '_').count()
        }
        _ => 1,
    }
}

/// The name that Rhai has for all inputs of a live session. A later input may call a function of an
/// earlier one, and Rhai then gives the name of the input that calls; each input therefore has lines of
/// its own, which tell the input of a place.
pub(crate) const LIVE: &str = "<repl>";

/// The most lines of all inputs before they are counted from the start again; Rhai counts to 65535.
const MOST_LINES: usize = 50_000;

/// Every source that a session has compiled, by its name for Rhai.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    entries: RefCell<BTreeMap<String, KeptText>>,
    inputs: RefCell<Vec<Input>>,
}

/// One input of a live session.
#[derive(Debug)]
struct Input {
    /// Lines before its first.
    before: usize,
    lines: usize,
    source: Rc<Source>,
    added: Added,
}

/// A text, and its syntax tree once it has been compiled.
#[derive(Debug)]
struct KeptText {
    source: Rc<Source>,
    added: Added,
    ast: Option<Rc<AST>>,
}

impl KeptText {
    fn new(name: &str, text: &str, added: Added) -> Self {
        let source = Rc::new(Source { name: name.to_owned(), text: text.to_owned() });
        Self { source, added, ast: None }
    }
}

impl Sources {
    /// Keeps a text, so that its errors can be shown.
    pub(crate) fn insert_text(&self, name: &str, text: &str) {
        self.entries
            .borrow_mut()
            .insert(name.to_owned(), KeptText::new(name, text, Added::default()));
    }

    /// Compiles a text, and keeps it with its syntax tree.
    pub(crate) fn compile(
        &self,
        engine: &rhai::Engine,
        name: &str,
        text: &str,
    ) -> Result<AST, rhai::ParseError> {
        self.compile_values(engine, name, &self.insert(name, text))
    }

    /// Keeps a text as it was written, and returns it as Rhai can read it.
    pub(crate) fn insert(&self, name: &str, text: &str) -> String {
        let text = with_line_feeds(text);
        let (values, added) = as_values(&text);
        self.entries.borrow_mut().insert(name.to_owned(), KeptText::new(name, &text, added));
        values
    }

    /// Compiles the text that [`Self::insert`] returned for `name`, or one in which every place that
    /// Rhai reports is the same.
    pub(crate) fn compile_values(
        &self,
        engine: &rhai::Engine,
        name: &str,
        values: &str,
    ) -> Result<AST, rhai::ParseError> {
        let mut ast = engine.compile(values)?;
        ast.set_source(name);
        if let Some(entry) = self.entries.borrow_mut().get_mut(name) {
            entry.ast = Some(ast.clone().into());
        }
        Ok(ast)
    }

    /// The syntax tree of the source called `name`, once it has been compiled.
    pub(crate) fn ast(&self, name: &str) -> Option<Rc<AST>> {
        self.entries.borrow().get(name)?.ast.clone()
    }

    /// The text of the source called `name`.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        Some(self.entries.borrow().get(name)?.source.text.clone())
    }

    /// Keeps an input of a live session, which the user knows as `name`. The result is the text to
    /// compile for it, behind empty lines.
    pub(crate) fn insert_input(&self, name: &str, text: &str) -> String {
        let mut inputs = self.inputs.borrow_mut();
        let before = inputs.last().map_or(0, |last| last.before + last.lines);
        let lines = text.split('\n').count();
        let before = if before + lines > MOST_LINES { 0 } else { before };
        let source = Rc::new(Source { name: name.to_owned(), text: text.to_owned() });
        let (values, added) = as_values(text);
        inputs.push(Input { before, lines, source, added });
        format!("{}{values}", "\n".repeat(before))
    }

    /// Adds the syntax tree of an input.
    pub(crate) fn insert_live_ast(&self, ast: &AST) {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.entry(LIVE.to_owned());
        let entry = entry.or_insert_with(|| KeptText::new(LIVE, "", Added::default()));
        let all = entry.ast.get_or_insert_with(|| AST::empty().into());
        Rc::make_mut(all).combine(ast.clone());
    }

    /// Forgets the inputs of a live session.
    pub(crate) fn clear_inputs(&self) {
        self.inputs.borrow_mut().clear();
        self.entries.borrow_mut().remove(LIVE);
    }

    /// The place in the input that has this line.
    fn place_of_input(&self, line: usize, column: usize) -> Option<Location> {
        let inputs = self.inputs.borrow();
        let has_it = |input: &&Input| line > input.before && line <= input.before + input.lines;
        let input = inputs.iter().rev().find(has_it)?;
        let line = line - input.before;
        let column = input.added.written_column(line, column);
        Some(Location { source: Rc::clone(&input.source), line, column })
    }

    /// The place of a position in the source called `name`.
    pub(crate) fn place(&self, name: &str, position: Position) -> Option<Location> {
        if name == LIVE {
            return self.place_of_input(position.line()?, position.position().unwrap_or(1).max(1));
        }
        let entries = self.entries.borrow();
        let entry = entries.get(name)?;
        let line = position.line()?;
        let column = entry.added.written_column(line, position.position().unwrap_or(1).max(1));
        Some(Location { source: Rc::clone(&entry.source), line, column })
    }
}

/// The text with a line feed at the end of each line: a carriage return by itself ends a line for Rhai in
/// some places and not in others.
fn with_line_feeds(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_its_token() {
        let source = Rc::new(Source {
            name: "r.rhai".into(),
            text: "let a = 1;\ncall(\"w\\\"x\", -1.5e3, Ärger);\n".into(),
        });
        let spanned = |line, column| {
            let place = Location { source: Rc::clone(&source), line, column };
            let rest = place.line_text().chars().skip(column - 1);
            rest.take(place.length()).collect::<String>()
        };
        assert_eq!(spanned(1, 5), "a");
        assert_eq!(spanned(2, 1), "call");
        assert_eq!(spanned(2, 6), "\"w\\\"x\"");
        assert_eq!(spanned(2, 14), "-1.5e3");
        assert_eq!(spanned(2, 22), "Ärger");
    }
}
