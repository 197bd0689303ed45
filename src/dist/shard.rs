//! Equal slices of a flat tensor, one a rank, and collectives in pieces of a bounded size.

use super::{ProcessGroup, ReduceOp, Work};
use crate::{
    error::Result,
    tensor::{Kind, Tensor},
};

/// Which slice of every flat tensor belongs to this rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardSpec {
    /// This rank.
    pub rank: usize,
    /// How many slices there are.
    pub world_size: usize,
}

impl ShardSpec {
    /// All of it.
    pub const WHOLE: Self = Self { rank: 0, world_size: 1 };

    /// The slice of this rank of `group`.
    pub fn of(group: &ProcessGroup) -> Self {
        Self { rank: group.rank(), world_size: group.world_size() }
    }

    /// First element and length of this rank's slice of `numel` elements, a multiple of the number
    /// of slices.
    pub fn range(self, numel: i64) -> (i64, i64) {
        let len = numel / self.world_size as i64;
        (len * self.rank as i64, len)
    }

    /// Intersects the elements `from..to` with this rank's slice of `numel`: the begin and the end,
    /// and where it begins in the slice.
    pub fn overlap(self, numel: i64, from: i64, to: i64) -> Option<(i64, i64, i64)> {
        let (own, len) = self.range(numel);
        let (from, to) = (from.max(own), to.min(own + len));
        (from < to).then(|| (from, to, from - own))
    }

    /// This rank's slice of `flat`, `[numel]`, as a view.
    pub fn slice(self, flat: &Tensor) -> Result<Tensor> {
        let (start, len) = self.range(flat.numel() as i64);
        Ok(flat.f_narrow(0, start, len)?)
    }

    /// A copy of this rank's slice of `flat`, in the format `kind`: `flat` itself can be freed.
    pub fn copy(self, flat: &Tensor, kind: Kind) -> Result<Tensor> {
        let part = self.slice(flat)?;
        let copy = Tensor::f_empty([part.numel() as i64], (kind, part.device()))?;
        copy.shallow_clone().f_copy_(&part)?;
        Ok(copy)
    }
}

/// A sum over the ranks that is under way.
#[must_use = "the sum may be used only after `wait`"]
pub struct Reduction {
    out: Tensor,
    works: Vec<Work>,
}

impl Reduction {
    /// Returns the sum when it is there.
    pub fn wait(self) -> Result<Tensor> {
        self.works.into_iter().try_for_each(Work::wait)?;
        Ok(self.out)
    }
}

impl ProcessGroup {
    /// Starts to sum `flat`, `[numel]`, over all ranks in the format `kind`, with at most `most`
    /// elements a collective. The sum may be made in `flat` itself; that of one rank is `flat`, in
    /// its own format.
    pub fn sum_all(&self, flat: &Tensor, kind: Kind, most: u64) -> Result<Reduction> {
        if self.world_size() == 1 {
            return Ok(Reduction { out: flat.shallow_clone(), works: Vec::new() });
        }
        let out = flat.f_to_kind(kind)?;
        let works = pieces(out.numel() as i64, most).map(|(start, len)| {
            self.all_reduce_async(&out.f_narrow(0, start, len)?, ReduceOp::Sum)
        });
        Ok(Reduction { works: works.collect::<Result<_>>()?, out })
    }

    /// Starts to sum `flat`, `[numel]`, over all ranks in the format `kind`, for each rank its
    /// slice, with at most `most` elements a collective, `world_size` at least. The content of `flat`
    /// then is undefined.
    pub fn sum_slice(&self, flat: &Tensor, kind: Kind, most: u64) -> Result<Reduction> {
        let ranks = self.world_size() as i64;
        let len = flat.numel() as i64 / ranks;
        let out = Tensor::f_empty([len], (kind, flat.device()))?;
        let by_rank = flat.f_view([ranks, len])?;
        let mut works: Vec<Work> = Vec::new();
        for (start, part) in pieces(len, most / ranks as u64) {
            let piece = by_rank.f_narrow(1, start, part)?.f_to_kind(kind)?.f_contiguous()?;
            // One copy of a piece at a time.
            works.drain(..).try_for_each(Work::wait)?;
            let slice = out.f_narrow(0, start, part)?;
            works.push(self.reduce_scatter_async(&slice, &piece, ReduceOp::Sum)?);
        }
        Ok(Reduction { out, works })
    }

    /// Fills `flat`, `[numel]`, whose slice of this rank is there, with the slices of the others,
    /// with at most `most` elements a collective, `world_size` at least.
    pub fn gather_slices(&self, flat: &Tensor, most: u64) -> Result<()> {
        let ranks = self.world_size() as i64;
        let own = ShardSpec::of(self).slice(flat)?;
        let len = own.numel() as i64;
        if len * ranks <= most as i64 {
            return self.all_gather_into(flat, &own);
        }
        let by_rank = flat.f_view([ranks, len])?;
        for (start, part) in pieces(len, most / ranks as u64) {
            let piece = Tensor::f_empty([ranks, part], (flat.kind(), flat.device()))?;
            self.all_gather_into(&piece, &own.f_narrow(0, start, part)?)?;
            by_rank.f_narrow(1, start, part)?.f_copy_(&piece)?;
        }
        Ok(())
    }
}

/// Start and length of parts of `len` elements, of at most `most` each, one element at least.
fn pieces(len: i64, most: u64) -> impl Iterator<Item = (i64, i64)> {
    let most = i64::try_from(most).unwrap_or(i64::MAX).clamp(1, len.max(1));
    (0..len).step_by(most as usize).map(move |start| (start, most.min(len - start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_everything_once() {
        assert_eq!(pieces(7, 3).collect::<Vec<_>>(), [(0, 3), (3, 3), (6, 1)]);
        assert_eq!(pieces(2, u64::MAX).collect::<Vec<_>>(), [(0, 2)]);
        assert_eq!(pieces(2, 0).count(), 2);
        assert_eq!(pieces(0, 5).count(), 0);
    }

    #[test]
    fn slices_are_equal_and_in_the_order_of_the_ranks() {
        let flat = Tensor::arange(12, (Kind::Float, crate::tensor::Device::Cpu));
        for rank in 0..3 {
            let slice = ShardSpec { rank, world_size: 3 }.slice(&flat).unwrap();
            assert_eq!((slice.numel(), slice.double_value(&[0])), (4, 4.0 * rank as f64));
        }
    }
}
