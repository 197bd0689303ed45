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
    script::{Callback, api, engine_options},
};

/// A function with a trailing option map.
pub(crate) struct OptionFunction {
    /// Its name.
    pub(crate) name: &'static str,
    /// Reads a map for its mistakes.
    pub(crate) read: fn(&Map) -> Result<()>,
    /// Its options, table by table.
    pub(crate) tables: &'static [&'static [Row]],
    /// Options that are settings of a `config.json`.
    pub(crate) settings: fn() -> Vec<&'static str>,
}

const fn function(
    name: &'static str,
    tables: &'static [&'static [Row]],
    read: fn(&Map) -> Result<()>,
) -> OptionFunction {
    OptionFunction { name, read, tables, settings: Vec::new }
}

const FUNCTIONS: &[OptionFunction] = &[
    function("chat", &[ChatOptions::ROWS], |map| api::dataset::chat_options(map).map(drop)),
    function("dataset", &[api::dataset::OpenTable::ROWS], |map| {
        api::dataset::open_options(map).map(drop)
    }),
    function("decode", &[api::tokenizer::DecodeOptions::ROWS], |map| {
        api::tokenizer::decode_options(map).map(drop)
    }),
    function("export_hf", &[api::model::ExportOptions::ROWS], |map| {
        api::model::export_options(map).map(drop)
    }),
    function("generate", &[Sampling::ROWS, api::generate::ROWS], |map| {
        api::generate::Request::read(map, no_function).map(drop)
    }),
    function("init_engine", ENGINE_TABLES, |map| {
        engine_options::read(map, 1, no_function).map(drop)
    }),
    function("load_checkpoint", &[api::engine::LoadOptions::ROWS], |map| {
        api::engine::load_options(map).map(drop)
    }),
    OptionFunction {
        settings: || ModelConfig::DROPOUT_KEYS.to_vec(),
        ..function("load_model", &[api::model::LoadOptions::ROWS, QuantizeOptions::ROWS], |map| {
            api::model::load_options(map).map(drop)
        })
    },
    function("loader", &[api::loader::LoaderTable::ROWS], |map| {
        api::loader::read_options(map).map(drop)
    }),
    function("lora", &[LoraOptions::ROWS], |map| api::adapters::lora_options(map).map(drop)),
    function("logits", &[api::model::LogitsOptions::ROWS], |map| {
        api::model::logits_options(map).map(drop)
    }),
    OptionFunction {
        settings: ModelConfig::keys,
        ..function("new_model", &[api::model::MakeOptions::ROWS, QuantizeOptions::ROWS], |map| {
            api::model::make_options(map).map(drop)
        })
    },
    function("pack", &[PackOptions::ROWS], |map| api::dataset::pack_options(map).map(drop)),
    function("save_checkpoint", &[api::engine::SaveOptions::ROWS], |map| {
        api::engine::save_options(map).map(drop)
    }),
    function("save_plot", &[api::plot::PlotOptions::ROWS], |map| {
        api::plot::plot_options(map).map(drop)
    }),
    function("sequential", api::nn::sequential::TABLES, |map| {
        api::nn::sequential::read(map, no_function).map(drop)
    }),
    function("mix", &[MixOptions::ROWS], |map| api::table::mix_options(map).map(drop)),
    function("train_test_split", &[api::table::SplitOptions::ROWS], |map| {
        api::table::split_options(map).map(drop)
    }),
    function("shuffle", &[api::dataset::ShuffleOptions::ROWS], |map| {
        api::dataset::shuffle_options(map).map(drop)
    }),
    function("sort", &[api::table::SortOptions::ROWS], |map| {
        api::table::sort_options(map).map(drop)
    }),
    function("start_run", &[api::run::RunOptions::ROWS], |map| {
        api::run::read_options(map).map(drop)
    }),
    function("train_tokenizer", &[TokenizerTraining::ROWS], |map| {
        api::tokenizer_training::training_options(map).map(drop)
    }),
    function("tokenize", &[TokenizeOptions::ROWS], |map| {
        api::dataset::tokenize_options(map).map(drop)
    }),
    function("tokenizer", &[api::tokenizer::OpenOptions::ROWS], |map| {
        api::tokenizer::open_options(map).map(drop)
    }),
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
    (found.read)(options)
}
