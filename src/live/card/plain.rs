//! Values of the language itself: numbers, text, arrays, maps, functions.

use rhai::{Array, Dynamic, FnPtr, Map};

use super::layout::{Card, number};
use crate::{live::session::Live, recipe::value, units::grouped};

/// The limits of a text, an array and a map, and of their depth.
const MOST_CHARACTERS: usize = 2000;
const MOST_ITEMS: usize = 20;
const MOST_KEYS: usize = 40;
const DEPTH: usize = 4;

/// Arrays and maps up to this length stand on one line.
const LINE: usize = 76;

impl Live {
    pub(super) fn plain(&self, value: &Dynamic) -> Card {
        let mut card = Card { text: self.written(value, 0), ..Card::default() };
        if let Ok(items) = value.as_array_ref() {
            of_numbers(&mut card, &items);
        }
        if let Ok(text) = value.as_immutable_string_ref()
            && text.chars().count() > 80
        {
            card.fact("characters", grouped(text.chars().count() as u64));
        }
        card
    }

    /// A value as it would be written in a recipe, shortened.
    fn written(&self, value: &Dynamic, depth: usize) -> String {
        let Some(value) = value.read_lock::<Dynamic>() else { return "(in use)".to_owned() };
        if let Ok(text) = value.as_immutable_string_ref() {
            return written_text(&text, depth);
        }
        if let Ok(items) = value.as_array_ref() {
            return self.written_array(&items, depth);
        }
        if let Ok(map) = value.as_map_ref() {
            return self.written_map(&map, depth);
        }
        if let Some(function) = value.read_lock::<FnPtr>() {
            let name = function.fn_name();
            return if function.is_anonymous() {
                "function".to_owned()
            } else {
                format!("function {name}")
            };
        }
        if value.is_float() || value.is_char() {
            return format!("{:?}", *value);
        }
        match value::is_handle(&value) {
            true => {
                let text = self.described(&value);
                if depth == 0 { text } else { text.lines().next().unwrap_or_default().to_owned() }
            }
            false => value.to_string(),
        }
    }

    fn written_array(&self, items: &Array, depth: usize) -> String {
        if depth == DEPTH && !items.is_empty() {
            return format!("[{} items]", items.len());
        }
        let mut parts: Vec<_> =
            items.iter().take(MOST_ITEMS).map(|item| self.written(item, depth + 1)).collect();
        if items.len() > MOST_ITEMS {
            parts.push(format!("... {} more", items.len() - MOST_ITEMS));
        }
        in_brackets("[", "]", &parts, depth)
    }

    fn written_map(&self, map: &Map, depth: usize) -> String {
        if depth == DEPTH && !map.is_empty() {
            return format!("#{{ {} keys }}", map.len());
        }
        let pair = |(key, item): (&_, &Dynamic)| {
            let key: &rhai::Identifier = key;
            let key = if rhai::is_valid_identifier(key) {
                key.to_string()
            } else {
                format!("{:?}", key.as_str())
            };
            format!("{key}: {}", self.written(item, depth + 1))
        };
        let mut parts: Vec<_> = map.iter().take(MOST_KEYS).map(pair).collect();
        if map.len() > MOST_KEYS {
            parts.push(format!("... {} more", map.len() - MOST_KEYS));
        }
        if parts.is_empty() { "#{}".to_owned() } else { in_brackets("#{ ", " }", &parts, depth) }
    }
}

fn in_brackets(open: &str, close: &str, parts: &[String], depth: usize) -> String {
    let line = format!("{open}{}{close}", parts.join(", "));
    if line.chars().count() + 4 * depth <= LINE && !line.contains('\n') {
        return line;
    }
    let is_short = |part: &String| part.len() < 12 || part.starts_with("... ");
    if parts.iter().all(is_short) {
        // Short items fill lines.
        let mut text = open.trim_end().to_owned();
        let mut length = usize::MAX;
        for part in parts {
            if length > LINE - 8 {
                text.push('\n');
                text.push_str(&"    ".repeat(depth + 1));
                length = 4 * (depth + 1);
            } else {
                text.push(' ');
            }
            text.push_str(part);
            if !part.starts_with("... ") {
                text.push(',');
            }
            length += part.len() + 2;
        }
        return format!("{text}\n{}{}", "    ".repeat(depth), close.trim_start());
    }
    let inner: String =
        parts.iter().map(|part| format!("{}{part},\n", "    ".repeat(depth + 1))).collect();
    format!("{}\n{inner}{}{}", open.trim_end(), "    ".repeat(depth), close.trim_start())
}

fn written_text(text: &str, depth: usize) -> String {
    let most = if depth == 0 { MOST_CHARACTERS } else { LINE };
    let cut: String = text.chars().take(most).collect();
    let more = text.chars().count() - cut.chars().count();
    let end = if more > 0 { format!(" ... {more} more characters") } else { String::new() };
    match depth == 0 && cut.contains('\n') {
        true => format!("\"{cut}\"{end}"),
        false => format!("{cut:?}{end}"),
    }
}

/// The range of an array of numbers that is too long to be seen.
fn of_numbers(card: &mut Card, items: &Array) {
    let numbers: Option<Vec<f64>> = items.iter().map(value::number).collect();
    let Some(numbers) = numbers.filter(|numbers| numbers.len() > MOST_ITEMS) else { return };
    let (mut low, mut high, mut sum) = (f64::INFINITY, f64::NEG_INFINITY, 0.0);
    for n in &numbers {
        (low, high, sum) = (low.min(*n), high.max(*n), sum + n);
    }
    card.title = format!("array of {} numbers", numbers.len());
    card.fact("min", number(low));
    card.fact("mean", number(sum / numbers.len() as f64));
    card.fact("max", number(high));
}
