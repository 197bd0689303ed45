//! The training engine: forward, backward, step.
//!
//! The engine, not autograd, walks the layers (`walk.rs`): each runs on a detached input, and the
//! backward pass goes from the last to the first, one layer's graph at a time, adding to flat
//! gradients (`gradients.rs`). What ZeRO, offload and checkpointing change is therefore a line in
//! one visible loop.
//!
//! The losses of a global batch are averaged as `window.rs` says, whose nominal weight is corrected
//! once, in [`Engine::step`].

mod evaluate;
mod gradients;
mod memory;
pub mod plan;
mod state;
mod walk;
mod window;

use std::rc::Rc;

pub use self::{
    evaluate::Evaluation,
    memory::MemoryUse,
    state::{RecipeRecord, TrainState},
};
use self::{
    gradients::Gradients,
    walk::{Activations, Pass, Seeds},
    window::{Totals, Window},
};
use crate::{
    bridge::memory::{self as ledger, Ledger},
    config::{EngineConfig, LossAverage},
    data::Batch,
    dist::{ProcessGroup, ReduceOp},
    error::{Code, Error, Result},
    model::{Model, Targets},
    optim::{AdamW, StepRates, clip_coefficient, norm},
    tensor::{Kind, Tensor, check_memory, guard, no_grad},
};

/// Bytes of a float32.
const F32_BYTES: u64 = 4;

/// One model with its optimizer, on one rank of a group.
pub struct Engine {
    model: Rc<Model>,
    group: Rc<ProcessGroup>,
    config: EngineConfig,
    optimizer: AdamW,
    gradients: Gradients,
    window: Window,
    pending: Option<Pending>,
    global_step: u64,
    last_step: Option<StepOutcome>,
    /// Set while state is changed, and left set by an error in between.
    torn: bool,
    /// What the engine allocates, by kind.
    ledger: Ledger,
}

/// What an optimizer step was like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutcome {
    /// The mean loss over the target tokens of the global batch.
    pub loss: f64,
    /// The norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The learning rate that the step used.
    pub lr: f64,
    /// Tokens of the global batch, padding left out.
    pub tokens: u64,
}

/// A forward pass that waits for its backward pass.
struct Pending {
    loss: Tensor,
    activations: Activations,
    loss_sum: Tensor,
    targets: i64,
    tokens: i64,
}

impl Engine {
    /// An engine for `model` as one rank of `group`.
    ///
    /// # Errors
    /// There is not enough memory for the optimizer's state.
    pub fn new(model: Rc<Model>, group: Rc<ProcessGroup>, config: EngineConfig) -> Result<Self> {
        let bytes: u64 = model.units().iter().map(|u| u.flat().numel() as u64 * F32_BYTES).sum();
        // AdamW's two averages, and the gradients.
        check_memory(model.device(), 3 * bytes, "training the model")?;
        if let Some(checkpointing) = config.activation_checkpointing {
            checkpointing.check(model.blocks().len())?;
        }
        let ledger = Ledger::new(model.device())?;
        let counting = ledger.open(ledger::Kind::OptimizerState)?;
        let optimizer = AdamW::new(config.optimizer, model.units().iter().map(|unit| unit.flat()))?;
        drop(counting);
        let gradients = Gradients::new(model.units().len());
        Ok(Self {
            model,
            group,
            config,
            optimizer,
            gradients,
            window: Window::default(),
            pending: None,
            global_step: 0,
            last_step: None,
            torn: false,
            ledger,
        })
    }

    /// The model that is trained.
    pub fn model(&self) -> &Rc<Model> {
        &self.model
    }

    /// The settings.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The ranks that train together.
    pub fn group(&self) -> &Rc<ProcessGroup> {
        &self.group
    }

    /// Optimizer steps done.
    pub fn global_step(&self) -> u64 {
        self.global_step
    }

    /// Micro batches of the step that has begun.
    pub fn micro_step(&self) -> usize {
        self.window.micro_steps()
    }

    /// What the last optimizer step was like; `None` before the first of this process.
    pub fn last_step(&self) -> Option<StepOutcome> {
        self.last_step
    }

    /// The learning rate of the next step.
    ///
    /// # Errors
    /// Those of the schedule's function.
    pub fn lr(&self) -> Result<f64> {
        self.config.scheduler.lr(self.config.optimizer.lr, self.optimizer.applied_steps())
    }

    fn rates(&self) -> Result<StepRates> {
        let (betas, applied) = (self.config.optimizer.betas, self.optimizer.applied_steps());
        Ok(StepRates { lr: self.lr()?, betas: self.config.scheduler.betas(betas, applied)? })
    }

    /// The mean loss over the target tokens of `batch`, float32 scalar, with all that
    /// [`Engine::backward`] needs. NaN where the batch has no target, as in PyTorch.
    ///
    /// # Errors
    /// Token ids or lengths that the model has no embedding for; memory is exhausted.
    pub fn forward(&mut self, batch: &Batch) -> Result<Tensor> {
        self.check_whole()?;
        // Frees the activations of a forward pass that was not used.
        self.pending = None;
        self.check_batch(batch)?;
        if self.window.micro_steps() == self.config.gradient_accumulation_steps {
            return Err(step_is_due(self.window.micro_steps()));
        }
        let _counting = self.ledger.open(ledger::Kind::Buffers)?;
        let pending = guard("forward", || {
            let tokens = batch.attention_mask.f_sum(Kind::Int64)?.f_int64_value(&[])?;
            let targets = Targets::shifted(&batch.labels);
            let pass = Pass {
                checkpointing: self.config.activation_checkpointing,
                seeds: self.seeds(),
                nominal: self.nominal(targets.count()),
            };
            let activations = Activations::forward(&self.model, batch, &targets, pass)?;
            let (loss_sum, targets) = activations.loss();
            let loss = (&loss_sum / targets as f64).to_kind(Kind::Float);
            Ok(Pending { loss, activations, loss_sum, targets, tokens })
        })?;
        let loss = pending.loss.shallow_clone();
        self.pending = Some(pending);
        Ok(loss)
    }

    /// Runs the backward pass of the micro batch whose `loss` [`Engine::forward`] returned, and adds
    /// to the gradients.
    ///
    /// # Errors
    /// [`Code::CallOrder`] for any other tensor, or a second time; memory is exhausted.
    pub fn backward(&mut self, loss: &Tensor) -> Result<()> {
        self.check_whole()?;
        let Some(pending) = self.pending.take() else {
            return Err(Error::new(Code::CallOrder, "backward without a forward before it")
                .hint("call engine.forward(batch) first, once for each backward"));
        };
        if loss.data_ptr() != pending.loss.data_ptr() {
            self.pending = Some(pending);
            return Err(Error::new(
                Code::CallOrder,
                "backward needs the loss that the last engine.forward(batch) returned",
            ));
        }
        let _counting = self.ledger.open(ledger::Kind::Buffers)?;
        self.torn = true;
        let (model, gradients) = (&self.model, &mut self.gradients);
        guard("backward", || pending.activations.backward(model, gradients))?;
        self.torn = false;
        let loss = (pending.loss_sum, pending.targets);
        self.window.add(self.config.loss_average, loss, pending.tokens)
    }

    /// At the last micro batch of a global batch: reduces, clips and applies the gradients, and
    /// returns true; before it returns false and does nothing.
    ///
    /// # Errors
    /// [`Code::Diverged`] for a loss or gradient that is not finite: the gradients are dropped, and
    /// parameters and optimizer stay as they were. Those of the schedule, which leave the gradients
    /// too. [`Code::CallOrder`] without a backward before it.
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
        let _counting = self.ledger.open(ledger::Kind::Buffers)?;
        self.torn = true;
        let window = std::mem::take(&mut self.window);
        let mut grads = self.gradients.take(self.model.units())?;
        let outcome = guard("step", || self.reduce_and_apply(&window, &mut grads, rates))?;
        self.torn = false;
        let outcome = outcome?;
        self.global_step += 1;
        self.last_step = Some(outcome);
        Ok(true)
    }

    /// The step proper. The inner error leaves parameters and optimizer as they were.
    fn reduce_and_apply(
        &mut self,
        window: &Window,
        grads: &mut [Tensor],
        rates: StepRates,
    ) -> Result<Result<StepOutcome>> {
        let Totals { loss, weight, tokens } = window.reduce(&self.group)?;
        self.reduce_gradients(grads)?;
        if weight == 0.0 {
            let message =
                format!("step {}: no row of the global batch has a target", self.global_step + 1);
            return Ok(Err(Error::new(Code::Data, message)
                .hint("rows of one token, or of padding alone, have nothing to predict")));
        }
        let correction = self.nominal_total() / weight;
        let grad_norm = norm(grads)? * correction;
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Ok(Err(self.diverged(loss, grad_norm)));
        }
        let scale = correction * clip_coefficient(grad_norm, self.config.gradient_clipping);
        let params: Vec<&Tensor> = self.model.units().iter().map(|unit| unit.flat()).collect();
        no_grad(|| self.optimizer.step(&params, grads, rates, 1.0 / scale))?;
        Ok(Ok(StepOutcome { loss, grad_norm, lr: rates.lr, tokens }))
    }

    /// Sums each unit's gradient over the ranks; all are under way before the first is waited for.
    fn reduce_gradients(&self, grads: &[Tensor]) -> Result<()> {
        let works: Result<Vec<_>> =
            grads.iter().map(|grad| self.group.all_reduce_async(grad, ReduceOp::Sum)).collect();
        works?.into_iter().try_for_each(|work| work.wait())
    }

    fn diverged(&self, loss: f64, grad_norm: f64) -> Error {
        let step = self.global_step + 1;
        let message = match loss.is_finite() {
            false => format!("the loss is {loss} at step {step}"),
            true => format!("the gradient's norm is {grad_norm} at step {step} (loss {loss:.4})"),
        };
        let before = self.last_step.map(|last| {
            format!(
                "the step before had loss {:.4} and gradient norm {:.3}",
                last.loss, last.grad_norm
            )
        });
        let e = Error::new(Code::Diverged, message);
        let e = before.into_iter().fold(e, |e, hint| e.hint(hint));
        e.hint("parameters are as before the step; try a lower lr, a longer warm-up or gradient_clipping: 1.0")
    }

    /// What the losses of a micro batch with this many targets are divided by for its gradient.
    fn nominal(&self, targets: i64) -> f64 {
        match self.config.loss_average {
            LossAverage::Tokens => self.nominal_total(),
            LossAverage::MicroBatches => self.nominal_total() * targets.max(1) as f64,
        }
    }

    /// The weight of a whole step before it is known. For tokens any number would do; this one is
    /// the same however the global batch is cut.
    fn nominal_total(&self) -> f64 {
        let micro_batches =
            (self.config.gradient_accumulation_steps * self.group.world_size()) as f64;
        let tokens = (self.model.config().n_positions - 1).max(1) as f64;
        match self.config.loss_average {
            LossAverage::Tokens => micro_batches * self.config.micro_batch_size as f64 * tokens,
            LossAverage::MicroBatches => micro_batches,
        }
    }

    fn seeds(&self) -> Seeds {
        Seeds::new(
            self.config.seed,
            self.global_step,
            self.window.micro_steps() as u64,
            self.group.rank() as u64,
        )
    }

    fn check_batch(&self, batch: &Batch) -> Result<()> {
        let (rows, expected) = (batch.input_ids.size()[0], self.config.micro_batch_size);
        if rows > expected as i64 {
            return Err(Error::new(
                Code::Shape,
                format!("the batch has {rows} rows, the engine's micro_batch_size is {expected}"),
            )
            .hint("give loader and init_engine the same micro_batch_size"));
        }
        if batch.input_ids.device() != self.model.device() {
            bail!(
                Code::Shape,
                "the batch is on {:?} and the model on {:?}",
                batch.input_ids.device(),
                self.model.device()
            );
        }
        self.model.check_input_ids(&batch.input_ids, 0).map_err(|e| {
            let place = format!(
                "in the batch that begins at row {} of epoch {}",
                batch.first_row, batch.epoch
            );
            e.hint(place)
        })
    }

    /// Refuses to go on after an error left gradients or parameters half changed.
    fn check_whole(&self) -> Result<()> {
        if !self.torn {
            return Ok(());
        }
        Err(Error::new(Code::CallOrder, "this engine stopped in the middle of an earlier call")
            .hint("load a checkpoint into it, or make a new one"))
    }
}

fn step_is_due(micro_steps: usize) -> Error {
    Error::new(
        Code::CallOrder,
        format!("{micro_steps} micro batches are accumulated and step was not called"),
    )
    .hint("call engine.step() after each engine.backward(loss); it applies the gradients when they are due")
}
