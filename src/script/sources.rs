//! The texts of a recipe and of what it imports, kept so that an error can show its line.
//!
//! Rhai reports places as a source name with a line and a column. The syntax tree is kept beside
//! the text because the place of one option inside a call is found in the tree, see
//! [`locate`](super::locate).

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use rhai::{AST, Position};

/// One file (or embedded module) of Rhai code.
#[derive(Debug)]
pub struct Source {
    /// How the user knows it: a path, or `dsr:NAME`.
    pub name: String,
    /// Its whole text.
    pub text: String,
}

/// A stretch of a source: where an error is.
#[derive(Debug, Clone)]
pub struct Place {
    /// The text that the place is in.
    pub source: Rc<Source>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Place {
    /// The line of the text that the place is in.
    pub fn line_text(&self) -> &str {
        self.source.text.split('\n').nth(self.line.saturating_sub(1)).unwrap_or_default()
    }

    /// How many characters the token at this place has, one at least.
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

/// Every source that a session has compiled, by the name that Rhai knows it under.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    entries: RefCell<BTreeMap<String, Entry>>,
}

/// A text, and its syntax tree once it has been compiled.
#[derive(Debug)]
struct Entry {
    source: Rc<Source>,
    ast: Option<Rc<AST>>,
}

impl Sources {
    /// Keeps a text, so that its errors can be shown.
    pub(crate) fn insert_text(&self, name: &str, text: &str) {
        let source = Rc::new(Source { name: name.to_owned(), text: text.to_owned() });
        self.entries.borrow_mut().insert(name.to_owned(), Entry { source, ast: None });
    }

    /// Compiles a text, and keeps it with its syntax tree.
    pub(crate) fn compile(
        &self,
        engine: &rhai::Engine,
        name: &str,
        text: &str,
    ) -> Result<AST, rhai::ParseError> {
        // A carriage return by itself ends a line for Rhai in some places and not in others.
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        self.insert_text(name, &text);
        let mut ast = engine.compile(&text)?;
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

    /// The place that a position in the source called `name` stands for.
    pub(crate) fn place(&self, name: &str, position: Position) -> Option<Place> {
        let source = Rc::clone(&self.entries.borrow().get(name)?.source);
        let line = position.line()?;
        Some(Place { source, line, column: position.position().unwrap_or(1).max(1) })
    }
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
            let place = Place { source: Rc::clone(&source), line, column };
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
