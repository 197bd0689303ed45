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
    /// Each has equally many of this number of rows, one for each token of the vocabulary; rows that
    /// the last rank lacks are zeros, which are in no file.
    Rows(i64),
}

/// The rows of the vocabulary that a rank has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowsHere {
    /// The first.
    pub first: i64,
    /// How many there are.
    pub count: i64,
    /// How many its part has room for, as all ranks' have.
    pub room: i64,
}

impl RowsHere {
    /// Those of rank `rank` of `ranks`, of `rows` rows.
    pub fn of(rows: i64, rank: i64, ranks: i64) -> Self {
        let room = (rows as u64).div_ceil(ranks as u64) as i64;
        let first = (rank * room).min(rows);
        Self { first, count: room.min(rows - first), room }
    }
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
    /// Whether each rank has a part, and not all of the parameter.
    pub fn divides(&self) -> bool {
        matches!(self, Self::Even { .. } | Self::Rows(_))
    }

    /// The shape of the part of a parameter of this shape.
    pub fn part_of(&self, shape: &[i64], ranks: i64) -> Vec<i64> {
        let mut part = shape.to_vec();
        match self {
            Self::Even { dim, .. } => part[*dim] /= ranks,
            Self::Rows(rows) => part[0] = RowsHere::of(*rows, 0, ranks).room,
            Self::Whole | Self::Summed => {}
        }
        part
    }

    /// The part of rank `rank` of `ranks` of a whole parameter.
    pub fn take(&self, whole: &Tensor, rank: i64, ranks: i64) -> Result<Tensor> {
        let (dim, blocks) = match self {
            Self::Whole | Self::Summed => return Ok(whole.shallow_clone()),
            Self::Rows(rows) => {
                let RowsHere { first, count, room } = RowsHere::of(*rows, rank, ranks);
                let missing = [&[room - count], &whole.size()[1..]].concat();
                let zeros = Tensor::f_zeros(&missing[..], (whole.kind(), whole.device()))?;
                return Ok(Tensor::f_cat(&[whole.f_narrow(0, first, count)?, zeros], 0)?);
            }
            Self::Even { dim, blocks } => (dim, blocks),
        };
        let starts = starts(blocks);
        let pieces = starts.zip(blocks).map(|(start, block)| {
            let len = block / ranks;
            Ok(whole.f_narrow(*dim as i64, start + rank * len, len)?)
        });
        Ok(Tensor::f_cat(&pieces.collect::<Result<Vec<_>>>()?, *dim as i64)?)
    }

    /// The whole parameter from the parts of all ranks, in their order.
    pub fn join(&self, parts: &[Tensor]) -> Result<Tensor> {
        let (dim, blocks) = match self {
            Self::Whole | Self::Summed => {
                let first = parts.first().map(Tensor::shallow_clone);
                return first
                    .ok_or_else(|| Error::new(Code::Internal, "a parameter without parts"));
            }
            Self::Rows(rows) => return Ok(Tensor::f_cat(parts, 0)?.f_narrow(0, 0, *rows)?),
            Self::Even { dim, blocks } => (dim, blocks),
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

    /// Where the elements of the part of rank `rank` of `ranks` lie in a parameter of this shape; zeros
    /// in the place of missing rows lie nowhere.
    pub fn runs(&self, shape: &[i64], rank: i64, ranks: i64) -> Vec<Run> {
        let numel = |shape: &[i64]| shape.iter().product::<i64>();
        let (dim, blocks) = match self {
            Self::Whole | Self::Summed => {
                return vec![Run { part: 0, whole: 0, len: numel(shape) }];
            }
            Self::Rows(rows) => {
                let RowsHere { first, count, .. } = RowsHere::of(*rows, rank, ranks);
                let width = numel(&shape[1..]);
                return vec![Run { part: 0, whole: first * width, len: count * width }];
            }
            Self::Even { dim, blocks } => (dim, blocks),
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
        let rows = Split::Rows(5);
        let whole_rows = whole.narrow(0, 0, 5);
        let parts: Vec<Tensor> =
            (0..2).map(|rank| rows.take(&whole_rows, rank, 2).unwrap()).collect();
        assert!(rows.join(&parts).unwrap().equal(&whole_rows));
        assert_eq!([parts[0].size(), parts[1].size()], [[3, 8]; 2]);
        assert_eq!(numbers(&parts[1].narrow(0, 2, 1)), [0; 8]);
        assert_eq!(rows.runs(&[5, 8], 1, 2), [Run { part: 0, whole: 24, len: 16 }]);
        let fused = Split::Even { dim: 1, blocks: vec![4, 2, 2] };
        let part = fused.take(&whole.narrow(0, 0, 1), 1, 2).unwrap();
        assert_eq!(numbers(&part), [2, 3, 5, 7]);
    }
}
