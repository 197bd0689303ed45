//! `generate`: texts that a model goes on with.

use rhai::{Array, Dynamic, FnPtr, Map, plugin::*};

use super::{model::api::Model, tokenizer::api::Tokenizer};
use crate::{
    config::options::{Kind, OptionTable, ROW, Row},
    error::{Code, Error, Result},
    generation::{Continued, Sampling, Texts, check_texts, continue_texts},
    recipe::{
        error::ScriptResult,
        options::{self, Options, held},
        value::describe,
    },
    script::{
        callback::Callback,
        host::{self, Host},
    },
};

/// Generation of text.
#[export_module]
pub mod api {
    /// Returns `prompt` and what the model goes on with, drawn with transformers' defaults: at most
    /// 50 tokens, temperature 1, top_k 50. A model with an encoder returns its answer alone.
    ///
    /// ```rhai
    /// print(generate(model, tok, "It is a truth"));
    /// ```
    #[rhai_fn(return_raw)]
    pub fn generate(
        ctx: NativeCallContext,
        model: Model,
        tokenizer: Tokenizer,
        prompt: &str,
    ) -> ScriptResult<String> {
        let request = Request::default();
        let mut texts = request.run(&*host::of(&ctx)?, &model, &tokenizer, &[prompt])?;
        Ok(texts.pop().map(|continued| continued.text).unwrap_or_default())
    }

    /// Returns the text of each of `prompts`, which are gone on with together; a text is the same
    /// alone and beside others.
    ///
    /// ```rhai
    /// for text in generate(model, tok, ["It is a truth", "My dear"]) { print(text); }
    /// ```
    #[rhai_fn(name = "generate", return_raw)]
    pub fn generate_many(
        ctx: NativeCallContext,
        model: Model,
        tokenizer: Tokenizer,
        prompts: Array,
    ) -> ScriptResult<Array> {
        let prompts = strings(&prompts)?;
        let request = Request::default();
        let texts = request.run(&*host::of(&ctx)?, &model, &tokenizer, &borrowed(&prompts))?;
        Ok(request.results(texts))
    }

    /// Returns `prompt` and what the model goes on with, by these options: a text, or an array where
    /// `num_return_sequences` is above 1. Each is a map with `return_details`.
    ///
    /// ```rhai
    /// let options = #{ max_new_tokens: 40, temperature: 0.8, top_k: 40, top_p: 0.95, seed: 1 };
    /// print(generate(model, tok, "It is a truth", options));
    /// ```
    #[rhai_fn(name = "generate", return_raw)]
    pub fn generate_with(
        ctx: NativeCallContext,
        model: Model,
        tokenizer: Tokenizer,
        prompt: &str,
        options: Map,
    ) -> ScriptResult<Dynamic> {
        let request = Request::read(&options, |f| Callback::new(&ctx, f))?;
        let texts = request.run(&*host::of(&ctx)?, &model, &tokenizer, &[prompt])?;
        Ok(request.results(texts).pop().unwrap_or_default())
    }

    /// Returns what [`generate`] returns for each of `prompts`, by these options.
    ///
    /// ```rhai
    /// let prompts = ["It is a truth", "My dear"];
    /// let options = #{ max_new_tokens: 20, stop: "\n", logprobs: true, return_details: true };
    /// for text in generate(model, tok, prompts, options) {
    ///     print(`${text.completion} (${text.finish_reason})`);
    /// }
    /// ```
    #[rhai_fn(name = "generate", return_raw)]
    pub fn generate_many_with(
        ctx: NativeCallContext,
        model: Model,
        tokenizer: Tokenizer,
        prompts: Array,
        options: Map,
    ) -> ScriptResult<Array> {
        let prompts = strings(&prompts)?;
        let request = Request::read(&options, |f| Callback::new(&ctx, f))?;
        let texts = request.run(&*host::of(&ctx)?, &model, &tokenizer, &borrowed(&prompts))?;
        Ok(request.results(texts))
    }

    /// Refuses what `generate` would refuse of these prompts and options, for recipes that train first
    /// and generate later.
    ///
    /// ```rhai
    /// check_generate(model, tok, ["It is a truth"], #{ max_new_tokens: 40 });
    /// ```
    #[rhai_fn(return_raw)]
    pub fn check_generate(
        ctx: NativeCallContext,
        model: Model,
        tokenizer: Tokenizer,
        prompts: Array,
        options: Map,
    ) -> ScriptResult<()> {
        let request = Request::read(&options, |f| Callback::new(&ctx, f))?;
        let prompts = strings(&prompts)?;
        Ok(check_texts(&model.get(), &tokenizer, &borrowed(&prompts), &request.sampling)?)
    }
}

/// The options of `generate` and of `check_generate`.
#[derive(Default)]
pub(crate) struct Request {
    sampling: Sampling,
    on_token: Option<Callback>,
    return_details: bool,
}

/// The arguments of a function that takes pieces of text.
const PIECE_ARGUMENTS: &str = "|text, index|";

/// The options of `generate` that are no settings of the sampling.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "on_token",
        help: &["takes each piece of text as it comes, and the number of its text"],
        kind: || Kind::Function(PIECE_ARGUMENTS),
        ..ROW
    },
    Row {
        name: "return_details",
        help: &[
            "gives maps in place of texts: text, completion, token_ids, logprobs, finish_reason",
        ],
        kind: || Kind::Bool,
        default: || Some("false".to_owned()),
        ..ROW
    },
];

impl Request {
    /// Reads the option map of `generate`.
    pub(crate) fn read(map: &Map, keep: impl Fn(FnPtr) -> Result<Callback>) -> Result<Self> {
        let read = options::read("generate", map, |o| Self {
            sampling: Sampling::read(o),
            on_token: on_token(o, keep),
            return_details: o.get("return_details").or(false),
        })?;
        if read.sampling.logprobs && !read.return_details {
            let message = "`logprobs` are among the details of a text";
            let e = Error::new(Code::BadValue, message).option("logprobs");
            return Err(e.hint("write return_details: true beside it"));
        }
        Ok(read)
    }

    fn run(
        &self,
        host: &Host,
        model: &Model,
        tokenizer: &Tokenizer,
        prompts: &[&str],
    ) -> Result<Vec<Continued>> {
        host.check_weights("generate")?;
        let _keeping = host.keep_what_is_there()?;
        let mut pieces = Pieces { host, on_token: self.on_token.as_ref() };
        continue_texts(&model.get(), tokenizer, prompts, &self.sampling, &mut pieces)
    }

    /// An entry for each prompt.
    fn results(&self, texts: Vec<Continued>) -> Array {
        let values: Array = texts.into_iter().map(|text| self.result(text)).collect();
        match self.sampling.num_return_sequences {
            1 => values,
            count => values.chunks(count).map(|texts| texts.to_vec().into()).collect(),
        }
    }

    fn result(&self, Continued { text, completion, ended }: Continued) -> Dynamic {
        if !self.return_details {
            return text.into();
        }
        let numbers: Array = ended.tokens.into_iter().map(Dynamic::from).collect();
        let mut details = Map::from([
            ("text".into(), text.into()),
            ("completion".into(), completion.into()),
            ("token_ids".into(), numbers.into()),
            ("finish_reason".into(), ended.reason.name().into()),
        ]);
        if self.sampling.logprobs {
            let logprobs: Array = ended.logprobs.into_iter().map(Dynamic::from).collect();
            details.insert("logprobs".into(), logprobs.into());
        }
        details.into()
    }
}

fn on_token(o: &mut Options<'_>, keep: impl Fn(FnPtr) -> Result<Callback>) -> Option<Callback> {
    let found = o.raw("on_token")?;
    let Some(function) = held(&found) else {
        o.refuse_value("on_token", &format!("a function {PIECE_ARGUMENTS}"), &found);
        return None;
    };
    let kept = keep(function).and_then(|f| f.taking(1..=2, PIECE_ARGUMENTS));
    o.check(kept.map_err(|e| e.option("on_token")))
}

/// Hands pieces of text to the recipe.
struct Pieces<'a> {
    host: &'a Host,
    on_token: Option<&'a Callback>,
}

impl Texts for Pieces<'_> {
    fn piece(&mut self, text: usize, piece: &str) -> Result<()> {
        let Some(callback) = self.on_token else { return Ok(()) };
        callback.call_with(vec![piece.into(), Dynamic::from(text as i64)]).map(drop)
    }

    fn must_stop(&self) -> bool {
        self.host.must_end_early()
    }
}

fn strings(prompts: &Array) -> Result<Vec<String>> {
    let text = |(i, prompt): (usize, &Dynamic)| {
        prompt.clone().into_string().map_err(|_| {
            let found = describe(prompt);
            Error::new(Code::WrongType, format!("prompts[{i}] must be a string, found {found}"))
        })
    };
    prompts.iter().enumerate().map(text).collect()
}

fn borrowed(prompts: &[String]) -> Vec<&str> {
    prompts.iter().map(String::as_str).collect()
}
