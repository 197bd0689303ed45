//! The options of `init_engine` that are functions of the recipe, beside those that are data.

use rhai::{FnPtr, Map};

use super::{
    api::tensor::{Handle, check},
    callback::Callback,
};
use crate::{
    config::{
        EngineConfig,
        options::Foreign,
        schedule::{LrFunction, is_rate},
    },
    error::{Code, Error, Result},
    model::LossFunction,
    recipe::{
        options::{self, Options, held},
        value::{describe, number, of_foreign},
    },
    tensor::{Tensor, is_floating},
};

/// The parameters of the functions of `loss`, for errors.
const LOSS_ARGUMENTS: &str = "|logits, targets|";

/// The settings of an engine.
#[derive(Debug)]
pub struct EngineOptions {
    /// The options that are data.
    pub config: EngineConfig,
    /// The loss, where it is a function of the recipe.
    pub loss: Option<LossFunction>,
}

/// Reads the option map of `init_engine` for this many ranks; `keep` keeps a function of the script.
///
/// # Errors
/// All mistakes of the map, each with the path of its option, and those of `keep`.
pub fn read(
    map: &Map,
    world_size: usize,
    keep: impl Fn(FnPtr) -> Result<Callback>,
) -> Result<EngineOptions> {
    options::read("init_engine", map, |o| {
        let config = EngineConfig::read(o, world_size, |found| lr_function(found, &keep));
        let loss = loss(o, &keep);
        EngineOptions { config, loss }
    })
}

/// A script function that gives the learning rate of the step after so many applied steps.
fn lr_function(
    found: &Foreign,
    keep: impl FnOnce(FnPtr) -> Result<Callback>,
) -> Option<Result<LrFunction>> {
    let function = of_foreign(found).try_cast::<FnPtr>()?;
    Some(keep(function).map(|callback| {
        LrFunction::new(move |applied| {
            let found = callback.call((applied as i64,))?;
            let rate = number(&found);
            if let Some(rate) = rate.filter(is_rate) {
                return Ok(rate);
            }
            let code = if rate.is_some() { Code::BadValue } else { Code::WrongType };
            let message = format!(
                "the function of `scheduler` must return a finite number, 0 or more; for step {applied} it returned {}",
                describe(&found)
            );
            Err(callback.at_its_call(Error::new(code, message).option("scheduler")))
        })
    }))
}

/// A function of the script that computes the loss of a micro batch.
fn loss(o: &mut Options<'_>, keep: impl Fn(FnPtr) -> Result<Callback>) -> Option<LossFunction> {
    let found = o.raw("loss")?;
    let Some(function) = held(&found) else {
        o.refuse_value("loss", &format!("a function {LOSS_ARGUMENTS}"), &found);
        return None;
    };
    let kept = keep(function).and_then(|callback| callback.taking(2..=2, LOSS_ARGUMENTS));
    let callback = o.check(kept.map_err(|e| e.option("loss")))?;
    Some(LossFunction::new(move |logits, targets| {
        let handle = |tensor: &Tensor| Handle::new(tensor.shallow_clone());
        let found = callback.call((handle(logits), handle(targets)))?;
        let result = found.clone().try_cast::<Handle>();
        let scalar =
            result.filter(|loss| loss.tensor().numel() == 1 && is_floating(loss.tensor().kind()));
        scalar.map(|loss| loss.tensor().shallow_clone()).ok_or_else(|| {
            let found = match found.read_lock::<Handle>() {
                Some(tensor) => check::shown(tensor.tensor()),
                None => describe(&found),
            };
            let message = format!(
                "the function of `loss` must give a tensor with one floating point number, found {found}"
            );
            callback.at_its_call(Error::new(Code::WrongType, message).option("loss"))
        })
    }))
}
