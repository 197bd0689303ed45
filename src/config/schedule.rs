//! Learning-rate schedules: the rate of an optimizer step, as a factor of the optimizer's `lr`.
//!
//! A schedule is a function of the number of steps already applied, and has no state of its own:
//! what resumes is the step. `WarmupCosineLR` has DeepSpeed's exact values
//! (`runtime/lr_schedules.py`), its two first steps at rate zero included; `linear` and `cosine`
//! have those of transformers' `get_linear_schedule_with_warmup` and
//! `get_cosine_schedule_with_warmup`.

use std::f64::consts::PI;

use crate::error::{Code, Error, Result};

/// How the rate grows during DeepSpeed's warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarmupType {
    /// With the logarithm of the step.
    Log,
    /// With the step.
    Linear,
}

/// A schedule with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// `lr` at every step.
    Constant,
    /// DeepSpeed's warm-up, then a cosine down to `cos_min_ratio`.
    WarmupCosineLr {
        /// The step at which the cosine ends.
        total_num_steps: u64,
        /// Steps of the warm-up; at least 2 are used.
        warmup_num_steps: u64,
        /// The factor at which the warm-up starts.
        warmup_min_ratio: f64,
        /// The factor at which the cosine ends.
        cos_min_ratio: f64,
        /// How the warm-up grows.
        warmup_type: WarmupType,
    },
    /// A linear warm-up from 0, then linearly down to 0.
    Linear {
        /// The step at which the rate is 0.
        total_num_steps: u64,
        /// Steps of the warm-up.
        warmup_num_steps: u64,
    },
    /// A linear warm-up from 0, then half a cosine down to `cos_min_ratio`.
    Cosine {
        /// The step at which the cosine ends.
        total_num_steps: u64,
        /// Steps of the warm-up.
        warmup_num_steps: u64,
        /// The factor at which the cosine ends.
        cos_min_ratio: f64,
    },
}

impl Schedule {
    /// The factor of the step after `applied` steps.
    pub fn ratio(&self, applied: u64) -> f64 {
        let (step, ratio) =
            (applied as f64, |part: u64, whole: u64| part as f64 / whole.max(1) as f64);
        match *self {
            Self::Constant => 1.0,
            Self::WarmupCosineLr { .. } => self.deepspeed_ratio(applied),
            Self::Linear { warmup_num_steps, .. } | Self::Cosine { warmup_num_steps, .. }
                if applied < warmup_num_steps =>
            {
                step / warmup_num_steps as f64
            }
            Self::Linear { total_num_steps, warmup_num_steps } => ratio(
                total_num_steps.saturating_sub(applied),
                total_num_steps.saturating_sub(warmup_num_steps),
            ),
            Self::Cosine { total_num_steps, warmup_num_steps, cos_min_ratio } => {
                let length = total_num_steps.saturating_sub(warmup_num_steps);
                let progress = ratio(applied - warmup_num_steps, length).min(1.0);
                cos_min_ratio + (1.0 - cos_min_ratio) * half_cosine(progress)
            }
        }
    }

    /// DeepSpeed counts from -1: its first step sees a counter that has not begun.
    fn deepspeed_ratio(&self, applied: u64) -> f64 {
        let Self::WarmupCosineLr {
            total_num_steps,
            warmup_num_steps,
            warmup_min_ratio,
            cos_min_ratio,
            warmup_type,
        } = *self
        else {
            return 1.0;
        };
        let Some(n) = applied.checked_sub(1) else { return 0.0 };
        let (n, warmup) = (n as f64, warmup_num_steps.max(2) as f64);
        if n < warmup {
            let growth = match warmup_type {
                WarmupType::Log => (n + 1.0).ln() / warmup.ln(),
                WarmupType::Linear => n / warmup,
            };
            return warmup_min_ratio + (1.0 - warmup_min_ratio) * growth;
        }
        let length = (total_num_steps as f64 - warmup).max(1.0);
        let progress = ((n - warmup + 1.0) / length).min(1.0);
        cos_min_ratio + (1.0 - cos_min_ratio) * half_cosine(progress)
    }

    /// Refuses settings that contradict each other.
    ///
    /// # Errors
    /// [`Code::BadValue`] at `total_num_steps` when the warm-up does not end before it.
    pub fn check(self) -> Result<Self> {
        let (total, warmup) = match self {
            Self::Constant => return Ok(self),
            Self::WarmupCosineLr { total_num_steps, warmup_num_steps, .. }
            | Self::Linear { total_num_steps, warmup_num_steps }
            | Self::Cosine { total_num_steps, warmup_num_steps, .. } => {
                (total_num_steps, warmup_num_steps)
            }
        };
        if warmup <= total {
            return Ok(self);
        }
        let message = format!(
            "warmup_num_steps {warmup} is more than total_num_steps {total}: the rate would never reach lr"
        );
        Err(Error::new(Code::BadValue, message).option("warmup_num_steps"))
    }
}

/// From 1 at 0 to 0 at 1.
fn half_cosine(progress: f64) -> f64 {
    0.5 * (1.0 + (PI * progress).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratios(schedule: Schedule, steps: u64) -> Vec<f64> {
        (0..steps).map(|applied| schedule.ratio(applied)).collect()
    }

    fn assert_near(found: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= tolerance, "{found} is not {expected}");
        }
    }

    /// Values that DeepSpeed 0.19 printed for W=4, T=8, lr 0.1, three digits.
    #[test]
    fn warmup_cosine_lr_is_deepspeeds() {
        let schedule = Schedule::WarmupCosineLr {
            total_num_steps: 8,
            warmup_num_steps: 4,
            warmup_min_ratio: 0.0,
            cos_min_ratio: 1e-4,
            warmup_type: WarmupType::Linear,
        };
        let expected = [0.0, 0.0, 0.25, 0.5, 0.75, 0.854, 0.5, 0.147, 1e-4, 1e-4];
        assert_near(&ratios(schedule, 10), &expected, 5e-4);
        let log = Schedule::WarmupCosineLr {
            total_num_steps: 8,
            warmup_num_steps: 4,
            warmup_min_ratio: 0.5,
            cos_min_ratio: 0.0,
            warmup_type: WarmupType::Log,
        };
        // After the first: 0.5 + 0.5 * log4(n + 1).
        assert_near(&ratios(log, 5), &[0.0, 0.5, 0.75, 0.5 + 0.5 * 3f64.log(4.0), 1.0], 1e-12);
    }

    /// transformers' lambdas, written out.
    #[test]
    fn linear_and_cosine_are_transformers() {
        let linear = Schedule::Linear { total_num_steps: 6, warmup_num_steps: 2 };
        assert_near(&ratios(linear, 8), &[0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0], 1e-12);
        let cosine =
            Schedule::Cosine { total_num_steps: 6, warmup_num_steps: 2, cos_min_ratio: 0.0 };
        let half = 0.5f64.sqrt() / 2.0;
        let expected = [0.0, 0.5, 1.0, 0.5 + half, 0.5, 0.5 - half, 0.0, 0.0];
        assert_near(&ratios(cosine, 8), &expected, 1e-12);
        let floor =
            Schedule::Cosine { total_num_steps: 4, warmup_num_steps: 0, cos_min_ratio: 0.1 };
        assert_near(&ratios(floor, 6)[3..], &[0.1 + 0.9 * (0.5 - half), 0.1, 0.1], 1e-12);
    }

    #[test]
    fn a_warm_up_longer_than_the_run_is_refused() {
        let e = Schedule::Linear { total_num_steps: 5, warmup_num_steps: 6 }.check().unwrap_err();
        assert_eq!(e.option_path(), Some("warmup_num_steps"));
        assert!(Schedule::Constant.check().is_ok());
    }
}
