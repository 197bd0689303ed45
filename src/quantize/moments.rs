//! Averages of gradients and of their squares in 8 bits, block by block (Dettmers et al. 2022):
//! bitsandbytes' dynamic data types, signed for the first and unsigned for the second.
//!
//! The signed type has no -1, so that the codes of values that codes stood for may be others: what is
//! kept is the codes themselves.

use super::{blocks, dynamic};
use crate::{
    bridge::blockwise,
    error::Result,
    tensor::{Device, Kind, Tensor},
};

/// Averages that share a scale, their largest magnitude.
pub const MOMENT_BLOCK: i64 = 256;

/// The tables of both data types on a device.
#[derive(Debug)]
pub struct MomentCodes {
    device: Device,
    signed: CodeTable,
    unsigned: CodeTable,
}

/// The values of the codes of a data type, and the way from a value to its code.
#[derive(Debug)]
struct CodeTable {
    /// In ascending order: `[256]`.
    values: Tensor,
    /// For each upper half of a float32's bits the codes of the numbers that have it: `[65536]`, int32.
    /// The upper half is the code of the lowest of them, the lower half the lower bits of the highest
    /// with this code, reversed for numbers below 0, of which those with lower bits are the higher ones.
    /// Numbers above have the next code; there is no third, as long as they are not above 1.
    cells: Tensor,
    /// The code of 0.
    zero: u8,
}

impl CodeTable {
    fn new(values: &[f32], device: Device) -> Result<Self> {
        let bounds: Vec<f32> = values.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
        let cells: Vec<i32> = (0..=0xffff).map(|upper| cell(upper, &bounds)).collect();
        let zero = values.iter().position(|value| *value == 0.0).unwrap_or(0) as u8;
        Ok(Self {
            values: Tensor::f_from_slice(values)?.f_to_device(device)?,
            cells: Tensor::f_from_slice(&cells)?.f_to_device(device)?,
            zero,
        })
    }

    /// The codes, int32, of flat float32 values from -1 to 1.
    fn codes(&self, scaled: &Tensor) -> Result<Tensor> {
        let bits = scaled.f_view_dtype(Kind::Int)?;
        let upper = bits.f_bitwise_right_shift_tensor_scalar(16)?.f_bitwise_and_(0xffff)?;
        let mut lower = bits.f_bitwise_right_shift_tensor_scalar(31)?;
        let _ = lower.f_bitwise_xor_tensor_(&bits)?.f_bitwise_and_(0xffff)?;
        let cells = self.cells.f_index_select(0, &upper)?;
        let mut codes = cells.f_bitwise_right_shift_tensor_scalar(16)?;
        let _ = codes.f_add_(&lower.f_gt_tensor(&cells.f_bitwise_and(0xffff)?)?)?;
        Ok(codes)
    }
}

/// The cell of float32 numbers with these `upper` bits; `bounds` are the highest numbers of all codes but
/// the last.
fn cell(upper: u32, bounds: &[f32]) -> i32 {
    let ends = [upper << 16, upper << 16 | 0xffff].map(f32::from_bits);
    let lowest = ends[0].min(ends[1]);
    let code = bounds.partition_point(|bound| *bound < lowest);
    let bound = bounds.get(code).map(|bound| bound.to_bits()).filter(|bits| bits >> 16 == upper);
    let is_below_zero = upper >> 15 == 1;
    let highest = bound.map_or(0xffff, |bits| if is_below_zero { !bits } else { bits } & 0xffff);
    (code as i32) << 16 | highest as i32
}

impl MomentCodes {
    /// For averages on `device`.
    pub fn new(device: Device) -> Result<Self> {
        Ok(Self {
            device,
            signed: CodeTable::new(&dynamic::values(true)?, device)?,
            unsigned: CodeTable::new(&dynamic::values(false)?, device)?,
        })
    }

    /// The device of the averages.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The float32 values of `codes` `[n]` with the scales of their blocks.
    pub fn decode(&self, is_signed: bool, codes: &Tensor, scales: &Tensor) -> Result<Tensor> {
        let table = self.table(is_signed);
        let values = table.values.f_index_select(0, &codes.f_to_kind(Kind::Int)?)?;
        blocks::scaled(&values, scales, MOMENT_BLOCK, codes.numel() as i64)
    }

    /// Writes the codes of float32 `values` `[n]`, and the scales of their blocks. A value below 0 whose
    /// nearest code is that of 0 gets the one below, so that it keeps its sign as in bitsandbytes.
    pub fn encode(
        &self,
        is_signed: bool,
        values: &Tensor,
        (codes, scales): (&Tensor, &Tensor),
    ) -> Result<()> {
        let table = self.table(is_signed);
        let numel = values.numel() as i64;
        let (scaled, largest) = blocks::to_unit(values, MOMENT_BLOCK)?;
        let scaled = scaled.f_view([-1i64])?.f_narrow(0, 0, numel)?;
        let mut found = table.codes(&scaled)?;
        if is_signed {
            let is_zero = found.f_eq(i64::from(table.zero))?;
            let loses_sign = values.f_lt(0.0)?.f_logical_and(&is_zero)?;
            let _ = found.f_sub_(&loses_sign.f_to_kind(Kind::Int)?)?;
        }
        codes.shallow_clone().f_copy_(&found)?;
        scales.shallow_clone().f_copy_(&largest.f_view([-1i64])?)?;
        Ok(())
    }

    /// The tables of the first average and of the second, for the kernel of the CPU.
    pub(crate) fn tables(&self) -> [blockwise::CodeTable<'_>; 2] {
        [true, false].map(|is_signed| {
            let CodeTable { values, cells, zero } = self.table(is_signed);
            blockwise::CodeTable { values, cells, zero: *zero, is_signed }
        })
    }

    fn table(&self, is_signed: bool) -> &CodeTable {
        if is_signed { &self.signed } else { &self.unsigned }
    }
}

/// The scales of `numel` averages.
pub fn moment_scales(numel: i64) -> i64 {
    blocks::count(numel, MOMENT_BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::manual_seed;

    /// `create_dynamic_map` as bitsandbytes has it, number by number in float64.
    fn dynamic_map(is_signed: bool) -> Vec<f64> {
        let mut data = vec![0.0, 1.0];
        for i in 0..7 {
            let items = if is_signed { 1 << i } else { 1 << (i + 1) };
            let step = 0.9 / f64::from(items);
            for j in 0..items {
                let mean = 0.1 + step * (f64::from(j) + 0.5);
                let value = 10f64.powi(i - 6) * mean;
                data.push(value);
                if is_signed {
                    data.push(-value);
                }
            }
        }
        data.sort_by(f64::total_cmp);
        data
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor).unwrap()
    }

    #[test]
    fn the_values_are_those_of_create_dynamic_map() {
        let codes = MomentCodes::new(Device::Cpu).unwrap();
        for is_signed in [true, false] {
            let values = floats(&codes.table(is_signed).values);
            let expected = dynamic_map(is_signed);
            assert_eq!((values.len(), expected.len()), (256, 256));
            for (value, expected) in values.iter().zip(expected) {
                // Three roundings to float32, of the ends, the middles and the power of ten.
                let error = (f64::from(*value) - expected).abs();
                assert!(error <= 3e-7 * expected.abs(), "{value} is not {expected}");
            }
        }
    }

    /// Each value gets the code whose value is nearest, the lower one where two are as near: averages of
    /// many magnitudes, in blocks of which the last is not full.
    #[test]
    fn each_value_gets_the_nearest_code_of_its_block() {
        manual_seed(3);
        let codes = MomentCodes::new(Device::Cpu).unwrap();
        let float = (Kind::Float, Device::Cpu);
        let magnitudes = Tensor::empty([1000], float).uniform_(-12.0, 0.0);
        let values = Tensor::randn([1000], float) * magnitudes.exp2();
        for (is_signed, values) in [(true, values.copy()), (false, values.square())] {
            let (found, scales) = encoded(&codes, is_signed, &values);
            let (table, numbers) = (floats(&codes.table(is_signed).values), floats(&values));
            let (found, decoded) = (Vec::<u8>::try_from(&found).unwrap(), {
                floats(&codes.decode(is_signed, &found, &scales).unwrap())
            });
            for (b, block) in numbers.chunks(256).enumerate() {
                let absmax = block.iter().fold(0f32, |most, x| most.max(x.abs()));
                assert_eq!(floats(&scales)[b], absmax);
                for (j, x) in block.iter().enumerate() {
                    let scaled = x * (1.0 / absmax);
                    let mut code =
                        table.windows(2).filter(|v| scaled > (v[0] + v[1]) / 2.0).count();
                    if is_signed && *x < 0.0 && table[code] == 0.0 {
                        code -= 1;
                    }
                    let i = 256 * b + j;
                    assert_eq!(usize::from(found[i]), code, "{x} of {absmax}");
                    assert_eq!(decoded[i], table[code] * absmax);
                }
            }
        }
    }

    fn encoded(codes: &MomentCodes, is_signed: bool, values: &Tensor) -> (Tensor, Tensor) {
        let numel = values.numel() as i64;
        let found = Tensor::zeros([numel], (Kind::Uint8, Device::Cpu));
        let scales = Tensor::zeros([moment_scales(numel)], (Kind::Float, Device::Cpu));
        codes.encode(is_signed, values, (&found, &scales)).unwrap();
        (found, scales)
    }

    /// The codes beside each bound are right, and between two of them there is no other within one cell.
    #[test]
    fn the_cells_lead_to_each_code() {
        let codes = MomentCodes::new(Device::Cpu).unwrap();
        for is_signed in [true, false] {
            let table = codes.table(is_signed);
            let values = floats(&table.values);
            let bounds: Vec<f32> = values.windows(2).map(|v| (v[0] + v[1]) / 2.0).collect();
            let cell = |bound: &f32| bound.to_bits() >> 16;
            assert!(bounds.windows(2).all(|pair| cell(&pair[0]) != cell(&pair[1])));
            let ends = (0..=0xffffu32).flat_map(|upper| [upper << 16, upper << 16 | 0xffff]);
            let ends = ends.map(f32::from_bits).filter(|x| x.abs() <= 1.0);
            let around = bounds.iter().flat_map(|b| [b.next_down(), *b, b.next_up()]);
            let numbers: Vec<f32> = around.chain(ends).collect();
            let found = Vec::<i32>::try_from(table.codes(&Tensor::from_slice(&numbers)).unwrap());
            for (x, code) in numbers.iter().zip(found.unwrap()) {
                let expected = bounds.iter().filter(|bound| *bound < x).count();
                assert_eq!(code as usize, expected, "{x}");
            }
        }
    }

    /// What was never updated stays 0 whatever its codes, and what is 0 among others too.
    #[test]
    fn nothing_is_nothing() {
        let codes = MomentCodes::new(Device::Cpu).unwrap();
        for is_signed in [true, false] {
            let zeros = Tensor::zeros([300], (Kind::Float, Device::Cpu));
            let (found, scales) = encoded(&codes, is_signed, &zeros);
            assert!(codes.decode(is_signed, &found, &scales).unwrap().equal(&zeros));
            let fresh = (found.zeros_like(), scales.zeros_like());
            assert!(codes.decode(is_signed, &fresh.0, &fresh.1).unwrap().equal(&zeros));
        }
    }

    /// Codes of decoded values may be others, as -1 is not among the values.
    #[test]
    fn codes_are_not_those_of_their_values() {
        let codes = MomentCodes::new(Device::Cpu).unwrap();
        let (first, scales) = encoded(&codes, true, &Tensor::from_slice(&[-1.0f32, 0.5, 0.25]));
        let decoded = codes.decode(true, &first, &scales).unwrap();
        let (_, again) = encoded(&codes, true, &decoded);
        assert!(floats(&again)[0] < floats(&scales)[0]);
    }
}
