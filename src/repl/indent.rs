//! The indentation of the next line of an input.

use crate::live::{Class, tokens};

/// One step.
pub(super) const INDENT: &str = "    ";

/// Brackets that are open at the end of the text; several of one line count once.
pub(super) fn depth(text: &str) -> usize {
    let mut open: Vec<usize> = Vec::new();
    for token in tokens(text) {
        let line = text[..token.range.start].matches('\n').count();
        match token.class {
            Class::Open => open.push(line),
            Class::Close => drop(open.pop()),
            _ => {}
        }
    }
    open.dedup();
    open.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_brackets_indent() {
        assert_eq!(depth("let x = f(#{"), 1);
        assert_eq!(depth("for b in l {\n    g([\n        1,"), 2);
        assert_eq!(depth("f(1)"), 0);
        assert_eq!(depth("/* ( */ \"(\""), 0);
    }
}
