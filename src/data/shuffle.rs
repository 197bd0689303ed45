//! `shuffle`: a true permutation of all rows, another in every epoch.
//!
//! A buffer of nearby rows would leave the order of the files in the training data; the rows are
//! spooled to disk once and read back in a random order instead. The order is a function of seed
//! plus epoch alone (as in PyTorch's DistributedSampler), so every rank and every resumed run
//! draws the same one.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::{
    spool::{Spool, SpoolFile},
    stage::{Batches, Stage, identity_of},
};
use crate::error::Result;

/// The rows of a spool in the order of `seed + epoch`.
pub(super) struct Shuffle {
    spool: Spool,
    seed: u64,
    /// Whether each epoch has the same order.
    is_fixed: bool,
}

impl Shuffle {
    /// One order for all epochs, so that a part of the rows is always the same rows.
    pub(super) fn fixed(input: Arc<dyn Stage>, seed: u64) -> Self {
        Self { is_fixed: true, ..Self::new(input, seed) }
    }

    pub(super) fn new(input: Arc<dyn Stage>, seed: u64) -> Self {
        Self { spool: Spool::new(input), seed, is_fixed: false }
    }
}

impl Stage for Shuffle {
    fn one_to_one(&self) -> Option<&dyn Stage> {
        Some(&self.spool)
    }

    fn schema(&self) -> SchemaRef {
        self.spool.schema()
    }

    fn row_tokens(&self) -> Option<usize> {
        self.inputs().first()?.row_tokens()
    }

    fn read(&self, epoch: u64, from: u64) -> Result<Batches> {
        let file = self.spool.file()?;
        let epoch = if self.is_fixed { 0 } else { epoch };
        let order = permutation(file.len(), self.seed.wrapping_add(epoch));
        Ok(SpoolFile::read(&file, order.into_iter().skip(from as usize)))
    }

    fn identity(&self) -> Result<Option<String>> {
        match self.is_fixed {
            true => identity_of(&self.inputs(), &format!("shuffle {}", self.seed)),
            false => Ok(None),
        }
    }

    fn describe(&self) -> String {
        format!("{} -> shuffle({})", self.spool.input().describe(), self.seed)
    }
}

/// The numbers `0..rows` in random order.
fn permutation(rows: u64, seed: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..rows).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_row_appears_once(rows in 0u64..2000, seed: u64) {
            let mut order = permutation(rows, seed);
            order.sort_unstable();
            prop_assert!(order.into_iter().eq(0..rows));
        }
    }

    #[test]
    fn the_order_of_a_seed_never_changes() {
        // Checkpoints hold a row number: a new version of `rand` that changed this would make a
        // resumed run see some rows twice and others never.
        assert_eq!(permutation(8, 42), [7, 1, 5, 4, 6, 0, 3, 2]);
    }
}
