//! The state of an engine and the place of its loader, in a directory of checkpoints and back.

use std::path::PathBuf;

use crate::{
    checkpoint::{Retention, Store},
    data::Loader,
    engine::{Engine, RecipeRecord},
    error::{Code, Error, Result},
    fs::Place,
};

/// Saves the state of `engine`, with the place of `loader`, as a checkpoint of `store`. One rank
/// calls it, the others meanwhile [`Engine::write_state`] without a directory.
pub fn save_checkpoint(
    engine: &Engine,
    store: &Store,
    retention: impl Into<Retention>,
    loader: Option<&Loader>,
    recipe: Option<RecipeRecord>,
) -> Result<PathBuf> {
    store.check_space(engine.state_bytes())?;
    let place = loader.map(Loader::saved_place).transpose()?;
    store.save(engine.global_step(), retention, |dir| {
        engine.write_state(Some(dir), place, recipe)?;
        match loader.and_then(Loader::tokenizer) {
            Some(tokenizer) => engine.write_tokenizer(dir, &tokenizer),
            None => Ok(()),
        }
    })
}

/// Brings `engine`, and `loader` if there is one, to the checkpoint in `dir`, which is verified.
/// Returns the warnings about data, attention and averages that are not the checkpoint's.
pub fn load_checkpoint(
    engine: &mut Engine,
    loader: Option<&mut Loader>,
    dir: impl Into<Place>,
) -> Result<Vec<String>> {
    let dir = dir.into();
    Store::verify(&dir)?;
    let state = engine.read_state(&dir)?;
    let mut warnings = Vec::from_iter(engine.other_attention(&state));
    warnings.extend(engine.other_averages(&state));
    let Some(loader) = loader else { return Ok(warnings) };
    let place = state.loader.ok_or_else(|| {
        let message = format!("checkpoint {} holds no place in the data", dir.display());
        Error::new(Code::Checkpoint, message).hint("it was saved without a loader")
    })?;
    if loader.options().micro_batch_size == engine.config().micro_batch_size
        && let Some(rows) = engine.keep_batch(state.micro_batch_size)
    {
        loader.read_rows(rows)?;
    }
    warnings.extend(loader.restore_saved(&place)?);
    Ok(warnings)
}
