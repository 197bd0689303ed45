//! The inputs of a script, as a user would enter them one after another.

use crate::live::input::{Completeness, completeness};

/// The beginnings of a line that continues the input before it.
const GOES_ON: [&str; 14] =
    ["else", "catch", ".", "?.", "+", "-", "*", "/", "%", "|", "&", "=", "<", ">"];

/// Cuts a script into its inputs. A line belongs to the input before it where that is not whole, or
/// where it begins with what cannot begin an input.
pub(super) fn of(text: &str) -> Vec<String> {
    let mut inputs = Vec::new();
    let mut open = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if open.is_empty() && line.trim().is_empty() {
            continue;
        }
        open.push_str(line);
        let is_command = open.starts_with([':', '?']);
        let ends = is_command
            || (completeness(&open) == Completeness::Whole
                && (open.trim_end().ends_with(';')
                    || !lines.peek().is_some_and(|next| goes_on(next))));
        if ends {
            inputs.push(std::mem::take(&mut open));
        } else {
            open.push('\n');
        }
    }
    if !open.trim().is_empty() {
        inputs.push(open);
    }
    inputs
}

fn goes_on(line: &str) -> bool {
    let line = line.trim_start();
    // Where the line before has no semicolon, `-1` and `|x| x` go on too.
    let is_comment = line.starts_with("//") || line.starts_with("/*");
    let begins = |word: &&str| {
        let rest = line.strip_prefix(*word);
        rest.is_some_and(|rest| {
            !word.ends_with(char::is_alphabetic) || !rest.starts_with(char::is_alphanumeric)
        })
    };
    !is_comment && GOES_ON.iter().any(begins)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_cut_where_an_input_ends() {
        let text = "let a = 1;\n\nfor i in 0..2 {\n    print(i);\n}\nlet d = f(1)\n    .g(2);\n:vars\nif a { 1 }\nelse { 2 }\n// end";
        assert_eq!(
            of(text),
            [
                "let a = 1;",
                "for i in 0..2 {\n    print(i);\n}",
                "let d = f(1)\n    .g(2);",
                ":vars",
                "if a { 1 }\nelse { 2 }",
                "// end"
            ]
        );
    }

    #[test]
    fn what_is_not_whole_is_the_last_input() {
        assert_eq!(of("let x = 1;\nlet y = [\n1,"), ["let x = 1;", "let y = [\n1,\n"]);
    }
}
