//! Attention to some of the keys: windows without a mask of all, and the cost of both these and of block-sparse
//! attention.

use super::{Attention, Position};
use crate::{
    bridge::attention::has_flash,
    model::{
        cost::{FLOAT_BYTES, Operation, SparseWork, Tape, Workload},
        masks::Masks,
    },
    sparse::{MOST_SCORES, window_density},
    tensor::{Device, Kind, Tensor},
};

/// A mask is as fast as pieces for rows shorter than this, or than one and a half windows: the last piece is
/// filled up.
const SHORT_ROW: i64 = 512;
/// The widest head of a GPU's kernel.
const WIDEST_HEAD: i64 = 256;
/// The width of a head is a multiple of this for a GPU's kernel.
const HEAD_UNIT: i64 = 8;

impl Attention {
    /// The window of queries `[B, H, T, D]`, if the kernel of windows is for them: where rows are long, have no
    /// padding that a query would see, and no weights are dropped out.
    pub(super) fn own_window(&self, q: &Tensor, masks: &Masks, trains: bool) -> Option<i64> {
        let drops = trains && self.dropout > 0.0;
        let device = q.device();
        let has_kernel = device == Device::Cpu || (self.fits_flash(q.kind()) && has_flash(device));
        let window = self.window_within(q.size()[2])?;
        (has_kernel && !drops && masks.padding().is_none()).then_some(window)
    }

    /// The same for a training of a workload.
    fn window_of(&self, work: &Workload) -> Option<i64> {
        let is_narrow = work.element_bytes < FLOAT_BYTES;
        let kind = if is_narrow { Kind::BFloat16 } else { Kind::Float };
        let has_kernel = work.device == Device::Cpu || self.fits_flash(kind);
        let window = self.window_within(work.tokens as i64)?;
        (has_kernel && self.dropout == 0.0).then_some(window)
    }

    fn window_within(&self, tokens: i64) -> Option<i64> {
        let is_plain =
            self.is_causal && matches!(self.position, Position::None | Position::Rotary(_));
        let is_long = |&window: &i64| tokens >= SHORT_ROW && 2 * tokens >= 3 * window;
        self.window.filter(is_long).filter(|_| is_plain)
    }

    fn fits_flash(&self, kind: Kind) -> bool {
        matches!(kind, Kind::Half | Kind::BFloat16)
            && self.head_dim % HEAD_UNIT == 0
            && self.head_dim <= WIDEST_HEAD
    }

    /// The part of causal attention's scores that is computed.
    pub(super) fn density(&self, work: &Workload) -> Option<f64> {
        match self.window_of(work) {
            Some(window) => Some(window_density(work.tokens as i64, window)),
            None => work.sparse.filter(|_| self.is_sparse_in(work)).map(|sparse| sparse.density),
        }
    }

    /// Whether block-sparse attention computes it.
    pub(super) fn is_sparse_in(&self, work: &Workload) -> bool {
        work.sparse.is_some_and(|sparse| self.may_be_sparse(sparse.sides))
    }

    /// Bytes that are held at a time where scores have a trained bias: of scores with their weights and
    /// gradients, and of the keys and values that rows of blocks see.
    pub(super) fn written_bytes(&self, work: &Workload, sparse: SparseWork) -> u64 {
        let pairs = work.places() * work.tokens * work.part(self.heads).unsigned_abs();
        let scores = ((pairs as f64 * sparse.density) as u64).min(MOST_SCORES.unsigned_abs());
        let gathered = scores / sparse.block.max(1) * self.head_dim.unsigned_abs();
        FLOAT_BYTES * (4 * scores + 3 * gathered)
    }

    /// Adds the cost of the scores in a window; `false` where they are not made so.
    pub(super) fn cost_of_window(
        &self,
        work: &Workload,
        tape: &mut Tape,
        (q, kv): (u64, u64),
    ) -> bool {
        let Some(window) = self.window_of(work) else { return false };
        let pieces = work.tokens.div_ceil(window.unsigned_abs());
        // Of a row with the zeros behind it, and of all pieces but one.
        let padded = |bytes: u64| bytes / work.tokens * pieces * window.unsigned_abs();
        let (all, rest) = (padded(q), padded(q) / pieces * (pieces - 1));
        let has_padding = pieces * window.unsigned_abs() > work.tokens;
        let statistics = padded(work.places() * work.part(self.heads).unsigned_abs() * FLOAT_BYTES);
        let in_floats = |bytes: u64| bytes / work.element_bytes * FLOAT_BYTES;
        // Each query has keys and values of its own.
        let expanded = if self.heads == self.kv_heads { 0 } else { 2 * all };
        let copies = if has_padding { 2 * all + 2 * padded(kv) } else { 0 };
        let summed = if work.element_bytes == FLOAT_BYTES { 0 } else { 3 * in_floats(all) };
        let transient = expanded + copies + 3 * all + summed + 8 * rest;
        tape.push(Operation {
            kept: 2 * q + 2 * kv + statistics,
            transient,
            gradient: q + 2 * kv,
            ..Operation::default()
        });
        true
    }
}
