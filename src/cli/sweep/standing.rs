//! The standing of a sweep's run before the sweep begins: what is to be done for it.

use serde_json::{Map, Value};

use super::grid::Point;
use crate::{
    engine::RecipeRecord,
    error::{Code, Error, Result},
    hash::sha256,
    run::{RunSummary, State, list_runs},
};

/// The directory of all runs.
const ROOT: &str = "runs";

/// A run of a sweep, and how it stands.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) point: Point,
    pub(super) standing: Standing,
}

/// How a run of a sweep stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is to be made from its first step.
    New,
    /// It goes on from its latest checkpoint.
    Resumable,
    /// Nothing is left to do: it came to its end, or its recipe ended it.
    Complete(State),
}

/// All runs of this directory, the newest last.
pub(super) fn all_runs() -> Result<Vec<RunSummary>> {
    list_runs(ROOT)
}

/// The newest run of a name.
pub(super) fn latest<'a>(runs: &'a [RunSummary], name: &str) -> Option<&'a RunSummary> {
    runs.iter().rfind(|run| run.text("name") == Some(name))
}

/// The standing of `run`, if there is one, which is to be that of `recipe`.
///
/// # Errors
/// Another process goes on with it, or it is complete and of another text or other parameters: its
/// result would stand in the table for something that it is not.
pub(super) fn of(run: Option<&RunSummary>, recipe: &RecipeRecord) -> Result<Standing> {
    let Some(run) = run else { return Ok(Standing::New) };
    let differs = difference(run, recipe)?;
    let is_complete = matches!(run.state, State::Finished | State::Stopped);
    match (run.state, differs) {
        (State::Running, _) => {
            let message = format!("another process goes on with {}", run.path().display());
            Err(Error::new(Code::Checkpoint, message).hint("wait for it, or stop it"))
        }
        (_, Some(what)) if is_complete => {
            let message = format!("{} is there, and has {what}", run.path().display());
            Err(Error::new(Code::BadValue, message)
                .hint("--name NAME begins another sweep")
                .hint(format!("`dsr runs rm {}` removes the run", run.name)))
        }
        (state, None) if is_complete => Ok(Standing::Complete(state)),
        (_, None) if run.has_checkpoint()? => Ok(Standing::Resumable),
        _ => Ok(Standing::New),
    }
}

/// The first part of a run that is not that of `recipe`, if there is one.
fn difference(run: &RunSummary, recipe: &RecipeRecord) -> Result<Option<&'static str>> {
    let text = sha256(recipe.source.as_bytes());
    if run.text("recipe_sha256") != Some(&text) {
        return Ok(Some("another text of the recipe"));
    }
    let params = run.told.get("params").and_then(Value::as_object);
    Ok((params != Some(&as_read(&recipe.params)?)).then_some("other parameters"))
}

/// The parameters as they come back from a file, whose numbers may differ in the last digit.
fn as_read(params: &Map<String, Value>) -> Result<Map<String, Value>> {
    let through_text = || serde_json::from_str(&serde_json::to_string(params)?);
    through_text().map_err(|e| {
        Error::new(Code::Internal, "parameters cannot be written as JSON").caused_by(e)
    })
}
