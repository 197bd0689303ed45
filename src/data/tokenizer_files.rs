//! The files beside a tokenizer's rules: its settings, its special tokens and the tokens that it adds.
//!
//! Tokens get the ids and the flags that transformers gives them.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;
use tokenizers::{AddedToken, pre_tokenizers::PreTokenizerWrapper, tokenizer::Tokenizer as Inner};

use super::tokenizer_check;
use crate::{
    error::{Code, Error, Result},
    fs::Place,
    panics::catch,
};

/// How a tokenizer whose files are not enough gets a `tokenizer.json`.
pub(super) const TO_JSON: &str = "make a tokenizer.json of it, in Python: \
     AutoTokenizer.from_pretrained(dir).save_pretrained(dir)";
/// The settings that name special tokens, in the order in which transformers adds them.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The files beside a tokenizer's rules.
pub(super) struct Beside {
    dir: Place,
    /// Null where there are none.
    config: Value,
    /// Tokens with their ids, of `added_tokens.json`.
    added: Option<Value>,
}

impl Beside {
    pub(super) fn read(dir: &Place) -> Result<Self> {
        let (config, special) =
            (json_in(dir, "tokenizer_config.json")?, json_in(dir, "special_tokens_map.json")?);
        let config = match (config, special) {
            (Some(Value::Object(config)), Some(Value::Object(mut special))) => {
                special.extend(config.into_iter().filter(|(_, value)| !value.is_null()));
                Some(special.into())
            }
            (config, special) => config.or(special),
        };
        let (config, added) = (config.unwrap_or_default(), json_in(dir, "added_tokens.json")?);
        Ok(Self { dir: dir.clone(), config, added })
    }

    /// The `tokenizer_config.json`, with what a `special_tokens_map.json` says beside it.
    pub(super) fn config(&self) -> &Value {
        &self.config
    }

    /// The rules as the class that the settings name has them. That of GPT-2 puts a blank before texts by
    /// the settings alone, whatever a `tokenizer.json` says.
    pub(super) fn classed(&self, mut inner: Inner) -> Inner {
        let has_class = self.config["tokenizer_class"].as_str().is_some_and(is_gpt2);
        let rule = inner.get_pre_tokenizer();
        if let (true, Some(PreTokenizerWrapper::ByteLevel(rule))) = (has_class, rule) {
            let rule = rule.add_prefix_space(self.adds_prefix_space());
            inner.with_pre_tokenizer(Some(rule));
        }
        inner
    }

    pub(super) fn adds_prefix_space(&self) -> bool {
        self.config["add_prefix_space"] == true
    }

    /// Refuses the two files of a tokenizer that is no GPT-2's: its class adds rules that they do not hold.
    pub(super) fn check_class(&self) -> Result<()> {
        let class = self.config["tokenizer_class"].as_str().unwrap_or("GPT2Tokenizer");
        if is_gpt2(class) && self.config["add_bos_token"] != true {
            return Ok(());
        }
        let what = format!("the tokenizer of a {class} in vocab.json and merges.txt");
        let message = format!("{} has {what}, without its rules", self.dir.display());
        Err(Error::new(Code::Tokenizer, message).hint(TO_JSON))
    }

    /// A tokenizer with the tokens that the files add to it, whose rules can make a text `growth` times longer.
    pub(super) fn added_to(&self, mut inner: Inner, growth: u64) -> Result<Inner> {
        let (named, extra) = (self.named(), self.extra());
        let own = inner.get_added_tokens_decoder();
        let mut listed = self.listed(&named, &extra)?;
        let mut known: HashSet<&str> = own.values().map(|token| &token.content[..]).collect();
        if !self.config["added_tokens_decoder"].is_object() {
            listed.extend(own.iter().map(|(id, token)| (*id, token.clone())));
        }
        known.extend(listed.values().map(|token| &token.content[..]));
        let is_more = |token: &&AddedToken| {
            let is_unknown = !known.contains(&token.content[..]);
            is_unknown && (inner.token_to_id(&token.content).is_some() || self.may_be_new(token))
        };
        // A word of the vocabulary is no token inside of other words.
        let is_word = |token: &AddedToken| {
            let known = inner.token_to_id(&token.content).is_some();
            known && token.content.chars().all(char::is_alphanumeric)
        };
        let apart =
            |token: &AddedToken| token.clone().single_word(token.single_word || is_word(token));
        let more = named.iter().chain(&extra).filter(is_more).map(apart);
        let mut tokens: Vec<AddedToken> = listed.values().cloned().chain(more).collect();
        for token in &mut tokens {
            token.special |= named.iter().any(|special| special.content == token.content);
            tokenizer_check::check_growth(growth, &token.content)?;
        }
        listed.retain(|_, token| inner.token_to_id(&token.content).is_none());
        catch(|| inner.add_tokens(tokens))
            .map_err(|words| self.wrong(&words))?
            .map_err(|e| self.wrong(&e.to_string()))?;
        for (id, AddedToken { content, .. }) in listed {
            if inner.token_to_id(&content) != Some(id) {
                let what = format!("the added token \"{content}\" cannot have the id {id}");
                return Err(self.wrong(&what));
            }
        }
        Ok(inner)
    }

    /// The tokens that stand there with an id: as `added_tokens_decoder`, or else in `added_tokens.json`.
    fn listed(
        &self,
        named: &[AddedToken],
        extra: &[AddedToken],
    ) -> Result<BTreeMap<u32, AddedToken>> {
        let wrong = |file: &str| self.wrong(&format!("{file} has an id that is no token id"));
        if let Value::Object(tokens) = &self.config["added_tokens_decoder"] {
            let entry = |(id, token): (&String, &Value)| {
                let id = id.parse().map_err(|_| wrong("added_tokens_decoder"))?;
                let token = token_of(token, token["special"] == true);
                let none = || self.wrong("added_tokens_decoder has a token without content");
                Ok((id, token.ok_or_else(none)?))
            };
            return tokens.iter().map(entry).collect();
        }
        let Some(Value::Object(tokens)) = &self.added else { return Ok(BTreeMap::new()) };
        let entry = |(token, id): (&String, &Value)| {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let is_special = named.iter().chain(extra).any(|special| special.content == *token);
            let id = id.ok_or_else(|| wrong("added_tokens.json"))?;
            Ok((id, AddedToken::from(token.clone(), is_special)))
        };
        tokens.iter().map(entry).collect()
    }

    /// The tokens that settings name, which are special whatever is said of them elsewhere.
    fn named(&self) -> Vec<AddedToken> {
        let Value::Object(config) = &self.config else { return Vec::new() };
        let is_other = |key: &str| key.ends_with("_token") && !NAMES.contains(&key);
        let others = config.iter().filter(|(key, _)| is_other(key)).map(|(_, token)| token);
        let by_name = config.get("extra_special_tokens").and_then(Value::as_object);
        let by_name = by_name.into_iter().flat_map(|tokens| tokens.values());
        let usual = NAMES.iter().filter_map(|&key| config.get(key));
        usual.chain(others).chain(by_name).filter_map(|token| token_of(token, true)).collect()
    }

    /// Whether a token may get an id that no file gives it. One that ends texts or fills rows may not, as
    /// no model knows it.
    fn may_be_new(&self, token: &AddedToken) -> bool {
        let is = |key| content_of(&self.config[key]) == Some(&token.content);
        !is("eos_token") && !is("pad_token")
    }

    /// Further special tokens.
    fn extra(&self) -> Vec<AddedToken> {
        let lists = ["extra_special_tokens", "additional_special_tokens"];
        let mut lists = lists.iter().filter_map(|&key| self.config[key].as_array());
        let list = lists.find(|list| !list.is_empty());
        list.into_iter().flatten().filter_map(|token| token_of(token, true)).collect()
    }

    fn wrong(&self, what: &str) -> Error {
        let message = format!("{}: {what}", self.dir.display());
        Error::new(Code::Tokenizer, message).hint(TO_JSON)
    }
}

fn is_gpt2(class: &str) -> bool {
    matches!(class, "GPT2Tokenizer" | "GPT2TokenizerFast")
}

/// The text of a token that stands as text, or as an object with flags.
pub(super) fn content_of(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

fn token_of(value: &Value, is_special: bool) -> Option<AddedToken> {
    let token = AddedToken::from(content_of(value)?.to_owned(), is_special);
    let flag = |key: &str, default: bool| value[key].as_bool().unwrap_or(default);
    let normalized = flag("normalized", token.normalized);
    let token = token.normalized(normalized).single_word(flag("single_word", false));
    Some(token.lstrip(flag("lstrip", false)).rstrip(flag("rstrip", false)))
}

/// A JSON file of a directory, if there is one.
fn json_in(dir: &Place, name: &str) -> Result<Option<Value>> {
    let path = dir.join(name);
    if !path.is_file() {
        return Ok(None);
    }
    serde_json::from_slice(&path.read_json()?).map(Some).map_err(|e| {
        Error::new(Code::Tokenizer, format!("{} is not JSON: {e}", path.display())).caused_by(e)
    })
}
