//! Scales in 8 bits: bitsandbytes' dynamic data type (Dettmers 2015), around their mean.

use super::{blocks, nf4::Scales};
use crate::{
    error::Result,
    tensor::{Device, Kind, Tensor},
};

/// Scales that share a scale.
pub(super) const BLOCK: i64 = 256;

/// The values of the codes, on a device.
pub(super) struct DynamicMap {
    /// In ascending order: `[256]`.
    values: Tensor,
    /// Where one code ends and the next begins: `[255]`.
    bounds: Tensor,
}

/// Quantized scales.
pub(super) struct EncodedScales {
    pub(super) codes: Tensor,
    pub(super) scales: Tensor,
    pub(super) offset: Tensor,
}

impl DynamicMap {
    /// The signed type.
    pub(super) fn new(device: Device) -> Result<Self> {
        let values = values(true)?;
        Ok(Self {
            values: Tensor::f_from_slice(&values)?.f_to_device(device)?,
            bounds: blocks::bounds(&values, device)?,
        })
    }

    /// The codes of scales, and what they mean.
    pub(super) fn encode(&self, scales: &Scales) -> Result<EncodedScales> {
        let numel = scales.numel() as i64;
        let offset = scales.f_mean(Kind::Float)?;
        let (codes, largest) = blocks::encode(&scales.f_sub(&offset)?, BLOCK, &self.bounds)?;
        Ok(EncodedScales {
            codes: codes.f_narrow(0, 0, numel)?,
            scales: largest.f_view([-1i64])?,
            offset: offset.f_view([1i64])?,
        })
    }

    /// The scales that codes stand for.
    pub(super) fn decode(
        &self,
        codes: &Tensor,
        scales: &Tensor,
        offset: &Tensor,
    ) -> Result<Scales> {
        let numel = codes.numel() as i64;
        let values = self.values.f_index_select(0, &codes.f_to_kind(Kind::Int)?)?;
        Ok(blocks::scaled(&values, scales, BLOCK, numel)?.f_add(offset)?)
    }
}

/// The values of bitsandbytes' `create_dynamic_map` in ascending order: a sign where there is one, zeros
/// up to a one that ends the exponent, and a fraction of what is left.
pub(super) fn values(is_signed: bool) -> Result<Vec<f32>> {
    let mut values: Vec<f32> = vec![0.0, 1.0];
    for exponent in 0..7 {
        let parts = if is_signed { 1i64 << exponent } else { 2i64 << exponent };
        let ends = Tensor::f_linspace(0.1, 1.0, parts + 1, (Kind::Float, Device::Cpu))?;
        let sums = ends.f_narrow(0, 0, parts)?.f_add(&ends.f_narrow(0, 1, parts)?)?;
        let magnitudes = sums.f_div_scalar(2.0)?.f_mul_scalar(10f64.powi(exponent - 6))?;
        for magnitude in Vec::<f32>::try_from(magnitudes)? {
            values.push(magnitude);
            if is_signed {
                values.push(-magnitude);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::manual_seed;

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor).unwrap()
    }

    #[test]
    fn the_values_are_those_of_create_dynamic_map() {
        let values = floats(&DynamicMap::new(Device::Cpu).unwrap().values);
        assert_eq!(values.len(), 256);
        // The first and last ones of bitsandbytes' map, and those around zero.
        let expected = [(0, -0.992_968_75), (1, -0.978_906_3), (126, -5.5e-7), (127, 0.0)];
        let others = [(128, 5.5e-7), (129, 3.25e-6), (254, 0.992_968_75), (255, 1.0)];
        for (i, value) in expected.into_iter().chain(others) {
            // linspace, its middles and their powers of ten are each rounded to float32.
            let error: f32 = values[i] - value;
            assert!(error.abs() <= 3e-7 * value.abs(), "{i}: {} is not {value}", values[i]);
        }
    }

    /// `quantize_blockwise` of the scales without their mean, and back.
    #[test]
    fn scales_are_those_of_bitsandbytes() {
        manual_seed(5);
        let scales = Tensor::rand([300], (Kind::Float, Device::Cpu));
        let map = DynamicMap::new(Device::Cpu).unwrap();
        let EncodedScales { codes, scales: largest, offset } = map.encode(&scales).unwrap();
        let decoded = floats(&map.decode(&codes, &largest, &offset).unwrap());
        let (values, mean) = (floats(&map.values), floats(&scales.mean(Kind::Float).view([1]))[0]);
        assert_eq!(floats(&offset), [mean]);
        let centred: Vec<f32> = floats(&scales).iter().map(|x| x - mean).collect();
        let codes = Vec::<u8>::try_from(&codes).unwrap();
        for (b, block) in centred.chunks(BLOCK as usize).enumerate() {
            let absmax = block.iter().fold(0f32, |most, x| most.max(x.abs()));
            assert_eq!(floats(&largest)[b], absmax);
            for (j, x) in block.iter().enumerate() {
                let i = b * BLOCK as usize + j;
                let scaled = x * (1.0 / absmax);
                let code = values.windows(2).filter(|v| scaled > f32::midpoint(v[0], v[1])).count();
                assert_eq!(usize::from(codes[i]), code);
                assert_eq!(decoded[i], values[code] * absmax + mean);
            }
        }
    }
}
