//! The engine's reports of its steps: times, the profile, memory, observers.
//!
//! The engine prints nothing and opens no file. An [`Observer`] is called after each optimizer step
//! and may look at all of the engine; what it makes of it (`crate::run` has monitors) is its own.

use super::{Engine, Evaluation, MemoryUse, Observer, timers::PhaseTimes};
use crate::{
    bridge::memory::Kind,
    config::EngineConfig,
    error::{Code, Error, Result},
    model::{ModuleProfile, Recorder},
    tensor::{AllocatorUse, allocator_use},
};

impl Engine {
    /// Calls `observer` after each optimizer step from now on.
    pub fn observe(&mut self, observer: Box<dyn Observer>) {
        self.observers.push(observer);
    }

    /// The times of the last optimizer step's phases on this rank; `None` unless
    /// [`times_phases`](crate::config::MonitorConfig::times_phases).
    pub fn phase_times(&self) -> Option<PhaseTimes> {
        self.phase_times
    }

    /// Whether the steps of now will be undone.
    pub fn is_trial(&self) -> bool {
        self.is_trial
    }

    /// The profile of the last forward pass, where it was that of the step to profile.
    pub fn flops_profile(&self) -> Option<&ModuleProfile> {
        self.flops_profile.as_ref()
    }

    /// The memory that libtorch's allocator took for everything in this process; `None` on the
    /// CPU.
    pub fn allocator(&self) -> Result<Option<AllocatorUse>> {
        allocator_use(self.model.device())
    }

    /// The uses of the memory when the engine used most of it.
    pub fn memory(&self) -> MemoryUse {
        let (_, peak) = self.ledger.counts();
        MemoryUse {
            parameters: self.master_weights.parameter_bytes() + peak.of(Kind::Parameters),
            master_weights: self.states.master_bytes(self.model.device()),
            gradients: peak.of(Kind::Gradients),
            optimizer_state: peak.of(Kind::OptimizerState),
            activations: peak.of(Kind::Activations),
            buffers: peak.of(Kind::Buffers),
        }
    }

    /// Operations a second that the devices of all ranks are capable of in the dtype that the model
    /// computes in, if all have this rank's; `None` on the CPU and where the card is not known.
    pub fn peak_flops(&self) -> Option<f64> {
        let peak = self.gpu?.peak_flops(self.config.precision.dtype)?;
        Some(peak * self.mesh.world().world_size() as f64)
    }

    /// Tokens a second over the recent steps and all ranks; `None` before the first.
    pub fn tokens_per_second(&self) -> Option<f64> {
        self.pace.per_second().map(|(tokens, _)| tokens)
    }

    /// The model FLOPs utilization of the recent steps: the share of what the devices of all ranks are
    /// capable of. `None` before the first, and where the peak is not known.
    pub fn mfu(&self) -> Option<f64> {
        let (_, flops) = self.pace.per_second()?;
        Some(flops / self.peak_flops()?)
    }

    /// Rows that the optimizer steps so far were made of, over all ranks: `train_batch_size` for
    /// each step, skipped ones included, as DeepSpeed counts them.
    pub fn global_samples(&self) -> u64 {
        self.global_samples
    }

    /// Rows in the global batch of an optimizer step.
    pub fn train_batch_size(&self) -> usize {
        let EngineConfig { micro_batch_size, gradient_accumulation_steps, .. } = self.config;
        micro_batch_size * gradient_accumulation_steps * self.mesh.shape().dp
    }

    /// Tells the observers of the step that was just done.
    pub(super) fn tell_observers(&mut self) -> Result<()> {
        self.tell(|observer, engine| observer.on_step(engine))
    }

    /// Tells the observers of an evaluation: [`Engine::evaluate`] leaves the engine as it is.
    pub fn tell_evaluation(&mut self, evaluation: &Evaluation) -> Result<()> {
        self.tell(|observer, engine| observer.on_evaluation(engine, evaluation))
    }

    /// Makes steps from now on that will be undone by a checkpoint: no observer is told of them.
    ///
    /// # Errors
    /// [`Code::CallOrder`] where it does so already, or has the averages in the weights' place.
    pub fn begin_trial(&mut self) -> Result<()> {
        self.check_trained("with_restore")?;
        if self.is_trial {
            bail!(Code::CallOrder, "with_restore is not possible within `with_restore`");
        }
        self.is_trial = true;
        Ok(())
    }

    /// Refuses `what`, which writes steps down that stay, while steps are made that will be undone.
    ///
    /// # Errors
    /// [`Code::CallOrder`] between [`Engine::begin_trial`] and [`Engine::end_trial`].
    pub fn check_kept(&self, what: &str) -> Result<()> {
        if !self.is_trial {
            return Ok(());
        }
        let message =
            format!("{what} is not possible within `with_restore`, which undoes its steps");
        Err(Error::new(Code::CallOrder, message)
            .hint("use engine.train_batch(loader) and engine.evaluate(dataset) in it, and the run behind it"))
    }

    /// Tells observers again.
    pub fn end_trial(&mut self) {
        self.is_trial = false;
    }

    /// Tells all observers, also where one of them fails.
    fn tell(&mut self, tell: impl Fn(&mut dyn Observer, &Self) -> Result<()>) -> Result<()> {
        if self.is_trial {
            return Ok(());
        }
        let mut observers = std::mem::take(&mut self.observers);
        let told = observers.iter_mut().filter_map(|observer| tell(&mut **observer, self).err());
        let faults = told.collect();
        self.observers = observers;
        Error::all(faults).map_or(Ok(()), Err)
    }

    /// The recorder of the next forward pass, where it is to be profiled.
    pub(super) fn recorder(&self) -> Option<Recorder> {
        let profiler = self.config.monitor.flops_profiler.as_ref()?;
        (self.global_step == profiler.profile_step).then(|| Recorder::new(self.model.device()))
    }
}
