//! An engine that computes with the averages of its weights.
//!
//! It changes them with the masters, and writes them into the model as a step does. Whatever reads the
//! model then sees them; the engine knows that the masters' place has the averages, so that a
//! checkpoint is the same as without the change.

use super::{Engine, averages::Weights, state_file::UnitState, train_state::TrainState};
use crate::{
    error::{Code, Error, Result},
    tensor::{Tensor, guard, no_grad},
};

impl Engine {
    /// Computes with the averages of the weights from now on, until [`Engine::end_ema`]. Every rank must
    /// call it.
    ///
    /// # Errors
    /// [`Code::CallOrder`] without averages, or where they are in use already.
    pub fn begin_ema(&mut self) -> Result<()> {
        self.check_whole()?;
        if self.config.ema.is_none() {
            return Err(Error::new(Code::CallOrder, "this engine keeps no average of the weights")
                .hint("give init_engine `ema: true`, or a map with its `decay`"));
        }
        self.check_trained("with_ema")?;
        // Its activations are of the weights that go.
        self.pending = None;
        self.exchange()
    }

    /// Computes with the weights that are trained again. Every rank must call it.
    ///
    /// # Errors
    /// [`Code::CallOrder`] where they are in use already.
    pub fn end_ema(&mut self) -> Result<()> {
        self.check_whole()?;
        if !self.averages.are_in_use {
            bail!(Code::CallOrder, "the averages of the weights are not in use");
        }
        self.exchange()
    }

    /// Changes weights with averages, and writes those into the model whose turn it is.
    fn exchange(&mut self) -> Result<()> {
        self.is_inconsistent = true;
        let (states, master_weights) = (&mut self.states, &self.master_weights);
        guard("with_ema", || {
            states.change(|_, units| {
                for (_, UnitState { master, average, .. }) in units {
                    if let Some(average) = average {
                        no_grad(|| swap(master, average))?;
                    }
                }
                master_weights.publish(units)
            })?;
            master_weights.finish()
        })?;
        self.averages.are_in_use = !self.averages.are_in_use;
        self.is_inconsistent = false;
        Ok(())
    }

    /// Refuses what needs the trained weights while the averages are in their place.
    pub(super) fn check_trained(&self, what: &str) -> Result<()> {
        if !self.averages.are_in_use {
            return Ok(());
        }
        let message = format!(
            "{what} is not possible within `with_ema`, which has the averages of \
             the weights in their place"
        );
        Err(Error::new(Code::CallOrder, message)
            .hint("evaluate, generate, export and save in it, and train behind it"))
    }

    /// The trained or averaged weights of unit `i`, laid out as the unit. Every rank must call it.
    pub(super) fn whole_weights(&self, i: usize, kept: &UnitState, of: Weights) -> Result<Tensor> {
        let are_masters = (of == Weights::Averaged) == self.averages.are_in_use;
        if are_masters {
            return self.master_weights.whole(i, &kept.master);
        }
        let missing = || Error::new(Code::Internal, "no averages of a unit");
        self.master_weights.gathered(i, kept.average.as_ref().ok_or_else(missing)?)
    }

    /// A warning about a checkpoint with averages of weights where this engine keeps none, or the
    /// reverse.
    pub fn other_averages(&self, state: &TrainState) -> Option<String> {
        match (state.ema_updates, self.config.ema) {
            (None, Some(_)) => Some(
                "warning: the checkpoint has no average of the weights: it begins anew, with the \
                 checkpoint's weights"
                    .to_owned(),
            ),
            (Some(_), None) => Some(
                "warning: the checkpoint has an average of the weights, which this engine does not keep: \
                 give init_engine `ema` to go on with it"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

fn swap(a: &Tensor, b: &Tensor) -> Result<()> {
    let before = a.f_detach_copy()?;
    a.shallow_clone().f_copy_(b)?;
    b.shallow_clone().f_copy_(&before)?;
    Ok(())
}
