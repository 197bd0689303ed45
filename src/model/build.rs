//! Models from a config: with GPT-2's random start, or with the weights of a directory.

use std::{cell::RefCell, path::Path};

use super::{
    Model,
    config::Gpt2Config,
    embedding::Embedding,
    gpt2::Gpt2Block,
    head::Head,
    layer::Block,
    unit::{FlatUnit, Init, ParamSpec},
    weights,
};
use crate::{
    error::Result,
    fs,
    tensor::{Device, Kind, Tensor, check_memory, guard, manual_seed, no_grad},
};

impl Model {
    /// A model with GPT-2's initialisation, the same for the same seed on every device.
    ///
    /// # Errors
    /// [`Code::Memory`](crate::error::Code::Memory) where there is not enough.
    pub fn from_scratch(config: Gpt2Config, seed: u64, device: Device) -> Result<Self> {
        let model = Self::zeros(config, device)?;
        guard("new_model", || {
            manual_seed(seed);
            no_grad(|| model.units.iter().try_for_each(initialise))?;
            Ok(model)
        })
    }

    /// The model in a directory as Hugging Face writes it: `config.json` and safetensors.
    ///
    /// # Errors
    /// [`Code::ModelConfig`](crate::error::Code::ModelConfig) or
    /// [`Code::Weights`](crate::error::Code::Weights), each with all that is wrong.
    pub fn load(dir: &Path, config: Gpt2Config, device: Device) -> Result<Self> {
        let mut model = Self::zeros(config, device)?;
        weights::load(dir, &model.units, model.config.tie_word_embeddings)?;
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

    fn zeros(config: Gpt2Config, device: Device) -> Result<Self> {
        let bytes = Kind::Float.elt_size_in_bytes() as u64 * config.num_parameters() as u64;
        check_memory(device, bytes, "the model")?;
        Self::of_units(config, device, FlatUnit::zeros)
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
            embedding: Embedding { dropout: config.embd_pdrop },
            blocks: (0..config.n_layer).map(block).collect(),
            head: Head { epsilon: config.layer_norm_epsilon },
            device,
            tokenizer_json: None,
            residence: RefCell::default(),
            config,
        })
    }
}

/// Gives a unit its first values. They are drawn on the CPU, so that the device does not matter.
fn initialise(unit: &FlatUnit) -> Result<()> {
    for (spec, mut param) in unit.specs().iter().zip(unit.views(unit.flat()?)) {
        match spec.init {
            Init::Zeros => {}
            Init::Ones => drop(param.fill_(1.0)),
            Init::Normal(std) => {
                let mut cpu = Tensor::empty(&spec.shape[..], (Kind::Float, Device::Cpu));
                param.copy_(&cpu.normal_(0.0, std));
            }
        }
    }
    Ok(())
}
