//! Models from a config: with GPT-2's random start, or with the weights of a directory.

use std::{cell::RefCell, path::Path};

use super::{
    Model,
    config::Gpt2Config,
    embedding::{Embedding, Gpt2Embedding},
    gpt2::Gpt2Block,
    head::Head,
    layer::Block,
    origin::Origin,
    unit::{FlatUnit, ParamSpec},
    weights::StoredWeights,
};
use crate::{error::Result, fs, tensor::Device};

impl Model {
    /// A model with GPT-2's initialisation, the same for the same seed on every device. It takes no
    /// memory before it is used.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn from_scratch(config: Gpt2Config, seed: u64, device: Device) -> Result<Self> {
        let mut model = Self::of_units(config, device, FlatUnit::absent)?;
        model.origin = RefCell::new(Some(Origin::Seed(seed)));
        Ok(model)
    }

    /// The model in a directory as Hugging Face writes it: `config.json` and safetensors. It takes
    /// no memory before it is used; until then its files must stay as they are.
    ///
    /// # Errors
    /// [`Code::ModelConfig`](crate::error::Code::ModelConfig) or
    /// [`Code::Weights`](crate::error::Code::Weights), each with all that is wrong.
    pub fn load(dir: &Path, config: Gpt2Config, device: Device) -> Result<Self> {
        let mut model = Self::of_units(config, device, FlatUnit::absent)?;
        let weights = StoredWeights::open(dir, &model.units, model.config.is_tied())?;
        model.origin = RefCell::new(Some(Origin::Files(weights)));
        let tokenizer = dir.join("tokenizer.json");
        if tokenizer.is_file() {
            model.tokenizer_json = Some(fs::read(&tokenizer)?);
        }
        Ok(model)
    }

    /// A model without weights, to plan with: all of its parameters are one zero, and take no
    /// memory. It cannot be trained.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn outline(config: Gpt2Config, device: Device) -> Result<Self> {
        Self::of_units(config, device, FlatUnit::outline)
    }

    fn of_units(
        config: Gpt2Config,
        device: Device,
        unit: fn(Vec<ParamSpec>, Device) -> Result<FlatUnit>,
    ) -> Result<Self> {
        let units = config.unit_specs().into_iter().map(|specs| unit(specs, device));
        let block = |i| Box::new(Gpt2Block::new(&config, i)) as Box<dyn Block>;
        Ok(Self {
            units: units.collect::<Result<_>>()?,
            embedding: Embedding::Gpt2(Gpt2Embedding { dropout: config.embd_pdrop }),
            blocks: (0..config.n_layer).map(block).collect(),
            head: Head::Gpt2 { epsilon: config.layer_norm_epsilon },
            device,
            tokenizer_json: None,
            origin: RefCell::default(),
            residence: RefCell::default(),
            config: config.into(),
        })
    }
}
