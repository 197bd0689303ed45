//! The three batch sizes of DeepSpeed, of which any two give the third:
//! `train_batch_size = micro_batch_size * gradient_accumulation_steps * world_size`.

use super::options::option_table;
use crate::error::{Code, Error, Result};

option_table! {
    /// The batch sizes as they were given.
    #[derive(Debug, Clone, Copy)]
    pub struct BatchSizes {
        /// rows in an optimizer step, over all ranks. Any two of the three sizes give the third
        #[option(optional, range = 1.., deepspeed = "train_batch_size")]
        pub train_batch_size: Option<usize>,
        /// rows in a batch of one rank
        #[option(optional, range = 1.., deepspeed = "train_micro_batch_size_per_gpu")]
        pub micro_batch_size: Option<usize>,
        /// micro batches in an optimizer step; 1 where it does not follow
        #[option(optional, range = 1.., deepspeed = "gradient_accumulation_steps")]
        pub gradient_accumulation_steps: Option<usize>,
    }
}

impl BatchSizes {
    /// `micro_batch_size` and `gradient_accumulation_steps` for this many ranks; without a word of
    /// accumulation there is none.
    ///
    /// # Errors
    /// [`Code::Missing`] where neither batch size is given, [`Code::BadValue`] where they contradict
    /// each other or do not divide; one sentence with the arithmetic.
    pub fn resolve(self, world_size: usize) -> Result<(usize, usize)> {
        let Self { train_batch_size, micro_batch_size, gradient_accumulation_steps } = self;
        match (train_batch_size, micro_batch_size, gradient_accumulation_steps) {
            (None, None, _) => Err(Error::new(
                Code::Missing,
                "`micro_batch_size` or `train_batch_size` is required and missing",
            )
            .option("micro_batch_size")),
            (None, Some(micro), accumulation) => Ok((micro, accumulation.unwrap_or(1))),
            (Some(train), None, accumulation) => {
                let accumulation = accumulation.unwrap_or(1);
                let parts = [("gradient_accumulation_steps", accumulation), ranks(world_size)];
                Ok((divide(train, parts)?, accumulation))
            }
            (Some(train), Some(micro), None) => {
                let parts = [("micro_batch_size", micro), ranks(world_size)];
                Ok((micro, divide(train, parts)?))
            }
            (Some(train), Some(micro), Some(accumulation)) => {
                let product = micro.saturating_mul(accumulation).saturating_mul(world_size);
                if train == product {
                    return Ok((micro, accumulation));
                }
                Err(contradiction(format!(
                    "train_batch_size {train} is not micro_batch_size {micro} x \
                     gradient_accumulation_steps {accumulation} x world_size {world_size} = {product}"
                )))
            }
        }
    }
}

fn ranks(world_size: usize) -> (&'static str, usize) {
    ("world_size", world_size)
}

/// `train` divided by both parts.
fn divide(train: usize, parts: [(&str, usize); 2]) -> Result<usize> {
    let [(a_name, a), (b_name, b)] = parts;
    let product = a.saturating_mul(b);
    if train.is_multiple_of(product) && train > 0 {
        return Ok(train / product);
    }
    Err(contradiction(format!(
        "train_batch_size {train} is not a multiple of {a_name} {a} x {b_name} {b} = {product}"
    )))
}

fn contradiction(message: String) -> Error {
    Error::new(Code::BadValue, message).option("train_batch_size")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(sizes: [usize; 3], world_size: usize) -> Result<(usize, usize)> {
        let [train_batch_size, micro_batch_size, gradient_accumulation_steps] =
            sizes.map(|size| (size > 0).then_some(size));
        BatchSizes { train_batch_size, micro_batch_size, gradient_accumulation_steps }
            .resolve(world_size)
    }

    #[test]
    fn any_two_give_the_third() {
        for sizes in [[32, 4, 4], [32, 4, 0], [32, 0, 4], [0, 4, 4]] {
            assert_eq!(resolve(sizes, 2).unwrap(), (4, 4), "{sizes:?}");
        }
        assert_eq!(resolve([32, 0, 0], 2).unwrap(), (16, 1));
        assert_eq!(resolve([0, 4, 0], 2).unwrap(), (4, 1));
    }

    #[test]
    fn a_contradiction_is_a_sentence_with_the_arithmetic() {
        let message = |sizes, world| resolve(sizes, world).unwrap_err().message().to_owned();
        assert_eq!(
            message([32, 4, 3], 2),
            "train_batch_size 32 is not micro_batch_size 4 x gradient_accumulation_steps 3 x \
             world_size 2 = 24"
        );
        assert_eq!(
            message([30, 4, 0], 2),
            "train_batch_size 30 is not a multiple of micro_batch_size 4 x world_size 2 = 8"
        );
        assert!(message([0, 0, 4], 2).contains("is required and missing"));
    }
}
