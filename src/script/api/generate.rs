//! `generate`: text that a model goes on with.

use rhai::{Map, plugin::*};

use super::{model::api::Model, tokenizer::api::Tokenizer};
use crate::{
    error::Result,
    model::Sampling,
    recipe::{
        error::{ScriptResult, interruption},
        options,
    },
    script::host::{self, Host},
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
        Ok(text(&*host::of(&ctx)?, &model, &tokenizer, prompt, &Map::new())?)
    }

    /// Returns `prompt` and what the model goes on with, by these options.
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
    ) -> ScriptResult<String> {
        Ok(text(&*host::of(&ctx)?, &model, &tokenizer, prompt, &options)?)
    }
}

fn text(
    host: &Host,
    model: &Model,
    tokenizer: &Tokenizer,
    prompt: &str,
    options: &Map,
) -> Result<String> {
    host.check_weights("generate")?;
    let sampling = sampling(options)?;
    let mut ids: Vec<i64> = tokenizer.encode(prompt)?.into_iter().map(i64::from).collect();
    let eos = tokenizer.eos_id().map(i64::from);
    let from_nothing = ids.is_empty();
    if let (true, Some(eos)) = (from_nothing, eos) {
        // The token before each text in training.
        ids.push(eos);
    }
    // Without a tokenizer of its own the model's ids may be of another vocabulary.
    let by_config = eos.is_none() || model.tokenizer_json().is_some();
    let configured = model.facts().eos_token_ids.iter().copied().filter(|_| by_config);
    let ends: Vec<i64> = configured.chain(eos).collect();
    let new = model.generate(&ids, &sampling, &ends, &|| host.must_stop())?;
    if host.must_stop() {
        return Err(interruption());
    }
    if from_nothing || model.facts().is_seq2seq() {
        ids.clear();
    }
    ids.extend(new);
    // A vocabulary that was padded has rows without a token.
    let ids = ids.into_iter().filter_map(|id| u32::try_from(id).ok());
    let ids: Vec<u32> = ids.filter(|&id| tokenizer.token(id).is_some()).collect();
    tokenizer.decode(&ids)
}

/// The options of `generate`.
pub(crate) fn sampling(options: &Map) -> Result<Sampling> {
    options::read_table("generate", options)
}
