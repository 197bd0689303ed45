//! Colours of an input, and the bracket that belongs to the one at the cursor.

use anstyle::{AnsiColor, Style};

use crate::live::{Class, Token, tokens};

/// The input with escapes for its colours.
pub(super) fn painted(text: &str, cursor: Option<usize>) -> String {
    if text.starts_with(':') || text.starts_with('?') {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        let style = AnsiColor::Cyan.on_default();
        return format!("{style}{}{style:#}{}", &text[..end], &text[end..]);
    }
    let all = tokens(text);
    let pair = cursor.and_then(|cursor| bracket_pair(&all, cursor));
    let mut painted = String::new();
    let mut at = 0;
    for (i, token) in all.iter().enumerate() {
        painted.push_str(&text[at..token.range.start]);
        let is_call = all.get(i + 1).is_some_and(|next| {
            next.range.start == token.range.end && next.of(text).starts_with('(')
        });
        let style = match token.class {
            _ if pair.is_some_and(|(a, b)| a == i || b == i) => Style::new().bold().underline(),
            Class::Comment => Style::new().dimmed(),
            Class::Text if token.closed => AnsiColor::Green.on_default(),
            Class::Text => AnsiColor::Red.on_default(),
            Class::Number => AnsiColor::Cyan.on_default(),
            Class::Keyword => AnsiColor::Magenta.on_default(),
            Class::Name if is_call => AnsiColor::Blue.on_default(),
            _ => Style::new(),
        };
        // A line's end must not carry a colour: the terminal would fill the line with it.
        let lines = token.of(text).split('\n').map(|line| format!("{style}{line}{style:#}"));
        painted.push_str(&lines.collect::<Vec<_>>().join("\n"));
        at = token.range.end;
    }
    painted.push_str(&text[at..]);
    painted
}

/// The tokens of the bracket at the cursor, or right before it, and of its other one.
fn bracket_pair(all: &[Token], cursor: usize) -> Option<(usize, usize)> {
    let is_bracket = |token: &Token| matches!(token.class, Class::Open | Class::Close);
    let here = all
        .iter()
        .position(|token| is_bracket(token) && token.range.contains(&cursor))
        .or_else(|| all.iter().position(|token| is_bracket(token) && token.range.end == cursor))?;
    let mut open = Vec::new();
    for (i, token) in all.iter().enumerate() {
        match token.class {
            Class::Open => open.push(i),
            Class::Close => {
                let other = open.pop()?;
                if other == here || i == here {
                    return Some((other, i));
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_add_nothing_but_escapes() {
        let text = "let x = f(1, \"a\\n`\", [`b ${1 + 2}`]) /* c\nd */;\n?";
        let mut plain = painted(text, Some(9));
        while let Some(from) = plain.find('\x1b') {
            let to = from + plain[from..].find('m').unwrap();
            plain.replace_range(from..=to, "");
        }
        assert_eq!(plain, text);
    }

    #[test]
    fn brackets_find_their_other_one() {
        let text = "f(a[1], \")\")";
        let all = tokens(text);
        let places = |cursor| {
            bracket_pair(&all, cursor).map(|(a, b)| (all[a].range.start, all[b].range.start))
        };
        assert_eq!(places(1), Some((1, 11)));
        assert_eq!(places(12), Some((1, 11)));
        assert_eq!(places(6), Some((3, 5)));
        assert_eq!(places(9), None);
    }
}
