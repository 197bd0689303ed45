//! libtorch's flash attention as it is: with the log-sum-exp of the scores, and a backward pass that takes it,
//! so that results of parts of the keys can be merged; and that of one token a text to what a cache has.

use std::{ffi::c_int, ptr::null_mut};

use tch::{Device, Kind, Tensor};

use super::{RawTensor, check, device::properties, maybe, own, raw};
use crate::error::Result;

unsafe extern "C" {
    fn dsr_flash(
        q: RawTensor,
        k: RawTensor,
        v: RawTensor,
        is_causal: bool,
        scale: f64,
        out: *mut RawTensor,
        sums: *mut RawTensor,
    ) -> c_int;
    fn dsr_flash_of_slots(
        q: RawTensor,
        k: RawTensor,
        v: RawTensor,
        seen: RawTensor,
        queries: RawTensor,
        keys: RawTensor,
        most: i64,
        scale: f64,
        out: *mut RawTensor,
    ) -> c_int;
    fn dsr_flash_backward(
        grad: RawTensor,
        q: RawTensor,
        k: RawTensor,
        v: RawTensor,
        out: RawTensor,
        sums: RawTensor,
        is_causal: bool,
        scale: f64,
        dq: *mut RawTensor,
        dk: *mut RawTensor,
        dv: *mut RawTensor,
    ) -> c_int;
}

/// The widest head of a GPU's kernel.
const WIDEST_HEAD: i64 = 256;
/// The width of a head is a multiple of this for a GPU's kernel.
const HEAD_UNIT: i64 = 8;

/// Whether a GPU's kernel of [`flash`] is for this format and width of heads.
pub(crate) fn fits_flash(kind: Kind, head_dim: i64) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16)
        && head_dim % HEAD_UNIT == 0
        && head_dim <= WIDEST_HEAD
}

/// Keys and values, `[B, H, T, D]`, with as many heads as libtorch's kernel for `q` takes: on a GPU the flash
/// kernel alone shares heads, and the scores of all others would be written out.
fn for_kernel(q: &Tensor, keys_and_values: [&Tensor; 2], is_masked: bool) -> Result<[Tensor; 2]> {
    let (size, device) = (q.size(), q.device());
    let shared = size[1] / keys_and_values[0].size()[1];
    // A device is asked for its properties only where it matters.
    let is_taken = shared == 1
        || device == Device::Cpu
        || !is_masked && fits_flash(q.kind(), size[3]) && has_flash(device);
    let [k, v] = keys_and_values.map(|x| match is_taken {
        true => Ok(x.shallow_clone()),
        false => x.f_repeat_interleave_self_int(shared, 1, None),
    });
    Ok([k?, v?])
}

/// libtorch's scaled dot-product attention of queries to keys and values, `[B, H, T, D]` each.
pub(crate) fn scaled_dot_product(
    [q, k, v]: [&Tensor; 3],
    mask: Option<Tensor>,
    (dropout, is_causal, scale): (f64, bool, Option<f64>),
) -> Result<Tensor> {
    let [k, v] = for_kernel(q, [k, v], mask.is_some())?;
    let grouped = k.size()[1] != q.size()[1];
    Ok(Tensor::f_scaled_dot_product_attention(q, &k, &v, mask, dropout, is_causal, scale, grouped)?)
}

/// Whether a GPU has kernels of [`flash`]: from Ampere on.
pub(crate) fn has_flash(device: Device) -> bool {
    let capability = |index| properties(index).map(|properties| properties.capability);
    match device {
        Device::Cuda(index) => capability(index).is_ok_and(|(major, _)| major >= 8),
        _ => true,
    }
}

/// The attention of queries to keys and values, `[B, H, T, D]` each, and the log-sum-exp of its scores, float32
/// `[B, H, T]`.
pub(crate) fn flash(
    [q, k, v]: [&Tensor; 3],
    is_causal: bool,
    scale: f64,
) -> Result<(Tensor, Tensor)> {
    let mut made: [RawTensor; 2] = [null_mut(); 2];
    let [out, sums] = &mut made;
    // SAFETY: every pointer is to a live tensor, and both places are for a pointer.
    check(unsafe { dsr_flash(raw(q), raw(k), raw(v), is_causal, scale, out, sums) })?;
    let [out, sums] = made.map(own);
    Ok((out, sums))
}

/// The gradients of queries, keys and values of [`flash`], from `grad`, that of the attention; `out` and `sums`
/// may be those of more keys, and the gradients are then what these keys add.
pub(crate) fn flash_backward(
    grad: &Tensor,
    [q, k, v]: [&Tensor; 3],
    (out, sums): (&Tensor, &Tensor),
    is_causal: bool,
    scale: f64,
) -> Result<[Tensor; 3]> {
    let mut made: [RawTensor; 3] = [null_mut(); 3];
    let [dq, dk, dv] = &mut made;
    let (grad, out, sums) = (raw(grad), raw(out), raw(sums));
    let (q, k, v) = (raw(q), raw(k), raw(v));
    // SAFETY: every pointer is to a live tensor, and the three places are for a pointer.
    check(unsafe { dsr_flash_backward(grad, q, k, v, out, sums, is_causal, scale, dq, dk, dv) })?;
    Ok(made.map(own))
}

/// The keys that the queries of [`flash_of_slots`] see.
#[derive(Debug)]
pub(crate) struct SlotLengths {
    /// How many, int32 `[n]`.
    seen: Tensor,
    /// The most of them.
    most: i64,
    /// Where the queries and the keys of each sequence begin, and the last ends, int32 `[n + 1]`.
    queries: Tensor,
    keys: Tensor,
}

impl SlotLengths {
    /// Of texts whose next token is at `positions`, int64 `[B]`, the longest of which has then `longest`
    /// tokens, in caches of `kv_heads` heads and `capacity` tokens.
    pub(crate) fn of_next_tokens(
        (positions, longest): (&Tensor, i64),
        kv_heads: i64,
        capacity: i64,
    ) -> Result<Self> {
        let most = longest.min(capacity);
        let seen = positions.f_add_scalar(1)?.f_clamp_max(capacity)?.f_to_kind(Kind::Int)?;
        let seen = seen.f_repeat_interleave_self_int(kv_heads, 0, None)?;
        let options = (Kind::Int, seen.device());
        let queries = Tensor::f_arange(seen.size()[0] + 1, options)?;
        let keys = queries.f_mul_scalar(capacity)?;
        Ok(Self { seen, most, queries, keys })
    }
}

/// The attention of one query a text, `[B, H, D]`, to the first keys of its slot, of keys and values
/// `[B, KV, capacity, D]`; `lengths` are those of `B * KV` sequences. `None` where libtorch has no kernel for
/// it.
pub(crate) fn flash_of_slots(
    [q, k, v]: [&Tensor; 3],
    lengths: &SlotLengths,
    scale: f64,
) -> Result<Option<Tensor>> {
    let SlotLengths { seen, most, queries, keys } = lengths;
    let (seen, queries, keys) = (raw(seen), raw(queries), raw(keys));
    // SAFETY: every pointer is to a live tensor; libtorch checks their shapes.
    maybe(|out| unsafe {
        dsr_flash_of_slots(raw(q), raw(k), raw(v), seen, queries, keys, *most, scale, out)
    })
}
