//! NF4: codes of 4 bits, whose values are equally likely under a normal distribution (Dettmers et al.
//! 2023, QLoRA), bit for bit as bitsandbytes has them.
//!
//! A matrix `[outputs, inputs]` is cut into blocks of 64 values in its order in memory. A block is
//! divided by its largest magnitude, its scale, and each quotient becomes the number of the nearest
//! value of the table. Two codes share a byte, the first in its high bits.

use std::cell::OnceCell;

use super::{blocks, rows::parts};
use crate::{
    bridge::quantize::{nf4_decode, nf4_encode},
    error::{Code, Error, Result},
    tensor::{Device, Kind, Tensor},
};

/// Values that share a scale.
pub(super) const BLOCK: i64 = 64;

/// The value of each code, from bitsandbytes.
pub(super) const VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// One scale for each block.
pub(super) type Scales = Tensor;

/// The table on a device.
pub(super) struct Nf4 {
    device: Device,
    /// The values of the four codes of each two bytes, `[65536, 4]`, once operations decode.
    quads: OnceCell<Tensor>,
    /// Where one code ends and the next begins: `[15]`.
    bounds: Tensor,
    /// The same on the host.
    host_bounds: [f32; 15],
}

impl Nf4 {
    pub(super) fn new(device: Device) -> Result<Self> {
        let host_bounds = std::array::from_fn(|i| (VALUES[i] + VALUES[i + 1]) / 2.0);
        let bounds = blocks::bounds(&VALUES, device)?;
        Ok(Self { device, quads: OnceCell::new(), bounds, host_bounds })
    }

    fn quads(&self) -> Result<&Tensor> {
        if self.quads.get().is_none() {
            let of_byte = |byte: usize| [VALUES[byte >> 4], VALUES[byte & 15]];
            // The first byte is the low one of the number.
            let values: Vec<f32> = (0..=usize::from(u16::MAX))
                .flat_map(|two| [of_byte(two & 255), of_byte(two >> 8)])
                .flatten()
                .collect();
            let quads = Tensor::f_from_slice(&values)?.f_view([-1i64, 4])?;
            let _ = self.quads.set(quads.f_to_device(self.device)?);
        }
        self.quads.get().ok_or_else(|| Error::new(Code::Internal, "a table that was not kept"))
    }

    /// The codes of a contiguous float32 matrix, two a byte, and the scales of its blocks.
    pub(super) fn encode(&self, matrix: &Tensor) -> Result<(Tensor, Scales)> {
        match nf4_encode(matrix, &self.host_bounds)? {
            Some(encoded) => Ok(encoded),
            None => self.encode_by_operations(matrix),
        }
    }

    fn encode_by_operations(&self, matrix: &Tensor) -> Result<(Tensor, Scales)> {
        let numel = matrix.numel() as i64;
        let (codes, scales) = blocks::encode(&matrix.f_view([-1i64])?, BLOCK, &self.bounds)?;
        let pairs = codes.f_view([-1i64, 2])?;
        let high = pairs.f_select(1, 0)?.f_mul_scalar(16)?;
        let bytes = high.f_bitwise_or_tensor(&pairs.f_select(1, 1)?)?;
        Ok((bytes.f_narrow(0, 0, (numel + 1) / 2)?, scales.f_view([-1i64])?))
    }

    /// Writes the values of `codes` into `out` `[outputs, inputs]`.
    pub(super) fn decode(&self, codes: &Tensor, scales: &Scales, out: &Tensor) -> Result<()> {
        if nf4_decode(codes, scales, &VALUES, out)? {
            return Ok(());
        }
        let inputs = out.size()[1];
        for (first, rows) in parts(out) {
            let numel = rows * inputs;
            // Parts begin at whole blocks.
            let codes = codes.f_narrow(0, first * inputs / 2, (numel + 1) / 2)?;
            let scales = scales.f_narrow(0, first * inputs / BLOCK, blocks::count(numel, BLOCK))?;
            self.by_operations(&codes, &scales, &out.f_narrow(0, first, rows)?)?;
        }
        Ok(())
    }

    /// Writes the values of `codes` into `out` by libtorch's operations, each of which reads and writes as
    /// little as it can: on a GPU this is done for every matrix of every pass.
    fn by_operations(&self, codes: &Tensor, scales: &Scales, out: &Tensor) -> Result<()> {
        let numel = out.numel() as i64;
        let odd = codes.numel() as i64 % 2;
        let codes =
            if odd == 0 { codes.shallow_clone() } else { codes.f_constant_pad_nd([0, odd])? };
        // As one number for two bytes, from 0 up.
        let mask = Tensor::f_full([1], i64::from(u16::MAX), (Kind::Int, self.device))?;
        let numbers = codes.f_view_dtype(Kind::Int16)?.f_bitwise_and_tensor(&mask)?;
        let values = self.quads()?.f_index_select(0, &numbers)?.f_view([-1i64])?;
        let values = values.f_narrow(0, 0, numel)?;
        if out.is_contiguous() && numel % BLOCK == 0 {
            let scales = scales.f_view([-1i64, 1])?;
            let _ = values.f_view([-1, BLOCK])?.f_mul_out(&out.f_view([-1, BLOCK])?, &scales)?;
            return Ok(());
        }
        let values = blocks::scaled(&values, scales, BLOCK, numel)?.f_view(&out.size()[..])?;
        out.shallow_clone().f_copy_(&values)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::manual_seed;

    /// bitsandbytes' `dQuantizeNF4` (csrc/kernels.cu).
    fn code_of(x: f32) -> u8 {
        const BOUNDS: [f64; 15] = [
            -0.8480964004993439,
            -0.6106329262256622,
            -0.4599952697753906,
            -0.33967943489551544,
            -0.23460740596055984,
            -0.13791173323988914,
            -0.045525018125772476,
            0.03979014977812767,
            0.1202552504837513,
            0.2035212516784668,
            0.2920137718319893,
            0.3893125355243683,
            0.5016634166240692,
            0.6427869200706482,
            0.8614784181118011,
        ];
        BOUNDS.iter().filter(|&&bound| x > bound as f32).count() as u8
    }

    fn matrix(shape: [i64; 2]) -> Tensor {
        manual_seed(3);
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.reshape([-1]).to_kind(Kind::Float)).unwrap()
    }

    /// Whole blocks, a last one that is short, and an odd number of values.
    const SHAPES: [[i64; 2]; 4] = [[8, 64], [3, 50], [3, 33], [5, 192]];

    #[test]
    fn codes_scales_and_values_are_those_of_bitsandbytes() {
        let nf4 = Nf4::new(Device::Cpu).unwrap();
        for shape in SHAPES {
            let matrix = matrix(shape);
            let (codes, scales) = nf4.encode(&matrix).unwrap();
            let (found, found_scales) = (Vec::<u8>::try_from(&codes).unwrap(), floats(&scales));
            let out = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
            nf4.decode(&codes, &scales, &out).unwrap();
            let values = floats(&out);
            for (b, block) in floats(&matrix).chunks(BLOCK as usize).enumerate() {
                let absmax = block.iter().fold(0f32, |most, x| most.max(x.abs()));
                assert_eq!(found_scales[b], absmax);
                for (j, x) in block.iter().enumerate() {
                    let i = b * BLOCK as usize + j;
                    let byte = found[i / 2];
                    let code = if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
                    assert_eq!(code, code_of(x * (1.0 / absmax)), "value {i} of {shape:?}");
                    assert_eq!(values[i], VALUES[usize::from(code)] * absmax);
                }
            }
        }
    }

    #[test]
    fn the_kernel_and_the_operations_give_the_same_codes() {
        let nf4 = Nf4::new(Device::Cpu).unwrap();
        for shape in SHAPES.into_iter().chain([[700, 100]]) {
            let matrix = matrix(shape);
            let _ = matrix.select(0, 1).zero_();
            let (codes, scales) = nf4.encode(&matrix).unwrap();
            let (expected, expected_scales) = nf4.encode_by_operations(&matrix).unwrap();
            assert!(codes.equal(&expected) && scales.equal(&expected_scales), "{shape:?}");
        }
    }

    #[test]
    fn the_kernel_and_the_operations_give_the_same_values_in_every_format_and_order() {
        let nf4 = Nf4::new(Device::Cpu).unwrap();
        for shape in SHAPES {
            let (codes, scales) = nf4.encode(&matrix(shape)).unwrap();
            for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
                let out = Tensor::zeros(shape, (kind, Device::Cpu));
                nf4.decode(&codes, &scales, &out).unwrap();
                let by_operations = out.zeros_like();
                nf4.by_operations(&codes, &scales, &by_operations).unwrap();
                assert!(out.equal(&by_operations), "{kind:?} {shape:?}");
                let other = Tensor::zeros([shape[1], shape[0]], (kind, Device::Cpu));
                nf4.decode(&codes, &scales, &other.transpose(0, 1)).unwrap();
                assert!(other.transpose(0, 1).equal(&out));
                let other = other.zeros_like();
                nf4.by_operations(&codes, &scales, &other.transpose(0, 1)).unwrap();
                assert!(other.transpose(0, 1).equal(&out));
            }
        }
    }

    #[test]
    fn a_block_of_zeros_stays_zeros() {
        let nf4 = Nf4::new(Device::Cpu).unwrap();
        let out = Tensor::ones([1, 64], (Kind::Float, Device::Cpu));
        let (codes, scales) = nf4.encode(&out.zeros_like()).unwrap();
        nf4.decode(&codes, &scales, &out).unwrap();
        assert!(floats(&out).iter().all(|&x| x == 0.0));
    }
}
