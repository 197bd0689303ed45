//! The files of a model's directory beside config and weights: tokenizer, generation, chat template.

use serde_json::{Map, Value};

use crate::{
    error::{Code, Error, Result},
    fs::{self, Place},
};

pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const MERGES: &str = "merges.txt";
const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// Settings of a tokenizer that are about the files beside which it lay, and its template, which has a
/// file of its own.
const NOT_HANDED_ON: [&str; 6] = [
    "tokenizer_class",
    "auto_map",
    "name_or_path",
    "tokenizer_file",
    "special_tokens_map_file",
    "chat_template",
];

/// Files of a model's directory beside config and weights, which an export hands on as they are.
#[rustfmt::skip]
pub(crate) const COMPANIONS: [&str; 10] = [
    TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "vocab.json",
    MERGES, "spiece.model", "tokenizer.model", GENERATION_CONFIG, CHAT_TEMPLATE,
];

/// Files with the rules of a tokenizer; a directory with one of them has a tokenizer that is read.
const RULES: [&str; 2] = [TOKENIZER, MERGES];

/// Whether `dir` has a tokenizer that is read.
pub(crate) fn has_tokenizer(dir: &Place) -> bool {
    RULES.iter().any(|name| dir.join(name).is_file())
}

/// The files beside config and weights that a model came with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Companions(pub(crate) Vec<(&'static str, Vec<u8>)>);

impl Companions {
    /// Reads the files in `dir`.
    pub(crate) fn read(dir: &Place) -> Result<Self> {
        let there = COMPANIONS.into_iter().map(|name| (name, dir.join(name)));
        let there = there.filter(|(_, path)| path.is_file());
        let read = there.map(|(name, path)| Ok((name, fs::read(&path)?)));
        Ok(Self(read.collect::<Result<_>>()?))
    }

    /// The file of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, bytes)| &bytes[..])
    }

    /// Whether they have a tokenizer that is read.
    pub(crate) fn has_tokenizer(&self) -> bool {
        RULES.iter().any(|name| self.get(name).is_some())
    }

    /// Writes other files into `dir`, in the place of these.
    pub(crate) fn replace(&self, dir: &Place, other: &[(&str, Vec<u8>)]) -> Result<()> {
        let mut old = self.0.iter().map(|(name, _)| dir.join(name)).filter(Place::is_file);
        old.try_for_each(|path| path.remove_file())?;
        other.iter().try_for_each(|(name, bytes)| fs::write_atomic(dir.join(name), bytes))
    }

    /// The tokens that end a text by `generation_config.json`, which transformers prefers.
    pub(crate) fn eos_token_ids(&self) -> Vec<i64> {
        let config = self.get(GENERATION_CONFIG).map(serde_json::from_slice::<Value>);
        let ids = config.and_then(Result::ok).map(|config| config["eos_token_id"].clone());
        match ids {
            Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_i64).collect(),
            Some(id) => id.as_i64().into_iter().collect(),
            None => Vec::new(),
        }
    }
}

/// A tokenizer for an export.
#[derive(Debug, Default)]
pub struct ExportedTokenizer {
    /// The content of its `tokenizer.json`.
    pub json: Vec<u8>,
    /// The settings of the `tokenizer_config.json` that it came with; empty where there was none.
    pub config: Map<String, Value>,
    /// Its template of conversations.
    pub chat_template: Option<String>,
    /// The token that ends a text.
    pub eos_token: Option<String>,
    /// The token that fills rows up.
    pub pad_token: Option<String>,
}

/// The facts of a model that the files repeat.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    /// The settings of its `config.json`.
    pub(crate) config: &'a Map<String, Value>,
    /// The most tokens of a row.
    pub(crate) max_positions: Option<i64>,
    /// The token that begins a text.
    pub(crate) bos_token_id: Option<i64>,
    /// The first of the tokens that end a text.
    pub(crate) eos_token_id: Option<i64>,
}

/// The files beside config and weights: those that the model came with, unless it gets another
/// tokenizer, and what is missing made new.
pub(crate) fn companions(
    facts: Facts<'_>,
    Companions(own): &Companions,
    tokenizer: Option<&ExportedTokenizer>,
) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let is_kept = |name: &str| tokenizer.is_none() || name == GENERATION_CONFIG;
    let kept = own.iter().filter(|(name, _)| is_kept(name)).cloned();
    let mut files = Companions(kept.collect());
    if let Some(ExportedTokenizer { json, chat_template, .. }) = tokenizer {
        files.0.push((TOKENIZER, json.clone()));
        let template = chat_template.iter().map(|text| (CHAT_TEMPLATE, text.clone().into_bytes()));
        files.0.extend(template);
    }
    if let (Some(json), None) = (files.get(TOKENIZER), files.get(TOKENIZER_CONFIG)) {
        let config = tokenizer_config(facts, json, tokenizer)?;
        files.0.push((TOKENIZER_CONFIG, text_of(config)));
    }
    if files.get(GENERATION_CONFIG).is_none() {
        files.0.push((GENERATION_CONFIG, text_of(generation_config(facts))));
    }
    Ok(files.0)
}

/// The content that transformers derives from a `config.json` when it finds no such file.
fn generation_config(facts: Facts<'_>) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("_from_model_config".to_owned(), true.into());
    for key in ["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"] {
        if let Some(id) = facts.config.get(key).filter(|id| !id.is_null()) {
            map.insert(key.to_owned(), id.clone());
        }
    }
    map
}

/// Makes transformers use `tokenizer.json` as it is. Without the class, a GPT-2 would get a
/// tokenizer that takes only the vocabulary from that file and splits text in its own way.
fn tokenizer_config(
    facts: Facts<'_>,
    tokenizer_json: &[u8],
    given: Option<&ExportedTokenizer>,
) -> Result<Map<String, Value>> {
    let tokenizer: Value = serde_json::from_slice(tokenizer_json).map_err(|e| {
        Error::new(Code::Tokenizer, format!("the tokenizer is not valid JSON: {e}"))
    })?;
    let added = tokenizer.get("added_tokens").and_then(Value::as_array);
    let special = |id: Option<i64>| {
        let token = added?.iter().find(|token| {
            token["special"] == true && id.is_some_and(|id| token["id"].as_i64() == Some(id))
        })?;
        token.get("content")
    };
    let mut map = given.map(|given| given.config.clone()).unwrap_or_default();
    let has_settings = !map.is_empty();
    map.retain(|key, _| !NOT_HANDED_ON.contains(&key.as_str()));
    map.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
    if let Some(positions) = facts.max_positions {
        map.entry("model_max_length").or_insert_with(|| positions.into());
    }
    // Decoding gives back the text, blanks before punctuation included.
    map.entry("clean_up_tokenization_spaces").or_insert_with(|| false.into());
    let by_config = special(facts.eos_token_id).cloned();
    let eos = given.and_then(|given| given.eos_token.clone()).map(Value::from);
    // The model's ids are of another vocabulary where the two differ.
    let agree = eos.is_none() || eos == by_config;
    // Settings without one mean that there is none.
    let bos = special(facts.bos_token_id).filter(|_| agree && !has_settings).cloned();
    let pad = given.and_then(|given| given.pad_token.clone()).map(Value::from);
    for (key, token) in [("bos_token", bos), ("eos_token", eos.or(by_config)), ("pad_token", pad)] {
        map.extend(token.map(|token| (key.to_owned(), token)));
    }
    Ok(map)
}

pub(crate) fn text_of(map: Map<String, Value>) -> Vec<u8> {
    format!("{:#}\n", Value::from(map)).into_bytes()
}
