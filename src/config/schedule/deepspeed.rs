//! DeepSpeed's schedules with DeepSpeed's exact values (`runtime/lr_schedules.py`).
//!
//! DeepSpeed counts from -1, and what it computes after a step holds for the next one. The warm-ups
//! therefore begin with *two* steps at their lowest rate: one before the counter has begun, and one
//! at its zero.

use std::f64::consts::PI;

use super::{one_cycle::OneCycle, rate::is_rate};
use crate::{
    config::options::{option_table, option_words},
    error::{Code, Error},
};

/// One of DeepSpeed's schedules; settings have DeepSpeed's names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DeepSpeedSchedule {
    /// A warm-up, then the same rate.
    WarmupLr(WarmupLr, Warmup),
    /// A warm-up, then linearly down to `warmup_min_lr`.
    WarmupDecayLr(WarmupDecayLr, Warmup),
    /// A warm-up, then half a cosine; all in factors of the optimizer's `lr`.
    WarmupCosineLr(WarmupCosineLr, Warmup),
    /// One cycle of learning rate and momentum.
    OneCycle(OneCycle),
    /// A rate that only grows, to find out at which one training diverges.
    LrRangeTest(LrRangeTest),
}

option_table! {
    /// A warm-up, then the same rate.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct WarmupLr {
        /// the rate at which the warm-up starts
        #[option(default = 0.0, must = is_rate => "a finite number, 0 or more", deepspeed = "warmup_min_lr")]
        pub warmup_min_lr: f64,
        /// the rate at which it ends; the optimizer's `lr` by default
        #[option(optional, must = is_rate => "a finite number, 0 or more", deepspeed = "warmup_max_lr")]
        pub warmup_max_lr: Option<f64>,
    }
}

option_table! {
    /// A warm-up, then linearly down to `warmup_min_lr`.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct WarmupDecayLr {
        /// the step at which the decay ends
        #[option(required, range = 1.., deepspeed = "total_num_steps")]
        pub total_num_steps: u64,
        /// the rate at which the warm-up starts and the decay ends
        #[option(default = 0.0, must = is_rate => "a finite number, 0 or more", deepspeed = "warmup_min_lr")]
        pub warmup_min_lr: f64,
        /// the rate at which the warm-up ends
        #[option(default = 0.001, must = is_rate => "a finite number, 0 or more")]
        pub warmup_max_lr: f64,
    }
}

option_table! {
    /// A warm-up, then half a cosine; all in factors of the optimizer's `lr`.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct WarmupCosineLr {
        /// the step at which the cosine ends
        #[option(required, range = 1.., deepspeed = "total_num_steps")]
        pub total_num_steps: u64,
        /// the factor at which the warm-up starts
        #[option(default = 0.0, range = 0.0..=1.0, deepspeed = "warmup_min_ratio")]
        pub warmup_min_ratio: f64,
        /// the factor at which the cosine ends
        #[option(default = 1e-4, range = 0.0..=1.0, deepspeed = "cos_min_ratio")]
        pub cos_min_ratio: f64,
    }
}

option_table! {
    /// A rate that only grows, to find out at which one training diverges.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct LrRangeTest {
        /// the first rate
        #[option(default = 1e-3, must = is_rate => "a finite number, 0 or more", deepspeed = "lr_range_test_min_lr")]
        pub lr_range_test_min_lr: f64,
        /// the steps in which it grows by `lr_range_test_step_rate`
        #[option(default = 2000, range = 1.., deepspeed = "lr_range_test_step_size")]
        pub lr_range_test_step_size: u64,
        /// how much it grows, as a factor of the first rate
        #[option(default = 1.0, must = is_rate => "a finite number, 0 or more", deepspeed = "lr_range_test_step_rate")]
        pub lr_range_test_step_rate: f64,
        /// whether it grows only once in `lr_range_test_step_size` steps
        #[option(default = false, deepspeed = "lr_range_test_staircase")]
        pub lr_range_test_staircase: bool,
    }
}

option_table! {
    /// The length and growth of a warm-up.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Warmup {
        /// its steps; at least 2 are used
        #[option(default = 1000, range = 1.., deepspeed = "warmup_num_steps")]
        pub warmup_num_steps: u64,
        /// how it grows: with the logarithm of the step, or with the step
        #[option(default = WarmupType::Log, deepspeed = "warmup_type")]
        pub warmup_type: WarmupType,
    }
}

option_words! {
    /// How a warm-up grows.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum WarmupType {
        /// With the logarithm of the step.
        Log = "log",
        /// With the step.
        Linear = "linear",
    }
}

impl Warmup {
    fn steps(self) -> f64 {
        self.warmup_num_steps.max(2) as f64
    }

    /// From 0 to 1 at DeepSpeed's counter `n`, and `None` once the warm-up is over.
    fn growth(self, n: f64) -> Option<f64> {
        let steps = self.steps();
        (n < steps).then(|| match self.warmup_type {
            WarmupType::Log => (n + 1.0).ln() / steps.ln(),
            WarmupType::Linear => n / steps,
        })
    }
}

impl DeepSpeedSchedule {
    /// Its `type`.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::WarmupLr(..) => "WarmupLR",
            Self::WarmupDecayLr(..) => "WarmupDecayLR",
            Self::WarmupCosineLr(..) => "WarmupCosineLR",
            Self::OneCycle(_) => "OneCycle",
            Self::LrRangeTest(_) => "LRRangeTest",
        }
    }

    /// The learning rate of the step after `applied` steps; `lr` is the optimizer's.
    pub(super) fn lr(&self, lr: f64, applied: u64) -> f64 {
        let n = applied.checked_sub(1).map(|n| n as f64);
        match *self {
            Self::WarmupLr(WarmupLr { warmup_min_lr, warmup_max_lr }, warmup) => {
                let height = n.map_or(0.0, |n| warmup.growth(n).unwrap_or(1.0));
                warmup_min_lr + (warmup_max_lr.unwrap_or(lr) - warmup_min_lr) * height
            }
            Self::WarmupDecayLr(config, warmup) => {
                let WarmupDecayLr { total_num_steps, warmup_min_lr, warmup_max_lr } = config;
                let total = total_num_steps as f64;
                let decay = |n: f64| (total - n).max(0.0) / (total - warmup.steps()).max(1.0);
                let height = n.map_or(0.0, |n| warmup.growth(n).unwrap_or_else(|| decay(n)));
                warmup_min_lr + (warmup_max_lr - warmup_min_lr) * height
            }
            Self::WarmupCosineLr(config, warmup) => {
                let WarmupCosineLr { total_num_steps, warmup_min_ratio, cos_min_ratio } = config;
                let Some(n) = n else { return 0.0 };
                lr * match warmup.growth(n) {
                    Some(growth) => warmup_min_ratio + (1.0 - warmup_min_ratio) * growth,
                    None => {
                        // Begins one step down and ends one step early, as DeepSpeed's does.
                        let length = (total_num_steps as f64 - warmup.steps()).max(1.0);
                        let progress = ((n - warmup.steps() + 1.0) / length).min(1.0);
                        cos_min_ratio + (1.0 - cos_min_ratio) * 0.5 * (1.0 + (PI * progress).cos())
                    }
                }
            }
            Self::OneCycle(cycle) => cycle.lr(applied),
            Self::LrRangeTest(test) => {
                let interval = applied as f64 / test.lr_range_test_step_size.max(1) as f64;
                let interval = match test.lr_range_test_staircase {
                    true => interval.floor(),
                    false => interval,
                };
                test.lr_range_test_min_lr * (1.0 + test.lr_range_test_step_rate * interval)
            }
        }
    }

    /// `warmup_num_steps` and `total_num_steps`, where there are both.
    pub(super) fn horizon(&self) -> Option<(u64, u64)> {
        match *self {
            Self::WarmupDecayLr(WarmupDecayLr { total_num_steps, .. }, warmup)
            | Self::WarmupCosineLr(WarmupCosineLr { total_num_steps, .. }, warmup) => {
                Some((warmup.warmup_num_steps, total_num_steps))
            }
            Self::WarmupLr(..) | Self::OneCycle(_) | Self::LrRangeTest(_) => None,
        }
    }

    /// Settings that contradict each other, or the optimizer's `lr`.
    pub(super) fn faults(&self, lr: f64) -> Vec<Error> {
        let (min, max, peak) = match *self {
            Self::OneCycle(cycle) => return cycle.faults(),
            Self::WarmupLr(WarmupLr { warmup_min_lr, warmup_max_lr }, _) => match warmup_max_lr {
                Some(max) => (warmup_min_lr, max, "warmup_max_lr"),
                None => (warmup_min_lr, lr, "the optimizer's lr"),
            },
            Self::WarmupDecayLr(WarmupDecayLr { warmup_min_lr, warmup_max_lr, .. }, _) => {
                (warmup_min_lr, warmup_max_lr, "warmup_max_lr")
            }
            Self::WarmupCosineLr(..) | Self::LrRangeTest(_) => return Vec::new(),
        };
        if min <= max {
            return Vec::new();
        }
        let message =
            format!("warmup_min_lr {min} is more than {peak} {max}: a warm-up does not fall");
        vec![Error::new(Code::BadValue, message).option("warmup_min_lr")]
    }

    /// The schedule's name, with the option that stands for the optimizer's `lr`, and its value;
    /// `None` where the optimizer's `lr` is used.
    pub(super) fn own_lr(&self) -> Option<(&'static str, &'static str, f64)> {
        match *self {
            Self::WarmupLr(WarmupLr { warmup_max_lr, .. }, _) => {
                warmup_max_lr.map(|max| ("WarmupLR", "warmup_max_lr", max))
            }
            Self::WarmupDecayLr(WarmupDecayLr { warmup_max_lr, .. }, _) => {
                Some(("WarmupDecayLR", "warmup_max_lr", warmup_max_lr))
            }
            Self::WarmupCosineLr(..) => None,
            Self::OneCycle(cycle) => Some(("OneCycle", "cycle_max_lr", cycle.cycle_max_lr)),
            Self::LrRangeTest(LrRangeTest { lr_range_test_min_lr, .. }) => {
                Some(("LRRangeTest", "lr_range_test_min_lr", lr_range_test_min_lr))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LR: f64 = 0.1;

    /// The rates that DeepSpeed 0.19 left in AdamW (lr 0.1) before each step; so in all tests here.
    fn assert_lrs(schedule: DeepSpeedSchedule, expected: &[f64]) {
        for (applied, expected) in expected.iter().enumerate() {
            let found = schedule.lr(LR, applied as u64);
            assert!((found - expected).abs() < 1e-14, "{applied}: {found} is not {expected}");
        }
    }

    fn warmup(warmup_num_steps: u64, warmup_type: WarmupType) -> Warmup {
        Warmup { warmup_num_steps, warmup_type }
    }

    #[test]
    fn warmup_lr_is_deepspeeds() {
        let schedule = |warmup_min_lr, warmup_max_lr, warmup| {
            DeepSpeedSchedule::WarmupLr(WarmupLr { warmup_min_lr, warmup_max_lr }, warmup)
        };
        let linear = schedule(0.0, None, warmup(4, WarmupType::Linear));
        assert_lrs(linear, &[0.0, 0.0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1]);
        let log = schedule(0.01, Some(0.05), warmup(4, WarmupType::Log));
        assert_lrs(log, &[0.01, 0.01, 0.03, 0.0416992500144231, 0.05, 0.05, 0.05]);
        assert_lrs(schedule(0.0, None, warmup(1, WarmupType::Log)), &[0.0, 0.0, 0.1, 0.1]);
    }

    #[test]
    fn warmup_decay_lr_is_deepspeeds() {
        let log = DeepSpeedSchedule::WarmupDecayLr(
            WarmupDecayLr { total_num_steps: 8, warmup_min_lr: 1e-4, warmup_max_lr: 1e-3 },
            warmup(4, WarmupType::Log),
        );
        let expected = [
            1e-4,
            1e-4,
            5.5e-4,
            8.1323312532452e-4,
            1e-3,
            1e-3,
            7.75e-4,
            5.5e-4,
            3.25e-4,
            1e-4,
            1e-4,
        ];
        assert_lrs(log, &expected);
        let only_warmup = DeepSpeedSchedule::WarmupDecayLr(
            WarmupDecayLr { total_num_steps: 3, warmup_min_lr: 0.0, warmup_max_lr: 0.1 },
            warmup(3, WarmupType::Linear),
        );
        assert_lrs(only_warmup, &[0.0, 0.0, 0.1 / 3.0, 0.2 / 3.0, 0.0, 0.0]);
    }

    #[test]
    fn warmup_cosine_lr_is_deepspeeds() {
        let linear = DeepSpeedSchedule::WarmupCosineLr(
            WarmupCosineLr { total_num_steps: 8, warmup_min_ratio: 0.0, cos_min_ratio: 1e-4 },
            warmup(4, WarmupType::Linear),
        );
        let expected = [
            0.0,
            0.0,
            0.025,
            0.05,
            0.075,
            0.0853568035254215,
            0.050005,
            0.0146531964745786,
            1e-5,
            1e-5,
        ];
        assert_lrs(linear, &expected);
        let log = DeepSpeedSchedule::WarmupCosineLr(
            WarmupCosineLr { total_num_steps: 9, warmup_min_ratio: 0.5, cos_min_ratio: 0.1 },
            warmup(4, WarmupType::Log),
        );
        let expected = [
            0.0,
            0.05,
            0.075,
            0.0896240625180289,
            0.1,
            0.0914057647468726,
            0.0689057647468726,
            0.0410942352531274,
            0.0185942352531274,
            0.01,
        ];
        assert_lrs(log, &expected);
    }

    #[test]
    fn lr_range_test_is_deepspeeds() {
        let schedule = |lr_range_test_staircase| {
            DeepSpeedSchedule::LrRangeTest(LrRangeTest {
                lr_range_test_min_lr: 0.01,
                lr_range_test_step_size: 2,
                lr_range_test_step_rate: 0.5,
                lr_range_test_staircase,
            })
        };
        assert_lrs(schedule(false), &[0.01, 0.0125, 0.015, 0.0175, 0.02, 0.0225]);
        assert_lrs(schedule(true), &[0.01, 0.01, 0.015, 0.015, 0.02, 0.02]);
    }
}
