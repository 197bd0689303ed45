//! Kernels of the CPU for a pass of one token a text, whose results do not depend on the other rows.

use std::{
    ffi::c_int,
    ptr::{null, null_mut},
};

use tch::{Device, Kind, Tensor};

use super::{RawTensor, all, key_ranges::KeyRanges, maybe, raw};
use crate::error::{Code, Error, Result};

unsafe extern "C" {
    fn dsr_separate_rows(
        x: RawTensor,
        count: i64,
        matrices: *const RawTensor,
        biases: *const RawTensor,
        by_inputs: *const bool,
        out: *mut RawTensor,
    ) -> c_int;
    fn dsr_code_rows(
        x: RawTensor,
        count: i64,
        codes: *const RawTensor,
        scales: *const RawTensor,
        biases: *const RawTensor,
        outputs: *const i64,
        values: *const f32,
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
    fn stored(&self) -> &Tensor {
        match self {
            Self::ByOutputs(weight) | Self::ByInputs(weight) => weight,
        }
    }

    /// Its number of inputs.
    fn inputs(&self) -> i64 {
        match self {
            Self::ByOutputs(weight) => weight.size()[1],
            Self::ByInputs(weight) => weight.size()[0],
        }
    }

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

/// [`separate_rows`] of one matrix for a few rows `[n, inputs]`; `None` where libtorch's product is to be
/// taken, for many rows too.
pub(crate) fn few_rows(
    x: &Tensor,
    matrix: Matrix<'_>,
    bias: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    match x.size().first().is_some_and(|&rows| rows <= FEW_ROWS) {
        true => Ok(separate_rows(x, &[(matrix, bias)])?.and_then(|mut all| all.pop())),
        false => Ok(None),
    }
}

/// `x @ matrix + bias` for rows `x` `[.., inputs]` and each of these matrices with its bias, each row as it
/// is alone; `None` with gradients, on another device or in another format.
pub(crate) fn separate_rows(
    x: &Tensor,
    matrices: &[(Matrix<'_>, Option<&Tensor>)],
) -> Result<Option<Vec<Tensor>>> {
    let inputs = x.size().last().copied();
    for (matrix, bias) in matrices {
        let has_bias = bias.is_none_or(|bias| bias.numel() as i64 == matrix.outputs());
        if inputs != Some(matrix.inputs()) || !has_bias {
            bail!(Code::Internal, "a product of {:?} with {matrix:?}", x.size());
        }
    }
    let weights: Vec<_> = matrices.iter().map(|(matrix, _)| raw(matrix.stored())).collect();
    let biases: Vec<_> = matrices.iter().map(|(_, bias)| maybe_raw(*bias)).collect();
    let by_inputs: Vec<_> =
        matrices.iter().map(|(matrix, _)| matches!(matrix, Matrix::ByInputs(_))).collect();
    let count = matrices.len();
    let (weights, biases, by_inputs) = (weights.as_ptr(), biases.as_ptr(), by_inputs.as_ptr());
    // SAFETY: there are `count` of each, every pointer is to a live tensor or a bias that is null, and the
    // widths agree.
    all(count, |out| unsafe {
        dsr_separate_rows(raw(x), count as i64, weights, biases, by_inputs, out)
    })
}

fn maybe_raw(tensor: Option<&Tensor>) -> RawTensor {
    tensor.map_or(null_mut(), raw)
}

/// The format of the codes of matrices `[outputs, inputs]`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CodeFormat<'a> {
    /// Whole numbers from -127 to 127, with a float32 scale for each output, which 127 stands for.
    Int8,
    /// NF4: two codes a byte with the first in the high bits, a float32 scale for each 64 codes, and the
    /// values of the 16 codes. The number of inputs is a multiple of 64.
    Nf4 { values: &'a [f32; 16] },
}

/// A matrix of codes, its outputs and its bias.
pub(crate) struct CodeFactor<'a> {
    pub(crate) codes: &'a Tensor,
    pub(crate) scales: Tensor,
    pub(crate) outputs: i64,
    pub(crate) bias: Option<&'a Tensor>,
}

impl CodeFactor<'_> {
    /// Whether it has what a product with rows of so many inputs counts on.
    fn fits(&self, inputs: i64, format: CodeFormat<'_>) -> bool {
        let (outputs, numel) = (self.outputs as usize, (self.outputs * inputs) as usize);
        let fits = match format {
            CodeFormat::Int8 => {
                is_here(self.codes, Kind::Int8, numel)
                    && is_here(&self.scales, Kind::Float, outputs)
            }
            CodeFormat::Nf4 { .. } => {
                inputs % 64 == 0
                    && is_here(self.codes, Kind::Uint8, numel / 2)
                    && is_here(&self.scales, Kind::Float, numel / 64)
            }
        };
        fits && self.bias.is_none_or(|bias| is_here(bias, Kind::Float, outputs))
    }
}

fn is_here(tensor: &Tensor, kind: Kind, numel: usize) -> bool {
    tensor.kind() == kind
        && tensor.numel() == numel
        && tensor.device() == Device::Cpu
        && tensor.is_contiguous()
}

/// `x @ matrix + bias` for rows of `x` `[.., inputs]`, float32 on the CPU, and each of these matrices; each
/// row as it is alone.
pub(crate) fn code_rows(
    x: &Tensor,
    format: CodeFormat<'_>,
    factors: &[CodeFactor<'_>],
) -> Result<Vec<Tensor>> {
    let x = &x.f_contiguous()?;
    let inputs = x.size().last().copied().unwrap_or(0);
    if !is_here(x, Kind::Float, x.numel()) || !factors.iter().all(|f| f.fits(inputs, format)) {
        let outputs: Vec<_> = factors.iter().map(|factor| factor.outputs).collect();
        bail!(Code::Internal, "a product of {:?} with codes of {outputs:?} outputs", x.size());
    }
    let codes: Vec<_> = factors.iter().map(|factor| raw(factor.codes)).collect();
    let scales: Vec<_> = factors.iter().map(|factor| raw(&factor.scales)).collect();
    let biases: Vec<_> = factors.iter().map(|factor| maybe_raw(factor.bias)).collect();
    let outputs: Vec<_> = factors.iter().map(|factor| factor.outputs).collect();
    let values = match format {
        CodeFormat::Int8 => null(),
        CodeFormat::Nf4 { values } => values.as_ptr(),
    };
    let (codes, scales, biases) = (codes.as_ptr(), scales.as_ptr(), biases.as_ptr());
    let (x, count, outputs) = (raw(x), factors.len(), outputs.as_ptr());
    // SAFETY: there are `count` of each, every pointer is to a live tensor, to 16 numbers or null, and the tensors
    // are of the host, are contiguous, and have the formats and the sizes that the kernels count on.
    let made = all(count, |out| unsafe {
        dsr_code_rows(x, count as i64, codes, scales, biases, outputs, values, out)
    });
    made?.ok_or_else(|| Error::new(Code::Internal, "a product with codes"))
}

/// Whether [`attend`] has a kernel for keys of this format, which reads those that are seen and no others.
pub(crate) fn attends(kind: Kind, device: Device) -> bool {
    device == Device::Cpu && matches!(kind, Kind::Float | Kind::BFloat16)
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
        // Several matrices together, and rows of more dimensions.
        let (x, bias) = (Tensor::randn([3, 37], CPU), Tensor::randn([129], CPU));
        let (matrix, turned) = (Tensor::randn([129, 37], CPU), Tensor::randn([37, 70], CPU));
        let all = [(Matrix::ByOutputs(&matrix), Some(&bias)), (Matrix::ByInputs(&turned), None)];
        let together = no_grad(|| separate_rows(&x.unsqueeze(1), &all)).unwrap().unwrap();
        for (made, (matrix, bias)) in together.iter().zip(all) {
            let alone = no_grad(|| few_rows(&x, matrix, bias)).unwrap().unwrap();
            assert!(made.equal(&alone.unsqueeze(1)));
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
