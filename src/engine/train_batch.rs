//! One optimizer step in one call, with the schedule of a pipeline: DeepSpeed's `train_batch`.

use std::collections::VecDeque;

use super::{
    Engine, StepOutcome,
    schedule::{Turn, one_f_one_b},
};
use crate::{
    data::Batch,
    error::{Code, Error, Result},
};

/// Hands out micro batches until there are no more.
pub(super) type NextBatch<'a, B> = &'a mut dyn FnMut() -> Result<Option<B>>;

/// Is told what becomes of each micro batch of a step.
pub trait BatchWatch<B> {
    /// Its forward pass is done.
    fn forward_done(&mut self, _batch: &B) {}
    /// Its backward pass is done, or failed.
    fn backward_done(&mut self, _error: Option<&Error>) {}
    /// The step is done.
    fn step_done(&mut self) {}
}

/// Looks at nothing.
impl<B> BatchWatch<B> for () {}

impl Engine {
    /// Makes an optimizer step of the next micro batches, whatever the mesh: forward and backward
    /// passes in the order of the schedule, then the step. `None` where `next` gives no more: micro
    /// batches that do not make a whole step are then left out.
    ///
    /// # Errors
    /// As [`Engine::forward`], [`Engine::backward`] and [`Engine::step`]; [`Code::CallOrder`] amid an
    /// accumulation.
    pub fn train_batch<B: AsRef<Batch>>(
        &mut self,
        next: NextBatch<'_, B>,
        watch: &mut dyn BatchWatch<B>,
    ) -> Result<Option<StepOutcome>> {
        if self.micro_step() > 0 {
            let done = self.micro_step();
            let message = format!("train_batch after {done} micro batches of a step");
            return Err(Error::new(Code::CallOrder, message)
                .hint("make a step with train_batch alone, or with forward, backward and step"));
        }
        let made = self.run_schedule(next, watch);
        // Other stages wait for what this one did not send.
        self.is_inconsistent |= made.is_err() && self.mesh.shape().pp > 1;
        made
    }

    fn run_schedule<B: AsRef<Batch>>(
        &mut self,
        next: NextBatch<'_, B>,
        watch: &mut dyn BatchWatch<B>,
    ) -> Result<Option<StepOutcome>> {
        let (place, shape) = (self.mesh.place(), self.mesh.shape());
        let micro_batches = self.config().gradient_accumulation_steps;
        // Stages are in different micro batches: none may begin a step that cannot be finished.
        let ahead = if shape.pp > 1 { micro_batches } else { 0 };
        let mut batches = VecDeque::with_capacity(ahead);
        while batches.len() < ahead {
            let Some(batch) = next()? else { return Ok(None) };
            batches.push_back(batch);
        }
        let mut passes = VecDeque::new();
        for turn in one_f_one_b(place.pp, shape.pp, micro_batches) {
            match turn {
                Turn::Forward(i) => {
                    let batch =
                        batches.pop_front().map_or_else(&mut *next, |batch| Ok(Some(batch)));
                    let Some(batch) = batch? else {
                        self.forget_step();
                        return Ok(None);
                    };
                    passes.push_back(self.run_forward(batch.as_ref(), i)?);
                    watch.forward_done(&batch);
                }
                Turn::Backward => {
                    let out_of_order = || Error::new(Code::Internal, "a backward pass too many");
                    let pass = passes.pop_front().ok_or_else(out_of_order)?;
                    let done = self.run_backward(pass);
                    watch.backward_done(done.as_ref().err());
                    done?;
                }
            }
        }
        self.pipe.flush()?;
        self.step()?;
        watch.step_done();
        Ok(self.last_step())
    }

    /// Refuses the single calls where other stages are in other micro batches.
    pub(super) fn check_one_stage(&self, call: &str) -> Result<()> {
        let stages = self.mesh.shape().pp;
        if stages == 1 {
            return Ok(());
        }
        let message = format!("engine.{call} is for one stage, and the pipeline has {stages}");
        Err(Error::new(Code::CallOrder, message)
            .hint("engine.train_batch(loader) makes a step with any mesh of ranks"))
    }
}
