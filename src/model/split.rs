//! The part of a parameter that a rank of a layer has.

use crate::{
    error::{Code, Error, Result},
    tensor::Tensor,
};

/// How the ranks that share a layer divide a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Split {
    /// Each has all of it, and makes all of its gradient.
    Whole,
    /// Each has all of it, and makes a part of its gradient: their sum is the gradient.
    Summed,
    /// Each has an equal part, along a dimension, of each of the blocks that fill it.
    Even {
        /// The dimension.
        dim: usize,
        /// The sizes of the blocks, such as those of queries, keys and values.
        blocks: Vec<i64>,
    },
}

/// A run of elements that lie together in the whole parameter and in a rank's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first element in the part.
    pub part: i64,
    /// The first element in the whole parameter.
    pub whole: i64,
    /// How many there are.
    pub len: i64,
}

impl Split {
    /// The shape of the part of a parameter of this shape.
    pub fn part_of(&self, shape: &[i64], ranks: i64) -> Vec<i64> {
        let mut part = shape.to_vec();
        if let Self::Even { dim, .. } = self {
            part[*dim] /= ranks;
        }
        part
    }

    /// The part of rank `rank` of `ranks` of a whole parameter.
    pub fn take(&self, whole: &Tensor, rank: i64, ranks: i64) -> Result<Tensor> {
        let Self::Even { dim, blocks } = self else { return Ok(whole.shallow_clone()) };
        let starts = starts(blocks);
        let pieces = starts.zip(blocks).map(|(start, block)| {
            let len = block / ranks;
            Ok(whole.f_narrow(*dim as i64, start + rank * len, len)?)
        });
        Ok(Tensor::f_cat(&pieces.collect::<Result<Vec<_>>>()?, *dim as i64)?)
    }

    /// The whole parameter from the parts of all ranks, in their order.
    pub fn join(&self, parts: &[Tensor]) -> Result<Tensor> {
        let Self::Even { dim, blocks } = self else {
            let first = parts.first().map(Tensor::shallow_clone);
            return first.ok_or_else(|| Error::new(Code::Internal, "a parameter without parts"));
        };
        let (dim, ranks) = (*dim as i64, parts.len() as i64);
        let mut pieces = Vec::new();
        let mut start = 0;
        for block in blocks {
            let len = block / ranks;
            for part in parts {
                pieces.push(part.f_narrow(dim, start, len)?);
            }
            start += len;
        }
        Ok(Tensor::f_cat(&pieces, dim)?)
    }

    /// Where the elements of the part of rank `rank` of `ranks` lie in a parameter of this shape.
    pub fn runs(&self, shape: &[i64], rank: i64, ranks: i64) -> Vec<Run> {
        let numel = |shape: &[i64]| shape.iter().product::<i64>();
        let Self::Even { dim, blocks } = self else {
            return vec![Run { part: 0, whole: 0, len: numel(shape) }];
        };
        let (outer, inner) = (numel(&shape[..*dim]), numel(&shape[dim + 1..]));
        let mut runs = Vec::new();
        let mut part = 0;
        for row in 0..outer {
            for (start, block) in starts(blocks).zip(blocks) {
                let len = block / ranks;
                let whole = (row * shape[*dim] + start + rank * len) * inner;
                runs.push(Run { part, whole, len: len * inner });
                part += len * inner;
            }
        }
        runs
    }
}

/// Where each block begins.
fn starts(blocks: &[i64]) -> impl Iterator<Item = i64> {
    blocks.iter().scan(0, |end, block| {
        let start = *end;
        *end += block;
        Some(start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Device, Kind};

    fn numbers(x: &Tensor) -> Vec<i64> {
        Vec::try_from(x.reshape([-1])).unwrap()
    }

    /// The parts are what the names say, their runs are where they were, and together they are the
    /// whole.
    #[test]
    fn parts_come_from_the_whole_and_make_it() {
        let shape = [6, 8];
        let whole = Tensor::arange(48, (Kind::Int64, Device::Cpu)).view(&shape[..]);
        for split in [
            Split::Even { dim: 0, blocks: vec![6] },
            Split::Even { dim: 0, blocks: vec![2, 2, 2] },
            Split::Even { dim: 1, blocks: vec![4, 2, 2] },
            Split::Whole,
            Split::Summed,
        ] {
            let parts: Vec<Tensor> =
                (0..2).map(|rank| split.take(&whole, rank, 2).unwrap()).collect();
            assert!(split.join(&parts).unwrap().equal(&whole), "{split:?}");
            for (rank, part) in (0..).zip(&parts) {
                assert_eq!(part.size(), split.part_of(&shape, 2));
                let (part, whole) = (numbers(part), numbers(&whole));
                for Run { part: at, whole: from, len } in split.runs(&shape, rank, 2) {
                    let [at, from, len] = [at, from, len].map(|n| n as usize);
                    assert_eq!(part[at..at + len], whole[from..from + len], "{split:?}");
                }
            }
        }
        let fused = Split::Even { dim: 1, blocks: vec![4, 2, 2] };
        let part = fused.take(&whole.narrow(0, 0, 1), 1, 2).unwrap();
        assert_eq!(numbers(&part), [2, 3, 5, 7]);
    }
}
