//! Block-sparse attention on the CPU in float32.

use std::{ffi::c_int, ptr::null_mut};

use tch::{Device, Kind, Tensor};

use super::{RawTensor, check, own, raw};
use crate::error::{Code, Result};

unsafe extern "C" {
    fn dsr_attend_blocks(
        q: RawTensor,
        k: RawTensor,
        v: RawTensor,
        seen: RawTensor,
        groups: *const i64,
        block: i64,
        is_causal: bool,
        scale: f64,
        out: *mut RawTensor,
        sums: *mut RawTensor,
    ) -> c_int;
    fn dsr_attend_blocks_backward(
        grad: RawTensor,
        q: RawTensor,
        k: RawTensor,
        v: RawTensor,
        out: RawTensor,
        sums: RawTensor,
        seen: RawTensor,
        groups: *const i64,
        block: i64,
        is_causal: bool,
        scale: f64,
        dq: *mut RawTensor,
        dk: *mut RawTensor,
        dv: *mut RawTensor,
    ) -> c_int;
}

/// The blocks of keys that heads see.
#[derive(Debug)]
pub(crate) struct SeenBlocks {
    /// 1 where a block of queries sees one of keys, uint8 `[groups, blocks, blocks]`.
    pub(crate) seen: Tensor,
    /// The group of each head.
    pub(crate) groups: Vec<i64>,
    /// Tokens of a block.
    pub(crate) block: i64,
    /// Whether a query sees no key behind itself.
    pub(crate) is_causal: bool,
}

impl SeenBlocks {
    /// The attention of queries to keys and values, `[B, H, T, D]` each, and the log-sum-exp of its scores,
    /// `[B, H, T]`. A query that sees nothing has zeros.
    pub(crate) fn attend(&self, [q, k, v]: [&Tensor; 3], scale: f64) -> Result<(Tensor, Tensor)> {
        self.check([q, k, v])?;
        let mut made: [RawTensor; 2] = [null_mut(); 2];
        let [out, sums] = &mut made;
        let (seen, groups) = (raw(&self.seen), self.groups.as_ptr());
        let (q, k, v) = (raw(q), raw(k), raw(v));
        // SAFETY: every pointer is to a live tensor, whose sizes and formats fit the layout, to a number for
        // each head, or to a place for a pointer.
        check(unsafe {
            dsr_attend_blocks(q, k, v, seen, groups, self.block, self.is_causal, scale, out, sums)
        })?;
        let [out, sums] = made.map(own);
        Ok((out, sums))
    }

    /// The gradients of queries, keys and values from `grad`, that of the attention.
    pub(crate) fn backward(
        &self,
        grad: &Tensor,
        [q, k, v]: [&Tensor; 3],
        (out, sums): (&Tensor, &Tensor),
        scale: f64,
    ) -> Result<[Tensor; 3]> {
        self.check([q, k, v])?;
        self.check([q, out, grad])?;
        if !is_ours(sums) || sums.size()[..] != q.size()[..3] {
            bail!(Code::Internal, "log-sum-exps {:?} of {:?}", sums.size(), q.size());
        }
        let mut made: [RawTensor; 3] = [null_mut(); 3];
        let [dq, dk, dv] = &mut made;
        let (seen, groups) = (raw(&self.seen), self.groups.as_ptr());
        let (grad, out, sums) = (raw(grad), raw(out), raw(sums));
        let (q, k, v) = (raw(q), raw(k), raw(v));
        // SAFETY: as above.
        check(unsafe {
            dsr_attend_blocks_backward(
                grad,
                q,
                k,
                v,
                out,
                sums,
                seen,
                groups,
                self.block,
                self.is_causal,
                scale,
                dq,
                dk,
                dv,
            )
        })?;
        Ok(made.map(own))
    }

    /// Checks what the kernels count on.
    fn check(&self, inputs: [&Tensor; 3]) -> Result<()> {
        let size = inputs[0].size();
        let (&[_, heads, tokens, _], &[groups, rows, columns]) = (&size[..], &self.seen.size()[..])
        else {
            bail!(Code::Internal, "a block-sparse attention of {size:?}");
        };
        let of_layout = rows == columns
            && self.block > 0
            && tokens == rows * self.block
            && heads as usize == self.groups.len()
            && self.groups.iter().all(|group| (0..groups).contains(group))
            && self.seen.kind() == Kind::Uint8
            && self.seen.is_contiguous()
            && self.seen.device() == Device::Cpu;
        if !of_layout || !inputs.iter().all(|x| is_ours(x) && x.size() == size) {
            bail!(Code::Internal, "a block-sparse attention of {size:?} to {rows} blocks");
        }
        Ok(())
    }
}

fn is_ours(x: &Tensor) -> bool {
    x.kind() == Kind::Float && x.device() == Device::Cpu
}
