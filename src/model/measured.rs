//! The cost of a recipe's own layer: measured on small batches, extended to others.
//!
//! A row costs something for each of its tokens and something for each pair of them, and a batch
//! something whatever its size. Three small batches in float32 tell the three apart.

use super::{
    LayerCost, Workload,
    cost::{FLOAT_BYTES, HeldBytes},
    profile::ModuleProfile,
};

/// A quantity of one batch: what each place of [`Sample`] is, [`Measured::cost`] says.
pub(super) type Sample = [f64; 6];

/// The cost of a layer by the size of a batch.
#[derive(Debug)]
pub(super) struct Measured {
    params: u64,
    fits: [Fit; 6],
}

/// `fixed + rows * (per_token * tokens + per_pair * tokens^2)`.
#[derive(Debug, Clone, Copy)]
struct Fit {
    fixed: f64,
    per_token: f64,
    per_pair: f64,
}

impl Fit {
    /// Through the values of one row of `tokens`, two of them, and one of twice as many.
    fn through([one, two, long]: [f64; 3], tokens: f64) -> Self {
        let row = two - one;
        let fixed = (one - row).max(0.0);
        let per_pair = ((long - fixed - 2.0 * row) / (2.0 * tokens * tokens)).max(0.0);
        Self { fixed, per_token: row / tokens - per_pair * tokens, per_pair }
    }

    fn at(&self, work: &Workload) -> f64 {
        let tokens = work.tokens as f64;
        self.fixed + work.rows as f64 * (self.per_token * tokens + self.per_pair * tokens * tokens)
    }
}

impl Measured {
    /// A layer of `params` parameters, from its samples of one row of `tokens`, two of them, and one of
    /// twice as many.
    pub(super) fn through(params: u64, samples: [Sample; 3], tokens: f64) -> Self {
        let fit = |i: usize| Fit::through(samples.map(|sample| sample[i]), tokens);
        Self { params, fits: std::array::from_fn(fit) }
    }

    /// The cost for `work`, in its format.
    pub(super) fn cost(&self, work: &Workload) -> LayerCost {
        let scale = work.element_bytes as f64 / FLOAT_BYTES as f64;
        let [kept, output, forward, activations, buffers, macs] = self.fits.map(|fit| fit.at(work));
        let bytes = |value: f64| (value * scale).max(0.0) as u64;
        let macs = macs.max(0.0) as u64;
        let profile = ModuleProfile::new("", "Layer");
        LayerCost {
            profile: ModuleProfile { params: self.params, macs, flops: 2 * macs, ..profile },
            kept: bytes(kept),
            output: bytes(output),
            forward: bytes(forward),
            backward: HeldBytes { activations: bytes(activations), buffers: bytes(buffers) },
            adds_gradients_last: true,
            ..LayerCost::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_batches_tell_tokens_pairs_and_the_rest_apart() {
        let of = |rows: f64, tokens: f64| 5.0 + rows * (3.0 * tokens + 2.0 * tokens * tokens);
        let fit = Fit::through([of(1.0, 4.0), of(2.0, 4.0), of(1.0, 8.0)], 4.0);
        let Fit { fixed, per_token, per_pair } = fit;
        assert_eq!((fixed, per_token, per_pair), (5.0, 3.0, 2.0));
    }
}
