//! The rule of each algorithm: the one place that knows them all.

use super::rule::Rule;
use crate::config::optimizer::Algorithm;

/// The rule of an algorithm.
pub(super) fn rule_of(algorithm: &Algorithm) -> &dyn Rule {
    match algorithm {
        Algorithm::Adam(config) => config,
        Algorithm::Lamb(config) => config,
        Algorithm::Lion(config) => config,
        Algorithm::Sgd(config) => config,
        Algorithm::Adagrad(config) => config,
        Algorithm::Muon(config) => config,
    }
}
