//! A state tensor, in float32 or in bfloat16.
//!
//! bfloat16 keeps 8 bits: rounded to the nearest, an average whose decay changes it by less than
//! one part in 512 would stand still, and beta2 0.999 changes it by one in 1000. It is therefore
//! rounded stochastically: up or down with the probabilities that make the mean exact (Gupta et al.
//! 2015). The random bits are a hash of the seed and the element's place, so that they are the
//! same on every device, in every process and after a resumption, and move no generator.

use crate::tensor::{Device, Kind, Tensor, mix};

/// Elements that are rounded at once: what is needed beside the state stays in a processor's cache.
const CHUNK: i64 = 1 << 18;

/// The bits of a float32 that bfloat16 does not have.
const DROPPED_BITS: i64 = 0xffff;

/// One state tensor of a span, flat.
#[derive(Debug)]
pub(super) struct State(Tensor);

impl State {
    /// Zeros.
    pub(super) fn zeros(len: i64, kind: Kind, device: Device) -> crate::error::Result<Self> {
        Ok(Self(Tensor::f_zeros([len], (kind, device))?))
    }

    /// The tensor as it is stored.
    pub(super) fn stored(&self) -> &Tensor {
        &self.0
    }

    /// The state in float32: the stored tensor itself, or a copy for [`State::store`].
    pub(super) fn load(&self) -> Tensor {
        match self.0.kind() {
            Kind::Float => self.0.shallow_clone(),
            _ => self.0.to_kind(Kind::Float),
        }
    }

    /// Keeps what [`State::load`] gave and a step changed.
    pub(super) fn store(&mut self, loaded: &Tensor, seed: &[u64]) {
        if self.0.kind() == Kind::Float {
            return;
        }
        let len = self.0.size()[0];
        for (chunk, start) in (0..len).step_by(CHUNK as usize).enumerate() {
            let part = CHUNK.min(len - start);
            let bits = loaded.narrow(0, start, part).view_dtype(Kind::Int);
            let random = random_bits(part, mix(&[mix(seed), chunk as u64]), self.0.device());
            // In place: `loaded` is a copy of ours.
            let _ = bits.shallow_clone().g_add_(&random).bitwise_and_(!DROPPED_BITS);
        }
        self.0.copy_(loaded);
    }
}

/// As many random bits as bfloat16 drops, for each of `len` elements: int32 `[len]`.
///
/// Wellons' hash "lowbias32" of the element's place, which starts at a number made of the seed.
fn random_bits(len: i64, seed: u64, device: Device) -> Tensor {
    let start = i64::from((seed >> 32) as u32) - (1 << 31);
    let mut x = Tensor::arange(len, (Kind::Int, device));
    x *= 0x9e37_79b9_u32 as i32;
    x += start;
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

    fn bf16(len: i64) -> State {
        State::zeros(len, Kind::BFloat16, CPU).unwrap()
    }

    fn mean(state: &State) -> f64 {
        state.load().mean(Kind::Double).double_value(&[])
    }

    /// A value three quarters of the way between two neighbours in bfloat16 (spacing 2^-7 above 1)
    /// goes up three times of four, in every chunk and for any seed. 300,000 draws have a standard
    /// error of 0.0008; 0.005 is six of them.
    #[test]
    fn rounding_is_right_in_the_mean() {
        for seed in 0..4u64 {
            let mut state = bf16(300_000);
            let value = 1.0 + 0.75 / 128.0;
            let loaded = Tensor::full([300_000], value, (Kind::Float, CPU));
            state.store(&loaded, &[seed]);
            let up = state.load().gt(1.001).mean(Kind::Double).double_value(&[]);
            assert!((up - 0.75).abs() < 0.005, "seed {seed}: {up}");
            let first = state.load().narrow(0, 0, 1000).gt(1.001);
            let second = state.load().narrow(0, CHUNK, 1000).gt(1.001);
            assert!(!first.equal(&second), "the chunks have the same bits");
        }
    }

    #[test]
    fn what_bfloat16_has_stays_as_it_is() {
        let values = [0.0f32, -0.0, 1.0, -1.5, f32::INFINITY, 1e-38, -3.0e38];
        let exact = Tensor::from_slice(&values).to_kind(Kind::BFloat16);
        let mut state = bf16(values.len() as i64);
        state.store(&exact.to_kind(Kind::Float), &[3]);
        assert!(state.stored().equal(&exact));
    }

    #[test]
    fn the_seed_decides_the_rounding() {
        let draw = |seed: &[u64]| {
            let mut state = bf16(100);
            state.store(&Tensor::full([100], 1.003, (Kind::Float, CPU)), seed);
            state.load()
        };
        assert!(draw(&[1, 2]).equal(&draw(&[1, 2])));
        assert!(!draw(&[1, 2]).equal(&draw(&[2, 1])));
    }

    /// A thousand times 0.999 is 1/e, which rounding to the nearest never begins to reach. Each
    /// step adds an error of at most one part in 128: the mean of 4096 such walks is exact to 1 %.
    #[test]
    fn a_slow_decay_goes_on() {
        let mut state = bf16(4096);
        state.store(&Tensor::ones([4096], (Kind::Float, CPU)), &[]);
        let mut nearest = state.stored().copy();
        for step in 0..1000u64 {
            let loaded = state.load() * 0.999;
            state.store(&loaded, &[step]);
            nearest = (nearest.to_kind(Kind::Float) * 0.999).to_kind(Kind::BFloat16);
        }
        let expected = 0.999f64.powi(1000);
        assert!((mean(&state) / expected - 1.0).abs() < 0.01, "{}", mean(&state));
        assert_eq!(nearest.double_value(&[0]), 1.0);
    }
}
