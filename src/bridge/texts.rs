//! Products outside of a training, in which a text does not depend on the texts beside it.
//!
//! On the CPU in float32 libtorch's product adds in another order for another number of rows. The rows
//! of a text that has few are multiplied by a kernel that takes each row as it is alone, together with
//! those of its neighbours; a longer text is multiplied by itself. Elsewhere all rows are one product.

use tch::{Device, Kind, Tensor};

use super::decode::{FEW_ROWS, Matrix, few_rows, separate_rows};
use crate::error::{Code, Error, Result};

/// `x @ matrix + bias` for rows `[n, inputs]` of one text, or of several that have so many each.
pub(crate) fn product_of_texts(
    x: &Tensor,
    matrix: Matrix<'_>,
    bias: Option<&Tensor>,
    texts: Option<&[i64]>,
) -> Result<Tensor> {
    let rounds_by_rows = x.device() == Device::Cpu && x.kind() == Kind::Float;
    let parts = parts(texts.filter(|_| rounds_by_rows).unwrap_or(&[]));
    let few = |x: &Tensor| {
        let made = separate_rows(x, &[(matrix, bias)])?.and_then(|mut all| all.pop());
        made.ok_or_else(|| Error::new(Code::Internal, "rows of texts in a training"))
    };
    match &parts[..] {
        [] => match few_rows(x, matrix, bias)? {
            Some(y) => Ok(y),
            None => addmm(x, &matrix.by_inputs()?, bias, None),
        },
        [Part { is_few: true, .. }] => few(x),
        parts => {
            let size = [x.size()[0], matrix.outputs()];
            let y = Tensor::f_empty(size, (x.kind(), x.device()))?;
            for &Part { from, rows, is_few } in parts {
                let (x, mut y) = (x.f_narrow(0, from, rows)?, y.f_narrow(0, from, rows)?);
                match is_few {
                    true => y.f_copy_(&few(&x)?)?,
                    false => drop(addmm(&x, &matrix.by_inputs()?, bias, Some(&y))?),
                };
            }
            Ok(y)
        }
    }
}

/// `x @ matrix + bias` by libtorch's product, in `out` where that is given; the matrix is
/// `[inputs, outputs]`.
pub(crate) fn addmm(
    x: &Tensor,
    matrix: &Tensor,
    bias: Option<&Tensor>,
    out: Option<&Tensor>,
) -> Result<Tensor> {
    Ok(match (bias, out) {
        (Some(bias), None) => bias.f_addmm(x, matrix)?,
        (None, None) => x.f_mm(matrix)?,
        (Some(bias), Some(out)) => bias.f_addmm_out(out, x, matrix)?,
        (None, Some(out)) => x.f_mm_out(out, matrix)?,
    })
}

/// Rows that are multiplied together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    from: i64,
    rows: i64,
    /// Whether each text of them has few.
    is_few: bool,
}

/// The parts of the rows of texts that have so many each.
fn parts(texts: &[i64]) -> Vec<Part> {
    let (mut parts, mut from) = (Vec::<Part>::new(), 0);
    for &rows in texts {
        let is_few = rows <= FEW_ROWS;
        match parts.last_mut().filter(|last| last.is_few && is_few) {
            Some(last) => last.rows += rows,
            None => parts.push(Part { from, rows, is_few }),
        }
        from += rows;
    }
    parts
}

#[cfg(test)]
mod tests {
    use tch::no_grad;

    use super::*;

    #[test]
    fn short_texts_are_multiplied_together_and_long_ones_alone() {
        let of = |texts: &[i64]| -> Vec<_> {
            parts(texts).iter().map(|part| (part.from, part.rows, part.is_few)).collect()
        };
        let long = FEW_ROWS + 1;
        assert_eq!(of(&[3, FEW_ROWS]), [(0, 3 + FEW_ROWS, true)]);
        let expected =
            [(0, 2, true), (2, long, false), (2 + long, long, false), (2 + 2 * long, 1, true)];
        assert_eq!(of(&[1, 1, long, long, 1]), expected);
    }

    /// To the bit, and beside the product of all rows in float64 within the rounding of sums of 70
    /// terms near 1: 1e-4.
    #[test]
    fn the_rows_of_a_text_are_as_they_are_alone() {
        let random = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu));
        let texts = [5i64, 32, 90, 1, 33, 7];
        for (inputs, outputs) in [(64, 48), (70, 31)] {
            let (x, bias) = (random(&[texts.iter().sum(), inputs]), random(&[outputs]));
            let weight = random(&[outputs, inputs]);
            let turned = weight.tr().contiguous();
            for (matrix, bias) in
                [(Matrix::ByOutputs(&weight), None), (Matrix::ByInputs(&turned), Some(&bias))]
            {
                let of = |x: &Tensor, texts| {
                    no_grad(|| product_of_texts(x, matrix, bias, texts)).unwrap()
                };
                let all = of(&x, Some(&texts));
                let exact = x.to_kind(Kind::Double).mm(&turned.to_kind(Kind::Double));
                let exact = bias.map_or(exact.shallow_clone(), |bias| &exact + bias);
                assert!(all.to_kind(Kind::Double).allclose(&exact, 1e-4, 1e-4, false));
                let mut from = 0;
                for rows in texts {
                    let alone = of(&x.narrow(0, from, rows).copy(), None);
                    assert!(alone.equal(&all.narrow(0, from, rows)), "{inputs} {outputs} {rows}");
                    from += rows;
                }
            }
        }
    }
}
