//! `dsr plan RECIPE`: the memory that each rank will need and the time of a step, before anything is
//! loaded.

mod memory;
mod mesh;
mod numbers;
mod speed;
mod target;
mod text;

use self::{numbers::PlanNumbers, target::Target};
use super::{args::PlanArgs, console};
use crate::{
    engine::fitting::{Budget, fit_within, usable},
    error::{Code, Error, Result},
    recipe::{Failure, Recipe},
    script::{Host, Planned, Session},
};

/// Plans the recipe and prints the plan.
pub(super) fn run(args: &PlanArgs, recipe: &Recipe, host: Host) -> Result<(), Failure> {
    let target = Target::of(args)?;
    let planned = Session::plan(host, recipe, args.world_size.into(), target.has_bf16()?)?;
    let planned = fitted(planned, &target)?;
    let numbers = PlanNumbers::of(&planned, &target)?;
    match args.json {
        true => console::out_json(serde_json::to_string_pretty(&numbers).map_err(unwritten)?),
        false => console::out(&text::of(&numbers)),
    }
    Ok(())
}

/// The training with the micro batch that fits, where it is "auto".
fn fitted(planned: Planned, target: &Target) -> Result<Planned> {
    let bytes = target.usable().map_or(u64::MAX, usable);
    let budget = Budget { device: target.device, bytes, host: None };
    let (model, rows) = (&planned.model, (&planned.rows, planned.replicas));
    let config = fit_within(model, planned.config, rows, budget)?;
    Ok(Planned { config, ..planned })
}

fn unwritten(e: serde_json::Error) -> Error {
    Error::new(Code::Internal, format!("the plan as JSON: {e}"))
}
