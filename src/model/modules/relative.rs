//! T5's positions (Raffel et al. 2020): a bias of the scores by the distance of query and key, in buckets
//! that grow with it. The first layer of a stack makes it, and all add it.

use super::Embedding;
use crate::{
    error::Result,
    kv_cache::DecodeRows,
    model::{
        cost::{Operation, Tape, Workload},
        layer::Context,
        param_id::ParamId,
        param_spec::Init,
        params::{LayerBuilder, Params},
        profile::ModuleProfile,
    },
    tensor::{Device, Kind, Tensor},
    tensor_parallel::Split,
};

/// The table of biases, `[buckets, H]`.
#[derive(Debug)]
pub(crate) struct RelativeBias {
    table: Embedding,
    buckets: i64,
    heads: i64,
    max_distance: i64,
    /// Whether keys stand on both sides of a query, as in an encoder.
    is_bidirectional: bool,
}

impl RelativeBias {
    /// A table for `heads` heads.
    pub(crate) fn new(
        b: &mut LayerBuilder,
        name: &str,
        (buckets, heads): (i64, i64),
        (max_distance, is_bidirectional): (i64, bool),
        init: Init,
    ) -> Self {
        let table = Embedding::new(b, name, (buckets, heads), init).whole();
        Self { table, buckets, heads, max_distance, is_bidirectional }
    }

    /// How ranks divide the table: by heads.
    pub(crate) fn splits(&self) -> Vec<(ParamId, Split)> {
        vec![(self.table.weight(), Split::Even { dim: 1, blocks: vec![self.heads] })]
    }

    /// The bias of `tokens` tokens for this rank's heads, with what a query must not see,
    /// `[B or 1, H, T, T]`.
    pub(crate) fn bias(
        &self,
        p: &Params<'_>,
        (tokens, device): (i64, Device),
        context: &Context<'_>,
    ) -> Result<Tensor> {
        // The row of query q + 1 begins one distance before that of query q.
        let buckets = self.buckets((tokens, device))?.f_unfold(0, tokens, 1)?.f_flip([0i64])?;
        let bias = self.table.lookup(p, &buckets)?.f_permute([2i64, 0, 1])?.f_unsqueeze(0)?;
        let seen = match self.is_bidirectional {
            true => context.masks.encoder(),
            false => Some(context.masks.decoder(tokens, device)),
        };
        match seen {
            Some(seen) => Ok(bias.f_masked_fill(&seen.f_logical_not()?, f64::NEG_INFINITY)?),
            None => Ok(bias.f_contiguous()?),
        }
    }

    /// The bias of each distance in rows of `tokens` tokens, of key less query from `1 - tokens` on,
    /// `[H, 2 * tokens - 1]`.
    pub(crate) fn by_distance(&self, p: &Params<'_>, tokens: (i64, Device)) -> Result<Tensor> {
        let buckets = self.buckets(tokens)?;
        Ok(self.table.lookup(p, &buckets)?.f_tr()?.f_contiguous()?)
    }

    /// The bucket of each distance, int32 `[2 * tokens - 1]`.
    fn buckets(&self, (tokens, device): (i64, Device)) -> Result<Tensor> {
        let buckets: Vec<i32> =
            (1 - tokens..tokens).map(|distance| self.bucket(distance) as i32).collect();
        Ok(Tensor::f_from_slice(&buckets)?.f_to_device(device)?)
    }

    /// The bias of one query for each row, at its place in its text, float32 `[B, H, T]`.
    pub(crate) fn bias_of_rows(&self, p: &Params<'_>, rows: &DecodeRows) -> Result<Tensor> {
        let keys = rows.longest();
        let bucket = |past: i64| (0..keys).map(move |key| self.bucket((key - past).min(0)));
        let buckets: Vec<i64> = rows.past().iter().flat_map(|&past| bucket(past)).collect();
        let buckets = Tensor::f_from_slice(&buckets)?.f_to_device(rows.positions().device())?;
        let bias = self.table.lookup(p, &buckets.f_view([-1, keys])?)?;
        Ok(bias.f_permute([0i64, 2, 1])?.f_to_kind(Kind::Float)?.f_contiguous()?)
    }

    /// Adds the cost: the bias stays for all layers of the stack, and has a gradient in each.
    pub(crate) fn cost(&self, work: &Workload, tape: &mut Tape, is_sparse: bool) -> ModuleProfile {
        let pairs = if is_sparse { 0 } else { work.tokens * work.tokens };
        let bytes = work.part(self.heads).unsigned_abs() * pairs * work.element_bytes;
        // An int32 bucket for each pair, and in a decoder a bool for each key that is hidden.
        let beside = pairs * if self.is_bidirectional { 4 } else { 5 };
        tape.makes_bias(bytes);
        tape.push(Operation { kept: bytes + beside, transient: 2 * bytes, ..Operation::default() });
        let params = (self.buckets * self.heads).unsigned_abs();
        ModuleProfile { params, ..ModuleProfile::new("relative_attention_bias", "RelativeBias") }
    }

    /// The bucket of a key this far behind a query (before it, if negative): one for each short
    /// distance, and then by its logarithm, in float32 as the reference computes it.
    fn bucket(&self, distance: i64) -> i64 {
        let (mut buckets, mut first) = (self.buckets, 0);
        let distance = if self.is_bidirectional {
            buckets /= 2;
            first = if distance > 0 { buckets } else { 0 };
            distance.abs()
        } else {
            (-distance).max(0)
        };
        let exact = buckets / 2;
        if distance < exact {
            return first + distance;
        }
        let logarithm = (distance as f32 / exact as f32).ln();
        let most = (self.max_distance as f64 / exact as f64).ln() as f32;
        let large = exact + (logarithm / most * (buckets - exact) as f32) as i64;
        first + large.min(buckets - 1)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn bias(is_bidirectional: bool) -> RelativeBias {
        let mut b = LayerBuilder::new("");
        RelativeBias::new(&mut b, "weight", (32, 4), (128, is_bidirectional), Init::Zeros)
    }

    /// The buckets of transformers, exactly.
    #[test]
    fn buckets_are_those_of_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/families/t5-v10.json");
        let text = std::fs::read_to_string(path).unwrap();
        let golden: Value = serde_json::from_str(&text).unwrap();
        let golden = &golden["relative_position_buckets"];
        for (name, is_bidirectional) in [("encoder_bidirectional", true), ("decoder_causal", false)]
        {
            let expected: Vec<i64> = serde_json::from_value(golden[name].clone()).unwrap();
            let bias = bias(is_bidirectional);
            let found: Vec<i64> = (-140..=140).map(|distance| bias.bucket(distance)).collect();
            assert_eq!(found, expected, "{name}");
        }
    }
}
