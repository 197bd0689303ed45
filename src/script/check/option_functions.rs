//! The functions of dsr with a trailing option map: its reader and its options.

use rhai::{FnPtr, Map};

use crate::{
    config::{
        ENGINE_TABLES, LoraOptions, QuantizeOptions,
        options::{OptionTable, Row},
    },
    data::{ChatOptions, MixOptions, PackOptions, TokenizeOptions, TokenizerTraining},
    error::{Code, Error, Result},
    generation::Sampling,
    model::ModelConfig,
    recipe::options::read_table,
    script::{Callback, api, engine_options},
};

/// A function with a trailing option map.
pub(crate) struct OptionFunction {
    /// Its name.
    pub(crate) name: &'static str,
    read: Read,
    /// Its options, table by table.
    pub(crate) tables: &'static [&'static [Row]],
    /// Options that are settings of a `config.json`, which the name of a model may tell.
    pub(crate) settings: fn(Option<&str>) -> Vec<&'static str>,
}

/// A reader of the map of a call of the function of this name, whose first argument is the text, if that
/// is known.
type Read = fn(&'static str, Option<&str>, &Map) -> Result<()>;

impl OptionFunction {
    /// Reads the map of a call with this first argument for its mistakes.
    pub(crate) fn read(&self, first: Option<&str>, map: &Map) -> Result<()> {
        (self.read)(self.name, first, map)
    }
}

/// A function whose options are one table.
const fn table<T: OptionTable>(name: &'static str) -> OptionFunction {
    function(name, const { &[T::ROWS] }, |name, _, map| read_table::<T>(name, map).map(drop))
}

const fn function(
    name: &'static str,
    tables: &'static [&'static [Row]],
    read: Read,
) -> OptionFunction {
    OptionFunction { name, read, tables, settings: |_| Vec::new() }
}

/// A function with the options of `generate`.
const fn generation(name: &'static str) -> OptionFunction {
    function(name, &[Sampling::ROWS, api::generate::ROWS], |_, _, map| {
        api::generate::Request::read(map, no_function).map(drop)
    })
}

const FUNCTIONS: &[OptionFunction] = &[
    table::<ChatOptions>("chat"),
    generation("check_generate"),
    table::<api::dataset::OpenTable>("dataset"),
    table::<api::tokenizer::DecodeOptions>("decode"),
    table::<api::model::ExportOptions>("export_hf"),
    generation("generate"),
    function("init_engine", ENGINE_TABLES, |_, _, map| {
        engine_options::read(map, 1, no_function).map(drop)
    }),
    table::<api::engine::LoadOptions>("load_checkpoint"),
    OptionFunction {
        settings: |_| ModelConfig::DROPOUT_KEYS.to_vec(),
        ..function(
            "load_model",
            &[api::model::LoadOptions::ROWS, QuantizeOptions::ROWS],
            |_, _, map| api::model::load_options(map).map(drop),
        )
    },
    table::<api::loader::LoaderTable>("loader"),
    table::<LoraOptions>("lora"),
    table::<api::model::LogitsOptions>("logits"),
    OptionFunction {
        settings: |name| match name.and_then(ModelConfig::named) {
            Some(config) => config.settings(),
            None => ModelConfig::keys(),
        },
        ..function(
            "new_model",
            &[api::model::MakeOptions::ROWS, QuantizeOptions::ROWS],
            |_, name, map| {
                let config = name.and_then(ModelConfig::named);
                api::model::check_settings(map, config)
            },
        )
    },
    table::<PackOptions>("pack"),
    table::<api::engine::SaveOptions>("save_checkpoint"),
    table::<api::plot::PlotOptions>("save_plot"),
    function("sequential", api::nn::sequential::TABLES, |_, _, map| {
        api::nn::sequential::read(map, no_function).map(drop)
    }),
    table::<MixOptions>("mix"),
    table::<api::table::SplitOptions>("train_test_split"),
    table::<api::dataset::ShuffleOptions>("shuffle"),
    table::<api::table::SortOptions>("sort"),
    table::<api::run::RunOptions>("start_run"),
    table::<TokenizerTraining>("train_tokenizer"),
    table::<TokenizeOptions>("tokenize"),
    table::<api::tokenizer::OpenOptions>("tokenizer"),
];

/// A function is there in the run only.
fn no_function(_: FnPtr) -> Result<Callback> {
    Err(Error::new(Code::Internal, "a function is read by the run"))
}

/// The function of dsr with this name, if it has options.
pub(crate) fn option_function(name: &str) -> Option<&'static OptionFunction> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

/// Reads a map of plain data as the call of `function`, such as `init_engine` on one rank, would
/// read its options.
///
/// # Errors
/// All mistakes of the map, each with the path of its option; [`Code::UnknownFunction`] where there
/// is no function of this name that has options.
pub fn check_options(function: &str, options: &Map) -> Result<()> {
    let Some(found) = option_function(function) else {
        bail!(Code::UnknownFunction, "there is no function `{function}` with options");
    };
    found.read(None, options)
}
