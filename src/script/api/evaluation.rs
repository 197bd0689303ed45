//! Evaluation of a dataset, as engines and runs do it.

use rhai::Map;

use super::{dataset::api::Dataset, loader};
use crate::{
    data::LoaderOptions,
    engine::{Engine, Evaluation},
    error::Result,
    script::{host::Host, shared::Shared},
};

/// Evaluates this rank's part of `dataset`, of which a dry run takes one micro batch for each rank,
/// and tells the monitors; `None` when `stop` said so.
pub(super) fn evaluate(
    host: &Host,
    engine: &Shared<Engine>,
    dataset: &Dataset,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Evaluation>> {
    let found = evaluate_rows(host, &*engine.read()?, dataset, stop)?;
    if let Some(evaluation) = &found {
        engine.write()?.tell_evaluation(evaluation)?;
    }
    Ok(found)
}

fn evaluate_rows(
    host: &Host,
    engine: &Engine,
    dataset: &Dataset,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Evaluation>> {
    let micro_batch_size = engine.config().micro_batch_size;
    let options = LoaderOptions { micro_batch_size, ..LoaderOptions::default() };
    let dp = engine.mesh().dp();
    let few = (micro_batch_size * dp.world_size()) as u64;
    let dataset = if host.run.is_trial { &dataset.take(few)? } else { dataset };
    let batches = dataset.loader(loader::for_rank(dp, options))?;
    engine.evaluate(batches, stop)
}

/// An evaluation as a script sees it.
pub(super) fn map(evaluation: &Evaluation) -> Map {
    Map::from([
        ("loss".into(), evaluation.loss.into()),
        ("perplexity".into(), evaluation.perplexity.into()),
        ("targets".into(), (evaluation.targets as i64).into()),
    ])
}
