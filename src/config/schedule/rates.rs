//! The learning rate of an optimizer step, and the betas that go with it.

use std::{fmt, rc::Rc};

use super::{
    deepspeed::DeepSpeedSchedule, huggingface::HuggingFaceSchedule, one_cycle::OneCycle,
    rate::is_rate,
};
use crate::error::{Code, Error, Result};

/// A schedule with its settings.
#[derive(Debug, Clone)]
pub enum Schedule {
    /// The optimizer's `lr` at every step.
    Constant,
    /// One of DeepSpeed's.
    DeepSpeed(DeepSpeedSchedule),
    /// One of transformers'.
    HuggingFace(HuggingFaceSchedule),
    /// The learning rate as any function of the applied steps.
    Function(LrFunction),
}

/// The learning rate of the step after so many applied steps.
#[derive(Clone)]
pub struct LrFunction(Rc<dyn Fn(u64) -> Result<f64>>);

impl LrFunction {
    /// Takes a function that gives the rate itself, not a factor of the optimizer's `lr`.
    pub fn new(function: impl Fn(u64) -> Result<f64> + 'static) -> Self {
        Self(Rc::new(function))
    }
}

impl fmt::Debug for LrFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LrFunction(..)")
    }
}

impl Schedule {
    /// The name of the schedule, by its `type`; `None` where the rate is the optimizer's `lr`.
    pub fn name(&self) -> Option<&'static str> {
        match self {
            Self::Constant => None,
            Self::DeepSpeed(schedule) => Some(schedule.name()),
            Self::HuggingFace(schedule) => Some(schedule.name()),
            Self::Function(_) => Some("a function of the recipe"),
        }
    }

    /// The learning rate of the step after `applied` steps; `lr` is the optimizer's.
    ///
    /// # Errors
    /// Those of a function; [`Code::BadValue`] for what is no learning rate.
    pub fn lr(&self, lr: f64, applied: u64) -> Result<f64> {
        let rate = match self {
            Self::Constant => lr,
            Self::DeepSpeed(schedule) => schedule.lr(lr, applied),
            Self::HuggingFace(schedule) => lr * schedule.ratio(applied),
            Self::Function(function) => function.0(applied)?,
        };
        if is_rate(&rate) {
            return Ok(rate);
        }
        let message = format!("the scheduler's learning rate of step {} is {rate}", applied + 1);
        Err(Error::new(Code::BadValue, message).option("scheduler"))
    }

    /// The betas of the step after `applied` steps; `betas` are the optimizer's, the first its
    /// momentum.
    ///
    /// # Errors
    /// [`Code::BadValue`] when `decay_mom_rate` has brought the momentum to 1.
    pub fn betas(&self, betas: (f64, f64), applied: u64) -> Result<(f64, f64)> {
        let Self::DeepSpeed(DeepSpeedSchedule::OneCycle(cycle)) = self else { return Ok(betas) };
        let Some(cycled) = cycle.betas(applied) else { return Ok(betas) };
        if cycled.0 < 1.0 {
            return Ok(cycled);
        }
        let message = format!(
            "OneCycle's momentum of step {} is {}, and it must be below 1",
            applied + 1,
            cycled.0
        );
        Err(Error::new(Code::BadValue, message)
            .option("scheduler.decay_mom_rate")
            .hint("decay_mom_rate makes the momentum grow after the cycle: lower it, or train for fewer steps"))
    }

    /// Refuses settings that contradict each other or the optimizer's `lr`, all together.
    ///
    /// # Errors
    /// [`Code::BadValue`], with option paths from the schedule's own level.
    pub fn check(&self, lr: f64) -> Result<()> {
        let (horizon, mut faults) = match self {
            Self::Constant | Self::Function(_) => (None, Vec::new()),
            Self::DeepSpeed(schedule) => (schedule.horizon(), schedule.faults(lr)),
            Self::HuggingFace(schedule) => (schedule.horizon(), Vec::new()),
        };
        if let Some((warmup, total)) = horizon
            && warmup > total
        {
            let message = format!(
                "warmup_num_steps {warmup} is more than total_num_steps {total}: the rate would never reach its peak"
            );
            faults.push(Error::new(Code::BadValue, message).option("warmup_num_steps"));
        }
        Error::all(faults).map_or(Ok(()), Err)
    }

    /// Refuses what the optimizer was given, if it was, and the schedule would silently replace.
    ///
    /// # Errors
    /// [`Code::BadValue`] at `optimizer.lr` and `optimizer.betas`.
    pub fn check_replaced(&self, lr: Option<f64>, betas: Option<(f64, f64)>) -> Result<()> {
        let faults = [lr.and_then(|lr| self.replaced_lr(lr)), betas.and(self.replaced_betas())];
        Error::all(faults.into_iter().flatten().collect()).map_or(Ok(()), Err)
    }

    /// The cycle of the momentum, if there is one.
    pub fn cycled_momentum(&self) -> Option<&OneCycle> {
        let Self::DeepSpeed(DeepSpeedSchedule::OneCycle(cycle)) = self else { return None };
        cycle.cycle_momentum.then_some(cycle)
    }

    /// The learning rate that stands for the optimizer's `lr`, where the schedule has its own.
    pub fn own_lr(&self) -> Option<f64> {
        let Self::DeepSpeed(schedule) = self else { return None };
        schedule.own_lr().map(|(_, _, rate)| rate)
    }

    fn replaced_lr(&self, lr: f64) -> Option<Error> {
        let (reason, hint) = match self {
            Self::Constant | Self::HuggingFace(_) => return None,
            Self::Function(_) => (
                "the scheduler's function gives the learning rate itself, not a factor".to_owned(),
                "leave lr out, and multiply with it in the function".to_owned(),
            ),
            Self::DeepSpeed(schedule) => {
                let (name, option, rate) = schedule.own_lr()?;
                if rate == lr {
                    return None;
                }
                (
                    format!("{name} goes by its own {option}, {rate}"),
                    format!("leave lr out, or give the scheduler {option}: {lr}"),
                )
            }
        };
        let message = format!("`optimizer.lr` {lr} would not be used: {reason}");
        Some(Error::new(Code::BadValue, message).option("optimizer.lr").hint(hint))
    }

    fn replaced_betas(&self) -> Option<Error> {
        let Self::DeepSpeed(DeepSpeedSchedule::OneCycle(cycle)) = self else { return None };
        let (_, beta2) = cycle.betas(0)?;
        let message = format!(
            "`optimizer.betas` would not be used: OneCycle cycles beta1 and sets beta2 to {beta2}, as DeepSpeed does"
        );
        let fault = Error::new(Code::BadValue, message).option("optimizer.betas");
        Some(fault.hint("leave betas out, or give the scheduler cycle_momentum: false"))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            deepspeed::{Warmup, WarmupDecayLr, WarmupType},
            huggingface::Linear,
        },
        *,
    };

    fn paths(result: Result<()>) -> Vec<String> {
        let Err(error) = result else { return Vec::new() };
        let all = std::iter::once(&error).chain(error.others());
        all.map(|e| e.option_path().unwrap().to_owned()).collect()
    }

    fn one_cycle(decay_mom_rate: f64) -> OneCycle {
        OneCycle {
            cycle_min_lr: 0.01,
            cycle_max_lr: 0.1,
            cycle_first_step_size: 2,
            cycle_second_step_size: None,
            cycle_first_stair_count: 0,
            cycle_second_stair_count: None,
            decay_lr_rate: 0.0,
            decay_step_size: 1,
            cycle_momentum: true,
            cycle_min_mom: 0.8,
            cycle_max_mom: 0.9,
            decay_mom_rate,
        }
    }

    #[test]
    fn a_function_gives_the_rate_itself() {
        let rate = |step: u64| Ok(if step < 2 { step as f64 } else { f64::NAN });
        let schedule = Schedule::Function(LrFunction::new(rate));
        assert_eq!(schedule.lr(5.0, 1).unwrap(), 1.0);
        let e = schedule.lr(5.0, 2).unwrap_err();
        assert_eq!(e.message(), "the scheduler's learning rate of step 3 is NaN");
        assert_eq!(format!("{schedule:?}"), "Function(LrFunction(..))");
    }

    #[test]
    fn a_warm_up_longer_than_the_run_is_refused() {
        let linear =
            HuggingFaceSchedule::Linear(Linear { total_num_steps: 5, warmup_num_steps: 6 });
        assert_eq!(paths(Schedule::HuggingFace(linear).check(1.0)), ["warmup_num_steps"]);
        let decay = DeepSpeedSchedule::WarmupDecayLr(
            WarmupDecayLr { total_num_steps: 5, warmup_min_lr: 0.2, warmup_max_lr: 0.1 },
            Warmup { warmup_num_steps: 6, warmup_type: WarmupType::Log },
        );
        let found = paths(Schedule::DeepSpeed(decay).check(1.0));
        assert_eq!(found, ["warmup_min_lr", "warmup_num_steps"]);
        assert!(Schedule::Constant.check(1.0).is_ok());
    }

    #[test]
    fn what_the_schedule_replaces_is_refused() {
        let function = Schedule::Function(LrFunction::new(|_| Ok(1.0)));
        let betas = Some((0.9, 0.95));
        assert_eq!(paths(function.check_replaced(Some(1.0), betas)), ["optimizer.lr"]);
        let cycle = Schedule::DeepSpeed(DeepSpeedSchedule::OneCycle(one_cycle(0.0)));
        let both = ["optimizer.lr", "optimizer.betas"];
        assert_eq!(paths(cycle.check_replaced(Some(1e-3), betas)), both);
        assert!(cycle.check_replaced(Some(0.1), None).is_ok());
        assert!(Schedule::Constant.check_replaced(Some(0.1), betas).is_ok());
    }

    #[test]
    fn a_momentum_that_grows_to_one_is_an_error() {
        let cycle = Schedule::DeepSpeed(DeepSpeedSchedule::OneCycle(one_cycle(0.05)));
        let beta1 = |applied| cycle.betas((0.5, 0.5), applied).map(|betas| betas.0);
        assert!((beta1(6).unwrap() - 0.99).abs() < 1e-12);
        let e = beta1(7).unwrap_err();
        assert_eq!(e.option_path(), Some("scheduler.decay_mom_rate"));
        assert_eq!(Schedule::Constant.betas((0.5, 0.6), 7).unwrap(), (0.5, 0.6));
    }
}
