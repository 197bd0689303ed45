//! transformers' schedules with the values of its `get_scheduler` (`optimization.py`), as factors of
//! the optimizer's `lr`.
//!
//! Lengths have DeepSpeed's names, `total_num_steps` and `warmup_num_steps`; the rest has
//! transformers'. Past its end, `Cosine` stays where it ended; transformers' would swing up again.

use std::f64::consts::PI;

use super::rate::is_rate;
use crate::{
    config::options::{Options, option_table, option_words},
    error::Code,
};

/// One of transformers' schedules. All begin with a warm-up from 0, a straight line where nothing
/// else is said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HuggingFaceSchedule {
    /// `constant_with_warmup`: then `lr`.
    ConstantWithWarmup(ConstantWithWarmup),
    /// `linear`: then linearly down to 0.
    Linear(Linear),
    /// `cosine`: then along a cosine between 1 and `cos_min_ratio`.
    Cosine(Cosine),
    /// `inverse_sqrt`: then with one over the root of the step.
    InverseSqrt(InverseSqrt),
    /// `warmup_stable_decay`, or `wsd`.
    WarmupStableDecay(WarmupStableDecay),
}

option_table! {
    /// A warm-up, then `lr`.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct ConstantWithWarmup {
        /// steps of the warm-up
        #[option(required)]
        pub warmup_num_steps: u64,
    }
}

option_table! {
    /// A warm-up, then linearly down to 0.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct Linear {
        /// the step at which the rate is 0
        #[option(required, range = 1..)]
        pub total_num_steps: u64,
        /// steps of the warm-up
        #[option(default = 0)]
        pub warmup_num_steps: u64,
    }
}

option_table! {
    /// A warm-up, then along a cosine between 1 and `cos_min_ratio`.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct Cosine {
        /// the step at which the cosine ends
        #[option(required, range = 1..)]
        pub total_num_steps: u64,
        /// steps of the warm-up
        #[option(default = 0)]
        pub warmup_num_steps: u64,
        /// the lowest factor
        #[option(default = 0.0, range = 0.0..=1.0)]
        pub cos_min_ratio: f64,
        /// waves of the cosine; 0.5 only goes down, and stays there
        #[option(default = 0.5, must = is_rate => "a finite number, 0 or more")]
        pub num_cycles: f64,
    }
}

option_table! {
    /// A warm-up, then with one over the root of the step.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct InverseSqrt {
        /// steps of the warm-up
        #[option(required)]
        pub warmup_num_steps: u64,
        /// the steps after the warm-up in which the rate falls to one over the root of 2: those of the
        /// warm-up by default, 10,000 without one
        #[option(optional, range = 1..)]
        pub timescale: Option<u64>,
    }
}

option_table! {
    /// A warm-up, a constant stretch and a decay (Hu et al. 2024).
    #[derive(Debug, Clone, Copy, PartialEq)]
    #[check_map(WarmupStableDecay::check)]
    pub struct WarmupStableDecay {
        /// steps of the warm-up
        #[option(default = 0)]
        pub warmup_num_steps: u64,
        /// steps of the decay
        #[option(required)]
        pub num_decay_steps: u64,
        /// steps at `lr`; what the other two leave of `total_num_steps` by default
        #[option(optional)]
        pub num_stable_steps: Option<u64>,
        /// all steps, in place of `num_stable_steps`
        #[option(optional, range = 1..)]
        pub total_num_steps: Option<u64>,
        /// the curve of the warm-up
        #[option(default = Ramp::Linear)]
        pub warmup_type: Ramp,
        /// the curve of the decay
        #[option(default = Ramp::Cosine)]
        pub decay_type: Ramp,
        /// the factor at both ends
        #[option(default = 0.0, range = 0.0..=1.0)]
        pub min_lr_ratio: f64,
        /// waves of a cosine decay; 0.5 only goes down
        #[option(default = 0.5, must = is_rate => "a finite number, 0 or more")]
        pub num_cycles: f64,
    }
}

option_words! {
    /// The curve of a warm-up or decay.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Ramp {
        /// A straight line.
        Linear = "linear",
        /// A cosine.
        Cosine = "cosine",
        /// One minus the root of what is left of a warm-up, or of what is done of a decay.
        OneMinusSqrt = "1-sqrt",
    }
}

impl HuggingFaceSchedule {
    /// Its `type`.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::ConstantWithWarmup(_) => "constant_with_warmup",
            Self::Linear(_) => "linear",
            Self::Cosine(_) => "cosine",
            Self::InverseSqrt(_) => "inverse_sqrt",
            Self::WarmupStableDecay(_) => "warmup_stable_decay",
        }
    }

    /// The factor of the step after `applied` steps.
    pub(super) fn ratio(&self, applied: u64) -> f64 {
        match *self {
            Self::WarmupStableDecay(schedule) => schedule.ratio(applied),
            Self::ConstantWithWarmup(ConstantWithWarmup { warmup_num_steps })
            | Self::Linear(Linear { warmup_num_steps, .. })
            | Self::Cosine(Cosine { warmup_num_steps, .. })
            | Self::InverseSqrt(InverseSqrt { warmup_num_steps, .. })
                if applied < warmup_num_steps =>
            {
                part(applied, warmup_num_steps)
            }
            Self::ConstantWithWarmup(_) => 1.0,
            Self::Linear(Linear { total_num_steps, warmup_num_steps }) => part(
                total_num_steps.saturating_sub(applied),
                total_num_steps.saturating_sub(warmup_num_steps),
            ),
            Self::Cosine(config) => {
                let Cosine { total_num_steps, warmup_num_steps, cos_min_ratio, num_cycles } =
                    config;
                let length = total_num_steps.saturating_sub(warmup_num_steps);
                let progress = part(applied - warmup_num_steps, length).min(1.0);
                cos_min_ratio + (1.0 - cos_min_ratio) * cosine(num_cycles, progress)
            }
            Self::InverseSqrt(config) => {
                let steps = (applied - config.warmup_num_steps) as f64;
                (1.0 + steps / config.timescale() as f64).sqrt().recip()
            }
        }
    }

    /// `warmup_num_steps` and `total_num_steps`, where there are both.
    pub(super) fn horizon(&self) -> Option<(u64, u64)> {
        match *self {
            Self::Linear(Linear { total_num_steps, warmup_num_steps })
            | Self::Cosine(Cosine { total_num_steps, warmup_num_steps, .. }) => {
                Some((warmup_num_steps, total_num_steps))
            }
            Self::ConstantWithWarmup(_) | Self::InverseSqrt(_) | Self::WarmupStableDecay(_) => None,
        }
    }
}

impl InverseSqrt {
    /// transformers' timescale for a schedule without a warm-up.
    const TIMESCALE: u64 = 10_000;

    fn timescale(&self) -> u64 {
        let default =
            if self.warmup_num_steps > 0 { self.warmup_num_steps } else { Self::TIMESCALE };
        self.timescale.unwrap_or(default)
    }
}

impl WarmupStableDecay {
    /// Steps at `lr`.
    fn stable_steps(&self) -> u64 {
        let rest = |total: u64| total.saturating_sub(self.warmup_and_decay());
        self.num_stable_steps.or(self.total_num_steps.map(rest)).unwrap_or(0)
    }

    fn warmup_and_decay(&self) -> u64 {
        self.warmup_num_steps.saturating_add(self.num_decay_steps)
    }

    /// Refuses lengths that are missing or do not add up, and waves of a decay that has none.
    fn check(&self, o: &mut Options<'_>) {
        let parts = format!(
            "warmup_num_steps {} + num_decay_steps {}",
            self.warmup_num_steps, self.num_decay_steps
        );
        let fault = match (self.num_stable_steps, self.total_num_steps) {
            (Some(stable), Some(total))
                if self.warmup_and_decay().saturating_add(stable) != total =>
            {
                Some((total, format!("is not num_stable_steps {stable} + {parts}")))
            }
            (None, Some(total)) if self.warmup_and_decay() > total => {
                Some((total, format!("is less than {parts}")))
            }
            _ => None,
        };
        if let Some((total, fault)) = fault {
            let message = format!("total_num_steps {total} {fault}");
            o.fault("total_num_steps", Code::BadValue, message);
        }
        if !o.has("num_stable_steps") && !o.has("total_num_steps") {
            let path = o.path("num_stable_steps");
            let message = format!("`{path}` or `total_num_steps` is required and missing");
            o.fault("num_stable_steps", Code::Missing, message);
        }
        if self.decay_type != Ramp::Cosine {
            o.refuse(["num_cycles"], "has no effect for a decay_type that is no cosine");
        }
    }

    fn ratio(&self, applied: u64) -> f64 {
        let warmup = self.warmup_num_steps;
        let stable = warmup.saturating_add(self.stable_steps());
        let height = if applied < warmup {
            let progress = part(applied, warmup);
            match self.warmup_type {
                Ramp::Linear => progress,
                Ramp::Cosine => 0.5 * (1.0 - (PI * progress).cos()),
                Ramp::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
            }
        } else if applied < stable {
            1.0
        } else if applied < stable.saturating_add(self.num_decay_steps) {
            let progress = part(applied - stable, self.num_decay_steps);
            match self.decay_type {
                Ramp::Linear => 1.0 - progress,
                Ramp::Cosine => cosine(self.num_cycles, progress),
                Ramp::OneMinusSqrt => 1.0 - progress.sqrt(),
            }
        } else {
            0.0
        };
        self.min_lr_ratio + (1.0 - self.min_lr_ratio) * height
    }
}

fn part(done: u64, whole: u64) -> f64 {
    done as f64 / whole.max(1) as f64
}

/// So many waves over a progress from 0 to 1, from 1 at 0 and never below 0.
fn cosine(num_cycles: f64, progress: f64) -> f64 {
    0.5 * (1.0 + (PI * num_cycles * 2.0 * progress).cos())
}

#[cfg(test)]
mod tests {
    use std::f64::consts::FRAC_1_SQRT_2;

    use super::*;

    /// The rates that transformers 5.23 left in an optimizer (lr 1) before each step; so in all
    /// tests here.
    fn assert_ratios(schedule: HuggingFaceSchedule, expected: &[f64]) {
        for (applied, expected) in expected.iter().enumerate() {
            let found = schedule.ratio(applied as u64);
            assert!((found - expected).abs() < 1e-14, "{applied}: {found} is not {expected}");
        }
    }

    #[test]
    fn constant_and_linear_are_transformers() {
        let constant =
            HuggingFaceSchedule::ConstantWithWarmup(ConstantWithWarmup { warmup_num_steps: 3 });
        assert_ratios(constant, &[0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0]);
        let linear =
            HuggingFaceSchedule::Linear(Linear { total_num_steps: 6, warmup_num_steps: 2 });
        assert_ratios(linear, &[0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]);
    }

    #[test]
    fn cosine_is_transformers_and_stays_at_its_end() {
        let half = HuggingFaceSchedule::Cosine(Cosine {
            total_num_steps: 6,
            warmup_num_steps: 2,
            cos_min_ratio: 0.0,
            num_cycles: 0.5,
        });
        let expected = [0.0, 0.5, 1.0, 0.853553390593274, 0.5, 0.146446609406726, 0.0, 0.0];
        assert_ratios(half, &expected);
        let waves = HuggingFaceSchedule::Cosine(Cosine {
            total_num_steps: 6,
            warmup_num_steps: 1,
            cos_min_ratio: 0.1,
            num_cycles: 1.5,
        });
        let expected = [
            0.0,
            1.0,
            0.410942352531274,
            0.185942352531274,
            0.914057647468726,
            0.689057647468726,
            0.1,
            0.1,
        ];
        assert_ratios(waves, &expected);
    }

    #[test]
    fn inverse_sqrt_is_transformers() {
        let schedule = |warmup_num_steps, timescale| {
            HuggingFaceSchedule::InverseSqrt(InverseSqrt { warmup_num_steps, timescale })
        };
        let expected =
            [0.0, 0.25, 0.5, 0.75, 1.0, 0.894427190999916, 0.816496580927726, 0.755928946018454];
        assert_ratios(schedule(4, None), &expected);
        let expected = [0.0, 0.5, 1.0, 0.866025403784439, 0.774596669241483, FRAC_1_SQRT_2];
        assert_ratios(schedule(2, Some(3)), &expected);
        assert_ratios(schedule(0, None), &[1.0, 0.999950003749688, 0.999900014997501]);
    }

    #[test]
    fn warmup_stable_decay_is_transformers() {
        let plain = WarmupStableDecay {
            warmup_num_steps: 2,
            num_stable_steps: Some(2),
            total_num_steps: None,
            num_decay_steps: 4,
            warmup_type: Ramp::Linear,
            decay_type: Ramp::Cosine,
            min_lr_ratio: 0.0,
            num_cycles: 0.5,
        };
        let check = |schedule, expected: &[f64]| {
            assert_ratios(HuggingFaceSchedule::WarmupStableDecay(schedule), expected);
        };
        let down = [0.853553390593274, 0.5, 0.146446609406726, 0.0, 0.0];
        check(plain, &[&[0.0, 0.5, 1.0, 1.0, 1.0], down.as_slice()].concat());
        let curved = WarmupStableDecay {
            warmup_num_steps: 3,
            warmup_type: Ramp::Cosine,
            decay_type: Ramp::OneMinusSqrt,
            min_lr_ratio: 0.1,
            ..plain
        };
        let down = [1.0, 0.55, 0.363603896932107, 0.220577136594005, 0.1, 0.1];
        check(curved, &[&[0.1, 0.325, 0.775, 1.0, 1.0], down.as_slice()].concat());
        let straight = WarmupStableDecay {
            warmup_num_steps: 4,
            num_stable_steps: Some(0),
            warmup_type: Ramp::OneMinusSqrt,
            decay_type: Ramp::Linear,
            min_lr_ratio: 0.2,
            ..plain
        };
        let up = [0.2, 0.307179676972449, 0.434314575050762, 0.6];
        check(straight, &[up.as_slice(), &[1.0, 0.8, 0.6, 0.4, 0.2, 0.2]].concat());
        let wave = WarmupStableDecay {
            warmup_num_steps: 0,
            num_stable_steps: Some(1),
            num_decay_steps: 5,
            num_cycles: 1.0,
            ..plain
        };
        let down =
            [0.654508497187474, 0.0954915028125263, 0.0954915028125262, 0.654508497187474, 0.0];
        check(wave, &[&[1.0, 1.0], down.as_slice()].concat());
    }
}
