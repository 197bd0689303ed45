//! The learning rate: a scheduler's, or the recipe's own.

use super::Engine;
use crate::{
    config::schedule::is_rate,
    error::{Code, Error, Result},
};

impl Engine {
    /// The learning rate of the next step.
    pub fn lr(&self) -> Result<f64> {
        let lr = self.own_lr.unwrap_or(self.config.optimizer.lr);
        self.config.scheduler.lr(lr, self.optimizer.applied_steps())
    }

    /// Trains with the learning rate `lr` from the next step on, in place of the optimizer's; groups of
    /// parameters keep their ratio to it. Every rank must set the same.
    ///
    /// # Errors
    /// [`Code::CallOrder`] with a scheduler, which would replace it at the next step;
    /// [`Code::BadValue`] for what is no learning rate.
    pub fn set_lr(&mut self, lr: f64) -> Result<()> {
        if let Some(scheduler) = self.config.scheduler.name() {
            let message = format!("`lr` cannot be set: it is the scheduler's, {scheduler}");
            return Err(Error::new(Code::CallOrder, message).hint(
                "leave `scheduler` out of init_engine, or let it be a function of the step",
            ));
        }
        if !is_rate(&lr) {
            bail!(Code::BadValue, "`lr` must be a finite number, 0 or more, found {lr}");
        }
        self.own_lr = Some(lr);
        Ok(())
    }
}
