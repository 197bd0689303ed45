//! A tensor that a step changes, state or weights, in float32 or in bfloat16.
//!
//! bfloat16 keeps 8 bits: rounded to the nearest, an average whose decay changes it by less than
//! one part in 512 would stand still, and beta2 0.999 changes it by one in 1000. It is therefore
//! rounded stochastically: up or down with the probabilities that make the mean exact (Gupta et al.
//! 2015). The random bits are a hash of the seed and the element's place, so that they are the
//! same on every device, in every process and after a resumption, and move no generator.

use crate::tensor::{Device, Kind, Tensor, mix};

/// Elements that are rounded at once on a CPU, so that what is needed beside the state stays in its
/// cache, and on a device, which is asked less often.
const CPU_CHUNK: i64 = 1 << 16;
const DEVICE_CHUNK: i64 = 1 << 24;

/// The bits of a float32 that bfloat16 does not have.
const DROPPED_BITS: i64 = 0xffff;

/// 2^32 over the golden ratio: multiples of it are far apart.
const GOLDEN_RATIO: u32 = 0x9e37_79b9;

/// One tensor of a slice, flat, as it is stored.
#[derive(Debug)]
pub(super) struct StoredTensor<'a>(pub(super) &'a Tensor);

impl StoredTensor<'_> {
    /// Whether it is float32, so that it is changed in place.
    pub(super) fn is_float(&self) -> bool {
        self.0.kind() == Kind::Float
    }

    /// The state in float32: the stored tensor itself, or a copy for [`StoredTensor::store`].
    pub(super) fn load(&self) -> Tensor {
        match self.0.kind() {
            Kind::Float => self.0.shallow_clone(),
            _ => self.0.to_kind(Kind::Float),
        }
    }

    /// Keeps what [`StoredTensor::load`] gave and a step changed. `place` is that of the first element in
    /// its unit, so that the bits do not depend on how many ranks divide it.
    pub(super) fn store(&self, loaded: &Tensor, place: i64, seed: &[u64]) {
        if self.is_float() {
            return;
        }
        let (len, device, seed) = (self.0.size()[0], self.0.device(), mix(seed) as u32);
        let chunk = if device == Device::Cpu { CPU_CHUNK } else { DEVICE_CHUNK };
        for start in (0..len).step_by(chunk as usize) {
            let part = chunk.min(len - start);
            let bits = loaded.narrow(0, start, part).view_dtype(Kind::Int);
            let random = random_bits((place + start) as u32, part, seed, device);
            // In place: `loaded` is a copy of ours.
            let _ = bits.shallow_clone().g_add_(&random).bitwise_and_(!DROPPED_BITS);
        }
        self.0.shallow_clone().copy_(loaded);
    }
}

/// As many random bits as bfloat16 drops, for each of the `len` elements from `start` on: int32
/// `[len]`.
///
/// Wellons' hash "lowbias32" of the seed plus the element's place in steps of the golden ratio.
fn random_bits(start: u32, len: i64, seed: u32, device: Device) -> Tensor {
    let first = start.wrapping_mul(GOLDEN_RATIO).wrapping_add(seed);
    let mut x = Tensor::arange(len, (Kind::Int, device));
    x *= i64::from(GOLDEN_RATIO as i32);
    x += i64::from(first as i32);
    for (shift, factor) in [(16, 0x7feb_352d_u32), (15, 0x846c_a68b)] {
        xor_shifted(&mut x, shift);
        x *= i64::from(factor as i32);
    }
    xor_shifted(&mut x, 16);
    x.bitwise_and_(DROPPED_BITS)
}

/// `x ^= x >> shift` without the sign.
fn xor_shifted(x: &mut Tensor, shift: i64) {
    let mut shifted = x.bitwise_right_shift_tensor_scalar(shift);
    let _ = shifted.bitwise_and_((1i64 << (32 - shift)) - 1);
    let _ = x.bitwise_xor_tensor_(&shifted);
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Device = Device::Cpu;

    fn bf16(len: i64) -> Tensor {
        Tensor::zeros([len], (Kind::BFloat16, CPU))
    }

    fn mean(state: &Tensor) -> f64 {
        StoredTensor(state).load().mean(Kind::Double).double_value(&[])
    }

    /// A value three quarters of the way between two neighbours in bfloat16 (spacing 2^-7 above 1)
    /// goes up three times of four, in every chunk and for any seed. 300,000 draws have a standard
    /// error of 0.0008; 0.005 is six of them.
    #[test]
    fn rounding_is_right_in_the_mean() {
        for seed in 0..4u64 {
            let state = bf16(300_000);
            let value = 1.0 + 0.75 / 128.0;
            let loaded = Tensor::full([300_000], value, (Kind::Float, CPU));
            StoredTensor(&state).store(&loaded, 0, &[seed]);
            let up = StoredTensor(&state).load().gt(1.001).mean(Kind::Double).double_value(&[]);
            assert!((up - 0.75).abs() < 0.005, "seed {seed}: {up}");
            let first = StoredTensor(&state).load().narrow(0, 0, 1000).gt(1.001);
            let second = StoredTensor(&state).load().narrow(0, CPU_CHUNK, 1000).gt(1.001);
            assert!(!first.equal(&second), "the chunks have the same bits");
        }
    }

    #[test]
    fn what_bfloat16_has_stays_as_it_is() {
        let values = [0.0f32, -0.0, 1.0, -1.5, f32::INFINITY, 1e-38, -3.0e38];
        let exact = Tensor::from_slice(&values).to_kind(Kind::BFloat16);
        let state = bf16(values.len() as i64);
        StoredTensor(&state).store(&exact.to_kind(Kind::Float), 0, &[3]);
        assert!(state.equal(&exact));
    }

    #[test]
    fn the_bits_do_not_depend_on_the_chunks() {
        let all = random_bits(5, 100, 7, CPU);
        assert!(all.narrow(0, 60, 40).equal(&random_bits(65, 40, 7, CPU)));
    }

    #[test]
    fn the_seed_decides_the_rounding() {
        let draw = |seed: &[u64]| {
            let state = bf16(100);
            StoredTensor(&state).store(&Tensor::full([100], 1.003, (Kind::Float, CPU)), 0, seed);
            StoredTensor(&state).load()
        };
        assert!(draw(&[1, 2]).equal(&draw(&[1, 2])));
        assert!(!draw(&[1, 2]).equal(&draw(&[2, 1])));
    }

    /// A thousand times 0.999 is 1/e, which rounding to the nearest never begins to reach. Each
    /// step adds an error of at most one part in 128: the mean of 4096 such walks is exact to 1 %.
    #[test]
    fn a_slow_decay_goes_on() {
        let state = bf16(4096);
        StoredTensor(&state).store(&Tensor::ones([4096], (Kind::Float, CPU)), 0, &[]);
        let mut nearest = state.copy();
        for step in 0..1000u64 {
            let loaded = StoredTensor(&state).load() * 0.999;
            StoredTensor(&state).store(&loaded, 0, &[step]);
            nearest = (nearest.to_kind(Kind::Float) * 0.999).to_kind(Kind::BFloat16);
        }
        let expected = 0.999f64.powi(1000);
        assert!((mean(&state) / expected - 1.0).abs() < 0.01, "{}", mean(&state));
        assert_eq!(nearest.double_value(&[0]), 1.0);
    }
}
