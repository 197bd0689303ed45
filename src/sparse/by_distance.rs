//! The attention of a layout with a trained bias by the distance of query and key, as T5's encoder has it.
//!
//! libtorch's flash kernel has no gradient for a bias. Here the scores of some rows of blocks at a time are
//! written out, in float32: rows that see as many blocks are computed together. The backward pass makes them
//! again from the log-sum-exp. Scores that are held at a time do not grow with the length.

use std::{collections::BTreeMap, rc::Rc};

use super::{layout::Layout, merge::accumulate_kind};
use crate::{
    bridge::autograd::own_gradient,
    error::{Code, Error, Result},
    tensor::{Device, Kind, Tensor, no_grad},
};

/// Scores that are held at a time, where one row of blocks has fewer.
pub const MOST_SCORES: i64 = 1 << 22;
/// The score that hides a key: a softmax of nothing else is still one.
const HIDDEN: f64 = -1e30;

/// A layout by rows of blocks.
#[derive(Debug)]
pub(super) struct BlockRows {
    block: i64,
    blocks: i64,
    groups: Vec<HeadRows>,
}

/// Heads with the same layout, and their rows.
#[derive(Debug)]
struct HeadRows {
    /// Their numbers among those of this rank.
    heads: Tensor,
    rows: Vec<EqualRows>,
}

/// Rows that see as many blocks of keys.
#[derive(Debug)]
struct EqualRows {
    /// Their numbers `[n]`.
    rows: Tensor,
    /// The blocks that each sees, `[n, seen]`.
    seen: Tensor,
}

/// The queries, keys and values of one attention in blocks, `[B, H, n, b, D]`, in float32.
struct Inputs {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// `[H, 2 * T - 1]`.
    bias: Tensor,
    /// Whether a key is hidden, `[B, n, b]`.
    hidden: Option<Tensor>,
    scale: f64,
}

/// Some rows of some heads.
struct Part {
    heads: Tensor,
    rows: Tensor,
    /// Blocks of keys in turn, `[n * seen]`.
    seen: Tensor,
    /// Of query and key, as places in the bias, `[n, b, seen * b]`.
    distances: Tensor,
}

impl BlockRows {
    /// The rows of a layout of blocks of so many tokens, for the heads from `first` on.
    pub(super) fn new(
        layout: &Layout,
        block: i64,
        heads: (i64, i64),
        device: Device,
    ) -> Result<Self> {
        let mut groups = Vec::new();
        let mut blocks = 0;
        for (matrix, here) in layout.among(heads) {
            blocks = matrix.blocks();
            let mut alike: BTreeMap<usize, (Vec<i64>, Vec<i64>)> = BTreeMap::new();
            for row in 0..blocks {
                let seen: Vec<i64> =
                    (0..blocks).filter(|&col| matrix.get(row, col)).map(|col| col as i64).collect();
                if seen.is_empty() {
                    bail!(Code::Internal, "a row of a layout that sees nothing");
                }
                let (rows, all) = alike.entry(seen.len()).or_default();
                rows.push(row as i64);
                all.extend(seen);
            }
            let there = |numbers: &[i64]| Tensor::f_from_slice(numbers)?.f_to_device(device);
            let rows = alike.into_iter().map(|(count, (rows, seen))| {
                let seen = there(&seen)?.f_view([rows.len() as i64, count as i64])?;
                Ok(EqualRows { rows: there(&rows)?, seen })
            });
            groups.push(HeadRows { heads: there(&here)?, rows: rows.collect::<Result<_>>()? });
        }
        Ok(Self { block, blocks: blocks as i64, groups })
    }

    /// The attention of queries `[B, H, T, D]` to keys and values of as many heads, with the bias of their
    /// distances, key less query and T - 1 more, `[H, 2 * T - 1]`; `padding` is 0 for keys that are hidden.
    pub(super) fn attend(
        self: &Rc<Self>,
        [q, k, v]: [&Tensor; 3],
        bias: &Tensor,
        padding: Option<&Tensor>,
        scale: f64,
    ) -> Result<Tensor> {
        let (size, kind) = (q.size(), q.kind());
        let tokens = size[2];
        let inputs = no_grad(|| self.inputs([q, k, v], bias, padding, scale))?;
        let (out, sums) = no_grad(|| self.forward(&inputs))?;
        let whole = no_grad(|| Ok::<_, Error>(self.whole(&out, tokens)?.f_to_kind(kind)?))?;
        if ![q, k, v, bias].iter().any(|x| x.requires_grad()) {
            return Ok(whole);
        }
        let kept = [q.detach(), k.detach(), v.detach(), bias.detach(), whole.detach()];
        let (rows, padding) = (Rc::clone(self), padding.map(Tensor::shallow_clone));
        own_gradient(&[q, k, v, bias], &whole, move |grad| {
            no_grad(|| {
                let [q, k, v, bias, out] = &kept;
                let inputs = rows.inputs([q, k, v], bias, padding.as_ref(), scale)?;
                let grads = rows.backward(&inputs, (out, &sums, grad))?;
                let kinds = [q, k, v, bias].map(Tensor::kind);
                let grads = grads.into_iter().zip(kinds);
                grads.map(|(grad, kind)| Ok(Some(grad.f_to_kind(kind)?))).collect()
            })
        })?;
        Ok(whole)
    }

    fn inputs(
        &self,
        [q, k, v]: [&Tensor; 3],
        bias: &Tensor,
        padding: Option<&Tensor>,
        scale: f64,
    ) -> Result<Inputs> {
        let tokens = q.size()[2];
        let more = self.blocks * self.block - tokens;
        let hidden = match padding {
            None if more == 0 => None,
            _ => {
                let rows = q.size()[0];
                let seen = match padding {
                    Some(padding) => padding.f_ne(0)?,
                    None => Tensor::f_ones([rows, tokens], (Kind::Bool, q.device()))?,
                };
                let seen = seen.f_constant_pad_nd([0, more])?;
                Some(seen.f_logical_not()?.f_view([rows, self.blocks, self.block])?)
            }
        };
        let kind = accumulate_kind(q.kind());
        let (q, k, v) = (self.in_blocks(q)?, self.in_blocks(k)?, self.in_blocks(v)?);
        Ok(Inputs { q, k, v, bias: bias.f_to_kind(kind)?, hidden, scale })
    }

    /// `[B, H, T, D]` as `[B, H, n, b, D]`, with zeros behind, as it lies in memory.
    fn in_blocks(&self, x: &Tensor) -> Result<Tensor> {
        let size = x.size();
        let more = self.blocks * self.block - size[2];
        let x = x.f_to_kind(accumulate_kind(x.kind()))?.f_constant_pad_nd([0, 0, 0, more])?;
        let x = x.f_reshape([size[0], size[1], self.blocks, self.block, size[3]])?;
        Ok(x.f_contiguous()?)
    }

    /// `[B, H, n, b, D]` as `[B, H, T, D]`.
    fn whole(&self, x: &Tensor, tokens: i64) -> Result<Tensor> {
        let size = x.size();
        let whole = x.f_view([size[0], size[1], self.blocks * self.block, size[4]])?;
        Ok(whole.f_narrow(2, 0, tokens)?.f_contiguous()?)
    }

    /// Parts of at most [`MOST_SCORES`] scores, or of one row of blocks.
    fn for_parts(&self, inputs: &Inputs, mut each: impl FnMut(&Part) -> Result<()>) -> Result<()> {
        let device = inputs.q.device();
        let batch = inputs.q.size()[0];
        let tokens = (inputs.bias.size()[1] + 1) / 2;
        let inside = Tensor::f_arange(self.block, (Kind::Int64, device))?;
        for group in &self.groups {
            for EqualRows { rows, seen } in &group.rows {
                let (all, count) = (seen.size()[0], seen.size()[1]);
                let scores = batch * group.heads.size()[0] * self.block * count * self.block;
                let most = (MOST_SCORES / scores.max(1)).max(1);
                for from in (0..all).step_by(usize::try_from(most).unwrap_or(1)) {
                    let n = most.min(all - from);
                    let (rows, seen) = (rows.f_narrow(0, from, n)?, seen.f_narrow(0, from, n)?);
                    let places = |blocks: &Tensor| {
                        let first = blocks.f_unsqueeze(-1)?.f_mul_scalar(self.block)?;
                        first.f_add(&inside)?.f_view([n, -1])
                    };
                    let (queries, keys) = (places(&rows)?, places(&seen)?);
                    let distances = keys.f_unsqueeze(1)?.f_sub(&queries.f_unsqueeze(2)?)?;
                    // Tokens behind a row are hidden: their distances count nothing.
                    let distances =
                        distances.f_add_scalar(tokens - 1)?.f_clamp(0, 2 * tokens - 2)?;
                    let heads = group.heads.shallow_clone();
                    each(&Part { heads, rows, seen: seen.f_reshape([-1])?, distances })?;
                }
            }
        }
        Ok(())
    }

    /// The attention in blocks, and the log-sum-exp of its scores, `[B, H, n, b]`.
    fn forward(&self, inputs: &Inputs) -> Result<(Tensor, Tensor)> {
        let out = inputs.q.f_empty_like()?;
        let size = inputs.q.size();
        let sums = Tensor::f_empty(&size[..4], (out.kind(), out.device()))?;
        self.for_parts(inputs, |part| {
            let scores = inputs.scores(part)?;
            let of_part = scores.f_logsumexp([-1i64].as_slice(), false)?;
            let weights = scores.f_sub(&of_part.f_unsqueeze(-1)?)?.f_exp_()?;
            let made = weights.f_matmul(&part.keys(&inputs.v)?)?;
            part.put(&out, &made)?;
            part.put(&sums, &of_part)
        })?;
        Ok((out, sums))
    }

    /// The gradients of queries, keys, values and bias.
    fn backward(
        &self,
        inputs: &Inputs,
        (out, sums, grad): (&Tensor, &Tensor, &Tensor),
    ) -> Result<Vec<Tensor>> {
        let tokens = grad.size()[2];
        let (out, grad) = (self.in_blocks(out)?, self.in_blocks(grad)?);
        let [dq, dk, dv] = [(); 3].map(|()| inputs.q.f_zeros_like());
        let (dq, dk, dv) = (dq?, dk?, dv?);
        let dbias = inputs.bias.f_zeros_like()?;
        self.for_parts(inputs, |part| {
            let (q, grad) = (part.queries(&inputs.q)?, part.queries(&grad)?);
            let (k, v) = (part.keys(&inputs.k)?, part.keys(&inputs.v)?);
            let weights = inputs.scores(part)?.f_sub(&part.queries(sums)?.f_unsqueeze(-1)?)?;
            let weights = weights.f_exp()?;
            part.add(&dv, &weights.f_transpose(-2, -1)?.f_matmul(&grad)?)?;
            let along = grad.f_mul(&part.queries(&out)?)?;
            let along = along.f_sum_dim_intlist([-1i64].as_slice(), true, grad.kind())?;
            let of_scores =
                grad.f_matmul(&v.f_transpose(-2, -1)?)?.f_sub(&along)?.f_mul(&weights)?;
            part.add_bias(&dbias, &of_scores)?;
            let of_products = of_scores.f_mul_scalar(inputs.scale)?;
            part.put(&dq, &of_products.f_matmul(&k)?)?;
            part.add(&dk, &of_products.f_transpose(-2, -1)?.f_matmul(&q)?)
        })?;
        let mut grads = Vec::new();
        for x in [&dq, &dk, &dv] {
            grads.push(self.whole(x, tokens)?);
        }
        grads.push(dbias);
        Ok(grads)
    }
}

impl Inputs {
    /// The scores of a part, `[B, h, r, b, keys]`.
    fn scores(&self, part: &Part) -> Result<Tensor> {
        let (q, k) = (part.queries(&self.q)?, part.keys(&self.k)?);
        let scores = q.f_matmul(&k.f_transpose(-2, -1)?)?.f_mul_scalar(self.scale)?;
        let bias = self.bias.f_index_select(0, &part.heads)?;
        let by_place = bias.f_index_select(1, &part.distances.f_view([-1])?)?;
        let shape = [&[1, -1], &part.distances.size()[..]].concat();
        let scores = scores.f_add(&by_place.f_view(&shape[..])?)?;
        let Some(hidden) = &self.hidden else { return Ok(scores) };
        let size = part.distances.size();
        let hidden = hidden.f_index_select(1, &part.seen)?;
        let hidden = hidden.f_view([-1, 1, size[0], 1, size[2]])?;
        Ok(scores.f_masked_fill(&hidden, HIDDEN)?)
    }
}

impl Part {
    /// The rows of `x` `[B, H, n, b, ..]` of the part's heads.
    fn queries(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_index_select(1, &self.heads)?.f_index_select(2, &self.rows)?)
    }

    /// The keys of `x` `[B, H, n, b, D]` that each row sees: `[B, h, r, keys, D]`.
    fn keys(&self, x: &Tensor) -> Result<Tensor> {
        let chosen = x.f_index_select(1, &self.heads)?.f_index_select(2, &self.seen)?;
        let size = chosen.size();
        Ok(chosen.f_view([size[0], size[1], self.rows.size()[0], -1, size[4]])?)
    }

    /// Writes what was made for the part's rows, which no other part has.
    fn put(&self, all: &Tensor, made: &Tensor) -> Result<()> {
        let at = [None, Some(self.heads.f_view([-1, 1])?), Some(self.rows.shallow_clone())];
        let made = made.f_to_kind(all.kind())?;
        let _ = all.shallow_clone().f_index_put_(&at, &made, false)?;
        Ok(())
    }

    /// Adds what was made for the keys that the rows see.
    fn add(&self, all: &Tensor, made: &Tensor) -> Result<()> {
        let size = all.size();
        let blocks = [size[0], -1, size[3], size[4]];
        let heads = self.heads.f_view([-1, 1])?.f_mul_scalar(size[2])?;
        let places = heads.f_add(&self.seen)?.f_view([-1])?;
        let _ = all.f_view(blocks)?.f_index_add_(1, &places, &made.f_reshape(blocks)?)?;
        Ok(())
    }

    fn add_bias(&self, all: &Tensor, of_scores: &Tensor) -> Result<()> {
        let heads = self.heads.size()[0];
        let sum = of_scores.f_sum_dim_intlist([0i64].as_slice(), false, all.kind())?;
        let made = Tensor::f_zeros([heads, all.size()[1]], (all.kind(), all.device()))?;
        let _ = made.shallow_clone().f_index_add_(
            1,
            &self.distances.f_view([-1])?,
            &sum.f_reshape([heads, -1])?,
        )?;
        let _ = all.shallow_clone().f_index_add_(0, &self.heads, &made)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bridge::autograd::grad,
        config::{Sides, SparseAttention, SparseMode},
    };

    /// Whether heads 2 and 3 see a key, `[1, 2, T, T]`.
    fn seen_by(layout: &Layout, block: i64, tokens: i64) -> Tensor {
        let mut seen = Vec::new();
        for head in 2..4 {
            let (matrix, _) =
                layout.groups.iter().find(|(_, heads)| heads.contains(&head)).unwrap();
            let all = (0..tokens).flat_map(|query| (0..tokens).map(move |key| (query, key)));
            seen.extend(
                all.map(|(query, key)| {
                    matrix.get((query / block) as usize, (key / block) as usize)
                }),
            );
        }
        Tensor::from_slice(&seen).view([1, 2, tokens, tokens])
    }

    /// Beside dense attention with the bias and the mask written out, in float64, so that nothing but a
    /// mistake shows: rows that no block divides, padding, heads of one rank of several with layouts of their
    /// own.
    #[test]
    fn a_bias_by_distance_and_its_gradient_are_those_of_dense_attention() {
        let doubles = (Kind::Double, Device::Cpu);
        let random = |size: &[i64]| Tensor::randn(size, doubles).set_requires_grad(true);
        for mode in [SparseMode::Fixed, SparseMode::BigBird, SparseMode::Dense] {
            let options = SparseAttention {
                mode,
                block: 8,
                different_layout_per_head: mode != SparseMode::Dense,
                ..SparseAttention::default()
            };
            for tokens in [61i64, 64] {
                let (blocks, block) = (8usize, 8i64);
                let layout =
                    Layout::new(&options, Sides::Bidirectional, 4, (blocks, None)).unwrap();
                let rows = Rc::new(BlockRows::new(&layout, block, (2, 2), Device::Cpu).unwrap());
                // As projections give them.
                let [q, k, v] = [(); 3].map(|()| random(&[2, tokens, 2, 4]).transpose(1, 2));
                let bias = random(&[2, 2 * tokens - 1]);
                let padding = Tensor::ones([2, tokens], (Kind::Int64, Device::Cpu));
                let _ = padding.narrow(0, 1, 1).narrow(1, 50, 11).fill_(0);
                let seen = seen_by(&layout, block, tokens);
                let seen = seen.logical_and(&padding.ne(0).view([2, 1, 1, tokens]));
                let places = Tensor::arange(tokens, (Kind::Int64, Device::Cpu));
                let distances = places.unsqueeze(0) - places.unsqueeze(1) + (tokens - 1);
                let whole =
                    bias.index_select(1, &distances.view([-1])).view([1, 2, tokens, tokens]);
                let mask = whole.masked_fill(&seen.logical_not(), -1e30);
                let dense = Tensor::scaled_dot_product_attention(
                    &q,
                    &k,
                    &v,
                    Some(&mask),
                    0.0,
                    false,
                    0.7,
                    false,
                );
                let found = rows.attend([&q, &k, &v], &bias, Some(&padding), 0.7).unwrap();
                // A query of padding may see nothing.
                let weight =
                    Tensor::randn([2, 2, tokens, 4], doubles) * padding.view([2, 1, tokens, 1]);
                assert!((&found * &weight).allclose(&(&dense * &weight), 1e-10, 1e-10, false));
                let of = |out: &Tensor| grad(&[(out, &weight)], &[&q, &k, &v, &bias]).unwrap();
                for (found, expected) in of(&found).iter().zip(of(&dense)) {
                    let difference = (found.as_ref().unwrap() - expected.unwrap()).abs().max();
                    assert!(difference.double_value(&[]) < 1e-10, "{mode:?}: {difference:?}");
                }
            }
        }
    }
}
