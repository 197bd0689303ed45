//! Seeds: libtorch's default generator, tensors that a seed fills, and seeds made of several numbers.

use tch::{Device, Kind, Tensor};

use crate::{bridge::random, error::Result};

/// Seeds libtorch's default generators, of the CPU and of every CUDA device.
pub fn manual_seed(seed: u64) {
    tch::manual_seed(i64::from_ne_bytes(seed.to_ne_bytes()));
}

/// Draws all elements from a normal distribution, as `normal_` does on the CPU after
/// `manual_seed(seed)`: the same numbers on every device. No generator that others draw from changes.
pub fn fill_normal(values: &mut Tensor, mean: f64, std: f64, seed: u64) -> Result<()> {
    on_cpu(values, |values| random::fill_normal(values, mean, std, seed))
}

/// Draws all elements evenly from `[from, to)`, as [`fill_normal`] does.
pub fn fill_uniform(values: &mut Tensor, from: f64, to: f64, seed: u64) -> Result<()> {
    on_cpu(values, |values| random::fill_uniform(values, from, to, seed))
}

/// Fills a tensor, or one in float32 on the CPU that is copied into it.
fn on_cpu(values: &mut Tensor, fill: impl FnOnce(&Tensor) -> Result<()>) -> Result<()> {
    if values.device() == Device::Cpu && values.kind() == Kind::Float {
        return fill(values);
    }
    let drawn = Tensor::f_empty(values.size(), (Kind::Float, Device::Cpu))?;
    fill(&drawn)?;
    values.f_copy_(&drawn)?;
    Ok(())
}

/// One seed of several numbers, such that neighbours have nothing to do with each other.
///
/// SplitMix64's finaliser over each number in turn (Steele et al. 2014).
pub fn mix(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0, |state: u64, &number| {
        let mut z = (state ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// The seed of what has a name: the same on every machine and in every version.
pub fn seed_of(seed: u64, name: &str) -> u64 {
    // FNV-1a.
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let hash = name.bytes().fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    mix(&[seed, hash])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_and_its_place_matter() {
        let seeds = [mix(&[0, 0]), mix(&[0, 1]), mix(&[1, 0]), mix(&[1, 1]), mix(&[1])];
        for (i, a) in seeds.iter().enumerate() {
            assert!(seeds[i + 1..].iter().all(|b| a != b));
        }
    }
}
