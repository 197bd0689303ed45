//! DeepSpeed's schedules with DeepSpeed's exact values (`runtime/lr_schedules.py`).
//!
//! DeepSpeed counts from -1, and what it computes after a step holds for the next one. The warm-ups
//! therefore begin with *two* steps at their lowest rate: one before the counter has begun, and one
//! at its zero.

use std::f64::consts::PI;

use super::one_cycle::OneCycle;
use crate::error::{Code, Error};

/// One of DeepSpeed's schedules; settings have DeepSpeed's names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DeepSpeedSchedule {
    /// A warm-up, then the same rate.
    WarmupLr {
        /// The rate at which the warm-up starts.
        warmup_min_lr: f64,
        /// The rate at which it ends; `None` is the optimizer's `lr`.
        warmup_max_lr: Option<f64>,
        /// Its length and growth.
        warmup: Warmup,
    },
    /// A warm-up, then linearly down to `warmup_min_lr`.
    WarmupDecayLr {
        /// The step at which the decay ends.
        total_num_steps: u64,
        /// The rate at which the warm-up starts and the decay ends.
        warmup_min_lr: f64,
        /// The rate at which the warm-up ends.
        warmup_max_lr: f64,
        /// Its length and growth.
        warmup: Warmup,
    },
    /// A warm-up, then half a cosine; all in factors of the optimizer's `lr`.
    WarmupCosineLr {
        /// The step at which the cosine ends.
        total_num_steps: u64,
        /// The factor at which the warm-up starts.
        warmup_min_ratio: f64,
        /// The factor at which the cosine ends.
        cos_min_ratio: f64,
        /// Length and growth of the warm-up.
        warmup: Warmup,
    },
    /// One cycle of learning rate and momentum.
    OneCycle(OneCycle),
    /// A rate that only grows, to find out at which one training diverges.
    LrRangeTest {
        /// The first rate.
        lr_range_test_min_lr: f64,
        /// The steps in which it grows by `lr_range_test_step_rate`.
        lr_range_test_step_size: u64,
        /// How much it grows, as a factor of the first rate.
        lr_range_test_step_rate: f64,
        /// Whether it grows only once in `lr_range_test_step_size` steps.
        lr_range_test_staircase: bool,
    },
}

/// The length and growth of a warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warmup {
    /// Its steps; at least 2 are used.
    pub warmup_num_steps: u64,
    /// How it grows.
    pub warmup_type: WarmupType,
}

/// How a warm-up grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarmupType {
    /// With the logarithm of the step.
    Log,
    /// With the step.
    Linear,
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
    /// The learning rate of the step after `applied` steps; `lr` is the optimizer's.
    pub(super) fn lr(&self, lr: f64, applied: u64) -> f64 {
        let n = applied.checked_sub(1).map(|n| n as f64);
        match *self {
            Self::WarmupLr { warmup_min_lr, warmup_max_lr, warmup } => {
                let height = n.map_or(0.0, |n| warmup.growth(n).unwrap_or(1.0));
                warmup_min_lr + (warmup_max_lr.unwrap_or(lr) - warmup_min_lr) * height
            }
            Self::WarmupDecayLr { total_num_steps, warmup_min_lr, warmup_max_lr, warmup } => {
                let total = total_num_steps as f64;
                let decay = |n: f64| (total - n).max(0.0) / (total - warmup.steps()).max(1.0);
                let height = n.map_or(0.0, |n| warmup.growth(n).unwrap_or_else(|| decay(n)));
                warmup_min_lr + (warmup_max_lr - warmup_min_lr) * height
            }
            Self::WarmupCosineLr { total_num_steps, warmup_min_ratio, cos_min_ratio, warmup } => {
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
            Self::LrRangeTest {
                lr_range_test_min_lr,
                lr_range_test_step_size,
                lr_range_test_step_rate,
                lr_range_test_staircase,
            } => {
                let interval = applied as f64 / lr_range_test_step_size.max(1) as f64;
                let interval = if lr_range_test_staircase { interval.floor() } else { interval };
                lr_range_test_min_lr * (1.0 + lr_range_test_step_rate * interval)
            }
        }
    }

    /// `warmup_num_steps` and `total_num_steps`, where there are both.
    pub(super) fn horizon(&self) -> Option<(u64, u64)> {
        match *self {
            Self::WarmupDecayLr { total_num_steps, warmup, .. }
            | Self::WarmupCosineLr { total_num_steps, warmup, .. } => {
                Some((warmup.warmup_num_steps, total_num_steps))
            }
            Self::WarmupLr { .. } | Self::OneCycle(_) | Self::LrRangeTest { .. } => None,
        }
    }

    /// Settings that contradict each other, or the optimizer's `lr`.
    pub(super) fn faults(&self, lr: f64) -> Vec<Error> {
        let (min, max, peak) = match *self {
            Self::OneCycle(cycle) => return cycle.faults(),
            Self::WarmupLr { warmup_min_lr, warmup_max_lr, .. } => match warmup_max_lr {
                Some(max) => (warmup_min_lr, max, "warmup_max_lr"),
                None => (warmup_min_lr, lr, "the optimizer's lr"),
            },
            Self::WarmupDecayLr { warmup_min_lr, warmup_max_lr, .. } => {
                (warmup_min_lr, warmup_max_lr, "warmup_max_lr")
            }
            Self::WarmupCosineLr { .. } | Self::LrRangeTest { .. } => return Vec::new(),
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
            Self::WarmupLr { warmup_max_lr, .. } => {
                warmup_max_lr.map(|max| ("WarmupLR", "warmup_max_lr", max))
            }
            Self::WarmupDecayLr { warmup_max_lr, .. } => {
                Some(("WarmupDecayLR", "warmup_max_lr", warmup_max_lr))
            }
            Self::WarmupCosineLr { .. } => None,
            Self::OneCycle(cycle) => Some(("OneCycle", "cycle_max_lr", cycle.cycle_max_lr)),
            Self::LrRangeTest { lr_range_test_min_lr, .. } => {
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
        let schedule = |warmup_min_lr, warmup_max_lr, warmup| DeepSpeedSchedule::WarmupLr {
            warmup_min_lr,
            warmup_max_lr,
            warmup,
        };
        let linear = schedule(0.0, None, warmup(4, WarmupType::Linear));
        assert_lrs(linear, &[0.0, 0.0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1]);
        let log = schedule(0.01, Some(0.05), warmup(4, WarmupType::Log));
        assert_lrs(log, &[0.01, 0.01, 0.03, 0.0416992500144231, 0.05, 0.05, 0.05]);
        assert_lrs(schedule(0.0, None, warmup(1, WarmupType::Log)), &[0.0, 0.0, 0.1, 0.1]);
    }

    #[test]
    fn warmup_decay_lr_is_deepspeeds() {
        let log = DeepSpeedSchedule::WarmupDecayLr {
            total_num_steps: 8,
            warmup_min_lr: 1e-4,
            warmup_max_lr: 1e-3,
            warmup: warmup(4, WarmupType::Log),
        };
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
        let only_warmup = DeepSpeedSchedule::WarmupDecayLr {
            total_num_steps: 3,
            warmup_min_lr: 0.0,
            warmup_max_lr: 0.1,
            warmup: warmup(3, WarmupType::Linear),
        };
        assert_lrs(only_warmup, &[0.0, 0.0, 0.1 / 3.0, 0.2 / 3.0, 0.0, 0.0]);
    }

    #[test]
    fn warmup_cosine_lr_is_deepspeeds() {
        let linear = DeepSpeedSchedule::WarmupCosineLr {
            total_num_steps: 8,
            warmup_min_ratio: 0.0,
            cos_min_ratio: 1e-4,
            warmup: warmup(4, WarmupType::Linear),
        };
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
        let log = DeepSpeedSchedule::WarmupCosineLr {
            total_num_steps: 9,
            warmup_min_ratio: 0.5,
            cos_min_ratio: 0.1,
            warmup: warmup(4, WarmupType::Log),
        };
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
        let schedule = |lr_range_test_staircase| DeepSpeedSchedule::LrRangeTest {
            lr_range_test_min_lr: 0.01,
            lr_range_test_step_size: 2,
            lr_range_test_step_rate: 0.5,
            lr_range_test_staircase,
        };
        assert_lrs(schedule(false), &[0.01, 0.0125, 0.015, 0.0175, 0.02, 0.0225]);
        assert_lrs(schedule(true), &[0.01, 0.01, 0.015, 0.015, 0.02, 0.02]);
    }
}
