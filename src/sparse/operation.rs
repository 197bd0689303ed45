//! The attention of a layout: the flash kernel for its pieces, merged by log-sum-exp; on the CPU in float32
//! a kernel of its own.
//!
//! The forward pass keeps queries, keys and values, the merged result and the merged log-sum-exp. With these
//! the kernel's own backward pass gives for each piece what it adds to the gradients.

use std::rc::Rc;

use super::{
    layout::Layout,
    merge::{accumulate_kind, merge_into},
    pieces::pieces,
};
use crate::{
    bridge::{
        attention::{flash, flash_backward},
        autograd::own_gradient,
        blocks::SeenBlocks,
    },
    error::{Code, Result},
    tensor::{Device, Kind, Tensor, no_grad},
};

/// A layout as calls of the kernel.
#[derive(Debug)]
pub(super) struct Calls {
    block: i64,
    blocks: i64,
    groups: Vec<HeadGroup>,
    /// For the CPU's own kernel; `None` where all is one call of libtorch's.
    seen: Option<SeenBlocks>,
}

/// Heads with the same layout.
#[derive(Debug)]
struct HeadGroup {
    /// Their numbers; `None` is all heads.
    heads: Option<Tensor>,
    calls: Vec<Call>,
}

/// Pieces of one shape.
#[derive(Debug)]
struct Call {
    queries: Blocks,
    keys: Blocks,
    is_causal: bool,
}

/// The blocks of some pieces.
#[derive(Debug)]
struct Blocks {
    /// Their numbers; `None` is all in turn.
    numbers: Option<Tensor>,
    pieces: i64,
}

/// A merged result, `[B * H, n, b, D]`, and its log-sum-exp, `[B * H, n, b]`, both float32.
struct Merged {
    out: Tensor,
    sums: Tensor,
}

impl Calls {
    /// The calls for a layout of blocks of so many tokens, for the heads from `first` on.
    pub(super) fn new(
        layout: &Layout,
        is_causal: bool,
        block: i64,
        heads: (i64, i64),
        device: Device,
    ) -> Result<Self> {
        let mut groups = Vec::new();
        let mut blocks = 0;
        for (matrix, here) in layout.among(heads) {
            blocks = matrix.blocks() as i64;
            let all = here.len() as i64 == heads.1;
            let numbers = |numbers: &[i64], pieces| -> Result<Blocks> {
                let is_all = numbers.iter().copied().eq(0..blocks);
                let numbers = match is_all {
                    true => None,
                    false => Some(Tensor::f_from_slice(numbers)?.f_to_device(device)?),
                };
                Ok(Blocks { numbers, pieces })
            };
            let calls = pieces(matrix, is_causal).into_iter().map(|pieces| {
                Ok(Call {
                    queries: numbers(&pieces.queries, pieces.count)?,
                    keys: numbers(&pieces.keys, pieces.count)?,
                    is_causal: pieces.is_causal,
                })
            });
            let heads = match all {
                true => None,
                false => Some(Tensor::f_from_slice(&here)?.f_to_device(device)?),
            };
            groups.push(HeadGroup { heads, calls: calls.collect::<Result<_>>()? });
        }
        let is_one = groups.len() == 1 && groups.iter().all(|group| group.calls.len() == 1);
        let seen = match device == Device::Cpu && !is_one {
            true => Some(seen_blocks(layout, is_causal, block, heads)?),
            false => None,
        };
        Ok(Self { block, blocks, groups, seen })
    }

    /// The attention of queries `[B, H, T, D]` to keys and values of as many heads; T is a multiple of the
    /// block.
    pub(super) fn attend(self: &Rc<Self>, [q, k, v]: [&Tensor; 3], scale: f64) -> Result<Tensor> {
        let is_ours = self.seen.is_some() && q.kind() == Kind::Float;
        let (out, sums) = no_grad(|| match &self.seen {
            Some(seen) if is_ours => seen.attend([q, k, v], scale),
            _ => self.forward([q, k, v], scale),
        })?;
        if !(q.requires_grad() || k.requires_grad() || v.requires_grad()) {
            return Ok(out);
        }
        let inputs = [q.detach(), k.detach(), v.detach()];
        let (calls, kept) = (Rc::clone(self), out.detach());
        own_gradient(&[q, k, v], &out, move |grad| {
            let grads = no_grad(|| match &calls.seen {
                Some(seen) if is_ours => {
                    seen.backward(grad, inputs.each_ref(), (&kept, &sums), scale)
                }
                _ => calls.backward(&inputs, (&kept, &sums, grad), scale),
            })?;
            Ok(grads.into_iter().map(Some).collect())
        })?;
        Ok(out)
    }

    fn forward(&self, inputs: [&Tensor; 3], scale: f64) -> Result<(Tensor, Tensor)> {
        let size = inputs[0].size();
        let (b, heads, tokens) = (size[0], size[1], size[2]);
        let mut out = None;
        let mut sums = None;
        for group in &self.groups {
            let of_group = inputs.map(|x| group.select(x));
            let [q, k, v] = of_group;
            let merged = self.forward_of(group, [&q?, &k?, &v?], scale)?;
            let here = [b, -1, tokens, size[3]];
            let made = merged.out.f_view(here)?.f_to_kind(inputs[0].kind())?;
            let of_made = merged.sums.f_view([b, -1, tokens])?;
            let Some(numbers) = &group.heads else { return Ok((made, of_made)) };
            let options = (inputs[0].kind(), inputs[0].device());
            let out = out.get_or_insert(Tensor::f_empty([b, heads, tokens, size[3]], options)?);
            let all = (accumulate_kind(options.0), options.1);
            let sums = sums.get_or_insert(Tensor::f_empty([b, heads, tokens], all)?);
            let _ = out.f_index_copy_(1, numbers, &made)?;
            let _ = sums.f_index_copy_(1, numbers, &of_made)?;
        }
        match (out, sums) {
            (Some(out), Some(sums)) => Ok((out, sums)),
            _ => bail!(Code::Internal, "a layout without heads"),
        }
    }

    fn forward_of(&self, group: &HeadGroup, inputs: [&Tensor; 3], scale: f64) -> Result<Merged> {
        let size = inputs[0].size();
        let (rows, width, device) = (size[0] * size[1], size[3], inputs[0].device());
        let shape = [rows, self.blocks, self.block];
        let mut merged: Option<Merged> = None;
        for call in &group.calls {
            let q = self.gather(inputs[0], &call.queries)?;
            let [k, v] = [inputs[1], inputs[2]].map(|x| self.gather(x, &call.keys));
            let (out, sums) = flash([&q, &k?, &v?], call.is_causal, scale)?;
            let kind = accumulate_kind(inputs[0].kind());
            let out = out.f_to_kind(kind)?.f_reshape([rows, -1, self.block, width])?;
            let sums = sums.f_reshape([rows, -1, self.block])?;
            let part = Merged { out, sums };
            if merged.is_none() && call.queries.numbers.is_none() {
                merged = Some(part);
                continue;
            }
            let zeros = || -> Result<Merged> {
                let options = (kind, device);
                Ok(Merged {
                    out: Tensor::f_zeros([rows, self.blocks, self.block, width], options)?,
                    sums: Tensor::f_full(shape, f64::NEG_INFINITY, options)?,
                })
            };
            let all = match merged.take() {
                Some(merged) => merged,
                None => zeros()?,
            };
            all.add(&part, &call.queries)?;
            merged = Some(all);
        }
        match merged {
            Some(merged) => Ok(merged),
            None => bail!(Code::Internal, "a layout that sees nothing"),
        }
    }

    fn backward(
        &self,
        inputs: &[Tensor; 3],
        (out, sums, grad): (&Tensor, &Tensor, &Tensor),
        scale: f64,
    ) -> Result<[Tensor; 3]> {
        let mut whole: Option<[Tensor; 3]> = None;
        for group in &self.groups {
            let [q, k, v] = inputs.each_ref().map(|x| group.select(x));
            let of_group = [out, sums, grad].map(|x| group.select(x));
            let [out, sums, grad] = of_group;
            let (out, sums, grad) = (out?, sums?, grad?);
            let grads = self.backward_of(group, [&q?, &k?, &v?], (&out, &sums, &grad), scale)?;
            let Some(numbers) = &group.heads else { return Ok(grads) };
            let all = match whole.take() {
                Some(all) => all,
                None => {
                    let [q, k, v] = inputs.each_ref().map(Tensor::f_empty_like);
                    [q?, k?, v?]
                }
            };
            for (all, grad) in all.iter().zip(&grads) {
                let _ = all.shallow_clone().f_index_copy_(1, numbers, grad)?;
            }
            whole = Some(all);
        }
        match whole {
            Some(grads) => Ok(grads),
            None => bail!(Code::Internal, "a layout without heads"),
        }
    }

    fn backward_of(
        &self,
        group: &HeadGroup,
        inputs: [&Tensor; 3],
        (out, sums, grad): (&Tensor, &Tensor, &Tensor),
        scale: f64,
    ) -> Result<[Tensor; 3]> {
        let size = inputs[0].size();
        let (kind, rows, width) = (inputs[0].kind(), size[0] * size[1], size[3]);
        let sums = sums.f_unsqueeze(-1)?;
        let mut totals: [Option<Tensor>; 3] = [None, None, None];
        for call in &group.calls {
            let of_queries = [inputs[0], out, &sums, grad].map(|x| self.gather(x, &call.queries));
            let [q, out, sums, grad] = of_queries;
            let [k, v] = [inputs[1], inputs[2]].map(|x| self.gather(x, &call.keys));
            let sums = sums?.f_squeeze_dim(-1)?.f_contiguous()?;
            let (out, grad) = (out?, grad?);
            let grads =
                flash_backward(&grad, [&q?, &k?, &v?], (&out, &sums), call.is_causal, scale)?;
            let blocks = [&call.queries, &call.keys, &call.keys];
            for ((total, part), blocks) in totals.iter_mut().zip(&grads).zip(blocks) {
                let part = part.f_to_kind(accumulate_kind(kind))?;
                let part = part.f_reshape([rows, -1, self.block, width])?;
                self.add(total, part, blocks)?;
            }
        }
        let [dq, dk, dv] = totals.map(|total| -> Result<Tensor> {
            match total {
                Some(total) => Ok(total.f_view(&size[..])?.f_to_kind(kind)?),
                None => Ok(inputs[0].f_zeros_like()?),
            }
        });
        Ok([dq?, dk?, dv?])
    }

    /// Adds the gradient of some blocks to that of all.
    fn add(&self, total: &mut Option<Tensor>, part: Tensor, blocks: &Blocks) -> Result<()> {
        match (&mut *total, &blocks.numbers) {
            (None, None) => *total = Some(part.f_contiguous()?),
            (Some(total), None) => {
                let _ = total.f_add_(&part)?;
            }
            (_, Some(numbers)) => {
                let size = part.size();
                let shape = [size[0], self.blocks, self.block, size[3]];
                let zeros = || Tensor::f_zeros(shape, (part.kind(), part.device()));
                let mut sum = match total.take() {
                    Some(total) => total,
                    None => zeros()?,
                };
                let _ = sum.f_index_add_(1, numbers, &part)?;
                *total = Some(sum);
            }
        }
        Ok(())
    }

    /// The blocks of `x` `[B, H, T, D]` that pieces have, `[B * H, pieces, tokens, D]`.
    fn gather(&self, x: &Tensor, blocks: &Blocks) -> Result<Tensor> {
        let size = x.size();
        let (rows, width) = (size[0] * size[1], size[3]);
        let Some(numbers) = &blocks.numbers else {
            return Ok(x.f_reshape([rows, blocks.pieces, -1, width])?);
        };
        let in_blocks = x.f_reshape([rows, self.blocks, self.block, width])?;
        let chosen = in_blocks.f_index_select(1, numbers)?;
        Ok(chosen.f_view([rows, blocks.pieces, -1, width])?)
    }
}

/// The blocks that the heads from the first on see, for the CPU's kernel.
fn seen_blocks(
    layout: &Layout,
    is_causal: bool,
    block: i64,
    heads: (i64, i64),
) -> Result<SeenBlocks> {
    let mut groups = vec![0; heads.1.unsigned_abs() as usize];
    let mut matrices = Vec::with_capacity(layout.groups.len());
    for (number, (matrix, here)) in (0..).zip(layout.among(heads)) {
        let bytes: Vec<u8> = (0..matrix.blocks())
            .flat_map(|row| matrix.row(row).iter().map(|&is_seen| u8::from(is_seen)))
            .collect();
        let blocks = matrix.blocks() as i64;
        matrices.push(Tensor::f_from_slice(&bytes)?.f_view([blocks, blocks])?);
        for head in here {
            groups[head.unsigned_abs() as usize] = number;
        }
    }
    Ok(SeenBlocks { seen: Tensor::f_stack(&matrices, 0)?, groups, block, is_causal })
}

impl HeadGroup {
    fn select(&self, x: &Tensor) -> Result<Tensor> {
        match &self.heads {
            Some(heads) => Ok(x.f_index_select(1, heads)?),
            None => Ok(x.shallow_clone()),
        }
    }
}

impl Merged {
    /// Adds the attention of some blocks of queries to other keys.
    fn add(&self, part: &Self, queries: &Blocks) -> Result<()> {
        let more = (&part.out, &part.sums);
        let Some(numbers) = &queries.numbers else {
            return merge_into((&self.out, &self.sums), more);
        };
        let of = |x: &Tensor| x.f_index_select(1, numbers);
        let (out, sums) = (of(&self.out)?, of(&self.sums)?);
        merge_into((&out, &sums), more)?;
        let put = |whole: &Tensor, part: &Tensor| {
            whole.shallow_clone().f_index_copy_(1, numbers, part).map(drop)
        };
        put(&self.out, &out)?;
        Ok(put(&self.sums, &sums)?)
    }
}
