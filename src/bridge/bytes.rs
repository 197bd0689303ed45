//! Tensors filled from bytes without a copy in between.

use tch::{Device, Kind, Tensor, no_grad};

use crate::error::{Code, Result};

/// Copies `bytes`, the elements of a tensor of this kind and shape, into a tensor of the same shape
/// of any kind on any device, without a trace in autograd.
pub(crate) fn copy_from_bytes(
    bytes: &[u8],
    kind: Kind,
    shape: &[i64],
    into: &Tensor,
) -> Result<()> {
    let size = kind.elt_size_in_bytes();
    if bytes.len() as i64 != shape.iter().product::<i64>() * size as i64 {
        bail!(Code::Internal, "{} bytes for a tensor of shape {shape:?}", bytes.len());
    }
    let is_aligned = bytes.as_ptr().addr().is_multiple_of(size);
    let source = if is_aligned && !bytes.is_empty() {
        // SAFETY: `bytes` has as many elements as `shape` says and outlives the tensor, which ends
        // with this function and is only read.
        unsafe { Tensor::f_from_blob(bytes.as_ptr(), shape, &[], kind, Device::Cpu)? }
    } else {
        Tensor::f_from_data_size(bytes, shape, kind)?
    };
    Ok(no_grad(|| into.shallow_clone().f_copy_(&source))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_converted_wherever_they_start() {
        let numbers: Vec<u8> = [1.5f32, -2.0, 0.25].iter().flat_map(|x| x.to_ne_bytes()).collect();
        let mut buffer = [0; 15];
        // Of four places one byte apart, one is aligned for float32.
        for start in 0..4 {
            let place = start..start + 12;
            buffer[place.clone()].copy_from_slice(&numbers);
            let into = Tensor::zeros([3], (Kind::Double, Device::Cpu)).set_requires_grad(true);
            copy_from_bytes(&buffer[place], Kind::Float, &[3], &into).unwrap();
            assert_eq!(Vec::<f64>::try_from(&into).unwrap(), [1.5, -2.0, 0.25]);
        }
        let into = Tensor::zeros([4], (Kind::Double, Device::Cpu));
        assert!(copy_from_bytes(&numbers, Kind::Float, &[4], &into).is_err());
    }
}
