//! The rules of a stranger's `tokenizer.json`, checked before the library believes their sizes.
//!
//! Two kinds of rules ask for any amount of memory: SentencePiece's precompiled table begins with its
//! own length, and replacements in a row multiply a text. The other faults of such a file are panics of
//! the library, which are caught where it is called.

use serde_json::Value;

use crate::{
    error::{Code, Result},
    units::Bytes,
};

/// A factor that tokenizers in use stay below: a space becomes three bytes, a ligature a word.
const USUAL_GROWTH: u64 = 64;
/// The most bytes that normalizing may make of one text, where it makes it longer.
const MOST_NORMALIZED: u64 = 256 << 20;

/// Checks the rules; returns how many times longer they can make a text.
pub(super) fn check(rules: &Value) -> Result<u64, String> {
    check_tables(&rules["normalizer"])?;
    let before = growth(&rules["normalizer"]).saturating_mul(growth(&rules["pre_tokenizer"]));
    Ok(before.max(growth(&rules["decoder"])))
}

/// Refuses a text that rules could make too long, where they make texts `growth` times longer.
pub(super) fn check_growth(growth: u64, text: &str) -> Result<()> {
    let bytes = (text.len() as u64).saturating_mul(growth);
    if growth <= USUAL_GROWTH || bytes <= MOST_NORMALIZED {
        return Ok(());
    }
    bail!(
        Code::Tokenizer,
        "the tokenizer's rules can make {} of a text of {}, more than {}",
        Bytes(bytes),
        Bytes(text.len() as u64),
        Bytes(MOST_NORMALIZED)
    )
}

/// Refuses a precompiled table that is shorter than it says.
fn check_tables(rules: &Value) -> Result<(), String> {
    if let Some(table) = rules["precompiled_charsmap"].as_str() {
        let start: Vec<u8> = table.bytes().take(6).map_while(sextet).collect();
        let bits = start.iter().fold(0u64, |bits, &sextet| bits << 6 | u64::from(sextet));
        // Six letters are 36 bits; the first 32 are the length of the table in bytes.
        let size = u32::try_from(bits >> 4).unwrap_or(u32::MAX).swap_bytes();
        let found = table.len() as u64 / 4 * 3;
        if start.len() < 6 || u64::from(size) + 4 > found {
            return Err(format!("precompiled_charsmap has {found} bytes, too few for its table"));
        }
    }
    children(rules).try_for_each(check_tables)
}

/// The value of a letter of base64.
fn sextet(letter: u8) -> Option<u8> {
    match letter {
        b'A'..=b'Z' => Some(letter - b'A'),
        b'a'..=b'z' => Some(letter - b'a' + 26),
        b'0'..=b'9' => Some(letter - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

/// How many times longer these rules can make a text: the product over those that follow each other.
fn growth(rules: &Value) -> u64 {
    let text = |value: &Value| value.as_str().map_or(0, |text| text.len() as u64);
    let own = match rules["type"].as_str() {
        Some("Replace") => {
            let found = text(&rules["pattern"]["String"]).max(1);
            // An empty pattern matches between all bytes.
            text(&rules["content"]).div_ceil(found) + u64::from(found == 1)
        }
        Some("Prepend") => text(&rules["prepend"]) + 1,
        Some("Metaspace") => 4,
        _ => 1,
    };
    children(rules).map(growth).fold(own.max(1), u64::saturating_mul)
}

/// The rules that a sequence is made of.
fn children(rules: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["normalizers", "pretokenizers", "decoders"].into_iter();
    lists.filter_map(|list| rules[list].as_array()).flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn replacements_in_a_row_multiply() {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
        let usual = json!({"normalizer": {"type": "Sequence", "normalizers": [replace, replace]}});
        assert!(check(&usual).unwrap() <= USUAL_GROWTH);
        let long =
            json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(100)});
        let bomb = json!({"normalizer": {"type": "Sequence", "normalizers": [long, long, long]}});
        assert!(check(&bomb).unwrap() >= 1_000_000);
        assert_eq!(check(&json!({"normalizer": null})), Ok(1));
    }

    #[test]
    fn a_table_is_not_longer_than_its_text() {
        let of = |table: &str| {
            let rule = json!({"type": "Precompiled", "precompiled_charsmap": table});
            check(&json!({"normalizer": {"type": "Sequence", "normalizers": [rule]}}))
        };
        // Four bytes of table behind their length, little-endian.
        assert_eq!(of("BAAAAAAAAAA="), Ok(1));
        for table in ["", "AAAA////", "//////////8AAAAAAAAA", "BQAAAA=="] {
            assert!(of(table).is_err(), "{table}");
        }
    }
}
