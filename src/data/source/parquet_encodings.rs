//! The encodings of a Parquet page, read for their counts, runs and lengths without making the values.

use parquet::basic::Encoding;

use super::parquet_check::Checked;

/// Numbers in runs of one and the same, and in groups that are packed bit by bit: the levels of a page, and
/// the places in its dictionary. They end where the bytes do, or where a run is damaged, as the reader's
/// do.
pub(super) struct Runs<'a> {
    rest: Rest<'a>,
    bits: u8,
    /// The present number, and how often it still comes.
    number: u64,
    left: u64,
    packed: Packed<'a>,
}

/// Numbers of a fixed number of bits behind one another, the lowest bit first.
struct Packed<'a> {
    bytes: &'a [u8],
    bits: u8,
    /// The next bit.
    at: usize,
    left: u64,
}

impl<'a> Runs<'a> {
    fn new(bytes: &'a [u8], bits: u8) -> Self {
        let packed = Packed { bytes: &[], bits, at: 0, left: 0 };
        Self { rest: Rest(bytes), bits, number: 0, left: 0, packed }
    }

    /// One number without an end: the levels where there is but one.
    pub(super) fn constant(number: u64) -> Self {
        Self { number, left: u64::MAX, ..Self::new(&[], 0) }
    }

    /// Levels up to `most`, as a page has them; `bytes` are theirs alone.
    pub(super) fn of_levels(bytes: &'a [u8], encoding: Encoding, most: i16) -> Self {
        let bits = bits_of(most);
        if encoding == Encoding::RLE {
            return Self::new(bytes, bits);
        }
        Self { packed: Packed { bytes, bits, at: 0, left: u64::MAX }, ..Self::new(&[], bits) }
    }

    /// Places in a dictionary, behind the number of their bits.
    pub(super) fn of_places(values: &'a [u8]) -> Checked<Self> {
        match values {
            [] => Ok(Self::new(&[], 0)),
            [bits @ 0..=32, places @ ..] => Ok(Self::new(places, *bits)),
            [bits, ..] => Err(format!("has places in a dictionary of {bits} bits")),
        }
    }

    /// The next number and how often it comes, at least; `None` at the end.
    pub(super) fn run(&mut self) -> Option<(u64, u64)> {
        while self.left == 0 {
            match self.packed.next() {
                Some(number) => (self.number, self.left) = (number, 1),
                None => self.begin()?,
            }
        }
        Some((self.number, self.left))
    }

    /// Passes `n` numbers of the run.
    pub(super) fn pass(&mut self, n: u64) {
        self.left = self.left.saturating_sub(n);
    }

    /// Goes on with the next run or group; `None` at the end.
    fn begin(&mut self) -> Option<()> {
        let head = self.rest.number().ok().filter(|head| *head > 0)?;
        if head & 1 == 0 {
            let bytes = self.rest.take(u64::from(self.bits.div_ceil(8))).ok()?;
            self.number = bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
            self.left = head >> 1;
            return Some(());
        }
        let groups = head >> 1;
        // Writers may cut the last group.
        let len = groups.saturating_mul(self.bits.into()).min(self.rest.0.len() as u64);
        let bytes = self.rest.take(len).ok()?;
        self.packed = Packed { bytes, bits: self.bits, at: 0, left: groups.saturating_mul(8) };
        Some(())
    }
}

impl Iterator for Packed<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let end = self.at + usize::from(self.bits);
        if self.left == 0 || end > self.bytes.len() * 8 {
            return None;
        }
        self.left -= 1;
        // As many bytes as a number of 64 bits can touch.
        let bytes = &self.bytes[self.at / 8..end.div_ceil(8)];
        let all = bytes.iter().rev().fold(0u128, |n, byte| n << 8 | u128::from(*byte));
        let number = (all >> (self.at % 8)) & ((1 << self.bits) - 1);
        self.at = end;
        Some(number as u64)
    }
}

/// The bits of levels up to `most`.
fn bits_of(most: i16) -> u8 {
    (u16::BITS - most.unsigned_abs().leading_zeros()) as u8
}

/// Takes the levels of the first version of data pages from the start of `bytes`: their own bytes, and
/// those behind them.
pub(super) fn split_levels(
    bytes: &[u8],
    encoding: Encoding,
    most: i16,
    values: u32,
) -> Checked<(&[u8], &[u8])> {
    let mut rest = Rest(bytes);
    let len = match encoding {
        Encoding::RLE => {
            let len = rest.take(4)?;
            len.try_into().map_or(0, |len| u64::from(u32::from_le_bytes(len)))
        }
        // The older encoding, of as many bits as the greatest level has.
        _ => (u64::from(values) * u64::from(bits_of(most))).div_ceil(8),
    };
    let levels = rest.take(len).map_err(|_| "ends in its levels")?;
    Ok((levels, rest.0))
}

/// Goes through numbers in delta encoding, which are at most `most`; returns their bytes.
pub(super) fn delta(bytes: &[u8], most: u64) -> Checked<usize> {
    deltas(bytes, most, &mut |_| ())
}

/// The same, where each number is given to `take`. They wrap around as the reader's do.
pub(super) fn deltas(bytes: &[u8], most: u64, take: &mut dyn FnMut(i64)) -> Checked<usize> {
    let mut rest = Rest(bytes);
    let (block, parts, count) = (rest.number()?, rest.number()?, rest.number()?);
    let mut number = rest.signed()?;
    if count > most {
        return Err(format!("promises {count} values in delta encoding, and has {most}"));
    }
    let values_per_part = block.checked_div(parts).filter(|values| *values > 0);
    let values_per_part = values_per_part.ok_or("has blocks of no values in delta encoding")?;
    if count > 0 {
        take(number);
    }
    // The first stands in the head.
    let mut left = count.saturating_sub(1);
    while left > 0 {
        let least = rest.signed()?;
        let widths = rest.take(parts)?;
        for width in widths {
            if left == 0 {
                break;
            }
            if *width > 64 {
                return Err(format!("has numbers of {width} bits in delta encoding"));
            }
            let bytes = rest.take(u64::from(*width).saturating_mul(values_per_part) / 8)?;
            let here = left.min(values_per_part);
            let mut packed = Packed { bytes, bits: *width, at: 0, left: here };
            for _ in 0..here {
                let above = packed.next().unwrap_or(0) as i64;
                number = number.wrapping_add(least).wrapping_add(above);
                take(number);
            }
            left -= here;
        }
    }
    Ok(bytes.len() - rest.0.len())
}

/// The bytes of a page that are still to be read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    /// A number in portions of seven bits.
    fn number(&mut self) -> Checked<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = *self.take(1)? else { break };
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("has a number without an end in its encoding".to_owned())
    }

    /// A signed number, whose sign is its last bit.
    fn signed(&mut self) -> Checked<i64> {
        let number = self.number()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    fn take(&mut self, len: u64) -> Checked<&'a [u8]> {
        let split = usize::try_from(len).ok().and_then(|len| self.0.split_at_checked(len));
        let (taken, rest) = split.ok_or("ends within its encoding")?;
        self.0 = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(mut runs: Runs<'_>) -> Vec<u64> {
        let mut numbers = Vec::new();
        while let Some((number, left)) = runs.run() {
            runs.pass(left);
            numbers.extend(std::iter::repeat_n(number, left as usize));
        }
        numbers
    }

    #[test]
    fn runs_and_groups_are_read_as_they_are_written() {
        // Parquet's own example: 0 to 7 in groups of 3 bits; and 5 four times.
        let bytes = [0x03, 0x88, 0xc6, 0xfa, 4 << 1, 5];
        assert_eq!(numbers(Runs::new(&bytes, 3)), [0, 1, 2, 3, 4, 5, 6, 7, 5, 5, 5, 5]);
        assert_eq!(numbers(Runs::new(&[2 << 1, 1, 2, 3, 4], 32)), [0x0403_0201; 2]);
        // A group that its writer cut has the numbers that are whole, and padding is an end.
        assert_eq!(numbers(Runs::new(&[0x03, 0x88], 3)), [0, 1]);
        assert_eq!(numbers(Runs::new(&[2, 1, 0, 2, 1], 1)), [1]);
        // Numbers of no bits take no bytes.
        assert_eq!(numbers(Runs::new(&[8 << 1], 0)), [0; 8]);
        assert_eq!(numbers(Runs::new(&[3], 0)), [0; 8]);
        assert!(Runs::of_places(&[33, 2, 0]).is_err());
        // A run is not made to be passed.
        let mut long = Runs::of_places(&[1, 0xfe, 0xff, 0xff, 0xff, 0xff, 0x7f, 1]).unwrap();
        assert_eq!(long.run(), Some((1, (1 << 41) - 1)));
        long.pass(1 << 40);
        assert_eq!(long.run(), Some((1, (1 << 40) - 1)));
    }

    #[test]
    fn levels_stand_before_the_values() {
        let page = [2, 0, 0, 0, 6, 1, 7, 8, 9];
        let (levels, values) = split_levels(&page, Encoding::RLE, 1, 3).unwrap();
        assert_eq!(values, [7, 8, 9]);
        assert_eq!(numbers(Runs::of_levels(levels, Encoding::RLE, 1)), [1, 1, 1]);
        assert!(split_levels(&page[..5], Encoding::RLE, 1, 3).is_err());
        #[expect(deprecated, reason = "files of old writers have it")]
        let packed = Encoding::BIT_PACKED;
        let (levels, values) = split_levels(&[0b1101, 7], packed, 1, 4).unwrap();
        assert_eq!(values, [7]);
        assert_eq!(numbers(Runs::of_levels(levels, packed, 1))[..4], [1, 0, 1, 1]);
    }

    #[test]
    fn deltas_are_added_up() {
        let read = |bytes: &[u8], most| {
            let mut numbers = Vec::new();
            deltas(bytes, most, &mut |n| numbers.push(n)).map(|len| (len, numbers))
        };
        let alone = [0x80, 1, 4, 1, 6];
        assert_eq!(read(&alone, 1), Ok((5, vec![3])), "one value, in the head");
        // 40 values: the first, and 39 in two parts of 32 values of one bit and of none.
        let head = vec![0x80, 1, 4, 40, 0, 2, 1, 0, 9, 9];
        let two_parts = [head, vec![0xff, 0, 0, 0]].concat();
        let (len, numbers) = read(&two_parts, 40).unwrap();
        // The least difference is 1, and the first eight are one more.
        let expected: Vec<i64> = (0..40).map(|i| i + i.min(8)).collect();
        assert_eq!((len, numbers), (14, expected));
        let damaged = [&two_parts[..12], &two_parts[..8], &[0x80, 1, 0, 9, 0], &[0, 1, 9, 0]];
        for damaged in damaged {
            assert!(delta(damaged, 40).is_err(), "{damaged:?}");
        }
        assert!(delta(&[0xff; 20], 40).is_err());
        let e = delta(&two_parts, 39).unwrap_err();
        assert!(e.contains("promises 40 values in delta encoding"), "{e}");
    }
}
