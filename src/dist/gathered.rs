//! Texts that each rank tells all others.

use super::{ProcessGroup, ReduceOp};
use crate::{
    error::Result,
    tensor::{Kind, Tensor},
};

impl ProcessGroup {
    /// The texts of all ranks, in their order. Every rank must call it, with a text that does not end with
    /// a NUL.
    pub fn gathered(&self, own: &str) -> Result<Vec<String>> {
        if self.world_size() == 1 {
            return Ok(vec![own.to_owned()]);
        }
        let device = self.device();
        let longest = Tensor::f_from_slice(&[own.len().max(1) as i64])?.f_to_device(device)?;
        self.all_reduce(&longest, ReduceOp::Max)?;
        let longest = longest.f_int64_value(&[0])?;
        let mut bytes = own.as_bytes().to_vec();
        bytes.resize(longest as usize, 0);
        let shard = Tensor::f_from_slice(&bytes)?.f_to_device(device)?;
        let count = longest * self.world_size() as i64;
        let all = Tensor::f_zeros([count], (Kind::Uint8, device))?;
        self.all_gather_into(&all, &shard)?;
        let all: Vec<u8> = Vec::try_from(&all)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
        Ok(all.chunks(longest as usize).map(text).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dist::Exchange, tensor::Device};

    #[test]
    fn each_rank_has_the_texts_of_all() {
        let exchange = Exchange::new(3, 1);
        let told = std::thread::scope(|scope| {
            let ranks: Vec<_> = ["", "ä longer one", "b"]
                .into_iter()
                .enumerate()
                .map(|(rank, own)| {
                    let exchange = &exchange;
                    scope.spawn(move || {
                        let group = ProcessGroup::in_process(exchange, rank, Device::Cpu).unwrap();
                        group.gathered(own).unwrap()
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(told, vec![vec!["", "ä longer one", "b"]; 3]);
    }
}
