//! `Tokenizer` in scripts: text to token ids and back.
//!
//! A thin layer over [`crate::data::Tokenizer`].

use std::{rc::Rc, sync::Arc};

use rhai::{Array, Map, plugin::*};

use crate::{
    config::options::option_table,
    data::{self, DataSource},
    error::Result,
    fs,
    hub::TOKENIZER_FILES,
    recipe::{
        error::ScriptResult,
        options::{self, ScriptType},
        value::argument,
    },
    script::host::{self, Host},
};

/// Tokenizers.
#[export_module]
pub mod api {
    /// A tokenizer with its vocabulary and special tokens.
    pub type Tokenizer = Arc<data::Tokenizer>;

    /// Opens a tokenizer: `dsr:gpt2`, which is in the binary; a `tokenizer.json`; a directory that
    /// holds one, or that holds `vocab.json` and `merges.txt`; or a model of the Hugging Face hub.
    ///
    /// * `spec` - the name, path or hub id
    ///
    /// ```rhai
    /// let tok = tokenizer("dsr:gpt2");
    /// print(tok.encode("Hello world!"));              // [15496, 995, 0]
    /// let tok = tokenizer("openai-community/gpt2");
    /// ```
    #[rhai_fn(return_raw)]
    pub fn tokenizer(ctx: NativeCallContext, spec: &str) -> ScriptResult<Tokenizer> {
        Ok(super::open(&host::of(&ctx)?, spec, None)?.into())
    }

    /// Opens a tokenizer with options.
    ///
    /// ```rhai
    /// let tok = tokenizer("openai-community/gpt2", #{ revision: "main" });
    /// ```
    #[rhai_fn(name = "tokenizer", return_raw)]
    pub fn tokenizer_with_options(
        ctx: NativeCallContext,
        spec: &str,
        options: Map,
    ) -> ScriptResult<Tokenizer> {
        let super::OpenOptions { revision } = options::read_table("tokenizer", &options)?;
        Ok(super::open(&host::of(&ctx)?, spec, revision.as_deref())?.into())
    }

    /// Opens the two files of a byte-level BPE such as GPT-2's.
    ///
    /// * `vocab` - path of the `vocab.json`
    /// * `merges` - path of the `merges.txt`
    ///
    /// ```rhai
    /// let tok = tokenizer("vocab.json", "merges.txt");
    /// ```
    #[rhai_fn(name = "tokenizer", return_raw)]
    pub fn tokenizer_of_files(
        ctx: NativeCallContext,
        vocab: &str,
        merges: &str,
    ) -> ScriptResult<Tokenizer> {
        let host = host::of(&ctx)?;
        let rights = &host.workspace.rights;
        let (vocab, merges) = (rights.readable(vocab)?, rights.readable(merges)?);
        // Their directory may hold a `tokenizer_config.json`.
        for name in ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"] {
            rights.readable(vocab.path().with_file_name(name))?;
        }
        Ok(data::Tokenizer::from_vocab_and_merges(&vocab, &merges)?.into())
    }

    /// Returns the template of conversations, Jinja; `()` where there is none. To set it gives the
    /// tokenizer another one, for `.chat`, checkpoints and exports, as in transformers.
    ///
    /// ```rhai
    /// let tok = tokenizer("dsr:gpt2");
    /// tok.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    /// ```
    #[rhai_fn(get = "chat_template", pure)]
    pub fn chat_template(tokenizer: &mut Tokenizer) -> Dynamic {
        let template = tokenizer.chat_template();
        template.map_or(Dynamic::UNIT, |template| template.source().to_owned().into())
    }

    /// Gives the tokenizer another template of conversations.
    ///
    /// ```rhai
    /// tok.chat_template = "{{ messages[0].content }}";
    /// ```
    #[rhai_fn(set = "chat_template")]
    pub fn set_chat_template(tokenizer: &mut Tokenizer, source: &str) {
        *tokenizer = data::Tokenizer::with_chat_template(tokenizer, source).into();
    }

    /// Writes the tokenizer as a `tokenizer.json`. It replaces one that is there, and no other file.
    ///
    /// ```rhai
    /// tokenizer("dsr:gpt2").save("gpt2.json");
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn save(ctx: NativeCallContext, tokenizer: &mut Tokenizer, path: &str) -> ScriptResult<()> {
        let path = host::of(&ctx)?.workspace.rights.writable(path)?;
        path.create_parents()?;
        let own = ("tokenizer.json", data::is_tokenizer_json);
        Ok(fs::write_over_own(&path, &tokenizer.to_json()?, own)?)
    }

    /// Returns the token ids of a text, with the special tokens that the tokenizer itself adds.
    ///
    /// ```rhai
    /// let ids = tokenizer("dsr:gpt2").encode("Hello world!");
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn encode(tokenizer: &mut Tokenizer, text: &str) -> ScriptResult<Array> {
        Ok(tokenizer.encode(text)?.into_iter().map(|id| i64::from(id).into()).collect())
    }

    /// Returns the text of token ids, without special tokens such as `<|endoftext|>`.
    ///
    /// ```rhai
    /// print(tokenizer("dsr:gpt2").decode([15496, 995, 0]));       // Hello world!
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn decode(tokenizer: &mut Tokenizer, ids: Array) -> ScriptResult<String> {
        Ok(tokenizer.decode(&argument::<Vec<u32>>("ids", &ids.into())?)?)
    }

    /// Returns the text of token ids; with `skip_special_tokens: false`, special tokens included.
    ///
    /// ```rhai
    /// let tok = tokenizer("dsr:gpt2");
    /// print(tok.decode([15496, tok.eos_id], #{ skip_special_tokens: false }));
    /// ```
    #[rhai_fn(name = "decode", return_raw, pure)]
    pub fn decode_with_options(
        tokenizer: &mut Tokenizer,
        ids: Array,
        options: Map,
    ) -> ScriptResult<String> {
        let options: super::DecodeOptions = options::read_table("decode", &options)?;
        let ids = argument::<Vec<u32>>("ids", &ids.into())?;
        Ok(match options.skip_special_tokens {
            true => tokenizer.decode(&ids)?,
            false => tokenizer.decode_with_special_tokens(&ids)?,
        })
    }

    /// Returns the number of tokens in the vocabulary, added ones included.
    ///
    /// ```rhai
    /// print(tokenizer("dsr:gpt2").vocab_size);        // 50257
    /// ```
    #[rhai_fn(get = "vocab_size", pure)]
    pub fn vocab_size(tokenizer: &mut Tokenizer) -> i64 {
        tokenizer.vocab_size() as i64
    }

    /// Returns the id of the token that ends a text, or `()` if there is none.
    ///
    /// ```rhai
    /// print(tokenizer("dsr:gpt2").eos_id);            // 50256
    /// ```
    #[rhai_fn(get = "eos_id", pure)]
    pub fn eos_id(tokenizer: &mut Tokenizer) -> Dynamic {
        super::id_or_unit(tokenizer.eos_id())
    }

    /// Returns the id of the token that begins a text, or `()` if the tokenizer's files name none.
    ///
    /// ```rhai
    /// let tok = tokenizer("dsr:gpt2");
    /// print(tok.bos_id ?? tok.eos_id);                // 50256
    /// ```
    #[rhai_fn(get = "bos_id", pure)]
    pub fn bos_id(tokenizer: &mut Tokenizer) -> Dynamic {
        super::id_or_unit(tokenizer.bos_id())
    }

    /// Returns the id that rows are padded with: that of the padding token, or else of the token
    /// that ends a text, or `()` if there is neither.
    ///
    /// ```rhai
    /// print(tokenizer("dsr:gpt2").pad_id);            // 50256
    /// ```
    #[rhai_fn(get = "pad_id", pure)]
    pub fn pad_id(tokenizer: &mut Tokenizer) -> Dynamic {
        super::id_or_unit(tokenizer.pad_id())
    }

    /// Returns the id of a token as the vocabulary spells it, or `()` if it is not one.
    ///
    /// ```rhai
    /// print(tokenizer("dsr:gpt2").token_id("<|endoftext|>"));     // 50256
    /// ```
    #[rhai_fn(pure)]
    pub fn token_id(tokenizer: &mut Tokenizer, token: &str) -> Dynamic {
        super::id_or_unit(tokenizer.token_id(token))
    }

    /// Describes the tokenizer.
    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn describe(tokenizer: &mut Tokenizer) -> String {
        format!("{tokenizer:?}")
    }
}

option_table! {
    /// The option of `tokenizer`.
    #[derive(Debug)]
    pub(crate) struct OpenOptions {
        /// a branch, tag or commit of the hub
        #[option(optional)]
        pub revision: Option<String>,
    }
}

option_table! {
    /// The option of `decode`.
    #[derive(Debug)]
    pub(crate) struct DecodeOptions {
        /// whether special tokens are left out
        #[option(default = true)]
        pub skip_special_tokens: bool,
    }
}

impl ScriptType for api::Tokenizer {
    const EXPECTED: &'static str = "a tokenizer";
}

fn open(host: &Rc<Host>, spec: &str, revision: Option<&str>) -> Result<data::Tokenizer> {
    let rights = &host.workspace.rights;
    match rights.source(spec)? {
        DataSource::Hub { repo, .. } => {
            let dir = host.hub()?.model_files(&repo, revision, TOKENIZER_FILES);
            let dir = dir.map_err(|e| e.hint(data::no_path_hint(spec)))?;
            data::Tokenizer::from_path(rights.place(dir))
        }
        DataSource::Path(place, _) if !place.exists() => {
            data::Tokenizer::from_path(place).map_err(|e| e.hint_if(data::hub_hint(spec)))
        }
        here => data::Tokenizer::open(here),
    }
}

fn id_or_unit(id: Option<u32>) -> Dynamic {
    id.map_or(Dynamic::UNIT, |id| i64::from(id).into())
}
