//! What a layer of a recipe's own costs: measured on small batches, and extended to others.
//!
//! A row costs something for each of its tokens and something for each pair of them, and a batch
//! something whatever its size. Three small batches in float32 tell the three apart.

use super::{
    Context, Direction, Flow, LayerCost, Masks, Model, Objective, Targets, Workload,
    cost::{FLOAT_BYTES, Held},
    profile::ModuleProfile,
};
use crate::{
    bridge::{
        autograd,
        memory::{Kind, Ledger},
        operations::operations,
    },
    error::Result,
    tensor::{Tensor, guard},
};

/// Tokens in a row of the smallest batch: enough for activations to outweigh the gradients of weights,
/// which do not grow with it.
const TOKENS: u64 = 64;

/// A quantity of one batch: what each place of [`Sample`] is, [`Measured::cost`] says.
type Sample = [f64; 6];

/// What a layer costs by the size of a batch.
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
    /// The cost for `work`, in its format.
    pub(super) fn cost(&self, work: &Workload) -> LayerCost {
        let scale = work.element_bytes as f64 / FLOAT_BYTES as f64;
        let [kept, output, forward, activations, buffers, macs] = self.fits.map(|fit| fit.at(work));
        let bytes = |value: f64| (value * scale).max(0.0) as u64;
        let macs = macs.max(0.0) as u64;
        let params = self.params;
        LayerCost {
            profile: ModuleProfile {
                params,
                macs,
                flops: 2 * macs,
                ..ModuleProfile::new("", "Layer")
            },
            kept: bytes(kept),
            output: bytes(output),
            forward: bytes(forward),
            backward: Held { activations: bytes(activations), buffers: bytes(buffers) },
            adds_gradients_last: true,
        }
    }
}

impl Model {
    /// Measures the layers whose cost is not known, for [`Model::costs`].
    ///
    /// # Errors
    /// Those of a recipe's own functions.
    pub fn measure(&self) -> Result<()> {
        if self.has_known_costs() {
            return Ok(());
        }
        let most = self.facts().max_positions.map_or(TOKENS, |most| most.unsigned_abs() / 2);
        let tokens = TOKENS.min(most).max(1);
        let batch = |rows, tokens| guard("measuring the model", || self.samples(rows, tokens));
        let [one, two, long] = [batch(1, tokens)?, batch(2, tokens)?, batch(1, 2 * tokens)?];
        let fit = |layer: usize, i: usize| {
            Fit::through([&one, &two, &long].map(|batch| batch[layer][i]), tokens as f64)
        };
        let layers = self.layers().iter().enumerate().map(|(layer, of)| Measured {
            params: of.own.map_or(0, |unit| self.units()[unit].numel() as u64),
            fits: std::array::from_fn(|i| fit(layer, i)),
        });
        let _ = self.measured.set(layers.collect());
        Ok(())
    }

    /// The quantities of each layer for a batch of this size.
    fn samples(&self, rows: u64, tokens: u64) -> Result<Vec<Sample>> {
        let [rows, tokens] = [rows, tokens].map(|n| n as i64);
        let numel = rows * tokens;
        let ids: Vec<i64> = (0..numel).map(|i| i % self.facts().vocab_size).collect();
        let ids = Tensor::f_from_slice(&ids)?.f_to_device(self.device())?;
        let positions = Tensor::f_arange(numel, (crate::tensor::Kind::Int64, self.device()))?;
        let targets = Targets::new(ids.f_view([rows, tokens])?, positions, ids.shallow_clone());
        let masks = Masks::default();
        let mut flow = Flow::of(ids.f_view([rows, tokens])?);
        let mut samples = Vec::new();
        for i in 0..self.layers().len() {
            let objective =
                Some(Objective { targets: &targets, loss_normalizer: 1.0, function: None });
            let context = Context { train: true, objective, ..Context::new(&masks) };
            let (sample, output) = self.sample(i, &flow.detach(i > 0), context)?;
            samples.push(sample);
            flow = output;
        }
        Ok(samples)
    }

    /// Runs layer `i` forward and back.
    fn sample(&self, i: usize, input: &Flow, mut context: Context<'_>) -> Result<(Sample, Flow)> {
        let gathered = self.gather(i, Direction::Forward)?;
        let params = gathered.params(i, None);
        let ledger = Ledger::new(self.device())?;
        let counting = ledger.open(Kind::Activations)?;
        let run = || self.layers()[i].layer().forward(&params, input, &mut context);
        let (output, listed) = operations(run)?;
        let output = output?;
        drop(counting);
        let all = |counts: &dyn Fn(Kind) -> u64| {
            (counts(Kind::Activations) + counts(Kind::Buffers)) as f64
        };
        let (now, peak) = ledger.counts();
        let (kept, most) = (all(&|kind| now.of(kind)), all(&|kind| peak.of(kind)));
        {
            let _counting = ledger.open(Kind::Buffers)?;
            let grad = output.hidden.f_ones_like()?;
            let inputs = params.own().iter().chain(Some(&input.hidden).filter(|_| i > 0));
            autograd::grad(&[(&output.hidden, &grad)], &inputs.collect::<Vec<_>>())?;
        }
        let (_, peak) = ledger.counts();
        let hidden = &output.hidden;
        let bytes = (hidden.numel() * hidden.kind().elt_size_in_bytes()) as f64;
        let backward = [Kind::Activations, Kind::Buffers].map(|kind| peak.of(kind) as f64);
        let macs: f64 = listed.iter().map(|operation| multiply_accumulates(operation)).sum();
        // The last layer's graph is all gone after its backward pass, which comes at once.
        let is_last = i + 1 == self.layers().len();
        let sample = match is_last {
            true => [0.0, 0.0, 0.0, 0.0, most.max(backward[0] + backward[1]), macs],
            false => [kept, bytes, 0.0, backward[0], backward[1], macs],
        };
        Ok((sample, output))
    }
}

/// The multiply-accumulates of an operation as [`operations`] lists it: those of products.
fn multiply_accumulates(operation: &str) -> f64 {
    let name = operation.split(' ').next().unwrap_or_default();
    let sizes: Vec<Vec<f64>> = operation
        .split('[')
        .skip(1)
        .filter_map(|part| part.split(']').next())
        .map(|sizes| sizes.split(", ").filter_map(|size| size.parse().ok()).collect())
        .collect();
    let (left, right) = match (name, &sizes[..]) {
        ("aten::mm" | "aten::bmm", [left, right, ..]) => (left, right),
        ("aten::addmm" | "aten::baddbmm", [_, left, right, ..]) => (left, right),
        (name, [query, key, ..]) if name.contains("attention") => {
            let queries: f64 = query.iter().product();
            return 2.0 * queries * key.get(key.len().saturating_sub(2)).copied().unwrap_or(0.0);
        }
        _ => return 0.0,
    };
    left.iter().product::<f64>() * right.last().copied().unwrap_or(0.0)
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

    #[test]
    fn products_are_counted_by_their_shapes() {
        let addmm = "aten::addmm float[5] float[6, 4] float[4, 5]";
        assert_eq!(multiply_accumulates(addmm), 120.0);
        assert_eq!(multiply_accumulates("aten::bmm float[2, 6, 4] float[2, 4, 5]"), 240.0);
        assert_eq!(multiply_accumulates("view aten::view float[2]"), 0.0);
        let attention = "aten::_scaled_dot_product_flash_attention_for_cpu float[1, 2, 3, 4] \
                         float[1, 2, 3, 4] float[1, 2, 3, 4]";
        assert_eq!(multiply_accumulates(attention), 144.0);
    }
}
