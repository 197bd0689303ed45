//! The scores of attention: windows that are computed without a mask of all, and the cost of every kind.

use super::{Attention, Position, Projections};
use crate::{
    bridge::attention::{fits_flash, has_flash},
    model::{
        cost::{FLOAT_BYTES, Operation, SparseWork, Tape, Workload},
        masks::Masks,
    },
    sparse::{MOST_SCORES, window_density},
    tensor::{Device, Tensor},
};

/// A mask is as fast as pieces for rows shorter than this, or than one and a half windows: the last piece is
/// filled up.
const SHORT_ROW: i64 = 512;
impl Attention {
    /// The window of queries `[B, H, T, D]`, if the kernel of windows is for them: where rows are long, have no
    /// padding that a query would see, and no weights are dropped out.
    pub(super) fn own_window(&self, q: &Tensor, masks: &Masks, trains: bool) -> Option<i64> {
        let drops = trains && self.dropout > 0.0;
        let device = q.device();
        let has_kernel =
            device == Device::Cpu || (fits_flash(q.kind(), self.head_dim) && has_flash(device));
        let window = self.window_within(q.size()[2])?;
        (has_kernel && !drops && masks.padding().is_none()).then_some(window)
    }

    /// The same for a training of a workload.
    fn window_of(&self, work: &Workload) -> Option<i64> {
        let has_kernel = work.device == Device::Cpu || fits_flash(work.kind(), self.head_dim);
        let window = self.window_within(work.tokens as i64)?;
        (has_kernel && self.dropout == 0.0).then_some(window)
    }

    fn window_within(&self, tokens: i64) -> Option<i64> {
        let is_plain =
            self.is_causal && matches!(self.position, Position::None | Position::Rotary(_));
        let is_long = |&window: &i64| tokens >= SHORT_ROW && 2 * tokens >= 3 * window;
        self.window.filter(is_long).filter(|_| is_plain)
    }

    /// Whether there are keys outside of a query's window.
    fn is_windowed(&self, work: &Workload) -> bool {
        self.window.is_some_and(|window| window < work.tokens as i64)
    }

    /// Whether keys and values are repeated for a GPU's kernel in a training of a workload.
    pub(super) fn repeats_heads(&self, work: &Workload) -> bool {
        let is_flash = !self.is_windowed(work) && fits_flash(work.kind(), self.head_dim);
        let shares = work.device != Device::Cpu && self.heads != self.kv_heads;
        // Windows and blocks have kernels of their own.
        shares && !is_flash && self.density(work).is_none()
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
    fn written_bytes(&self, work: &Workload, sparse: SparseWork) -> u64 {
        let pairs = work.places() * work.tokens * work.part(self.heads).unsigned_abs();
        let scores = ((pairs as f64 * sparse.density) as u64).min(MOST_SCORES.unsigned_abs());
        let gathered = scores / sparse.block.max(1) * self.head_dim.unsigned_abs();
        FLOAT_BYTES * (4 * scores + 3 * gathered)
    }

    /// The workload of the keys: cross-attention has those of the encoder.
    pub(super) fn keys(&self, work: &Workload) -> Workload {
        match self.projections {
            Projections::Cross(..) => work.of_encoder(),
            _ => *work,
        }
    }

    /// Adds the cost of the scores, for queries and keys of so many bytes.
    pub(super) fn cost_of_scores(&self, work: &Workload, tape: &mut Tape, (q, kv): (u64, u64)) {
        let heads = work.part(self.heads).unsigned_abs();
        let carried = matches!(self.position, Position::Carried);
        if self.cost_of_window(work, tape, (q, kv)) {
            return;
        }
        if self.is_sparse_in(work) {
            return self.cost_of_blocks(work, tape, (q, kv));
        }
        let keys = self.keys(work).tokens;
        let pairs = work.tokens * keys;
        if matches!(self.position, Position::Alibi) {
            tape.needs_mask(heads * pairs * work.element_bytes);
        } else if self.is_windowed(work) {
            tape.needs_mask(pairs * work.element_bytes);
        }
        let is_written = work.device == Device::Cpu && (self.dropout > 0.0 || carried);
        if !is_written {
            let statistics = work.places() * heads * FLOAT_BYTES;
            let repeats = self.repeats_heads(work);
            if repeats {
                tape.push(Operation { gradient: q + 2 * kv, ..Operation::default() });
            }
            let kv = if repeats { q } else { kv };
            let (kept, gradient) = (2 * q + 2 * kv + statistics, q + 2 * kv);
            let transient = match work.device {
                // The kernel's buffers exist beside the gradients.
                Device::Cpu => gradient + work.flash_buffers(work.tokens, keys),
                // The gradient of a trained bias is that of each row before it is summed.
                _ if carried => work.rows * heads * pairs * work.element_bytes,
                _ => 0,
            };
            tape.push(Operation { kept, gradient, transient, ..Operation::default() });
            return;
        }
        let of_inputs = q + 2 * kv;
        // Written out, each query has keys and values of its own, and all is in float32.
        let kv = if self.heads == self.kv_heads { kv } else { q };
        let [q, kv] = [q, kv].map(|bytes| work.in_floats(bytes));
        let scores = work.rows * heads * pairs * FLOAT_BYTES;
        let is_fused = !matches!(self.projections, Projections::Apart(..) | Projections::Cross(..));
        // The values of a single row are contiguous, and hold on to the storage of all three.
        let copies = if work.rows == 1 && is_fused { 2 * q } else { 0 };
        if work.is_narrow() {
            tape.push(Operation { gradient: of_inputs, ..Operation::default() });
        }
        let gradient = q + 2 * kv;
        tape.push(Operation { kept: q + kv, gradient, carried: kv, ..Operation::default() });
        if self.dropout > 0.0 {
            for _ in 0..2 {
                tape.push(Operation { kept: scores, transient: scores, ..Operation::default() });
            }
        }
        let (mut kept, gradient) = (scores + kv + copies, scores + kv);
        if self.dropout == 0.0 {
            // The softmax keeps what it made, and makes the gradient of the scores from that of its weights.
            kept -= scores;
            let softmax = Operation { kept: scores, gradient, carried: kv, ..Operation::default() };
            tape.push(softmax);
        }
        tape.push(Operation { kept, gradient, ..Operation::default() });
        // Its output is copied for the projection.
        tape.push(Operation { kept: q, ..Operation::default() });
    }

    /// Adds the cost of block-sparse attention.
    fn cost_of_blocks(&self, work: &Workload, tape: &mut Tape, (q, kv): (u64, u64)) {
        // Each query has keys and values of its own; the output is copied for the projection.
        let statistics = work.places() * work.part(self.heads).unsigned_abs() * FLOAT_BYTES;
        let in_floats = work.in_floats(q);
        let transient = match work.sparse.filter(|_| matches!(self.position, Position::Carried)) {
            Some(sparse) => 8 * in_floats + self.written_bytes(work, sparse),
            None => 3 * in_floats + 4 * q,
        };
        tape.push(Operation {
            kept: 4 * q + statistics,
            transient,
            gradient: q + 2 * kv,
            ..Operation::default()
        });
        tape.push(Operation { kept: q, ..Operation::default() });
    }

    /// Adds the cost of the scores in a window; `false` where they are not made so.
    fn cost_of_window(&self, work: &Workload, tape: &mut Tape, (q, kv): (u64, u64)) -> bool {
        let Some(window) = self.window_of(work).map(i64::unsigned_abs) else { return false };
        let pieces = work.tokens.div_ceil(window);
        // Of a row with the zeros behind it, and of all pieces but one.
        let padded = |bytes: u64| bytes / work.tokens * pieces * window;
        let (all, rest) = (padded(q), padded(q) / pieces * (pieces - 1));
        let has_padding = pieces * window > work.tokens;
        let statistics = padded(work.places() * work.part(self.heads).unsigned_abs() * FLOAT_BYTES);
        let is_expanded = self.heads != self.kv_heads;
        // Padding copies queries, outputs and their gradients. Padding or shared heads copy keys and values.
        let copies = match (has_padding, is_expanded) {
            (true, _) => 5 * all,
            (false, true) => 2 * all,
            (false, false) => 0,
        };
        let gradients = 3 * work.in_floats(all);
        let buffers = work.flash_buffers(window, window);
        let of_kernel = copies + 3 * all + buffers;
        // In float32 the first piece exists beside its flipped copy. In 16 bits the last gradient exists in both
        // formats.
        let of_pieces = copies + gradients + if work.is_narrow() { all } else { rest };
        let of_flipped = gradients + 8 * rest + statistics + buffers;
        let transient = of_pieces.max(of_kernel).max(of_flipped);
        // The output of a single row is a view, which keeps the padded storage.
        let output = if work.rows == 1 { all } else { q };
        let of_gradient =
            |bytes| if work.rows > 1 || work.is_narrow() { bytes } else { padded(bytes) };
        tape.push(Operation {
            kept: q + 2 * kv + output + statistics,
            transient,
            gradient: of_gradient(q) + if is_expanded { 2 * kv } else { 2 * of_gradient(kv) },
            ..Operation::default()
        });
        true
    }
}
