//! The meshes that a recipe asks for, as far as its text tells: the options of `init_engine` that are
//! written out, and the files of `from_deepspeed`.
//!
//! A call in a branch or in a function may not be made, and is left to the run.

use std::sync::Arc;

use rhai::{AST, Dynamic, Expr, FnCallExpr, Map, Position};

use super::{calls::is_condition, written::Seen};
use crate::{
    config::{MeshConfig, PipelineOptions, TensorParallelOptions},
    fs::{Guard, Place},
    recipe::{
        Failure, Recipe, description::scan, locate, params, sources::Sources, workspace::Workspace,
    },
    script::deepspeed,
};

/// The meshes of a recipe that is certain to ask for them; `guard` judges the files that it names.
///
/// # Errors
/// A text that does not parse, and values for parameters that it has not.
pub fn written_meshes(
    workspace: &Workspace,
    guard: &Arc<dyn Guard>,
    recipe: &Recipe,
) -> Result<Vec<MeshConfig>, Failure> {
    let (ast, mut parameters) = scan(recipe, &Sources::default())?;
    params::give(&mut parameters, &workspace.rights.params)?;
    let value = |expr: &Expr| Seen::of_any_type(expr, &parameters);
    let of_call = |call: &FnCallExpr, _| match call.name.as_str() {
        "init_engine" => mesh_of(&*call.args.last().map(value)?.as_map_ref().ok()?),
        "from_deepspeed" => {
            let path = call.args.first().map(value)?.into_string().ok()?;
            let place = Place::guarded(workspace.rights.work_dir.join(path), Arc::clone(guard));
            // What is wrong with the file is the run's to say.
            let read = deepspeed::load(place, None, None, &Sources::default()).ok()?;
            mesh_of(&deepspeed::script_map(&read))
        }
        _ => None,
    };
    Ok(certain_calls(&ast, of_call))
}

/// What `of_call` finds in the calls that are made whatever happens.
pub(super) fn certain_calls<T>(
    ast: &AST,
    of_call: impl Fn(&FnCallExpr, Position) -> Option<T>,
) -> Vec<T> {
    let mut found = Vec::new();
    ast.clone_statements_only().walk(&mut |nodes| {
        let call = nodes.last().and_then(locate::as_call);
        if let Some((call, position)) = call
            && !call.is_qualified()
            && !nodes.iter().any(is_condition)
        {
            found.extend(of_call(call, position));
        }
        true
    });
    found
}

/// The mesh of the options of an engine; `None` where only the run knows it.
pub(super) fn mesh_of(options: &Map) -> Option<MeshConfig> {
    let plain = MeshConfig::default();
    let stages = number(options, "pipeline", "stages", plain.pipeline.stages)?;
    let sharers = plain.tensor_parallel.autotp_size;
    let autotp_size = number(options, "tensor_parallel", "autotp_size", sharers)?;
    Some(MeshConfig {
        pipeline: PipelineOptions { stages, ..plain.pipeline },
        tensor_parallel: TensorParallelOptions { autotp_size, ..plain.tensor_parallel },
    })
}

/// The number at `outer.name`, or the `usual` one where it is not written.
fn number(options: &Map, outer: &str, name: &str, usual: usize) -> Option<usize> {
    let Some(inner) = options.get(outer) else { return Some(usual) };
    let inner = inner.as_map_ref().ok()?;
    let Some(found) = inner.get(name) else { return Some(usual) };
    let found = Dynamic::as_int(found).ok()?;
    usize::try_from(found).ok().filter(|&number| number > 0)
}
