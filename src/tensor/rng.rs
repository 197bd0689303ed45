//! Seeds: libtorch's default generator, and seeds made of several numbers.

/// Seeds libtorch's default generators, of the CPU and of every CUDA device.
pub fn manual_seed(seed: u64) {
    tch::manual_seed(i64::from_ne_bytes(seed.to_ne_bytes()));
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
