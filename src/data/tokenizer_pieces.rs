//! Long texts, tokenized in pieces: on all cores, with a look in between at whether anybody still waits,
//! and in memory that does not grow with the text.
//!
//! A byte-level tokenizer begins a token at a space between two words, so that the tokens of the pieces are
//! those of the text. Others, such as SentencePiece's, take texts whole.

use tokenizers::tokenizer::Tokenizer;

use crate::error::Result;

/// The bytes of a piece, and the bytes of a text that is cut.
const PIECE: usize = 64 << 10;
/// Pieces that are tokenized together.
const GROUP: usize = 64;
/// A text to try whether cuts change tokens.
const PROBE: &str = "One word.\nTwo  more words, and\n\nthen the end";

/// How a tokenizer takes pieces.
pub(super) struct Pieces {
    /// The special tokens that it puts before a text and behind it.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
}

impl Pieces {
    /// For a tokenizer whose tokens stay the same where a text is cut.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let rules = serde_json::to_value(tokenizer).ok()?;
        let has = |part: &str, text: &str| rules[part].to_string().contains(text);
        // The cut could lie inside such a token, or between it and the blank that it takes with it.
        let joins = tokenizer.get_added_tokens_decoder().values().any(|token| {
            token.content.contains(char::is_whitespace) || token.lstrip || token.rstrip
        });
        let is_plain = ["null", "\"NFC\""].iter().any(|kind| has("normalizer", kind));
        if !has("pre_tokenizer", "\"ByteLevel\"")
            || has("pre_tokenizer", "\"add_prefix_space\":true")
            || !is_plain
            || joins
        {
            return None;
        }
        let ids = |text: &str, special| {
            Some(tokenizer.encode_fast(text, special).ok()?.get_ids().to_vec())
        };
        let (bare, whole) = (ids(PROBE, false)?, ids(PROBE, true)?);
        let at = whole.windows(bare.len().max(1)).position(|part| part == bare)?;
        let cut: Vec<u32> = cut(PROBE, 1)
            .into_iter()
            .map(|piece| ids(piece, false))
            .collect::<Option<Vec<_>>>()?
            .concat();
        (cut == bare).then(|| Self {
            prefix: whole[..at].to_vec(),
            suffix: whole[at + bare.len()..].to_vec(),
        })
    }

    /// Whether a text is long enough to be cut.
    pub(super) fn takes(text: &str) -> bool {
        text.len() > PIECE
    }

    /// The ids of a long text, of which `encode` takes some pieces at a time. `look` is asked in between.
    pub(super) fn encode(
        &self,
        text: &str,
        encode: impl Fn(Vec<&str>) -> Result<Vec<Vec<u32>>>,
        look: impl Fn() -> Result<()>,
    ) -> Result<Vec<u32>> {
        let mut ids = self.prefix.clone();
        for group in cut(text, PIECE).chunks(GROUP) {
            look()?;
            encode(group.to_vec())?.iter().for_each(|piece| ids.extend(piece));
        }
        ids.extend(&self.suffix);
        Ok(ids)
    }
}

/// The parts of a text, each of about `size` bytes, which begin with a space between two letters.
fn cut(text: &str, size: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    for (at, _) in text.match_indices(' ') {
        let is_between = text[at + 1..].starts_with(char::is_alphabetic)
            && text[start..at].ends_with(char::is_alphabetic);
        if is_between && at - start >= size {
            parts.push(&text[start..at]);
            start = at;
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use tokenizers::AddedToken;

    use super::*;
    use crate::data::embedded;

    #[test]
    fn the_tokens_of_the_pieces_are_those_of_the_text() {
        let tokenizer = Tokenizer::from_bytes(embedded::tokenizer("gpt2").unwrap()).unwrap();
        let pieces = Pieces::of(&tokenizer).unwrap();
        let text =
            "A line.\n\n  Another one,\nwith words\n- a list\n\t\u{e9}t\u{e9}\n".repeat(9000);
        let ids = |text: &str| tokenizer.encode_fast(text, true).unwrap().get_ids().to_vec();
        let encode = |parts: Vec<&str>| Ok(parts.into_iter().map(ids).collect());
        assert!(Pieces::takes(&text) && cut(&text, PIECE).len() > 3);
        assert_eq!(pieces.encode(&text, encode, || Ok(())).unwrap(), ids(&text));
    }

    #[test]
    fn a_tokenizer_whose_added_tokens_take_blanks_takes_texts_whole() {
        let has_pieces = |token: AddedToken| {
            let json = embedded::tokenizer("gpt2").unwrap();
            let mut tokenizer = Tokenizer::from_bytes(json).unwrap();
            tokenizer.add_tokens([token]).unwrap();
            Pieces::of(&tokenizer).is_some()
        };
        let word = || AddedToken::from("York", false);
        assert!(has_pieces(word()));
        assert!(!has_pieces(AddedToken::from("New York", false)));
        assert!(!has_pieces(word().lstrip(true)));
        assert!(!has_pieces(word().rstrip(true)));
    }

    #[test]
    fn a_tokenizer_that_puts_a_space_before_texts_takes_them_whole() {
        let text = std::str::from_utf8(embedded::tokenizer("gpt2").unwrap()).unwrap();
        let spaced = text.replace("\"add_prefix_space\":false", "\"add_prefix_space\":true");
        let spaced = spaced.replace("\"add_prefix_space\": false", "\"add_prefix_space\": true");
        assert_ne!(spaced, text);
        assert!(Pieces::of(&Tokenizer::from_bytes(spaced.as_bytes()).unwrap()).is_none());
    }
}
