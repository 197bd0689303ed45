//! A sliding window, exact to the token, as two calls of the flash kernel.
//!
//! A row is cut into pieces as long as the window. A query sees the keys of its own piece up to itself, which
//! is a triangle. Of the piece before it sees the keys behind its own place there, which is a triangle too:
//! with the order of queries and keys turned around it is causal. Both are merged by their log-sum-exp, and
//! the backward pass gives the merged one to the kernel's own.

use super::merge::{accumulate_kind, merge_into};
use crate::{
    bridge::{
        attention::{flash, flash_backward},
        autograd::own_gradient,
    },
    error::Result,
    tensor::{Tensor, no_grad},
};

/// The attention of queries `[B, H, T, D]` to the last `window` keys, their own included; heads of keys and
/// values may be fewer.
pub fn attend_window([q, k, v]: [&Tensor; 3], window: i64, scale: Option<f64>) -> Result<Tensor> {
    let size = q.size();
    let scale = scale.unwrap_or_else(|| (size[3] as f64).powf(-0.5));
    let cut = Cut { rows: size[0], heads: size[1], tokens: size[2], window };
    let (out, sums) = no_grad(|| cut.forward([q, k, v], scale))?;
    if [q, k, v].iter().any(|x| x.requires_grad()) {
        let inputs = [q.detach(), k.detach(), v.detach()];
        let kept = out.detach();
        own_gradient(&[q, k, v], &out, move |grad| {
            let grads = no_grad(|| cut.backward(&inputs, (&kept, &sums, grad), scale))?;
            Ok(grads.into_iter().map(Some).collect())
        })?;
    }
    Ok(out)
}

/// The part of causal attention's scores that a window computes.
pub fn window_density(tokens: i64, window: i64) -> f64 {
    let triangle = |tokens: i64| tokens as f64 * (tokens as f64 + 1.0) / 2.0;
    1.0 - triangle((tokens - window).max(0)) / triangle(tokens.max(1))
}

/// How rows are cut into pieces, which the batch has then in the place of rows: `[B * n, H, window, D]`.
#[derive(Debug, Clone, Copy)]
struct Cut {
    rows: i64,
    heads: i64,
    tokens: i64,
    window: i64,
}

impl Cut {
    /// Pieces of a row.
    fn count(&self) -> i64 {
        (self.tokens + self.window - 1) / self.window
    }

    /// The attention `[B, H, T, D]`, and the log-sum-exp of its scores in pieces, `[B * n, H, window]`.
    fn forward(&self, inputs: [&Tensor; 3], scale: f64) -> Result<(Tensor, Tensor)> {
        let pieces = self.pieces(inputs)?;
        let [q, k, v] = &pieces;
        let (out, sums) = flash([q, k, v], true, scale)?;
        if self.window == 1 || self.count() == 1 {
            return Ok((self.whole(&out)?, sums));
        }
        let [q, k, v] = [self.queries(q)?, self.keys(k)?, self.keys(v)?];
        let (before, of_before) = flash([&q, &k, &v], true, scale)?;
        let kind = accumulate_kind(out.kind());
        let (out, sums) = (out.f_to_kind(kind)?, sums.f_contiguous()?);
        let (out_part, sums_part) = (self.seeing(&out)?, self.seeing(&sums)?);
        let (before, of_before) = (self.apart(&before)?, self.apart(&of_before)?);
        merge_into((&out_part, &sums_part), (&before.f_to_kind(kind)?, &of_before))?;
        Ok((self.whole(&out.f_to_kind(inputs[0].kind())?)?, sums))
    }

    fn backward(
        &self,
        inputs: &[Tensor; 3],
        (out, sums, grad): (&Tensor, &Tensor, &Tensor),
        scale: f64,
    ) -> Result<[Tensor; 3]> {
        let [q, k, v] = self.pieces(inputs.each_ref())?;
        let [out, grad] = [self.piece(out)?, self.piece(grad)?];
        let grads = flash_backward(&grad, [&q, &k, &v], (&out, sums), true, scale)?;
        let kind = accumulate_kind(q.kind());
        let [dq, dk, dv] = grads.map(|grad| grad.f_to_kind(kind));
        let (dq, dk, dv) = (dq?, dk?, dv?);
        if self.window > 1 && self.count() > 1 {
            // Padded pieces are copies. Each is dropped once it is flipped.
            let [q, out, grad] = [q, out, grad].map(|x| self.queries(&x));
            let [k, v] = [k, v].map(|x| self.keys(&x));
            let sums = self.queries(sums)?.f_contiguous()?;
            let before = flash_backward(&grad?, [&q?, &k?, &v?], (&out?, &sums), true, scale)?;
            let seen = [self.seeing(&dq)?, self.seen(&dk)?, self.seen(&dv)?];
            for (mut seen, grad) in seen.into_iter().zip(before) {
                let _ = seen.f_add_(&self.apart(&grad)?)?;
            }
        }
        let [dq, dk, dv] =
            [(dq, &inputs[0]), (dk, &inputs[1]), (dv, &inputs[2])].map(|(grad, x)| {
                let grad = self.whole(&grad)?;
                let size = x.size();
                let shared = self.heads / size[1];
                let grad = match shared {
                    1 => grad,
                    _ => {
                        let by_head = [self.rows, size[1], shared, self.tokens, size[3]];
                        grad.f_view(by_head)?.f_sum_dim_intlist([2i64].as_slice(), false, kind)?
                    }
                };
                Ok(grad.f_to_kind(x.kind())?)
            });
        let (dq, dk, dv): (Result<Tensor>, Result<Tensor>, Result<Tensor>) = (dq, dk, dv);
        Ok([dq?, dk?, dv?])
    }

    /// The pieces of queries, keys and values, each query head with a head of keys and values.
    fn pieces(&self, inputs: [&Tensor; 3]) -> Result<[Tensor; 3]> {
        let [q, k, v] = inputs.map(|x| {
            let shared = self.heads / x.size()[1];
            let pieces = self.piece(x)?;
            Ok(match shared {
                1 => pieces,
                _ => pieces.f_repeat_interleave_self_int(shared, 1, None)?,
            })
        });
        let (q, k, v): (Result<Tensor>, Result<Tensor>, Result<Tensor>) = (q, k, v);
        Ok([q?, k?, v?])
    }

    /// `[B, H, T, D]` as pieces; behind the last token, where no query looks, are zeros.
    fn piece(&self, x: &Tensor) -> Result<Tensor> {
        let size = x.size();
        let x = x.f_transpose(1, 2)?;
        let more = self.count() * self.window - self.tokens;
        let x = match more {
            0 => x,
            _ => x.f_constant_pad_nd([0, 0, 0, 0, 0, more])?,
        };
        let shape = [self.rows * self.count(), self.window, size[1], size[3]];
        Ok(x.f_reshape(shape)?.f_transpose(1, 2)?)
    }

    /// Pieces `[B * n, H, window, D]` as rows `[B, H, T, D]`.
    fn whole(&self, pieces: &Tensor) -> Result<Tensor> {
        let size = pieces.size();
        let by_token = [self.rows, self.count() * self.window, size[1], size[3]];
        let rows = pieces.f_transpose(1, 2)?.f_reshape(by_token)?;
        Ok(rows.f_narrow(1, 0, self.tokens)?.f_contiguous()?.f_transpose(1, 2)?)
    }

    /// The queries that see keys of the piece before theirs, in their turned order, `[B * (n - 1), H, window -
    /// 1, ..]`.
    fn queries(&self, x: &Tensor) -> Result<Tensor> {
        self.turned(&self.seeing(x)?)
    }

    /// The keys that queries of the piece behind theirs see, in their turned order.
    fn keys(&self, x: &Tensor) -> Result<Tensor> {
        self.turned(&self.seen(x)?)
    }

    /// A view of all tokens but the last of all pieces but the first, `[B, n - 1, H, window - 1, ..]`.
    fn seeing(&self, x: &Tensor) -> Result<Tensor> {
        self.part(x, (1, 0))
    }

    /// A view of all tokens but the first of all pieces but the last.
    fn seen(&self, x: &Tensor) -> Result<Tensor> {
        self.part(x, (0, 1))
    }

    fn part(&self, x: &Tensor, (piece, token): (i64, i64)) -> Result<Tensor> {
        let size = x.size();
        let shape = [&[self.rows, self.count()], &size[1..]].concat();
        let x = x.f_view(&shape[..])?.f_narrow(1, piece, self.count() - 1)?;
        Ok(x.f_narrow(3, token, self.window - 1)?)
    }

    fn turned(&self, part: &Tensor) -> Result<Tensor> {
        let size = part.size();
        let shape = [&[size[0] * size[1]], &size[2..]].concat();
        Ok(part.f_flip([3i64].as_slice())?.f_reshape(&shape[..])?)
    }

    /// A result for turned pieces in the order of tokens, `[B, n - 1, H, window - 1, ..]`.
    fn apart(&self, x: &Tensor) -> Result<Tensor> {
        let size = x.size();
        let shape = [&[self.rows, self.count() - 1], &size[1..]].concat();
        Ok(x.f_reshape(&shape[..])?.f_flip([3i64].as_slice())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bridge::autograd::grad,
        tensor::{Device, Kind},
    };

    /// Outputs and gradients beside dense attention with the mask, whatever the length of the last piece.
    fn is_masked_attention(kind: Kind, tolerance: f64) {
        let options = (kind, Device::Cpu);
        for (tokens, window) in [(40, 1), (40, 2), (41, 7), (64, 16), (65, 64), (33, 32), (48, 5)] {
            // As projections give them.
            let random = |heads: i64| {
                let x = Tensor::randn([2, tokens, heads, 8], options);
                x.transpose(1, 2).set_requires_grad(true)
            };
            let (q, k, v) = (random(4), random(2), random(2));
            let seen = Tensor::ones([tokens, tokens], (Kind::Bool, Device::Cpu));
            let seen = seen.tril(0).triu(1 - window);
            let dense = Tensor::scaled_dot_product_attention(
                &q,
                &k,
                &v,
                Some(&seen),
                0.0,
                false,
                0.4,
                true,
            );
            let found = attend_window([&q, &k, &v], window, Some(0.4)).unwrap();
            let weight = Tensor::randn([2, 4, tokens, 8], options);
            let of = |out: &Tensor| grad(&[(out, &weight)], &[&q, &k, &v]).unwrap();
            let (grads, expected) = (of(&found), of(&dense));
            let pairs = grads.iter().flatten().zip(expected.iter().flatten());
            for (found, expected) in [(&found, &dense)].into_iter().chain(pairs) {
                let difference = (found - expected).abs().max().double_value(&[]);
                assert!(difference < tolerance, "{tokens} {window}: {difference}");
            }
        }
    }

    #[test]
    fn a_window_is_masked_attention() {
        // Sums in another order: in float64 nothing but a mistake shows.
        is_masked_attention(Kind::Double, 1e-12);
        is_masked_attention(Kind::Float, 1e-5);
    }

    #[test]
    fn the_density_of_a_window_is_its_part_of_the_triangle() {
        for (tokens, window) in [(5i64, 2i64), (9, 9), (9, 12), (1, 1)] {
            let seen: i64 = (1..=tokens).map(|query| query.min(window)).sum();
            let all = tokens * (tokens + 1) / 2;
            assert!((window_density(tokens, window) - seen as f64 / all as f64).abs() < 1e-12);
        }
    }
}
