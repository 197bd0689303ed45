//! `Model` in scripts: from scratch, from a directory or the hub, and out again.

use std::{cell::RefCell, rc::Rc};

use rhai::{Map, plugin::*};

use super::{
    tensor::{Handle as TensorHandle, check},
    tokenizer,
};
use crate::{
    checkpoint::Store,
    config::{
        Dtype, DtypeChoice, Quantization, QuantizeOptions,
        options::{OptionTable, option_table},
        suggest::nearest,
    },
    data::{self, DataSource},
    engine::exported,
    error::{Code, Error, Result},
    fs::Place,
    hub::MODEL_FILES,
    model::{self, Masks, ModelConfig, padding_of},
    recipe::{
        error::ScriptResult,
        options::{self, Handed, Options},
        rights::Rights,
        value,
    },
    script::host::{self, Host},
    tensor::{Device, Kind, Tensor, moved},
    units::Count,
};

/// A model of a script. Copies are the same one, also when its layers change: by an adapter, or by an
/// engine that freezes some of them.
#[derive(Debug, Clone)]
pub struct Handle(Rc<RefCell<Rc<model::Model>>>);

impl Handle {
    /// A handle of its own for `model`.
    pub fn new(model: model::Model) -> Self {
        Self::of(&Rc::new(model))
    }

    /// A handle of its own for a model that is in use.
    pub fn of(model: &Rc<model::Model>) -> Self {
        Self(Rc::new(RefCell::new(Rc::clone(model))))
    }

    /// The model as it is now.
    pub fn get(&self) -> Rc<model::Model> {
        Rc::clone(&self.0.borrow())
    }

    /// Puts another model in its place, for all who hold a copy.
    pub fn set(&self, model: Rc<model::Model>) {
        self.0.replace(model);
    }
}

/// Models.
#[export_module]
pub mod api {
    use crate::script::api::tensor::api::Tensor;

    /// A language model; copies are the same one. Made by `load_model`, `new_model` or
    /// `nn::sequential`.
    pub type Model = super::Handle;

    /// Loads a model as Hugging Face writes it: `config.json` and `model.safetensors`, or shards with
    /// `model.safetensors.index.json`.
    /// Families by `model_type`: gpt2, llama, mistral, qwen2, qwen3, phi3, gemma3_text, opt, bloom, t5.
    /// Of a run it is the latest checkpoint, or the one that its file `best` names.
    ///
    /// * `spec` - a directory, a run such as `runs/a`, the mark `runs/a/checkpoints/best`, or a model on
    ///   the hub
    ///
    /// ```rhai
    /// let model = load_model("openai-community/gpt2");
    /// ```
    #[rhai_fn(return_raw)]
    pub fn load_model(ctx: NativeCallContext, spec: &str) -> ScriptResult<Model> {
        load_model_with(ctx, spec, Map::new())
    }

    /// Loads a model, at a revision of the hub, with more positions, or with another dropout than its config
    /// says, under the family's names: GPT-2's are `resid_pdrop`, `embd_pdrop`, `attn_pdrop`.
    ///
    /// ```rhai
    /// let model = load_model("openai-community/gpt2", #{ resid_pdrop: 0, revision: "main" });
    /// ```
    #[rhai_fn(name = "load_model", return_raw)]
    pub fn load_model_with(
        ctx: NativeCallContext,
        spec: &str,
        options: Map,
    ) -> ScriptResult<Model> {
        Ok(super::load(&host::of(&ctx)?, spec, &options)?)
    }

    /// Makes a model with random weights, in one of the published sizes or as a `config.json` says.
    ///
    /// * `spec` - a published size such as "gpt2-medium", a family such as "llama", or the path of a
    ///   `config.json` or of its directory
    ///
    /// ```rhai
    /// let model = new_model("gpt2-medium");
    /// ```
    #[rhai_fn(return_raw)]
    pub fn new_model(ctx: NativeCallContext, spec: &str) -> ScriptResult<Model> {
        new_model_with(ctx, spec, Map::new())
    }

    /// Makes a model with random weights, and with other settings than those of `spec`, under the family's names in `config.json`.
    ///
    /// ```rhai
    /// let model = new_model("gpt2", #{ n_layer: 4, n_head: 4, n_embd: 128, seed: 1 });
    /// ```
    #[rhai_fn(name = "new_model", return_raw)]
    pub fn new_model_with(ctx: NativeCallContext, spec: &str, options: Map) -> ScriptResult<Model> {
        Ok(super::make(&*host::of(&ctx)?, spec, &options)?)
    }

    /// Returns the number of parameters; a tied head counts once.
    #[rhai_fn(get = "num_params", pure)]
    pub fn num_params(model: &mut Model) -> i64 {
        model.get().num_params() as i64
    }

    /// Returns the settings of the model, as `config.json` has them.
    #[rhai_fn(get = "config", pure)]
    pub fn config(model: &mut Model) -> Dynamic {
        value::from_json(model.get().facts().config.clone().into())
    }

    /// Returns the logits of every position, float32, without dropout and without a gradient: token ids
    /// `[batch, tokens]` give `[batch, tokens, vocabulary]`.
    ///
    /// ```rhai
    /// let logits = model.logits(tensor([[1, 2, 3]]));
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn logits(
        ctx: NativeCallContext,
        model: &mut Model,
        input_ids: Tensor,
    ) -> ScriptResult<Tensor> {
        logits_with(ctx, model, input_ids, Map::new())
    }

    /// Returns the logits of padded rows, or of a model with an encoder.
    ///
    /// ```rhai
    /// let logits = model.logits(tensor([[0, 1, 2]]), #{ attention_mask: tensor([[0, 1, 1]]) });
    /// ```
    #[rhai_fn(name = "logits", return_raw, pure)]
    pub fn logits_with(
        ctx: NativeCallContext,
        model: &mut Model,
        input_ids: Tensor,
        options: Map,
    ) -> ScriptResult<Tensor> {
        host::of(&ctx)?.check_weights("logits")?;
        Ok(super::logits(&model.get(), input_ids.tensor(), &options)?)
    }

    /// Writes the model as a directory that transformers loads, with the tokenizer that it was
    /// loaded with, if any. The directory is whole or absent at every instant.
    ///
    /// * `dir` - a new directory, or one that holds an earlier export
    ///
    /// ```rhai
    /// model.export_hf("exports/gpt2");
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn export_hf(ctx: NativeCallContext, model: &mut Model, dir: &str) -> ScriptResult<()> {
        export_hf_with(ctx, model, dir, Map::new())
    }

    /// Writes the model with a `tokenizer`.
    ///
    /// ```rhai
    /// model.export_hf("exports/gpt2", #{ tokenizer: tokenizer("dsr:gpt2") });
    /// ```
    #[rhai_fn(name = "export_hf", return_raw, pure)]
    pub fn export_hf_with(
        ctx: NativeCallContext,
        model: &mut Model,
        dir: &str,
        options: Map,
    ) -> ScriptResult<()> {
        let host = host::of(&ctx)?;
        host.check_weights("export_hf")?;
        let super::ExportOptions { tokenizer } = options::read_table("export_hf", &options)?;
        let dir = host.workspace.rights.writable(dir)?;
        let model = model.get();
        let tokenizer =
            tokenizer.0.map(|tokenizer| super::fitting(&tokenizer, &model)).transpose()?;
        if host.group()?.rank() == 0 {
            model.export_hf(&dir, tokenizer.as_ref())?;
        } else {
            model.attend_export()?;
        }
        Ok(())
    }

    /// Describes the model.
    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn describe(model: &mut Model) -> String {
        super::describe(&model.get())
    }
}

option_table! {
    /// The options of `logits`.
    #[derive(Debug)]
    pub(crate) struct LogitsOptions {
        /// `[batch, tokens]`, 0 for padding
        #[option(default = Handed(None))]
        pub attention_mask: Handed<TensorHandle>,
        /// the ids that a model with an encoder decodes, `[batch, decoder tokens]`
        #[option(default = Handed(None))]
        pub decoder_input_ids: Handed<TensorHandle>,
    }
}

option_table! {
    /// The options of `load_model` beside settings of dropout.
    #[derive(Debug)]
    pub(crate) struct LoadOptions {
        /// a branch, tag or commit of the hub
        #[option(optional)]
        pub revision: Option<String>,
        /// so many positions, over which the learned ones are repeated, as for sparse attention in DeepSpeed:
        /// GPT-2 and OPT have learned ones
        #[option(optional, range = 1..=16_777_216)]
        pub extend_positions: Option<i64>,
        /// the format of the parameters until an engine brings them into its own, and that of what is computed
        /// without one: "auto" is that of the files, where all tensors have the same one of 16 bits, and
        /// "fp32" else
        #[option(default = DtypeChoice::Given(Dtype::Fp32))]
        pub dtype: DtypeChoice,
    }
}

option_table! {
    /// The options of `new_model` beside settings of the model.
    #[derive(Debug)]
    pub(crate) struct MakeOptions {
        /// the seed of the weights
        #[option(default = 42)]
        pub seed: u64,
    }
}

option_table! {
    /// The option of `export_hf`.
    #[derive(Debug)]
    pub(crate) struct ExportOptions {
        /// the tokenizer in place of the one that the model was loaded with
        #[option(default = Handed(None))]
        pub tokenizer: Handed<tokenizer::api::Tokenizer>,
    }
}

fn logits(model: &model::Model, input_ids: &Tensor, options: &Map) -> Result<TensorHandle> {
    let LogitsOptions { attention_mask, decoder_input_ids } =
        options::read_table("logits", options)?;
    let there = |x: &TensorHandle| moved(x.tensor(), model.device());
    let decoder = decoder_input_ids.0.as_ref().map(there).transpose()?;
    let mut shape = decoder.as_ref().unwrap_or(input_ids).size();
    shape.push(model.facts().vocab_size);
    check::room("logits", &shape, Kind::Float, model.device())?;
    let mask = attention_mask.0.as_ref().map(there).transpose()?;
    if let Some(found) = mask.as_ref().map(Tensor::size).filter(|found| *found != input_ids.size())
    {
        let size = input_ids.size();
        return Err(Error::new(
            Code::Shape,
            format!("attention_mask is {found:?}, input_ids {size:?}"),
        )
        .option("attention_mask")
        .hint("it has 1 for each token and 0 for padding"));
    }
    let padding = mask.and_then(|mask| padding_of(&mask));
    let masks = Masks::new(padding).with_decoder(decoder);
    let ids = moved(input_ids, model.device())?;
    Ok(TensorHandle::new(model.logits(&ids, &masks)?))
}

/// Settings of a `config.json` by their names.
type Overrides = Vec<(&'static str, serde_json::Value)>;

/// The options of `load_model`: a revision of the hub and more positions, fewer bits, and other dropout.
pub(crate) fn load_options(map: &Map) -> Result<(LoadOptions, Option<Quantization>, Overrides)> {
    options::read("load_model", map, |o| {
        (LoadOptions::read(o), quantization(o), overrides(o, &ModelConfig::DROPOUT_KEYS))
    })
}

fn quantization(o: &mut Options<'_>) -> Option<Quantization> {
    QuantizeOptions::read(o).quantization()
}

/// The options of `new_model`: the seed, fewer bits, and other settings than those of `config`, or, where
/// only the run knows it, of any family.
pub(crate) fn make_options(
    map: &Map,
    config: Option<&ModelConfig>,
) -> Result<(u64, Option<Quantization>, Overrides)> {
    options::read("new_model", map, |o| {
        let seed = MakeOptions::read(o).seed;
        o.mean(config.map(ModelConfig::names_elsewhere).unwrap_or_default());
        (seed, quantization(o), overrides(o, &ModelConfig::names_of_settings(config)))
    })
}

fn load(host: &Rc<Host>, spec: &str, options: &Map) -> Result<api::Model> {
    let (LoadOptions { revision, extend_positions, dtype }, quantization, overrides) =
        load_options(options)?;
    let is_planned = host.planning.is_some();
    let files = if is_planned { &MODEL_FILES[..1] } else { MODEL_FILES };
    let dir = directory(host, spec, revision.as_deref(), files)?;
    let config = with_overrides(ModelConfig::read(&dir)?, overrides, "load_model")?;
    let config = match extend_positions {
        Some(positions) => config.extended(positions)?,
        None => config,
    };
    let device = host.group()?.device();
    let model = match is_planned {
        true => model::Model::outline(&config, device)?,
        false => model::Model::load(&dir, &config, device)?.in_dtype(dtype)?,
    };
    handle(model, quantization)
}

/// The tokenizer for an export, if the model has an embedding for each of its tokens.
fn fitting(tokenizer: &data::Tokenizer, model: &model::Model) -> Result<model::ExportedTokenizer> {
    let (tokens, rows) = (tokenizer.vocab_size() as i64, model.facts().vocab_size);
    if tokens > rows {
        let message =
            format!("the tokenizer has {tokens} tokens, the model's vocabulary {rows} rows");
        return Err(Error::new(Code::TokenId, message)
            .option("tokenizer")
            .hint("export the tokenizer that the model was trained with"));
    }
    exported(tokenizer)
}

/// The directory that `spec` means, fetched from the hub where it is none here.
pub(super) fn directory(
    host: &Rc<Host>,
    spec: &str,
    revision: Option<&str>,
    files: &[&str],
) -> Result<Place> {
    match host.workspace.rights.source(spec)? {
        DataSource::Nothing => Err(Error::new(Code::BadValue, "the model has no name")
            .hint("give a directory, or a model on the hub such as openai-community/gpt2")),
        DataSource::Path(place, _) if place.join("config.json").is_file() => Ok(place),
        DataSource::Path(place, _) if Store::is_mark_or_run(&place) => Store::resolve(place),
        DataSource::Path(place, _) if place.is_dir() => Ok(place),
        DataSource::Path(place, _) | DataSource::Pattern(place, _) => {
            let what = if place.exists() { "is a file" } else { "does not exist" };
            let message = format!("the model directory {} {what}", place.display());
            Err(Error::new(Code::Io, message)
                .hint("expected a directory with config.json and model.safetensors")
                .hint_if(data::hub_hint(spec)))
        }
        DataSource::Embedded(_) => {
            Err(Error::new(Code::BadValue, format!("no model \"{spec}\" is part of dsr"))
                .hint("new_model makes one of a published size, such as new_model(\"gpt2\")"))
        }
        DataSource::Hub { repo, .. } => {
            let fetched = host.hub()?.model_files(&repo, revision, files);
            let dir = fetched.map_err(|e| e.hint(data::no_path_hint(spec)))?;
            Ok(host.workspace.rights.place(dir))
        }
    }
}

fn make(host: &Host, spec: &str, options: &Map) -> Result<api::Model> {
    let config = match ModelConfig::named(spec) {
        Some(config) => config,
        None => from_file(&host.workspace.rights, spec)?,
    };
    let (seed, quantization, overrides) = make_options(options, Some(&config))?;
    let config = with_overrides(config, overrides, "new_model")?;
    let device = host.group()?.device();
    let model = match host.planning.is_some() {
        true => model::Model::outline(&config, device)?,
        false => model::Model::from_scratch(&config, seed, device)?,
    };
    handle(model, quantization)
}

/// Refuses what `new_model` would refuse of these options for a model of this config, if that is known.
pub(crate) fn check_settings(options: &Map, config: Option<ModelConfig>) -> Result<()> {
    let (_, _, overrides) = make_options(options, config.as_ref())?;
    config.map_or(Ok(()), |config| with_overrides(config, overrides, "new_model")?.check())
}

/// The model without weights that `new_model` makes of a published name with these options; `None` where
/// there is none, which the call says when it is made.
pub(crate) fn outline(name: &str, options: &Map) -> Option<model::Model> {
    let config = ModelConfig::named(name)?;
    let (_, _, overrides) = make_options(options, Some(&config)).ok()?;
    let config = with_overrides(config, overrides, "new_model").ok()?;
    model::Model::outline(&config, Device::Cpu).ok()
}

fn handle(model: model::Model, quantization: Option<Quantization>) -> Result<api::Model> {
    Ok(Handle::new(match quantization {
        Some(quantization) => model.quantized(quantization)?,
        None => model,
    }))
}

fn from_file(rights: &Rights, spec: &str) -> Result<ModelConfig> {
    let path = rights.readable(spec)?;
    if spec.is_empty() || !path.exists() {
        let names = ModelConfig::names().join(", ");
        let message =
            format!("no model \"{spec}\": there are {names}, and no config.json is there");
        let e = Error::new(Code::BadValue, message)
            .hint("give one of these names, or the path of a config.json or of its directory");
        return Err(e.hint_if(
            nearest(spec, ModelConfig::names()).map(|meant| format!("did you mean {meant}?")),
        ));
    }
    ModelConfig::read(&path)
}

/// The given ones of `keys`; their types are checked as those of a `config.json` are.
fn overrides(o: &mut Options<'_>, keys: &[&'static str]) -> Overrides {
    keys.iter().filter_map(|&key| Some((key, o.get(key).optional()?))).collect()
}

fn with_overrides(config: ModelConfig, overrides: Overrides, owner: &str) -> Result<ModelConfig> {
    if overrides.is_empty() {
        return Ok(config);
    }
    config.with(overrides.into_iter().map(|(key, value)| (key, whole(value))), owner)
}

/// Whole floats are whole numbers, as in every option.
fn whole(value: serde_json::Value) -> serde_json::Value {
    match value.as_f64() {
        Some(f) if value.is_f64() && f.fract() == 0.0 && f.abs() < 9.0e15 => (f as i64).into(),
        _ => value,
    }
}

fn describe(model: &model::Model) -> String {
    let parameters = Count(model.num_params() as f64);
    let model::ModelInfo { kind, summary, .. } = model.facts();
    let quantized = model.quantization().map(|quantization| format!(", {}", quantization.name()));
    let quantized = quantized.unwrap_or_default();
    format!("Model {kind}, {parameters} parameters ({summary}{quantized})")
}
