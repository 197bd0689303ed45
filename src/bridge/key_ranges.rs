//! The keys that next tokens see, as ranges of those that their texts have.

use std::{cell::OnceCell, ops::Range};

use tch::{Device, Tensor};

use crate::error::{Code, Error, Result};

/// The keys that each head of each row sees.
#[derive(Debug)]
pub(crate) struct KeyRanges {
    heads: usize,
    /// Where the ranges of each head of each row begin among all, and the last end.
    offsets: Vec<i64>,
    ranges: Vec<[i64; 2]>,
    /// The same as what is added to scores.
    hidden: OnceCell<Tensor>,
}

impl KeyRanges {
    /// None yet, for rows of so many heads.
    pub(crate) fn new(heads: usize) -> Self {
        Self { heads, offsets: vec![0], ranges: Vec::new(), hidden: OnceCell::new() }
    }

    /// Adds the next head's ranges, of the next row after all heads of one. Ranges that touch are one.
    pub(crate) fn push(&mut self, ranges: impl IntoIterator<Item = Range<i64>>) {
        let first = self.ranges.len();
        for Range { start, end } in ranges {
            match self.ranges[first..].last_mut() {
                Some([_, last]) if *last == start => *last = end,
                _ => self.ranges.push([start, end]),
            }
        }
        self.offsets.push(self.ranges.len() as i64);
    }

    /// Whether there are ranges for each head of rows that have so many keys, none empty or beyond them.
    pub(super) fn fits(&self, heads: i64, seen: &[i64]) -> bool {
        let is_complete =
            self.heads as i64 == heads && self.offsets.len() == seen.len() * self.heads + 1;
        is_complete
            && seen.iter().enumerate().all(|(row, &count)| {
                (0..self.heads).all(|head| {
                    let ranges = self.of(row, head);
                    let within =
                        |&[start, end]: &[i64; 2]| 0 <= start && start < end && end <= count;
                    !ranges.is_empty() && ranges.iter().all(within)
                })
            })
    }

    /// The mask that is added to the scores, float32 `[B, H, keys]`: 0 for keys that are seen, and minus
    /// infinity.
    pub(crate) fn hidden(&self, keys: i64, device: Device) -> Result<&Tensor> {
        if let Some(made) = self.hidden.get() {
            return Ok(made);
        }
        let width = usize::try_from(keys).unwrap_or(0);
        let rows = (self.offsets.len() - 1) / self.heads.max(1);
        let mut hidden = vec![f32::NEG_INFINITY; rows * self.heads * width];
        for (i, line) in hidden.chunks_mut(width.max(1)).enumerate() {
            for &[start, end] in self.of(i / self.heads, i % self.heads) {
                line[start as usize..end as usize].fill(0.0);
            }
        }
        let made = Tensor::f_from_slice(&hidden)?.f_to_device(device)?;
        let made = made.f_view([rows as i64, self.heads as i64, keys])?;
        let _ = self.hidden.set(made);
        self.hidden.get().ok_or_else(|| Error::new(Code::Internal, "a tensor that was just made"))
    }

    /// The keys that are read, by all heads of all rows.
    #[cfg(test)]
    pub(crate) fn count(&self) -> i64 {
        self.ranges.iter().map(|[start, end]| end - start).sum()
    }

    /// The arrays for the kernel.
    pub(super) fn arrays(&self) -> (*const i64, *const i64) {
        (self.offsets.as_ptr(), self.ranges.as_ptr().cast())
    }

    fn of(&self, row: usize, head: usize) -> &[[i64; 2]] {
        let i = row * self.heads + head;
        &self.ranges[self.offsets[i] as usize..self.offsets[i + 1] as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_are_one_and_all_must_lie_within_the_keys() {
        let mut ranges = KeyRanges::new(2);
        ranges.push([0..2, 2..4, 6..7]);
        ranges.push(std::iter::once(3..7));
        assert_eq!((ranges.ranges.len(), ranges.count()), (3, 9));
        assert!(ranges.fits(2, &[7]));
        assert!(!ranges.fits(2, &[6]) && !ranges.fits(1, &[7]) && !ranges.fits(2, &[7, 7]));
        let hidden = ranges.hidden(7, Device::Cpu).unwrap();
        let seen: Vec<bool> = Vec::try_from(hidden.eq(0.0).view([14])).unwrap();
        let expected = [
            [true, true, true, true, false, false, true],
            [false, false, false, true, true, true, true],
        ];
        assert_eq!(seen, expected.concat());
    }
}
