//! The optimizer step: gradients are reduced, checked, clipped and applied.

use std::time::Instant;

use super::{
    Engine, StepOutcome,
    accumulation::Accumulation,
    outliers::Skip,
    overflow_check::{StepDecision, first_not_finite},
    state_file::UnitState,
    stop::StopSignal,
    timers::StepPhase,
    totals::{KnownTotals, Totals},
};
use crate::{
    bridge::{memory as ledger, trace::range},
    dist::{ReduceOp, ShardSpec},
    error::{Code, Error, Result, StopWhen},
    optim::{StepRates, UnitTensors, squared_norm, squares},
    tensor::{Kind, Tensor, guard, no_grad},
    tensor_parallel::Split,
};

impl Engine {
    /// At the last micro batch of a global batch: reduces, clips and applies the gradients, and
    /// returns true; before it returns false and does nothing. A gradient that is not finite skips
    /// the step: parameters, optimizer and schedule stay as they were.
    ///
    /// # Errors
    /// [`Code::Diverged`] for a loss that is not finite, a gradient that is not at the lowest loss
    /// scale, or many such in a row without a dynamic scale: the gradients are dropped, and
    /// parameters and optimizer stay as they were. [`Code::CallOrder`] without a backward before it.
    /// An error of the schedule leaves the gradients too; after one of an observer the step is done.
    pub fn step(&mut self) -> Result<bool> {
        self.begin()?;
        if self.accumulation.micro_steps() == 0 {
            return Err(Error::new(Code::CallOrder, "step without a backward before it")
                .hint("the order is forward, backward, step for each batch"));
        }
        if self.accumulation.micro_steps() < self.config.gradient_accumulation_steps {
            return Ok(false);
        }
        // A schedule's function that fails leaves the engine as it was.
        let rates = self.rates()?;
        self.timers.start(StepPhase::Reduce)?;
        let in_trace = range("step");
        let _counting = self.ledger.open(ledger::Kind::Buffers)?;
        self.is_inconsistent = true;
        let accumulation = std::mem::take(&mut self.accumulation);
        let outcome = guard("step", || self.reduce_and_apply(&accumulation, rates))?;
        self.is_inconsistent = false;
        self.timers.stop()?;
        drop(in_trace);
        self.phase_times = self.timers.take();
        let outcome = outcome?;
        self.global_step += 1;
        self.global_samples += self.train_batch_size() as u64;
        self.last_step = Some(outcome);
        self.pace.end(Instant::now(), outcome.tokens, outcome.flops);
        self.tell_observers()?;
        Ok(true)
    }

    /// The step proper. The inner error leaves parameters and optimizer as they were.
    fn reduce_and_apply(
        &mut self,
        accumulation: &Accumulation,
        rates: StepRates,
    ) -> Result<Result<StepOutcome>> {
        let mut grads = no_grad(|| self.gradients.take())?;
        no_grad(|| self.sum_parts(&grads))?;
        self.timers.start(StepPhase::Step)?;
        let totals = self.totals(accumulation, &grads)?;
        // The gradients carry the loss scale of their backward pass.
        let loss_scale = self.overflow_check.scaler.shown();
        // The device cannot tell outliers, so that the host judges before.
        let launched = self.optimizer.is_fused()
            && self.states.is_on(self.mesh.world().device())
            && !self.outliers.is_on();
        if launched {
            // They are looked at again where the step stops the training.
            self.apply(&mut grads, rates, (&totals, true))?;
        }
        let KnownTotals { loss, weight, tokens, grad_norm } = totals.read()?;
        if weight == 0.0 {
            let message =
                format!("step {}: no row of the global batch has a target", self.global_step + 1);
            return Ok(Err(Error::new(Code::Data, message)
                .hint("rows of one token, or of padding alone, have nothing to predict")));
        }
        let verdict = self.overflow_check.judge(loss, grad_norm);
        if let StepDecision::Stop(reason) = verdict {
            let shard = self.master_weights.shard().unwrap_or(ShardSpec::WHOLE);
            let states = &self.states;
            let world = self.mesh.world();
            let culprit = first_not_finite(&self.model, world, shard, states, &grads)?;
            let step = self.global_step + 1;
            return Ok(Err(self.overflow_check.stop(
                &reason,
                step,
                culprit,
                &accumulation.suspects()?,
            )));
        }
        let skipped = match verdict {
            StepDecision::Apply => self.outliers.judge(loss, grad_norm),
            _ => Some(Skip::NotFinite),
        };
        self.overflow_check.skipped_steps +=
            u64::from(skipped.is_some_and(|skip| skip != Skip::NotFinite));
        if skipped.is_none() {
            if !launched {
                self.apply(&mut grads, rates, (&totals, false))?;
            } else {
                self.states.change(|_, units| self.averages.update(units))?;
            }
            self.optimizer.end_step();
            self.averages.end_step();
        }
        let StepRates { lr, betas } = rates;
        let flops = tokens as f64 * self.model().flops_per_token(self.row_tokens);
        Ok(Ok(StepOutcome { loss, grad_norm, lr, betas, tokens, flops, loss_scale, skipped }))
    }

    /// The sums of micro batches and of the gradient's norm over all ranks. Every
    /// rank takes its slice's part of a norm, so that the stages agree to the bit.
    fn totals(&self, accumulation: &Accumulation, grads: &[Tensor]) -> Result<Totals> {
        let (dp, world) = (self.mesh.dp(), self.mesh.world());
        let (shard, whole) = (ShardSpec::of(dp), self.master_weights.shard().is_none());
        let own = |grad: &Tensor| if whole { shard.slice(grad) } else { Ok(grad.shallow_clone()) };
        let own: Vec<_> = grads.iter().map(own).collect::<Result<_>>()?;
        let device = world.device();
        let sums = accumulation.sums(&self.square(&own)?, device)?;
        Totals::over(world, sums, self.total_normalizer() / self.overflow_check.scaler.scale())
    }

    /// The square of the gradients `own` of this rank; that of all stages is the last one's, from the
    /// same numbers in the same order as one stage has them.
    fn square(&self, own: &[Tensor]) -> Result<Tensor> {
        let (device, shape) = (self.mesh.world().device(), self.mesh.shape());
        if shape.tp > 1 {
            return self.square_of_parts(own);
        }
        if shape.pp == 1 {
            return squared_norm(own, device);
        }
        let all = Tensor::f_zeros([self.model.trainable_count() as i64], (Kind::Double, device))?;
        let here = squares(own, device)?;
        for i in 0..own.len() {
            let number = self.model.unit_number(i);
            // What stages share is counted once.
            if self.placement.owner(number) == self.mesh.place().pp {
                all.f_select(0, number as i64)?.f_copy_(&here.f_select(0, i as i64)?)?;
            }
        }
        self.mesh.pp().all_reduce(&all, ReduceOp::Sum)?;
        match self.mesh.is_last_stage() {
            true => Ok(all.f_sum(Kind::Double)?),
            false => Ok(Tensor::f_zeros([0i64; 0], (Kind::Double, device))?),
        }
    }

    /// The square of what this rank counts, where ranks share layers: its parts, and of what all of
    /// them have whole the first rank's.
    fn square_of_parts(&self, own: &[Tensor]) -> Result<Tensor> {
        let mut counted = Vec::new();
        for (i, grad) in own.iter().enumerate() {
            let number = self.model.unit_number(i);
            if self.placement.owner(number) != self.mesh.place().pp {
                continue;
            }
            for (index, part) in self.parts_of(i, grad, ShardSpec::of(self.mesh.dp()))? {
                let is_part = self.model.split(number, index).is_some_and(Split::divides);
                if is_part || self.mesh.place().tp == 0 {
                    counted.push(part);
                }
            }
        }
        squared_norm(&counted, self.mesh.world().device())
    }

    /// The parameters of unit `i` that lie in `flat`, a slice of the unit as `shard` says, each with
    /// its number in the unit.
    fn parts_of(&self, i: usize, flat: &Tensor, shard: ShardSpec) -> Result<Vec<(usize, Tensor)>> {
        let unit = &self.model.units()[i];
        let mut parts = Vec::new();
        for (index, (spec, &offset)) in unit.specs().iter().zip(unit.offsets()).enumerate() {
            let found = shard.overlap(unit.padded_numel(), offset, offset + spec.numel());
            if let Some((from, to, at)) = found {
                parts.push((index, flat.f_narrow(0, at, to - from)?));
            }
        }
        Ok(parts)
    }

    /// Sums the gradients of which each of the ranks that share layers has made a part.
    fn sum_parts(&self, grads: &[Tensor]) -> Result<()> {
        let tp = self.mesh.tp();
        if tp.world_size() == 1 {
            return Ok(());
        }
        let shard = self.master_weights.shard().unwrap_or(ShardSpec::WHOLE);
        let mut parts = Vec::new();
        for (i, grad) in grads.iter().enumerate() {
            let number = self.model.unit_number(i);
            let is_summed = |index| self.model.split(number, index) == Some(&Split::Summed);
            let of_unit = self.parts_of(i, grad, shard)?.into_iter();
            parts.extend(of_unit.filter(|&(index, _)| is_summed(index)).map(|(_, part)| part));
        }
        if parts.is_empty() {
            return Ok(());
        }
        // They are small and many: one sum of all of them.
        let there = parts.iter().map(|part| part.f_to_device(tp.device()));
        let sums = Tensor::f_cat(&there.collect::<std::result::Result<Vec<_>, _>>()?, 0)?;
        tp.all_reduce(&sums, ReduceOp::Sum)?;
        let mut at = 0;
        for mut part in parts {
            let numel = part.numel() as i64;
            part.f_copy_(&sums.f_narrow(0, at, numel)?)?;
            at += numel;
        }
        Ok(())
    }

    /// Updates the units, where the totals allow it. Gradients that are not to be kept are freed on
    /// the way.
    fn apply(
        &mut self,
        grads: &mut [Tensor],
        rates: StepRates,
        (totals, keep): (&Totals, bool),
    ) -> Result<()> {
        let (optimizer, group, master_weights) =
            (&self.optimizer, self.mesh.dp(), &self.master_weights);
        let averages = &self.averages;
        let clipping = self.config.gradient_clipping;
        // All of them before the first update: the host waits for its own, and not for what a device
        // has to do after.
        let scaling = |device| Ok((device, totals.scaling(clipping, device)?));
        let devices = self.states.devices().into_iter().rev();
        let scalings: Vec<_> = devices.map(scaling).collect::<Result<_>>()?;
        let missing = || Error::new(Code::Internal, "a device without a scaling");
        self.states.change(|device, units| {
            let (_, scaling) = scalings.iter().find(|(of, _)| *of == device).ok_or_else(missing)?;
            let mut updates = Vec::new();
            for &(i, UnitState { master, state, .. }) in units {
                updates.push((i, UnitTensors { param: master, grad: &grads[i], state }));
            }
            optimizer.update(group, &updates, rates, Some(scaling))?;
            // What is looked at again may not have been applied.
            if !keep {
                averages.update(units)?;
                units.iter().for_each(|(i, _)| grads[*i] = Tensor::new());
            }
            master_weights.publish(units)
        })?;
        master_weights.finish()
    }

    /// Asks `stop` between two layers of a forward and of a backward pass. Where it says so, the pass
    /// ends with [`Code::Interrupted`]: a forward pass as if it had not begun, a backward pass with
    /// the micro batches of its step forgotten. An optimizer step is always finished. Only for an
    /// engine that is alone: other ranks would wait.
    pub fn stop_when(&mut self, stop: StopWhen) {
        if self.mesh.world().world_size() == 1 {
            self.stop = StopSignal(Some(stop));
        }
    }

    /// Goes back to the end of the last optimizer step, whose micro batches since are forgotten.
    ///
    /// # Errors
    /// [`Code::CallOrder`] where an error left parameters or state half changed.
    pub fn give_up_step(&mut self) -> Result<()> {
        self.check_whole()?;
        self.forget_step();
        Ok(())
    }

    /// Goes back to the end of the last optimizer step.
    pub(super) fn forget_step(&mut self) {
        self.pending = None;
        self.gradients.clear();
        self.accumulation = Accumulation::default();
        self.timers.reset();
        self.is_inconsistent = false;
    }
}
