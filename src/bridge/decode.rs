//! Kernels of the CPU for a pass of one token a text, whose results do not depend on the other rows.

use std::{
    ffi::c_int,
    ptr::{null, null_mut},
};

use tch::{Device, Kind, Tensor};

use super::{RawTensor, key_ranges::KeyRanges, maybe, raw};
use crate::error::{Code, Error, Result};

unsafe extern "C" {
    fn dsr_separate_rows(
        x: RawTensor,
        matrix: RawTensor,
        bias: RawTensor,
        by_inputs: bool,
        out: *mut RawTensor,
    ) -> c_int;
    fn dsr_int8_rows(
        x: RawTensor,
        codes: RawTensor,
        scales: RawTensor,
        bias: RawTensor,
        out: *mut RawTensor,
    ) -> c_int;
    fn dsr_nf4_rows(
        x: RawTensor,
        codes: RawTensor,
        scales: RawTensor,
        values: *const f32,
        bias: RawTensor,
        outputs: i64,
        out: *mut RawTensor,
    ) -> c_int;
    fn dsr_attend(
        query: RawTensor,
        keys: RawTensor,
        values: RawTensor,
        bias: RawTensor,
        seen: *const i64,
        offsets: *const i64,
        ranges: *const i64,
        scale: f64,
        out: *mut RawTensor,
    ) -> c_int;
}

/// A matrix as it lies in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Matrix<'a> {
    /// `[outputs, inputs]`.
    ByOutputs(&'a Tensor),
    /// `[inputs, outputs]`.
    ByInputs(&'a Tensor),
}

impl Matrix<'_> {
    /// Its number of outputs.
    pub(crate) fn outputs(&self) -> i64 {
        match self {
            Self::ByOutputs(weight) => weight.size()[0],
            Self::ByInputs(weight) => weight.size()[1],
        }
    }

    /// The matrix as `[inputs, outputs]`.
    pub(crate) fn by_inputs(&self) -> Result<Tensor> {
        Ok(match self {
            Self::ByOutputs(weight) => weight.f_tr()?,
            Self::ByInputs(weight) => weight.shallow_clone(),
        })
    }
}

/// Rows up to which a product is bound by the memory of its matrix.
pub(crate) const FEW_ROWS: i64 = 32;

/// [`separate_rows`] for a few rows; `None` where libtorch's product is to be taken, for many rows too.
pub(crate) fn few_rows(
    x: &Tensor,
    matrix: Matrix<'_>,
    bias: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    match x.size().first().is_some_and(|&rows| rows <= FEW_ROWS) {
        true => separate_rows(x, matrix, bias),
        false => Ok(None),
    }
}

/// `x @ matrix + bias` for rows `x` `[n, inputs]`, each row as it is alone; `None` with gradients, on
/// another device or in another format.
pub(crate) fn separate_rows(
    x: &Tensor,
    matrix: Matrix<'_>,
    bias: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    let (Matrix::ByOutputs(weight) | Matrix::ByInputs(weight)) = matrix;
    let by_inputs = matches!(matrix, Matrix::ByInputs(_));
    let inputs = weight.size().get(usize::from(!by_inputs)).copied();
    if x.size().get(1).copied() != inputs {
        bail!(Code::Internal, "a product of {:?} with {:?}", x.size(), weight.size());
    }
    let bias = bias.map_or(null_mut(), raw);
    // SAFETY: every pointer is to a live tensor or null, and the widths agree.
    maybe(|out| unsafe { dsr_separate_rows(raw(x), raw(weight), bias, by_inputs, out) })
}

/// The codes of a matrix `[outputs, inputs]`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CodeMatrix<'a> {
    /// Whole numbers from -127 to 127, with a float32 scale for each output, which 127 stands for.
    Int8 { codes: &'a Tensor, scales: &'a Tensor },
    /// NF4: two codes a byte with the first in the high bits, a float32 scale for each 64 codes, and the
    /// values of the 16 codes. The number of inputs is a multiple of 64.
    Nf4 { codes: &'a Tensor, scales: &'a Tensor, values: &'a [f32; 16] },
}

/// `x @ matrix + bias` for rows of `x` `[n, inputs]`, float32 on the CPU, and a matrix of `outputs`; each
/// row as it is alone.
pub(crate) fn code_rows(
    x: &Tensor,
    matrix: CodeMatrix<'_>,
    outputs: i64,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let x = &x.f_contiguous()?;
    let inputs = x.size().get(1).copied().unwrap_or(0);
    let numel = (outputs * inputs) as usize;
    let is = |tensor: &Tensor, kind, numel| {
        tensor.kind() == kind
            && tensor.numel() == numel
            && tensor.device() == Device::Cpu
            && tensor.is_contiguous()
    };
    let fits = match matrix {
        CodeMatrix::Int8 { codes, scales } => {
            is(codes, Kind::Int8, numel) && is(scales, Kind::Float, outputs as usize)
        }
        CodeMatrix::Nf4 { codes, scales, .. } => {
            inputs % 64 == 0
                && is(codes, Kind::Uint8, numel / 2)
                && is(scales, Kind::Float, numel / 64)
        }
    };
    let has_bias = bias.is_none_or(|bias| is(bias, Kind::Float, outputs as usize));
    if !fits || !has_bias || !is(x, Kind::Float, x.numel()) {
        bail!(Code::Internal, "a product of {:?} with codes of {outputs} outputs", x.size());
    }
    let bias = bias.map_or(null_mut(), raw);
    // SAFETY: every pointer is to a live tensor, to 16 numbers or null, and the tensors are of the host,
    // are contiguous, and have the formats and the sizes that the kernels count on.
    let made = maybe(|out| unsafe {
        match matrix {
            CodeMatrix::Int8 { codes, scales } => {
                dsr_int8_rows(raw(x), raw(codes), raw(scales), bias, out)
            }
            CodeMatrix::Nf4 { codes, scales, values } => {
                let (codes, scales) = (raw(codes), raw(scales));
                dsr_nf4_rows(raw(x), codes, scales, values.as_ptr(), bias, outputs, out)
            }
        }
    });
    made?.ok_or_else(|| Error::new(Code::Internal, "a product with codes"))
}

/// The attention of one query a row, `[B, H, D]`, to the first `seen` keys and values of its row,
/// `[B or more, KV, capacity, D]`, or to `ranges` of them, with a float32 `bias` `[1 or B, H, T]`; `None` where
/// libtorch's attention is to be taken.
pub(crate) fn attend(
    query: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    bias: Option<&Tensor>,
    (seen, ranges): (&[i64], Option<&KeyRanges>),
    scale: f64,
) -> Result<Option<Tensor>> {
    let fits = fits(query, keys, bias, seen);
    let ranges_fit = ranges.is_none_or(|ranges| ranges.fits(query.size()[1], seen));
    if !(fits && ranges_fit)
        || values.size() != keys.size()
        || values.kind() != keys.kind()
        || !values.is_contiguous()
    {
        bail!(Code::Internal, "an attention of {:?} to {:?}", query.size(), keys.size());
    }
    let bias = bias.map_or(null_mut(), raw);
    let (q, k, v) = (raw(query), raw(keys), raw(values));
    let (offsets, ranges) = ranges.map_or((null(), null()), KeyRanges::arrays);
    // SAFETY: every pointer is to a live tensor or null, whose sizes and formats fit each other, and
    // `seen` has a number for each row that is at most the capacity, and ranges lie within it.
    maybe(|out| unsafe { dsr_attend(q, k, v, bias, seen.as_ptr(), offsets, ranges, scale, out) })
}

/// Whether sizes and formats of an attention fit each other.
fn fits(query: &Tensor, keys: &Tensor, bias: Option<&Tensor>, seen: &[i64]) -> bool {
    let (query_size, keys_size) = (query.size(), keys.size());
    let (&[b, h, d], &[slots, kv, capacity, width]) = (&query_size[..], &keys_size[..]) else {
        return false;
    };
    let most = seen.iter().copied().max().unwrap_or(0);
    let bias_fits = bias.is_none_or(|bias| {
        let fits = matches!(bias.size()[..], [rows, heads, keys]
            if (rows == 1 || rows == b) && heads == h && keys >= most);
        fits && bias.kind() == Kind::Float && bias.is_contiguous()
    });
    let rows_fit = b as usize == seen.len() && (1..=slots).contains(&b);
    let heads_fit = kv > 0 && h % kv == 0 && d == width && keys.kind() == query.kind();
    let seen_fits = most <= capacity && seen.iter().all(|&count| count > 0);
    bias_fits && rows_fit && heads_fit && seen_fits && keys.is_contiguous()
}

#[cfg(test)]
mod tests {
    use tch::{Device, IndexOp, no_grad};

    use super::*;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// Beside the product in float64, within the rounding of sums of 300 terms near 1: 1e-4.
    #[test]
    fn a_row_is_the_same_to_the_bit_beside_any_others() {
        for (inputs, outputs) in [(5, 3), (64, 80), (300, 70), (37, 129)] {
            let (x, bias) = (Tensor::randn([21, inputs], CPU), Tensor::randn([outputs], CPU));
            let matrix = Tensor::randn([outputs, inputs], CPU);
            let turned = matrix.tr().contiguous();
            let expected = bias.addmm(&x, &turned);
            for matrix in [Matrix::ByOutputs(&matrix), Matrix::ByInputs(&turned)] {
                let product = |x: &Tensor| no_grad(|| few_rows(x, matrix, Some(&bias)));
                let all = product(&x).unwrap().unwrap();
                assert!(all.allclose(&expected, 1e-4, 1e-4, false), "{inputs} {outputs}");
                for (from, rows) in [(0, 1), (20, 1), (3, 2), (1, 7), (2, 17)] {
                    let part = product(&x.narrow(0, from, rows)).unwrap().unwrap();
                    assert!(part.equal(&all.narrow(0, from, rows)), "{inputs} {outputs} {rows}");
                }
            }
        }
        let many = Tensor::randn([100, 4], CPU);
        let matrix = Tensor::randn([4, 4], CPU);
        let taken = no_grad(|| few_rows(&many, Matrix::ByInputs(&matrix), None)).unwrap();
        assert!(taken.is_none(), "libtorch is faster then");
        let with_gradient = few_rows(&many.narrow(0, 0, 1), Matrix::ByInputs(&matrix), None);
        assert!(with_gradient.unwrap().is_none());
    }

    /// A model whose weights are no numbers says nothing that looks like an answer.
    #[test]
    fn what_is_no_number_stays_none() {
        for place in [0, 3, 4] {
            let ones = || Tensor::ones([1, 1, 40, 16], CPU);
            let (q, keys) = (Tensor::ones([1, 1, 16], CPU), ones());
            let _ = keys.i((0, 0, place, 2)).fill_(f64::NAN);
            let made =
                no_grad(|| attend(&q, (&keys, &ones()), None, (&[5], None), 1.0)).unwrap().unwrap();
            assert!(made.isnan().all().int64_value(&[]) == 1, "{place}: {made:?}");
        }
    }

    /// Beside libtorch's attention, whose sums have another order: 1e-5 in float32, in bfloat16 two of
    /// its steps at 1, 2^-6.
    #[test]
    fn an_attention_sees_the_keys_of_its_row() {
        for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)] {
            for (heads, kv, d) in [(4, 4, 16), (4, 2, 24), (6, 1, 5)] {
                let random = |size: &[i64]| Tensor::randn(size, CPU);
                let (q, bias) = (random(&[3, heads, d]), random(&[3, heads, 40]));
                let (k, v) = (random(&[5, kv, 40, d]), random(&[5, kv, 40, d]));
                let [q, k, v] = [q, k, v].map(|x| x.to_kind(kind));
                let seen = [1i64, 40, 23];
                for bias in [None, Some(&bias)] {
                    let made = no_grad(|| attend(&q, (&k, &v), bias, (&seen, None), 0.3))
                        .unwrap()
                        .unwrap();
                    for (row, &seen) in (0..).zip(&seen) {
                        let of = |x: &Tensor| x.narrow(0, row, 1).narrow(2, 0, seen);
                        let mask = bias.map(|bias| of(bias).unsqueeze(2).to_kind(kind));
                        let q = q.narrow(0, row, 1).unsqueeze(2);
                        let expected = Tensor::scaled_dot_product_attention(
                            &q,
                            &of(&k),
                            &of(&v),
                            mask,
                            0.0,
                            false,
                            0.3,
                            true,
                        );
                        let made = made.narrow(0, row, 1).unsqueeze(2);
                        assert!(made.allclose(&expected, tolerance, tolerance, false), "{kind:?}");
                    }
                }
            }
        }
    }

    /// Ranges are the same as an infinity that is added to the scores of all other keys: within the rounding
    /// of sums in another order.
    #[test]
    fn a_head_sees_ranges_of_the_keys_of_its_row() {
        for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)] {
            let random = |size: &[i64]| Tensor::randn(size, CPU).to_kind(kind);
            let (q, k, v) = (random(&[2, 4, 24]), random(&[2, 2, 40, 24]), random(&[2, 2, 40, 24]));
            let mut ranges = KeyRanges::new(4);
            for of_head in [[0..3, 7..9], [8..9, 9..10], [0..1, 5..10], [2..3, 4..5]] {
                ranges.push(of_head);
            }
            for of_head in [[0..3, 37..40], [8..9, 9..10], [0..1, 5..31], [20..36, 36..40]] {
                ranges.push(of_head);
            }
            let seen = [10i64, 40];
            let alibi = Tensor::randn([2, 4, 40], CPU);
            let hidden = ranges.hidden(40, Device::Cpu).unwrap();
            for bias in [None, Some(&alibi)] {
                let of = |bias, ranges| {
                    no_grad(|| attend(&q, (&k, &v), bias, (&seen, ranges), 0.3)).unwrap().unwrap()
                };
                let made = of(bias, Some(&ranges));
                let masked = bias.map_or_else(|| hidden.shallow_clone(), |bias| bias + hidden);
                let expected = of(Some(&masked), None);
                assert!(made.allclose(&expected, tolerance, tolerance, false), "{kind:?}");
            }
            let beyond = no_grad(|| attend(&q, (&k, &v), None, (&[8, 40], Some(&ranges)), 0.3));
            assert!(beyond.is_err());
        }
    }
}
