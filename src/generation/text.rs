//! Texts in and out: prompts to tokens, tokens to pieces of text as they come, and stops found in them.

use super::{
    batch::generate_checked,
    ended::{Ended, FinishReason, Watch},
    prompt::{Prompt, check},
    sampling::Sampling,
};
use crate::{
    data::Tokenizer,
    error::{Code, Error, Result},
    model::Model,
    tensor::mix,
};

/// A character in place of bytes that are no whole character yet.
const PARTIAL: char = '\u{fffd}';

/// A text that a model has gone on with.
#[derive(Debug, Clone, PartialEq)]
pub struct Continued {
    /// The prompt, and what follows it; the answer alone of a model with an encoder.
    pub text: String,
    /// The text behind the prompt.
    pub completion: String,
    /// Tokens, log-probabilities and the reason of the end.
    pub ended: Ended,
}

/// The caller's view of texts while they grow.
pub trait Texts {
    /// Takes the next piece of text `text`: whole characters, of which no later one is taken back.
    fn piece(&mut self, text: usize, piece: &str) -> Result<()>;

    /// Takes the end of text `text`, after its last piece.
    fn ended(&mut self, _text: usize, _continued: &Continued) -> Result<()> {
        Ok(())
    }

    /// Whether all texts must end now.
    fn must_stop(&self) -> bool;
}

/// Goes on with each prompt `num_return_sequences` times; the texts of a prompt stand together.
pub fn continue_texts(
    model: &Model,
    tokenizer: &Tokenizer,
    prompts: &[&str],
    sampling: &Sampling,
    texts: &mut dyn Texts,
) -> Result<Vec<Continued>> {
    let tokens = encoded(tokenizer, prompts)?;
    continue_tokens(model, tokenizer, &tokens, sampling, texts)
}

fn encoded(tokenizer: &Tokenizer, prompts: &[&str]) -> Result<Vec<Vec<u32>>> {
    prompts.iter().map(|prompt| tokenizer.encode(prompt)).collect()
}

/// [`continue_texts`] for prompts that are tokens already.
pub fn continue_tokens(
    model: &Model,
    tokenizer: &Tokenizer,
    prompts: &[Vec<u32>],
    sampling: &Sampling,
    texts: &mut dyn Texts,
) -> Result<Vec<Continued>> {
    let eos = ends(model, tokenizer);
    let mut streams = Vec::new();
    let mut requests = Vec::new();
    let begun = begun(model, tokenizer, prompts, sampling)?;
    for (i, (prompt, tokens)) in prompts.iter().zip(begun).enumerate() {
        let written = prompt.len();
        let seed = seed(sampling, i, prompts.len())?;
        for sequence in 0..sampling.num_return_sequences as u64 {
            let seed = if sequence == 0 { seed } else { mix(&[seed, sequence]) };
            requests.push(Prompt { tokens: tokens.clone(), seed });
            let known = if model.facts().is_seq2seq() { 0 } else { written };
            streams.push(Stream::new(tokenizer, &tokens[..known], &sampling.stop.0)?);
        }
    }
    let finished = streams.iter().map(|_| None).collect();
    let mut watch = Watched { streams, finished, texts };
    generate_checked(model, &requests, sampling, &eos, &mut watch)?;
    let finished = watch.finished.into_iter().collect::<Option<Vec<_>>>();
    finished.ok_or_else(|| Error::new(Code::Internal, "a text without an end"))
}

/// Refuses what [`continue_texts`] would refuse of these prompts and options.
pub fn check_texts(
    model: &Model,
    tokenizer: &Tokenizer,
    prompts: &[&str],
    sampling: &Sampling,
) -> Result<()> {
    let tokens = encoded(tokenizer, prompts)?;
    begun(model, tokenizer, &tokens, sampling)?;
    (0..prompts.len()).try_for_each(|i| seed(sampling, i, prompts.len()).map(drop))
}

/// The tokens that each text begins with.
fn begun(
    model: &Model,
    tokenizer: &Tokenizer,
    prompts: &[Vec<u32>],
    sampling: &Sampling,
) -> Result<Vec<Vec<i64>>> {
    let begin = |(i, prompt): (usize, &Vec<u32>)| {
        let mut tokens: Vec<i64> = prompt.iter().copied().map(i64::from).collect();
        if tokens.is_empty() {
            // The token before each text in training.
            tokens.extend(tokenizer.eos_id().map(i64::from));
        }
        match check(model, &tokens, sampling.max_new_tokens) {
            Ok(()) => Ok(tokens),
            Err(e) if prompts.len() == 1 => Err(e),
            Err(e) => Err(e.within(&format!("prompt {} of {}", i + 1, prompts.len()))),
        }
    };
    prompts.iter().enumerate().map(begin).collect()
}

/// The tokens that end a text.
fn ends(model: &Model, tokenizer: &Tokenizer) -> Vec<i64> {
    let eos = tokenizer.eos_id().map(i64::from);
    // Without a tokenizer of its own the model's ids may be of another vocabulary.
    let by_config = eos.is_none() || model.has_tokenizer();
    let configured = model.facts().eos_token_ids.iter().copied().filter(|_| by_config);
    configured.chain(eos).collect()
}

fn seed(sampling: &Sampling, prompt: usize, prompts: usize) -> Result<u64> {
    let seeds = &sampling.seed.0;
    match seeds.as_slice() {
        &[seed] => Ok(seed),
        seeds if seeds.len() == prompts => Ok(seeds[prompt]),
        _ => Err(Error::new(
            Code::BadValue,
            format!("`seed` has {} numbers for {prompts} prompts", seeds.len()),
        )
        .hint("give one number, or one for each prompt")),
    }
}

struct Watched<'a> {
    streams: Vec<Stream<'a>>,
    finished: Vec<Option<Continued>>,
    texts: &'a mut dyn Texts,
}

impl Watch for Watched<'_> {
    fn token(&mut self, text: usize, token: i64) -> Result<bool> {
        let stream = &mut self.streams[text];
        let goes_on = stream.push(token)?;
        let piece = stream.ready(!goes_on);
        if !piece.is_empty() {
            self.texts.piece(text, piece)?;
        }
        Ok(goes_on)
    }

    fn ended(&mut self, text: usize, ended: &Ended) -> Result<()> {
        let stream = &mut self.streams[text];
        stream.finish(ended.reason)?;
        let rest = stream.ready(true);
        if !rest.is_empty() {
            self.texts.piece(text, rest)?;
        }
        let whole = format!("{}{}", stream.prompt, stream.text);
        let completion = std::mem::take(&mut stream.text);
        let continued = Continued { text: whole, completion, ended: ended.clone() };
        self.texts.ended(text, &continued)?;
        self.finished[text] = Some(continued);
        Ok(())
    }

    fn must_stop(&self) -> bool {
        self.texts.must_stop()
    }
}

/// The text of tokens, as they come.
struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    stops: &'a [String],
    /// The prompt as the tokenizer writes it.
    prompt: String,
    ids: Vec<u32>,
    /// Where the tokens begin that the text of the next ones is read behind, and where those begin
    /// whose text is not in `text` yet. A token's text depends on those before it.
    context: usize,
    unread: usize,
    /// The text behind the prompt, up to a stop.
    text: String,
    /// Bytes of it that were given away.
    given: usize,
}

impl<'a> Stream<'a> {
    fn new(tokenizer: &'a Tokenizer, prompt: &[i64], stops: &'a [String]) -> Result<Self> {
        let ids: Vec<u32> = prompt.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        let prompt = tokenizer.decode(&ids)?;
        let unread = ids.len();
        let text = String::new();
        Ok(Self { tokenizer, stops, prompt, ids, context: 0, unread, text, given: 0 })
    }

    /// Takes a token; false if a stop ends the text with it.
    fn push(&mut self, token: i64) -> Result<bool> {
        // A vocabulary that was padded has rows without a token.
        let id = u32::try_from(token).ok().filter(|&id| self.tokenizer.token(id).is_some());
        let Some(id) = id else { return Ok(true) };
        self.ids.push(id);
        self.read(false)
    }

    /// Reads the text of new tokens, if it is whole characters or the last.
    fn read(&mut self, is_last: bool) -> Result<bool> {
        let before = self.tokenizer.decode(&self.ids[self.context..self.unread])?;
        let with = self.tokenizer.decode(&self.ids[self.context..])?;
        let piece = match with.strip_prefix(&before) {
            Some(piece) => piece,
            // The new tokens change the text of those before, which is given away: they stand alone. A run
            // of bytes is that way, where one of them makes all of it no text.
            None => &self.tokenizer.decode(&self.ids[self.unread..])?,
        };
        if piece.is_empty() || (piece.ends_with(PARTIAL) && !is_last) {
            return Ok(true);
        }
        (self.context, self.unread) = (self.unread, self.ids.len());
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = floor(&self.text, self.text.len().saturating_sub(longest));
        self.text.push_str(piece);
        let found = |stop: &String| self.text[from..].find(stop.as_str()).map(|at| from + at);
        if let Some(at) = self.stops.iter().filter_map(found).min() {
            self.text.truncate(at);
            return Ok(false);
        }
        Ok(true)
    }

    /// Reads what is left at the end.
    fn finish(&mut self, reason: FinishReason) -> Result<()> {
        if reason != FinishReason::StopSequence && self.unread < self.ids.len() {
            self.read(true)?;
        }
        Ok(())
    }

    /// The text that can be given away now: all at the end, and before that nothing that may be the
    /// beginning of a stop.
    fn ready(&mut self, is_last: bool) -> &str {
        let text = self.text.as_str();
        let is_begun = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&text[*at..]));
        let starts = text.char_indices().map(|(at, _)| at).filter(|&at| at >= self.given);
        let held = if is_last { None } else { starts.clone().find(is_begun) };
        let until = held.unwrap_or(text.len());
        let from = self.given.min(until);
        self.given = self.given.max(until);
        &self.text[from..until]
    }
}

/// The start of the character at byte `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(
        tokenizer: &Tokenizer,
        prompt: &str,
        rest: &str,
        stops: &[&str],
    ) -> (Vec<String>, String) {
        let ids = |text: &str| -> Vec<i64> {
            tokenizer.encode(text).unwrap().into_iter().map(i64::from).collect()
        };
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut stream = Stream::new(tokenizer, &ids(prompt), &stops).unwrap();
        let mut pieces = Vec::new();
        for id in ids(rest) {
            let goes_on = stream.push(id).unwrap();
            pieces.push(stream.ready(!goes_on).to_owned());
            if !goes_on {
                return (pieces, stream.text);
            }
        }
        stream.finish(FinishReason::Length).unwrap();
        pieces.push(stream.ready(true).to_owned());
        (pieces, stream.text)
    }

    #[test]
    fn pieces_are_whole_characters() {
        let tokenizer = Tokenizer::open("dsr:gpt2").unwrap();
        let text = " wörld 🙂 日本語 end";
        let (pieces, all) = pieces(&tokenizer, "Hello", text, &[]);
        assert_eq!((pieces.concat().as_str(), all.as_str()), (text, text));
        assert!(pieces.iter().all(|piece| !piece.contains(PARTIAL)), "{pieces:?}");
        assert!(pieces.len() > 5 && pieces.iter().any(String::is_empty), "{pieces:?}");
    }

    /// A run of bytes that is no text as a whole changes what was given away of it. What follows is given
    /// away all the same, and stops in it are found.
    #[test]
    fn bytes_that_are_no_text_do_not_end_the_text() {
        let vocab = ["<unk>", "<0x0A>", "<0xF0>", "<0xC3>", "<0xA9>", "▁the", "▁end"];
        let vocab: serde_json::Map<_, _> =
            vocab.iter().zip(0..).map(|(token, id)| ((*token).to_owned(), id.into())).collect();
        let json = serde_json::json!({
            "model": {
                "type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>", "byte_fallback": true,
            },
            "decoder": { "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
                { "type": "ByteFallback" },
                { "type": "Fuse" },
            ] },
        });
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
        let of = |tokens: &[i64], stops: &[&str]| {
            let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
            let mut stream = Stream::new(&tokenizer, &[], &stops).unwrap();
            let goes_on = tokens.iter().all(|&token| stream.push(token).unwrap());
            if goes_on {
                stream.finish(FinishReason::Length).unwrap();
            }
            (stream.text, goes_on)
        };
        assert_eq!(of(&[1, 3, 4, 5], &[]), ("\né the".to_owned(), true));
        assert_eq!(of(&[1, 2, 5, 6], &[]), ("\n\u{fffd} the end".to_owned(), true));
        assert_eq!(of(&[1, 2, 5, 6, 5], &["end"]), ("\n\u{fffd} the ".to_owned(), false));
        assert_eq!(of(&[1, 2], &[]), ("\n\u{fffd}".to_owned(), true));
    }

    #[test]
    fn a_stop_is_found_across_tokens_and_never_given_away() {
        let tokenizer = Tokenizer::open("dsr:gpt2").unwrap();
        let of = |text: &str, stops: &[&str]| pieces(&tokenizer, "It", text, stops);
        let (given, text) = of(" is a truth universally acknowledged", &["th univ", "never"]);
        assert_eq!((given.concat().as_str(), text.as_str()), (" is a tru", " is a tru"));
        let (given, text) = of(" is a truth\nof all\n\nThe end", &["\n\n"]);
        assert_eq!(
            (given.concat().as_str(), text.as_str()),
            (" is a truth\nof all", " is a truth\nof all")
        );
        let (given, text) = of(" is a trut", &["truth"]);
        assert_eq!((given.concat().as_str(), text.as_str()), (" is a trut", " is a trut"));
    }
}
