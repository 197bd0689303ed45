//! The families of models, each of which describes a model by its `config.json`.
//!
//! A family is a table of settings, from which one strict reader works (`config_json`), and a
//! function that puts modules together.

mod bloom;
#[cfg(test)]
mod config_json_tests;
pub mod custom;
mod decoder;
mod family;
mod gemma3;
mod gpt2;
mod llama;
mod mistral;
mod opt;
mod phi3;
mod positions;
mod qwen2;
mod qwen3;
mod t5;

use serde_json::{Map, Value};

pub use self::custom::{CustomLayer, LayerFunction};
use self::family::Family;
use super::{
    architecture::Architecture,
    files::{RepeatedRows, StoredWeights},
};
use crate::{
    config_json::{Config, read_file},
    error::{Code, Result},
    fs::Place,
};

/// All families.
static FAMILIES: &[&Family] = &[
    &gpt2::FAMILY,
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &phi3::FAMILY,
    &gemma3::FAMILY,
    &opt::FAMILY,
    &bloom::FAMILY,
    &t5::FAMILY,
];

/// The settings of a model of one of the families.
#[derive(Clone)]
pub struct ModelConfig {
    family: &'static Family,
    config: Config,
    /// Positions that are repeated when the model is loaded.
    repeated: Option<RepeatedRows>,
}

impl ModelConfig {
    /// The names of dropout probabilities in all families.
    pub const DROPOUT_KEYS: [&str; 7] = [
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "attention_dropout",
        "hidden_dropout",
        "dropout",
        "dropout_rate",
    ];

    /// The names of the settings of all families.
    pub fn keys() -> Vec<&'static str> {
        sorted(FAMILIES.iter().flat_map(|family| family.table.keys.iter().map(|key| key.name)))
    }

    /// The names of its settings.
    pub fn settings(&self) -> Vec<&'static str> {
        self.family.table.keys.iter().map(|key| key.name).collect()
    }

    /// The names of its settings and those that stand for them; without a config those of all families.
    pub fn names_of_settings(config: Option<&Self>) -> Vec<&'static str> {
        let families = FAMILIES.iter().filter(|family| {
            config.is_none_or(|config| config.family.table.model_type == family.table.model_type)
        });
        sorted(families.flat_map(|family| family.table.names()))
    }

    /// Names that other families have for these settings, each with the name here.
    pub fn names_elsewhere(&self) -> Vec<(&'static str, &'static str)> {
        let here = self.family.table;
        let aliases = FAMILIES.iter().flat_map(|family| family.table.aliases);
        let unknown = aliases.filter(|(_, name)| here.canonical(name).is_none());
        unknown.filter_map(|&(alias, name)| Some((name, here.canonical(alias)?))).collect()
    }

    /// The names that [`ModelConfig::named`] knows: published sizes and families.
    pub fn names() -> Vec<&'static str> {
        let of = |family: &&Family| {
            let sizes = family.sizes.iter().map(|(name, _)| *name);
            std::iter::once(family.table.model_type).chain(sizes).collect::<Vec<_>>()
        };
        let mut names: Vec<&str> = FAMILIES.iter().flat_map(of).collect();
        names.dedup();
        names
    }

    /// One of the published sizes, or a family with its defaults; `None` for any other name.
    pub fn named(name: &str) -> Option<Self> {
        FAMILIES.iter().find_map(|&family| {
            let mut sizes = family.sizes.iter();
            let size = sizes.find(|(known, _)| *known == name).map(|(_, size)| *size);
            let settings = size.or((family.table.model_type == name).then_some("{}"))?;
            let config = Config::from_text(settings, family.table, name).ok()?;
            Some(Self { family, config, repeated: None })
        })
    }

    /// Reads a `config.json`, or the one in a directory.
    pub fn read(dir_or_file: impl Into<Place>) -> Result<Self> {
        let dir_or_file = &dir_or_file.into();
        let (map, origin) = read_file(dir_or_file)?;
        Self::from_json(&map, &origin)
    }

    /// Reads the content of a `config.json`; `origin` names it in errors.
    pub fn from_json(map: &Map<String, Value>, origin: &str) -> Result<Self> {
        // A file without a type is GPT-2's, as its first version wrote it.
        let known = |family: &&&Family| match map.get("model_type") {
            Some(found) => *found == family.table.model_type,
            None => family.table.model_type == gpt2::FAMILY.table.model_type,
        };
        let Some(&family) = FAMILIES.iter().find(known) else {
            let found = map.get("model_type").map(Value::to_string).unwrap_or_default();
            let found = found.chars().take(MOST_CHARS).collect::<String>();
            let types: Vec<_> = FAMILIES.iter().map(|family| family.table.model_type).collect();
            bail!(
                Code::ModelConfig,
                "{origin} describes a model of the type {found}; dsr has {}",
                types.join(", ")
            );
        };
        let config = Config::read(map, family.table, origin)?;
        Ok(Self { family, config, repeated: None })
    }

    /// Refuses settings that make no model.
    pub fn check(&self) -> Result<()> {
        self.architecture().map(drop)
    }

    /// The same with other settings, which `owner` gives.
    pub fn with<'a>(
        self,
        settings: impl IntoIterator<Item = (&'a str, Value)>,
        owner: &str,
    ) -> Result<Self> {
        let settings = settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Ok(Self { config: self.config.with(settings, owner)?, ..self })
    }

    /// The settings as the weights in `dir` complete them: transformers 5 writes a T5 with a head of its
    /// own as a tied one that is not scaled.
    pub(in crate::model) fn completed_by(&self, dir: &Place) -> Result<Self> {
        let json = self.to_json();
        let is_open = json.get("scale_decoder_outputs") == Some(&Value::Bool(false))
            && json.get("tie_word_embeddings") == Some(&Value::Bool(true));
        match is_open && StoredWeights::names(dir)?.contains("lm_head.weight") {
            true => self.clone().with([("tie_word_embeddings", false.into())], "the weights"),
            false => Ok(self.clone()),
        }
    }

    /// The settings as a `config.json` has them.
    pub fn to_json(&self) -> Map<String, Value> {
        self.config.to_json()
    }

    /// The positions that are repeated when the model is loaded.
    pub(in crate::model) fn repeated_rows(&self) -> Option<RepeatedRows> {
        self.repeated
    }

    /// The layers that they describe.
    pub(in crate::model) fn architecture(&self) -> Result<Architecture> {
        let architecture = (self.family.describe)(&self.config)?;
        let count: i128 = architecture.num_params();
        if count > MOST_PARAMETERS {
            bail!(Code::ModelConfig, "a model of {count} parameters is beyond any machine");
        }
        Ok(architecture)
    }
}

/// Weights, gradients and moments of this many still have fewer bytes than an i64 counts.
const MOST_PARAMETERS: i128 = 1 << 50;

/// Characters of a foreign model type that an error shows.
const MOST_CHARS: usize = 60;

/// A small GPT-2, for tests of what runs models: two layers of two heads, with these settings.
#[cfg(test)]
pub(crate) fn tiny_gpt2(
    settings: &[(&str, i64)],
    dropout: f64,
    tie_word_embeddings: bool,
) -> ModelConfig {
    let sizes = [("n_layer", 2), ("n_head", 2)];
    let sizes = sizes.iter().chain(settings).map(|&(key, size)| (key, Value::from(size)));
    let dropouts = ["resid_pdrop", "embd_pdrop", "attn_pdrop"].map(|key| (key, dropout.into()));
    let rest = [("tie_word_embeddings", tie_word_embeddings.into())];
    let settings = sizes.chain(dropouts).chain(rest);
    ModelConfig::named("gpt2").unwrap().with(settings, "test").unwrap()
}

/// The names in order, each once.
fn sorted(names: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
    names.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::param_spec::Init;

    /// A size that its family refused would look like a name that is not known.
    #[test]
    fn every_published_size_is_a_model() {
        for name in ModelConfig::names() {
            let config = ModelConfig::named(name).unwrap_or_else(|| panic!("{name}"));
            let architecture = config.architecture().unwrap();
            let again = ModelConfig::from_json(&architecture.facts.config, "again").unwrap();
            assert_eq!(again.config, config.config, "{name}");
        }
        assert!(ModelConfig::named("gpt3").is_none());
    }

    /// As transformers' `_init_weights` does.
    #[test]
    fn new_values_are_those_of_the_family() {
        let init = |family: &str, settings: Vec<(&'static str, Value)>, name: &str| {
            let config = ModelConfig::named(family).unwrap().with(settings, "test").unwrap();
            let layers = config.architecture().unwrap().layers;
            let mut params = layers.into_iter().flat_map(|layer| layer.params);
            params.find(|param| param.name == name).unwrap().init
        };
        let factor = vec![("initializer_factor", 0.5.into())];
        let norms = [
            "encoder.block.0.layer.0.layer_norm.weight",
            "decoder.block.1.layer.2.layer_norm.weight",
            "decoder.final_layer_norm.weight",
        ];
        for name in norms {
            assert_eq!(init("t5", factor.clone(), name), Init::Constant(0.5));
        }
        let tokens = init("opt", Vec::new(), "model.decoder.embed_tokens.weight");
        assert_eq!(tokens, Init::Padded { std: 0.02, padding_idx: 1 });
        let tokens = init("llama", Vec::new(), "model.embed_tokens.weight");
        assert_eq!(tokens, Init::Normal(0.02));
    }

    /// The counts that OpenAI's weights have.
    #[test]
    fn the_published_sizes_have_the_published_parameters() {
        let counts = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
            .map(|name| ModelConfig::named(name).unwrap().architecture().unwrap().num_params());
        assert_eq!(counts, [124_439_808, 354_823_168, 774_030_080, 1_557_611_200]);
    }
}
