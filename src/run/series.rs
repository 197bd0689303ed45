//! A curve of bounded size: the values of many steps as the means of stretches of steps.
//!
//! A value finds its stretch by its step, so that steps may come in any order: a run is read from its
//! end first. When there are too many stretches, each two become one.

use std::collections::BTreeMap;

/// Stretches of a curve at most: more than a terminal has columns of dots.
const MOST_STRETCHES: usize = 2048;

/// A curve over the steps.
#[derive(Debug)]
pub struct Series {
    /// Steps in a stretch.
    stride: u64,
    stretches: BTreeMap<u64, Sum>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    values: f64,
    count: u64,
}

impl Default for Series {
    fn default() -> Self {
        Self { stride: 1, stretches: BTreeMap::new() }
    }
}

impl Series {
    /// Adds the value of a step; one that is not finite is no part of a curve.
    pub fn add(&mut self, step: u64, value: f64) {
        if !value.is_finite() {
            return;
        }
        let sum = self.stretches.entry(step / self.stride).or_default();
        sum.values += value;
        sum.count += 1;
        if self.stretches.len() > MOST_STRETCHES {
            self.halve();
        }
    }

    /// Steps that each point stands for.
    pub fn stride(&self) -> u64 {
        self.stride
    }

    /// The means by the middle of their steps, from the step `first` on.
    pub fn points(&self, first: f64) -> Vec<(f64, f64)> {
        let middle = (self.stride - 1) as f64 / 2.0;
        let points = self
            .stretches
            .iter()
            .map(|(&at, sum)| ((at * self.stride) as f64 + middle, sum.values / sum.count as f64));
        points.filter(|&(step, _)| step >= first).collect()
    }

    fn halve(&mut self) {
        self.stride *= 2;
        for (at, sum) in std::mem::take(&mut self.stretches) {
            let into = self.stretches.entry(at / 2).or_default();
            into.values += sum.values;
            into.count += sum.count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(steps: impl Iterator<Item = u64>) -> Series {
        let mut series = Series::default();
        steps.for_each(|step| series.add(step, step as f64));
        series
    }

    #[test]
    fn a_short_curve_is_as_it_is() {
        let mut short = series([3, 1, 2].into_iter());
        short.add(4, f64::NAN);
        assert_eq!(short.stride(), 1);
        assert_eq!(short.points(0.0), [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]);
        assert_eq!(short.points(2.0), [(2.0, 2.0), (3.0, 3.0)]);
    }

    /// The values are the steps themselves, so that each mean is the middle of its steps.
    #[test]
    fn a_long_curve_is_means_in_whatever_order_it_came() {
        let forwards = series(0..100_000);
        let backwards = series((0..100_000).rev());
        assert_eq!(forwards.stride(), 64);
        assert_eq!(forwards.points(0.0).len(), 100_000_usize.div_ceil(64));
        let whole = &forwards.points(0.0)[..1562];
        assert!(whole.iter().all(|(step, mean)| step == mean), "{whole:?}");
        assert_eq!(forwards.points(0.0), backwards.points(0.0));
    }
}
