//! The exponential moving average of the weights, under timm's names.

use super::options::{Switch, is_finite, option_table};

option_table! {
    /// How the average is taken.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct EmaConfig {
        /// the share of the average that a step leaves, as in timm's `ModelEmaV3`; the first step gives the
        /// average its first value
        #[option(default = 0.9999, range = 0.0..1.0)]
        pub decay: f64,
        /// how many steps pass before averaging begins; until then the average is the weights
        #[option(default = 0)]
        pub update_after_step: u64,
        /// whether the share grows up to `decay`, as 1 - (1 + step / gamma)^-power: timm's `use_warmup`
        #[option(default = Switch(None))]
        pub warmup: Switch<EmaWarmup>,
    }
}

option_table! {
    /// The growth of the share that a step leaves.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct EmaWarmup {
        /// the steps that the growth is measured by: timm's `warmup_gamma`
        #[option(default = 1.0, range = 1e-3.., must = is_finite => "finite")]
        pub gamma: f64,
        /// how fast it grows: timm's `warmup_power`; 2/3 is for a million steps and more, 3/4 for fewer
        #[option(default = 2.0 / 3.0, range = 0.0.., must = is_finite => "finite")]
        pub power: f64,
    }
}

impl EmaConfig {
    /// The share of the average that the step after `updates` others leaves.
    pub fn share(&self, updates: u64) -> f64 {
        let step = updates.saturating_sub(self.update_after_step) as f64;
        match self.warmup.0 {
            _ if step == 0.0 => 0.0,
            None => self.decay,
            Some(EmaWarmup { gamma, power }) => {
                (1.0 - (1.0 + step / gamma).powf(-power)).min(self.decay)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(config: EmaConfig) -> Vec<f64> {
        (0..4).map(|updates| config.share(updates)).collect()
    }

    const PLAIN: EmaConfig = EmaConfig { decay: 0.9, update_after_step: 0, warmup: Switch(None) };

    #[test]
    fn averaging_begins_with_the_second_step() {
        assert_eq!(shares(PLAIN), [0.0, 0.9, 0.9, 0.9]);
        assert_eq!(shares(EmaConfig { update_after_step: 2, ..PLAIN }), [0.0, 0.0, 0.0, 0.9]);
    }

    /// Computed as timm 1.0.22 does: `1 - (1 + step / 1.0) ** -(2 / 3)`, at most the decay.
    #[test]
    fn the_share_grows_as_timms() {
        let warmup = Switch(Some(EmaWarmup { gamma: 1.0, power: 2.0 / 3.0 }));
        let found = shares(EmaConfig { decay: 0.55, warmup, ..PLAIN });
        let expected = [0.0, 1.0 - 2f64.powf(-2.0 / 3.0), 1.0 - 3f64.powf(-2.0 / 3.0), 0.55];
        assert_eq!(found, expected);
    }
}
