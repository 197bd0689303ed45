//! The parameters that an engine trains.

use std::rc::Rc;

use crate::{
    config::{EngineConfig, TrainableConfig},
    dist::ShardSpec,
    error::{Code, Error, Result},
    model::{FlatUnit, Model, is_of_adapter},
    optim::{OptimizerPlan, names_nothing},
};

use super::layout::layouts;

/// `model` with the parameters frozen that `config` does not train, and the attention that it asks for.
pub fn trained(model: &Rc<Model>, config: &EngineConfig) -> Result<Rc<Model>> {
    if let Some(quantization) = model.quantization().filter(|_| model.adapter().is_none()) {
        let message = format!(
            "the model is quantized ({}), and has no adapter to train",
            quantization.name()
        );
        return Err(Error::new(Code::CallOrder, message)
            .hint("give it one with `model.lora(#{ ... })`, or load it without `quantize`"));
    }
    let TrainableConfig { freeze, trainable } = &config.trainable;
    let all: Vec<&str> = model.units().iter().flat_map(FlatUnit::names).collect();
    let names = || all.iter().copied();
    let mut faults = Vec::new();
    for (pattern, option) in config.trainable.patterns() {
        if !names().any(|name| pattern.matches(name)) {
            faults.push(names_nothing(pattern, &option, names()));
        }
    }
    let frozen = |name: &str| freeze.iter().any(|pattern| pattern.matches(name));
    let chosen = |name: &str| trainable.iter().any(|pattern| pattern.matches(name));
    if let Some(name) = names().find(|name| frozen(name) && chosen(name)) {
        let message = format!("{name} is named by `freeze` and by `trainable`");
        faults.push(
            Error::new(Code::BadValue, message)
                .option("freeze")
                .hint("with `trainable` all other parameters are frozen: leave out `freeze`"),
        );
    }
    Error::all(faults).map_or(Ok(()), Err)?;
    let is_usual = |name: &str| match model.adapter() {
        Some(_) => is_of_adapter(name),
        None => trainable.is_empty(),
    };
    let is_trained = |name: &str| !frozen(name) && (is_usual(name) || chosen(name));
    if !names().any(is_trained) {
        return Err(Error::new(Code::BadValue, "`freeze` names all parameters of the model")
            .option("freeze")
            .hint("leave out those that are to be trained"));
    }
    let model = model.trained(is_trained)?;
    model.attend_sparsely(config.sparse_attention.as_ref(), config.precision.dtype)?;
    model.tile_mlps(config.tiled_mlp)?;
    Ok(model)
}

/// The work of the optimizer of `config` on the units of the whole model that are trained, of which `shard` is this rank's.
pub(super) fn optimizer_plan(
    model: &Model,
    config: &EngineConfig,
    world_size: usize,
    shard: Option<ShardSpec>,
) -> Result<OptimizerPlan> {
    let (trained, frozen) = model.all_units().split_at(model.trainable_count());
    let frozen: Vec<&str> = frozen.iter().flat_map(FlatUnit::names).collect();
    OptimizerPlan::beside(&config.optimizer, &layouts(trained, world_size), shard, &frozen)
}
