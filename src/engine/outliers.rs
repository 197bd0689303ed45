//! Steps whose loss or gradient norm stands out from those before, as llm.c's `outlier_detector.h`
//! finds them.
//!
//! The z-score of a value is how many standard deviations it is above the mean of the last 128 values,
//! itself included. There is none until 128 values are there. A value that stands out counts among those
//! after it, so that a loss that stays high is no outlier for long.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::exact::Exact;
use crate::config::OutlierConfig;

/// How many values a value is compared with, as in llm.c.
const WINDOW: usize = 128;

/// The reason for which a step changed nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Skip {
    /// A gradient is not finite.
    NotFinite,
    /// The loss has this z-score.
    Loss(f64),
    /// The norm of the gradient has this z-score.
    GradNorm(f64),
}

/// The recent values, as a checkpoint has them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OutlierState {
    losses: VecDeque<Exact>,
    grad_norms: VecDeque<Exact>,
}

/// Looks for outliers.
#[derive(Debug)]
pub(super) struct Outliers {
    config: OutlierConfig,
    recent: OutlierState,
}

impl Outliers {
    pub(super) fn new(config: OutlierConfig) -> Self {
        Self { config, recent: OutlierState::default() }
    }

    /// Whether a step can be skipped at all.
    pub(super) fn is_on(&self) -> bool {
        self.config != OutlierConfig::default()
    }

    /// Judges a step by its loss and the norm of its gradient, which are finite, and which all ranks
    /// have alike.
    pub(super) fn judge(&mut self, loss: f64, grad_norm: f64) -> Option<Skip> {
        if !self.is_on() {
            return None;
        }
        let loss = zscore(&mut self.recent.losses, loss);
        let grad_norm = zscore(&mut self.recent.grad_norms, grad_norm);
        let beyond = |z: Option<f64>, most: Option<f64>| z.filter(|z| most.is_some_and(|m| *z > m));
        let OutlierConfig { skip_update_lossz, skip_update_gradz } = self.config;
        beyond(loss, skip_update_lossz)
            .map(Skip::Loss)
            .or_else(|| beyond(grad_norm, skip_update_gradz).map(Skip::GradNorm))
    }

    /// The recent values, where they are looked at.
    pub(super) fn state(&self) -> Option<OutlierState> {
        self.is_on().then(|| self.recent.clone())
    }

    /// Goes on from a checkpoint.
    pub(super) fn restore(&mut self, state: Option<OutlierState>) {
        self.recent = state.unwrap_or_default();
    }
}

/// Adds a value to the recent ones, and gives its z-score where there are enough of them.
fn zscore(recent: &mut VecDeque<Exact>, value: f64) -> Option<f64> {
    let is_full = recent.len() >= WINDOW;
    if is_full {
        recent.pop_front();
    }
    recent.push_back(Exact(value));
    if !is_full {
        return None;
    }
    // Anew at each step, so that a resumed training adds in the same order.
    let mean_of = |of: &dyn Fn(f64) -> f64| {
        recent.iter().map(|Exact(value)| of(*value)).sum::<f64>() / recent.len() as f64
    };
    let mean = mean_of(&|value| value);
    let deviation = mean_of(&|value| (value - mean).powi(2)).sqrt();
    Some(if deviation > 0.0 { (value - mean) / deviation } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(most: f64) -> Outliers {
        Outliers::new(OutlierConfig {
            skip_update_lossz: Some(most),
            skip_update_gradz: Some(most),
        })
    }

    #[test]
    fn nothing_is_an_outlier_before_the_window_is_full() {
        let mut outliers = both(3.0);
        for step in 0..WINDOW - 1 {
            assert_eq!(outliers.judge(2.0 + (step % 2) as f64, 1.0), None);
        }
        assert_eq!(outliers.judge(1e6, 1e6), None, "the 128th value completes the window");
        let mut outliers = both(3.0);
        (0..WINDOW).for_each(|step| assert_eq!(outliers.judge((step % 2) as f64, 1.0), None));
        assert!(matches!(outliers.judge(1e6, 1.0), Some(Skip::Loss(z)) if z > 11.0));
    }

    /// 64 values of 0 and 64 of 1, then a 4 in the place of the oldest, a 0. The variance is the mean of
    /// the squares less the square of the mean.
    #[test]
    fn the_score_is_of_all_values_in_the_window() {
        let mut recent = VecDeque::new();
        for step in 0..WINDOW {
            assert_eq!(zscore(&mut recent, (step % 2) as f64), None);
        }
        let mean: f64 = (64.0 + 4.0) / 128.0;
        let deviation = ((64.0 + 16.0) / 128.0 - mean * mean).sqrt();
        let z = zscore(&mut recent, 4.0).unwrap();
        // Sums of 128 numbers of this size, in another order.
        assert!((z - (4.0 - mean) / deviation).abs() < 1e-12, "{z}");
    }

    #[test]
    fn a_low_loss_and_equal_values_are_none() {
        let mut outliers = both(3.0);
        (0..2 * WINDOW).for_each(|_| assert_eq!(outliers.judge(1.0, 1.0), None));
        assert_eq!(outliers.judge(-1e6, 1.0), None);
        assert!(matches!(outliers.judge(1.0, 5.0), Some(Skip::GradNorm(z)) if z > 11.0));
    }

    #[test]
    fn what_is_restored_judges_alike() {
        let mut outliers = both(3.0);
        for step in 0..200 {
            assert_eq!(outliers.judge(f64::from(step).sin(), 0.1), None);
        }
        let json = serde_json::to_string(&outliers.state()).unwrap();
        let mut again = both(3.0);
        again.restore(serde_json::from_str(&json).unwrap());
        for step in 0..200 {
            let (loss, norm) = (3.0 * f64::from(step).cos(), f64::from(step % 7));
            assert_eq!(outliers.judge(loss, norm), again.judge(loss, norm));
        }
        assert_eq!(Outliers::new(OutlierConfig::default()).state(), None);
    }
}
