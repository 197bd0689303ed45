//! `Tokenizer`: text to token ids and back, with the files and the results of Hugging Face's
//! tokenizers, whose Rust crate does the work.
//!
//! The truncation and padding of a `tokenizer.json` are not used: in dsr that is decided
//! where the data is tokenized, visibly.

use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};
use tokenizers::{
    AddedToken,
    decoders::byte_level::ByteLevel,
    models::bpe::{BPE, Vocab},
    tokenizer::Tokenizer as Inner,
};

use super::{
    chat::{ChatTemplate, PlacedToken},
    embedded,
    source_name::DataSource,
    tokenizer_check,
    tokenizer_files::{Beside, TO_JSON, content_of},
    tokenizer_pieces::Pieces,
    wanted::check_wanted,
};
use crate::{
    error::{Code, Error, Result},
    fs::{self, Place},
    hash::sha256,
    panics::catch,
};

/// Names under which models know their end-of-text token, most specific first.
const EOS_TOKENS: [&str; 4] = ["<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>"];
/// Files of SentencePiece.
const SENTENCEPIECE: [&str; 3] = ["spiece.model", "tokenizer.model", "sentencepiece.bpe.model"];
/// Names under which models know their padding token.
const PAD_TOKENS: [&str; 3] = ["<pad>", "[PAD]", "<|pad|>"];

/// A tokenizer with its vocabulary and special tokens.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
    /// How many times longer its rules can make a text.
    growth: u64,
    /// `None` where a text is taken whole.
    pieces: Option<Arc<Pieces>>,
    eos: Option<u32>,
    pad: Option<u32>,
    template: Option<ChatTemplate>,
    /// The settings of its `tokenizer_config.json`, where it came with one.
    config: Map<String, Value>,
    /// The hash of its rules, once it was asked for.
    hash: OnceLock<String>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocab_size())
    }
}

impl Tokenizer {
    /// Opens `dsr:NAME`, or a path.
    pub fn open(source: impl Into<DataSource>) -> Result<Self> {
        match source.into() {
            DataSource::Nothing => bail!(Code::Tokenizer, "the name of a tokenizer is empty"),
            DataSource::Embedded(name) => Self::from_bytes(embedded::tokenizer(&name)?),
            DataSource::Path(place, _) | DataSource::Pattern(place, _) => Self::from_path(&place)
                .map_err(|e| match place.name() {
                    Some(name) if embedded::tokenizer(name).is_ok() => {
                        e.hint(format!("did you mean \"dsr:{name}\"?"))
                    }
                    _ => e,
                }),
            DataSource::Hub { repo, .. } => {
                bail!(Code::Tokenizer, "{repo} is not here: it is to be fetched from the hub first")
            }
        }
    }

    /// Opens a `tokenizer.json`, or a directory that holds one, or one that holds `vocab.json` and
    /// `merges.txt` of a byte-level BPE as GPT-2's. The files beside them name the special tokens and
    /// add others.
    pub fn from_path(path: impl Into<Place>) -> Result<Self> {
        let path = path.into();
        let is_dir = path.is_dir();
        let dir = if is_dir { path.clone() } else { directory_of(&path) };
        let json = if is_dir { path.join("tokenizer.json") } else { path.clone() };
        let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
        let beside = Beside::read(&dir)?;
        let (inner, growth) = if json.is_file() && json.name() != Some("vocab.json") {
            let (inner, growth) = parse(&json.read_json()?, &json.display().to_string())?;
            (beside.classed(inner), growth)
        } else if (is_dir || path == vocab) && vocab.is_file() && merges.is_file() {
            beside.check_class()?;
            byte_level_bpe(&vocab, &merges, beside.adds_prefix_space())?
        } else if is_dir {
            let message = format!(
                "{} holds no tokenizer: expected tokenizer.json, or vocab.json and merges.txt",
                path.display()
            );
            let e = Error::new(Code::Tokenizer, message);
            let has_model = SENTENCEPIECE.iter().any(|name| path.join(name).is_file());
            return Err(if has_model { e.hint(TO_JSON) } else { e });
        } else {
            bail!(Code::Tokenizer, "no tokenizer at {}: no such file or directory", path.display());
        };
        let template = ChatTemplate::find(&dir)?;
        Ok(Self {
            template,
            ..Self::new(beside.added_to(inner, growth)?, growth, beside.config())?
        })
    }

    /// Opens the two files of a byte-level BPE as GPT-2's, wherever they lie.
    pub fn from_vocab_and_merges(vocab: &Place, merges: &Place) -> Result<Self> {
        if let Some(absent) = [vocab, merges].into_iter().find(|place| !place.is_file()) {
            bail!(Code::Tokenizer, "no file {}", absent.display());
        }
        let beside = Beside::read(&directory_of(vocab))?;
        let (inner, growth) = byte_level_bpe(vocab, merges, beside.adds_prefix_space())?;
        Self::new(beside.added_to(inner, growth)?, growth, beside.config())
    }

    /// Reads the text of a `tokenizer.json`.
    pub fn from_bytes(json: &[u8]) -> Result<Self> {
        let (inner, growth) = parse(json, "the tokenizer")?;
        Self::new(inner, growth, &Value::Null)
    }

    fn new(inner: Inner, growth: u64, config: &Value) -> Result<Self> {
        let named = |key: &str, known: &[&str]| {
            match content_of(&config[key]) {
                // Another token in its place would end texts where nobody wants it.
                Some(token) => inner.token_to_id(token).map(Some).ok_or_else(|| {
                    let message = format!(
                        "the tokenizer's files name \"{token}\" as {key}, which is no token"
                    );
                    Error::new(Code::Tokenizer, message).hint(TO_JSON)
                }),
                None => Ok(known.iter().find_map(|token| inner.token_to_id(token))),
            }
        };
        let (eos, pad) = (named("eos_token", &EOS_TOKENS)?, named("pad_token", &PAD_TOKENS)?);
        let (pieces, inner) = (Pieces::of(&inner).map(Arc::new), Arc::new(inner));
        let config = config.as_object().cloned().unwrap_or_default();
        Ok(Self { inner, growth, pieces, eos, pad, template: None, config, hash: OnceLock::new() })
    }

    fn check_growth(&self, text: &str) -> Result<()> {
        tokenizer_check::check_growth(self.growth, text)
    }

    /// The ids of one text, with the special tokens that the tokenizer itself adds.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.check_growth(text)?;
        let encoding = guarded("encode", || self.inner.encode_fast(text, true))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of a text that has its special tokens already, as one that a chat template made.
    pub fn encode_as_it_stands(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| failed("encode", e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of a text that has its special tokens already, with their places.
    #[cfg(test)]
    pub(super) fn encode_placed(&self, text: &str) -> Result<Vec<PlacedToken>> {
        let mut all = self.encode_placed_batch(&[text.to_owned()], false)?;
        all.pop().ok_or_else(|| Error::new(Code::Internal, "tokens for a text"))
    }

    /// The tokens of many texts with their places, on all cores.
    pub(super) fn encode_placed_batch(
        &self,
        texts: &[String],
        adds_special_tokens: bool,
    ) -> Result<Vec<Vec<PlacedToken>>> {
        texts.iter().try_for_each(|text| self.check_growth(text))?;
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let encode = || self.inner.encode_batch(texts, adds_special_tokens);
        let encodings = guarded("encode", encode)?;
        let added = self.inner.get_added_tokens_decoder();
        let placed = |(&id, &(start, end)): (&u32, &(usize, usize))| PlacedToken {
            id,
            bytes: start..end,
            is_special: added.get(&id).is_some_and(|token| token.special),
        };
        let tokens = |encoding: &tokenizers::Encoding| {
            encoding.get_ids().iter().zip(encoding.get_offsets()).map(placed).collect()
        };
        Ok(encodings.iter().map(tokens).collect())
    }

    /// The template of conversations, if the tokenizer came with one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The tokenizer with another template of conversations, Jinja.
    #[must_use]
    pub fn with_chat_template(&self, source: &str) -> Self {
        let template = match &self.template {
            Some(own) => own.with_source(source),
            None => ChatTemplate::of_source(source),
        };
        Self { template: Some(template), ..self.clone() }
    }

    /// The settings of its `tokenizer_config.json`; empty where it came without one.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// The ids of many texts, on all cores.
    pub fn encode_batch(&self, texts: Vec<&str>) -> Result<Vec<Vec<u32>>> {
        texts.iter().try_for_each(|text| self.check_growth(text))?;
        let Some(pieces) = &self.pieces else { return self.encode_all(texts, true) };
        let mut ids: Vec<Vec<u32>> = Vec::with_capacity(texts.len());
        for run in texts.chunk_by(|a, b| !Pieces::takes(a) && !Pieces::takes(b)) {
            match run {
                [long] if Pieces::takes(long) => {
                    let encode = |parts: Vec<&str>| self.encode_all(parts, false);
                    ids.push(pieces.encode(long, encode, check_wanted)?);
                }
                short => ids.extend(self.encode_all(short.to_vec(), true)?),
            }
        }
        Ok(ids)
    }

    fn encode_all(&self, texts: Vec<&str>, special: bool) -> Result<Vec<Vec<u32>>> {
        let encodings = guarded("encode", || self.inner.encode_batch_fast(texts, special))?;
        Ok(encodings.iter().map(|encoding| encoding.get_ids().to_vec()).collect())
    }

    /// The text of `ids`, without special tokens such as `<|endoftext|>`.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.decode_all(ids, true)
    }

    /// The text of `ids`, special tokens included.
    pub fn decode_with_special_tokens(&self, ids: &[u32]) -> Result<String> {
        self.decode_all(ids, false)
    }

    fn decode_all(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        // The decoder would leave an unknown id out.
        if let Some(at) = ids.iter().position(|&id| self.inner.id_to_token(id).is_none()) {
            let (id, tokens) = (ids[at], self.vocab_size());
            bail!(Code::TokenId, "ids[{at}] is {id}, and the vocabulary has {tokens} tokens");
        }
        guarded("decode", || self.inner.decode(ids, skip_special_tokens))
    }

    /// The tokenizer as the content of a `tokenizer.json`.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        guarded("be written", || self.inner.to_string(false)).map(String::into_bytes)
    }

    /// The hash of its rules.
    pub(super) fn hash(&self) -> Result<&str> {
        if let Some(hash) = self.hash.get() {
            return Ok(hash);
        }
        let hash = sha256(self.to_json()?);
        Ok(self.hash.get_or_init(|| hash))
    }

    /// The number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of the token that ends a text, if the tokenizer has one.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// The id of the token that begins a text, if the tokenizer's files name one.
    pub fn bos_id(&self) -> Option<u32> {
        content_of(self.config.get("bos_token")?).and_then(|token| self.token_id(token))
    }

    /// The id of the padding token, if the tokenizer has one.
    pub fn own_pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// The id to fill up rows with: the padding token, or else the token that ends a text.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad.or(self.eos)
    }

    /// The token of an id, as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token, as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}

/// Whether a file's content looks like a `tokenizer.json`, which may be replaced by one.
pub fn is_tokenizer_json(content: &[u8]) -> bool {
    let json = serde_json::from_slice::<serde_json::Value>(content).unwrap_or_default();
    json["model"].is_object() && json["added_tokens"].is_array()
}

/// A tokenizer, and how many times longer its rules can make a text.
fn parse(json: &[u8], name: &str) -> Result<(Inner, u64)> {
    let wrong =
        |e: &str| Error::new(Code::Tokenizer, format!("{name} is not a tokenizer.json: {e}"));
    let rules = serde_json::from_slice(json).map_err(|e| wrong(&e.to_string()))?;
    let growth = tokenizer_check::check(&rules).map_err(|e| wrong(&e))?;
    let mut inner = catch(|| Inner::from_bytes(json))
        .map_err(|words| wrong(&words))?
        .map_err(|e| wrong(&e.to_string()))?;
    inner.with_truncation(None).map_err(|e| failed("load", e))?;
    inner.with_padding(None);
    Ok((inner, growth))
}

/// GPT-2's own files: byte-level BPE, which may put a blank before texts.
fn byte_level_bpe(vocab: &Place, merges: &Place, adds_prefix_space: bool) -> Result<(Inner, u64)> {
    let wrong = |e: &str| {
        let (vocab, merges) = (vocab.display(), merges.display());
        Error::new(Code::Tokenizer, format!("{vocab} and {merges} are no BPE vocabulary: {e}"))
    };
    let ids = serde_json::from_slice::<Vocab>(&fs::read_json(vocab)?)
        .map_err(|e| wrong(&e.to_string()))?;
    let pairs = fs::read_to_string(merges)?;
    let pairs = pairs.lines().filter(|line| !line.starts_with("#version"));
    let pair = |line: &str| {
        let (a, b) = line.split_once(' ').filter(|(_, b)| !b.contains(' '))?;
        Some((a.to_owned(), b.to_owned()))
    };
    let pairs: Vec<_> = pairs
        .enumerate()
        .map(|(i, line)| pair(line).ok_or_else(|| wrong(&format!("merge {} is no pair", i + 1))))
        .collect::<Result<_>>()?;
    let model = catch(|| BPE::builder().vocab_and_merges(ids, pairs).build())
        .map_err(|words| wrong(&words))?
        .map_err(|e| wrong(&e.to_string()))?;
    let mut inner = Inner::new(model);
    inner.with_pre_tokenizer(Some(ByteLevel::new(adds_prefix_space, true, true)));
    inner.with_decoder(Some(ByteLevel::default()));
    let special: Vec<AddedToken> = EOS_TOKENS
        .iter()
        .filter(|token| inner.token_to_id(token).is_some())
        .map(|&token| AddedToken::from(token, true))
        .collect();
    inner.add_special_tokens(special).map_err(|e| failed("load", e))?;
    Ok((inner, 1))
}

/// Runs the library's function, whose panic is an error of the tokenizer.
fn guarded<T>(doing: &str, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let outcome = catch(work).map_err(|words| failed(doing, words.into()))?;
    outcome.map_err(|e| failed(doing, e))
}

fn directory_of(file: &Place) -> Place {
    file.parent().unwrap_or_else(|| file.clone())
}

fn failed(doing: &str, e: tokenizers::Error) -> Error {
    Error::new(Code::Tokenizer, format!("the tokenizer cannot {doing}: {e}"))
}
