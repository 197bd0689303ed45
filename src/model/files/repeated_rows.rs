//! A table in a file that a parameter has again and again.

use crate::{error::Result, tensor::Tensor};

/// A table whose rows for positions are repeated when it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) struct RepeatedRows {
    pub(in crate::model) param: &'static str,
    /// Rows that are not repeated, at the beginning.
    pub(in crate::model) first: i64,
    /// Positions in the file.
    pub(in crate::model) positions: i64,
}

impl RepeatedRows {
    /// The shape in the file of a parameter of this shape.
    pub(in crate::model) fn stored_shape(&self, shape: &[i64]) -> Vec<i64> {
        [&[self.first + self.positions], &shape[1..]].concat()
    }

    /// Fills the rows of `param` from those of the file, again and again.
    pub(in crate::model) fn fill(&self, param: &Tensor, stored: &Tensor) -> Result<()> {
        let rows = param.size()[0];
        param.f_narrow(0, 0, self.first)?.f_copy_(&stored.f_narrow(0, 0, self.first)?)?;
        let step = usize::try_from(self.positions).unwrap_or(1).max(1);
        for from in (self.first..rows).step_by(step) {
            let len = self.positions.min(rows - from);
            let part = stored.f_narrow(0, self.first, len)?;
            param.f_narrow(0, from, len)?.f_copy_(&part)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Device, Kind};

    #[test]
    fn rows_are_repeated_behind_those_that_are_reserved() {
        let cpu = (Kind::Int64, Device::Cpu);
        let repeated = RepeatedRows { param: "", first: 2, positions: 3 };
        assert_eq!(repeated.stored_shape(&[9, 1]), [5, 1]);
        let table = Tensor::zeros([9, 1], cpu);
        repeated.fill(&table, &Tensor::arange(5, cpu).view([5, 1])).unwrap();
        let rows = Vec::<i64>::try_from(table.view([9])).unwrap();
        assert_eq!(rows, [0, 1, 2, 3, 4, 2, 3, 4, 2]);
    }
}
