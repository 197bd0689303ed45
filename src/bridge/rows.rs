//! Kernels of the CPU for what a pass of one token a text does beside products: each takes the place of
//! many small operations.

use std::ffi::c_int;

use tch::{Device, Tensor};

use super::{RawTensor, check, maybe, raw};
use crate::error::{Code, Result};

unsafe extern "C" {
    fn dsr_rms_norm_rows(
        x: RawTensor,
        weight: RawTensor,
        epsilon: f64,
        added: f64,
        out: *mut RawTensor,
    ) -> c_int;
    fn dsr_turn_rows(
        x: RawTensor,
        cos: RawTensor,
        sin: RawTensor,
        positions: *const i64,
        out: *mut RawTensor,
    ) -> c_int;
    fn dsr_keep_rows(
        keys: RawTensor,
        values: RawTensor,
        k: RawTensor,
        v: RawTensor,
        places: *const i64,
    ) -> c_int;
}

/// `x / sqrt(mean(x^2) + epsilon) * (weight + added)` over the last dimension; `None` with gradients, on
/// another device or in another format than float32.
pub(crate) fn rms_norm(
    x: &Tensor,
    weight: &Tensor,
    (epsilon, added): (f64, f64),
) -> Result<Option<Tensor>> {
    if weight.numel() == 0 || x.size().last().copied() != Some(weight.numel() as i64) {
        bail!(Code::Internal, "a norm of {:?} with {:?}", x.size(), weight.size());
    }
    // SAFETY: both pointers are to live tensors, and the widths agree.
    maybe(|out| unsafe { dsr_rms_norm_rows(raw(x), raw(weight), epsilon, added, out) })
}

/// The heads of one token a text, `[B, 1, H, D]`, turned by the angles of these positions, of tables
/// `[positions, 1, half]`; `None` as for [`rms_norm`].
pub(crate) fn turn(
    x: &Tensor,
    (cos, sin): (&Tensor, &Tensor),
    positions: &[i64],
) -> Result<Option<Tensor>> {
    let (x_size, table) = (x.size(), cos.size());
    let fits = matches!((&x_size[..], &table[..]), (&[b, 1, _, width], &[angles, 1, half])
        if b as usize == positions.len() && 2 * half <= width
            && positions.iter().all(|at| (0..angles).contains(at)));
    if !fits || sin.size() != table {
        bail!(Code::Internal, "a turn of {x_size:?} by {table:?} at {positions:?}");
    }
    // SAFETY: every pointer is to a live tensor, there is a position for each row, and each is in the
    // tables.
    maybe(|out| unsafe { dsr_turn_rows(raw(x), raw(cos), raw(sin), positions.as_ptr(), out) })
}

/// Copies the keys and values of one token a row, `[B, H, 1, D]`, to these places in the memory of the
/// rows' slots, `[B or more, H, capacity, D]`; false on another device.
pub(crate) fn keep(
    (keys, values): (&Tensor, &Tensor),
    (k, v): (&Tensor, &Tensor),
    places: &[i64],
) -> Result<bool> {
    let is_here = |x: &Tensor| x.device() == Device::Cpu;
    if ![keys, values, k, v].into_iter().all(is_here) {
        return Ok(false);
    }
    let fits = |memory: &Tensor, x: &Tensor| {
        let (size, one) = (memory.size(), x.size());
        let (&[slots, heads, capacity, width], &[b, ..]) = (&size[..], &one[..]) else {
            return false;
        };
        one == [b, heads, 1, width]
            && b <= slots
            && b as usize == places.len()
            && places.iter().all(|at| (0..capacity).contains(at))
            && x.kind() == memory.kind()
            && x.stride()[3] == 1
            && memory.is_contiguous()
    };
    if !fits(keys, k) || !fits(values, v) {
        bail!(Code::Internal, "keys of {:?} kept in {:?}", k.size(), keys.size());
    }
    // SAFETY: every pointer is to a live tensor on the CPU; sizes and formats fit, and each place is in
    // the memory.
    check(unsafe { dsr_keep_rows(raw(keys), raw(values), raw(k), raw(v), places.as_ptr()) })?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use tch::{Kind, no_grad};

    use super::*;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// Beside libtorch's operations, within the rounding of a sum of 70 terms: 1e-5.
    #[test]
    fn a_norm_is_that_of_the_formula_and_each_row_its_own() {
        for width in [3, 16, 70] {
            let (x, weight) = (Tensor::randn([4, 1, width], CPU), Tensor::randn([width], CPU));
            let made = no_grad(|| rms_norm(&x, &weight, (1e-5, 1.0))).unwrap().unwrap();
            let mean = x.square().mean_dim(&[-1i64][..], true, Kind::Float);
            let expected = &x * (mean + 1e-5).rsqrt() * (&weight + 1.0);
            assert!(made.allclose(&expected, 1e-5, 1e-5, false), "{width}");
            let one = no_grad(|| rms_norm(&x.narrow(0, 2, 1), &weight, (1e-5, 1.0)));
            assert!(one.unwrap().unwrap().equal(&made.narrow(0, 2, 1)), "{width}");
        }
    }

    #[test]
    fn elements_behind_those_that_turn_stay() {
        let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0]).view([1, 1, 1, 5]);
        let table = |values: [f32; 4]| Tensor::from_slice(&values).view([2, 1, 2]);
        let (cos, sin) = (table([1.0, 1.0, 0.0, 1.0]), table([0.0, 0.0, 1.0, 0.0]));
        let made = no_grad(|| turn(&x, (&cos, &sin), &[1])).unwrap().unwrap();
        assert_eq!(Vec::<f32>::try_from(made.view(-1)).unwrap(), [-3.0, 2.0, 1.0, 4.0, 5.0]);
        assert!(turn(&x, (&cos, &sin), &[2]).is_err());
    }

    #[test]
    fn keys_are_copied_from_wherever_they_lie() {
        let (keys, values) = (Tensor::zeros([3, 2, 4, 5], CPU), Tensor::zeros([3, 2, 4, 5], CPU));
        // Of tokens before heads, as a projection makes them.
        let made = Tensor::randn([2, 1, 2, 5], CPU).transpose(1, 2);
        assert!(keep((&keys, &values), (&made, &made), &[3, 0]).unwrap());
        for memory in [keys, values] {
            let kept = [(0, 3), (1, 0)].map(|(row, at)| memory.get(row).narrow(1, at, 1));
            assert!(Tensor::stack(&kept, 0).equal(&made));
            assert!((memory.norm().square() - made.norm().square()).abs().double_value(&[]) < 1e-4);
        }
    }
}
