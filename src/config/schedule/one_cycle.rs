//! DeepSpeed's `OneCycle`: one cycle of the learning rate and, against it, of the momentum, then a
//! decay (Smith 2018).

use super::rate::is_rate;
use crate::{
    config::options::{Options, option_table},
    error::{Code, Error},
};

/// What DeepSpeed makes of AdamW's second beta while it cycles the first.
const BETA2: f64 = 0.99;

option_table! {
    /// The settings, under DeepSpeed's names.
    #[derive(Debug, Clone, Copy, PartialEq)]
    #[check_map(OneCycle::check)]
    pub struct OneCycle {
        /// the rate at both ends of the cycle
        #[option(required, must = is_rate => "a finite number, 0 or more", deepspeed = "cycle_min_lr")]
        pub cycle_min_lr: f64,
        /// the rate at its peak
        #[option(required, must = is_rate => "a finite number, 0 or more", deepspeed = "cycle_max_lr")]
        pub cycle_max_lr: f64,
        /// steps up
        #[option(default = 2000, range = 1.., deepspeed = "cycle_first_step_size")]
        pub cycle_first_step_size: u64,
        /// steps down; as many as up by default
        #[option(optional)]
        pub cycle_second_step_size: Option<u64>,
        /// stairs on the way up; 0 for a straight line
        #[option(default = 0, deepspeed = "cycle_first_stair_count")]
        pub cycle_first_stair_count: u64,
        /// stairs on the way down; as many as up by default
        #[option(optional, deepspeed = "cycle_second_stair_count")]
        pub cycle_second_stair_count: Option<u64>,
        /// how much the rate decays in `decay_step_size` steps after the cycle
        #[option(default = 0.0, must = is_rate => "a finite number, 0 or more", deepspeed = "decay_lr_rate")]
        pub decay_lr_rate: f64,
        /// the unit of the decay in steps; 0 for none
        #[option(default = 0, deepspeed = "decay_step_size")]
        pub decay_step_size: u64,
        /// whether the betas or the momentum are cycled too, against the rate
        #[option(default = true, deepspeed = "cycle_momentum")]
        pub cycle_momentum: bool,
        /// the momentum at the peak of the rate
        #[option(default = 0.8, range = 0.0..1.0, deepspeed = "cycle_min_mom")]
        pub cycle_min_mom: f64,
        /// the momentum at the lowest rate
        #[option(default = 0.9, range = 0.0..1.0, deepspeed = "cycle_max_mom")]
        pub cycle_max_mom: f64,
        /// how much the momentum grows in `decay_step_size` steps after the cycle
        #[option(default = 0.0, must = is_rate => "a finite number, 0 or more", deepspeed = "decay_mom_rate")]
        pub decay_mom_rate: f64,
    }
}

/// Where in the schedule a step is.
enum Phase {
    /// In the cycle, so far up from 0 to 1.
    Cycle(f64),
    /// After it by so many units of the decay.
    Decay(f64),
}

impl OneCycle {
    /// The learning rate of the step after `applied` steps.
    pub(super) fn lr(&self, applied: u64) -> f64 {
        match self.phase(applied) {
            Phase::Cycle(height) => {
                self.cycle_min_lr + (self.cycle_max_lr - self.cycle_min_lr) * height
            }
            Phase::Decay(units) => self.cycle_min_lr / (1.0 + self.decay_lr_rate * units),
        }
    }

    /// AdamW's betas of the step after `applied` steps, where they are cycled.
    pub(super) fn betas(&self, applied: u64) -> Option<(f64, f64)> {
        if !self.cycle_momentum {
            return None;
        }
        let Self { cycle_min_mom, cycle_max_mom, decay_mom_rate, .. } = *self;
        let momentum = match self.phase(applied) {
            // DeepSpeed begins at the lowest momentum, as if at the peak of the rate.
            _ if applied == 0 => cycle_min_mom,
            Phase::Cycle(height) => cycle_max_mom - (cycle_max_mom - cycle_min_mom) * height,
            Phase::Decay(units) => cycle_max_mom * (1.0 + decay_mom_rate * units),
        };
        Some((momentum, BETA2))
    }

    fn second_step_size(&self) -> u64 {
        self.cycle_second_step_size.unwrap_or(self.cycle_first_step_size)
    }

    /// Refuses settings of the momentum's cycle where there is none.
    fn check(&self, o: &mut Options<'_>) {
        if !self.cycle_momentum {
            let options = ["cycle_min_mom", "cycle_max_mom", "decay_mom_rate"];
            o.refuse(options, "has no effect with cycle_momentum: false");
        }
    }

    fn phase(&self, applied: u64) -> Phase {
        let (first, second) = (self.cycle_first_step_size.max(1), self.second_step_size());
        let total = first.saturating_add(second);
        if applied > total {
            return Phase::Decay(match self.decay_step_size {
                0 => 0.0,
                size => (applied - total) as f64 / size as f64,
            });
        }
        let at = applied % total;
        Phase::Cycle(if at <= first {
            climb(at, first, self.cycle_first_stair_count)
        } else {
            let stairs = self.cycle_second_stair_count.unwrap_or(self.cycle_first_stair_count);
            climb(total - at, second, stairs)
        })
    }

    /// Settings that contradict each other.
    pub(super) fn faults(&self) -> Vec<Error> {
        let mut faults = Vec::new();
        let mut add = |option: &str, message: String| {
            faults.push(Error::new(Code::BadValue, message).option(option));
        };
        let (min, max) = (self.cycle_min_lr, self.cycle_max_lr);
        if min > max {
            add("cycle_min_lr", format!("cycle_min_lr {min} is more than cycle_max_lr {max}"));
        }
        let momentum_decay = if self.cycle_momentum { self.decay_mom_rate } else { 0.0 };
        for (option, rate) in
            [("decay_lr_rate", self.decay_lr_rate), ("decay_mom_rate", momentum_decay)]
        {
            if rate > 0.0 && self.decay_step_size == 0 {
                let message = format!("{option} {rate} has no effect without a decay_step_size");
                add(option, message);
            }
        }
        let (min, max) = (self.cycle_min_mom, self.cycle_max_mom);
        if self.cycle_momentum && min > max {
            add("cycle_min_mom", format!("cycle_min_mom {min} is more than cycle_max_mom {max}"));
        }
        faults
    }
}

/// The height after `at` of `steps` steps, from 0 to 1, in whole stairs if there are any.
fn climb(at: u64, steps: u64, stairs: u64) -> f64 {
    match stairs {
        0 => at as f64 / steps as f64,
        // In integers: a float just under a stair would fall to the one below.
        _ => {
            let whole = u128::from(at) * u128::from(stairs) / u128::from(steps);
            whole as f64 / stairs as f64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cycle(first: u64, second: u64) -> OneCycle {
        OneCycle {
            cycle_min_lr: 0.01,
            cycle_max_lr: 0.1,
            cycle_first_step_size: first,
            cycle_second_step_size: Some(second),
            cycle_first_stair_count: 0,
            cycle_second_stair_count: None,
            decay_lr_rate: 0.0,
            decay_step_size: 0,
            cycle_momentum: true,
            cycle_min_mom: 0.8,
            cycle_max_mom: 0.9,
            decay_mom_rate: 0.0,
        }
    }

    fn assert_steps(cycle: OneCycle, lrs: &[f64], momenta: &[f64]) {
        for (applied, (lr, momentum)) in lrs.iter().zip(momenta).enumerate() {
            let found = (cycle.lr(applied as u64), cycle.betas(applied as u64).unwrap());
            assert!((found.0 - lr).abs() < 1e-14, "lr of {applied}: {} is not {lr}", found.0);
            let beta1 = found.1.0;
            assert!((beta1 - momentum).abs() < 1e-14, "beta1 of {applied}: {beta1}, {momentum}");
            assert_eq!(found.1.1, 0.99);
        }
    }

    /// The rates and betas that DeepSpeed 0.19 left in AdamW before each step; so in all tests here.
    #[test]
    fn a_cycle_and_its_decay_are_deepspeeds() {
        let lrs =
            [0.01, 0.0325, 0.055, 0.0775, 0.1, 0.07, 0.04, 0.01, 0.008, 0.02 / 3.0, 0.04 / 7.0];
        let momenta =
            [0.8, 0.875, 0.85, 0.825, 0.8, 2.5 / 3.0, 2.6 / 3.0, 0.9, 0.9045, 0.909, 0.9135];
        let mut cycle = cycle(4, 3);
        (cycle.decay_lr_rate, cycle.decay_step_size) = (0.5, 2);
        cycle.decay_mom_rate = 0.01;
        assert_steps(cycle, &lrs, &momenta);
        cycle.cycle_momentum = false;
        assert_eq!(cycle.betas(3), None);
    }

    #[test]
    fn stairs_are_deepspeeds() {
        let lrs =
            [0.01, 0.01, 0.01, 0.055, 0.055, 0.055, 0.1, 0.07, 0.04, 0.04, 0.01, 0.01, 0.01, 0.01];
        let momenta = [
            0.8,
            0.9,
            0.9,
            0.85,
            0.85,
            0.85,
            0.8,
            2.5 / 3.0,
            2.6 / 3.0,
            2.6 / 3.0,
            0.9,
            0.9,
            0.9,
            0.9,
        ];
        let mut cycle = cycle(6, 5);
        (cycle.cycle_first_stair_count, cycle.cycle_second_stair_count) = (2, Some(3));
        assert_steps(cycle, &lrs, &momenta);
    }

    #[test]
    fn a_cycle_without_a_way_down_is_deepspeeds() {
        let momenta = [0.8, 2.6 / 3.0, 2.5 / 3.0, 0.9, 0.9, 0.9];
        assert_steps(cycle(3, 0), &[0.01, 0.04, 0.07, 0.01, 0.01, 0.01], &momenta);
    }

    #[test]
    fn contradictions_are_found_together() {
        let mut cycle = cycle(4, 4);
        (cycle.cycle_min_lr, cycle.decay_lr_rate) = (0.2, 0.5);
        cycle.cycle_min_mom = 0.95;
        let faults = cycle.faults();
        let paths: Vec<_> = faults.iter().filter_map(Error::option_path).collect();
        assert_eq!(paths, ["cycle_min_lr", "decay_lr_rate", "cycle_min_mom"]);
    }
}
