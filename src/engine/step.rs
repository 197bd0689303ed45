//! The optimizer step: what the micro batches have added is reduced, judged, clipped and applied.

use super::{
    Engine, StepOutcome,
    health::{Verdict, first_not_finite},
    timers::Phase,
    unit_states::UnitState,
    window::{Totals, Window},
};
use crate::{
    bridge::memory as ledger,
    dist::{ReduceOp, Shard},
    error::{Code, Error, Result},
    optim::{StepRates, UnitTensors, clip_coefficient, squared_norm},
    tensor::{Tensor, guard, no_grad},
};

impl Engine {
    /// At the last micro batch of a global batch: reduces, clips and applies the gradients, and
    /// returns true; before it returns false and does nothing. A gradient that is not finite skips
    /// the step: parameters, optimizer and schedule stay as they were.
    ///
    /// # Errors
    /// [`Code::Diverged`] for a loss that is not finite, a gradient that is not at the lowest loss
    /// scale, or many such in a row without a dynamic scale: the gradients are dropped, and
    /// parameters and optimizer stay as they were. Those of the schedule, which leave the gradients
    /// too. [`Code::CallOrder`] without a backward before it. Those of the observers, when the step
    /// is done and whole.
    pub fn step(&mut self) -> Result<bool> {
        self.check_whole()?;
        if self.window.micro_steps() == 0 {
            return Err(Error::new(Code::CallOrder, "step without a backward before it")
                .hint("the order is forward, backward, step for each batch"));
        }
        if self.window.micro_steps() < self.config.gradient_accumulation_steps {
            return Ok(false);
        }
        // A schedule's function that fails leaves the engine as it was.
        let rates = self.rates()?;
        self.timers.start(Phase::Reduce)?;
        let _counting = self.ledger.open(ledger::Kind::Buffers)?;
        self.torn = true;
        let window = std::mem::take(&mut self.window);
        let outcome = guard("step", || self.reduce_and_apply(&window, rates))?;
        self.torn = false;
        self.timers.stop()?;
        self.phase_times = self.timers.take();
        let outcome = outcome?;
        self.global_step += 1;
        self.global_samples += self.train_batch_size() as u64;
        self.last_step = Some(outcome);
        self.tell_observers()?;
        Ok(true)
    }

    /// The step proper. The inner error leaves parameters and optimizer as they were.
    fn reduce_and_apply(
        &mut self,
        window: &Window,
        rates: StepRates,
    ) -> Result<Result<StepOutcome>> {
        let Totals { loss, weight, tokens } = window.reduce(&self.group)?;
        let grads = no_grad(|| self.gradients.take(self.model.units()))?;
        self.timers.start(Phase::Step)?;
        if weight == 0.0 {
            let message =
                format!("step {}: no row of the global batch has a target", self.global_step + 1);
            return Ok(Err(Error::new(Code::Data, message)
                .hint("rows of one token, or of padding alone, have nothing to predict")));
        }
        // The gradients carry the loss scale of their backward pass.
        let loss_scale = self.health.scaler.shown();
        let correction = self.nominal_total() / weight / self.health.scaler.scale();
        let grad_norm = self.grad_norm(&grads)? * correction;
        let verdict = self.health.judge(loss, grad_norm);
        if let Verdict::Stop(reason) = verdict {
            let shard = self.publication.shard().unwrap_or(Shard::WHOLE);
            let states = &self.states;
            let culprit = first_not_finite(&self.model, &self.group, shard, states, &grads)?;
            let step = self.global_step + 1;
            return Ok(Err(self.health.stop(&reason, step, culprit, &window.suspects()?)));
        }
        if verdict == Verdict::Apply {
            let scale = correction * clip_coefficient(grad_norm, self.config.gradient_clipping);
            self.apply(grads, rates, 1.0 / scale)?;
        }
        let skipped = verdict == Verdict::Skip;
        let StepRates { lr, betas } = rates;
        Ok(Ok(StepOutcome { loss, grad_norm, lr, betas, tokens, loss_scale, skipped }))
    }

    /// Updates unit after unit, whose gradients are freed on the way.
    fn apply(&mut self, grads: Vec<Tensor>, rates: StepRates, grad_scale: f64) -> Result<()> {
        let (optimizer, group, publication) = (&self.optimizer, &self.group, &self.publication);
        let mut grads = grads.into_iter();
        self.states.change(|i, UnitState { master, state }| {
            let grad = grads.next().ok_or_else(|| Error::new(Code::Internal, "no gradient"))?;
            let tensors = UnitTensors { param: master, grad: &grad, state };
            optimizer.update(group, i, tensors, rates, grad_scale)?;
            drop(grad);
            publication.publish(i, master)
        })?;
        publication.finish()?;
        self.optimizer.end_step();
        Ok(())
    }

    /// The norm of a gradient of which each rank has the whole or its slice: every rank takes its
    /// slice's part, so that the stages agree to the bit.
    fn grad_norm(&self, grads: &[Tensor]) -> Result<f64> {
        let (shard, whole) = (Shard::of(&self.group), self.publication.shard().is_none());
        let own = |grad: &Tensor| if whole { shard.slice(grad) } else { Ok(grad.shallow_clone()) };
        let own: Vec<_> = grads.iter().map(own).collect::<Result<_>>()?;
        let square = squared_norm(&own, self.group.device())?;
        self.group.all_reduce(&square, ReduceOp::Sum)?;
        Ok(square.f_double_value(&[])?.sqrt())
    }
}
