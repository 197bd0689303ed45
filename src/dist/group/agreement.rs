//! Numbers that the ranks of a group agree on.

use super::ProcessGroup;
use crate::{
    dist::ReduceOp,
    error::Result,
    tensor::{Kind, Tensor},
};

impl ProcessGroup {
    /// The numbers that rank 0 has, on all ranks.
    pub fn told(&self, own: Vec<f64>) -> Result<Vec<f64>> {
        if self.world_size() == 1 {
            return Ok(own);
        }
        let device = self.device();
        let count = Tensor::f_from_slice(&[own.len() as i64])?.f_to_device(device)?;
        self.broadcast(&count, 0)?;
        let count = count.f_int64_value(&[0])?;
        let numbers = match self.rank() {
            0 => Tensor::f_from_slice(&own)?.f_to_device(device)?,
            _ => Tensor::f_zeros([count], (Kind::Double, device))?,
        };
        if count > 0 {
            self.broadcast(&numbers, 0)?;
        }
        Ok(Vec::try_from(&numbers)?)
    }

    /// Whether `flag` is set on any rank: an answer that is the same on all of them. Every rank
    /// must call it.
    pub fn any(&self, flag: bool) -> Result<bool> {
        Ok(self.greatest(i64::from(flag))? != 0)
    }

    /// The greatest of the numbers that the ranks have, on all of them. Every rank must call it.
    pub fn greatest(&self, number: i64) -> Result<i64> {
        if self.world_size() == 1 {
            return Ok(number);
        }
        let numbers = Tensor::f_full([1], number, (Kind::Int64, self.device))?;
        self.all_reduce(&numbers, ReduceOp::Max)?;
        Ok(numbers.f_int64_value(&[0])?)
    }
}
