//! Rows in random order within blocks, for data that is too much to be copied.

use std::sync::Arc;

use arrow::{
    array::{RecordBatch, UInt64Array},
    compute::{concat_batches, take_record_batch},
    datatypes::SchemaRef,
};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::stage::{Batches, RowFeed, Stage};
use crate::error::{Code, Error, Result};

/// Blocks of rows, each in an order of `seed + epoch` and its number: any row can be gone to by its block
/// alone.
pub(super) struct ShuffleBuffer {
    input: Arc<dyn Stage>,
    seed: u64,
    rows: u64,
}

impl ShuffleBuffer {
    pub(super) fn new(input: Arc<dyn Stage>, seed: u64, rows: u64) -> Self {
        Self { input, seed, rows }
    }
}

impl Stage for ShuffleBuffer {
    fn one_to_one(&self) -> Option<&dyn Stage> {
        Some(&*self.input)
    }

    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }

    fn row_tokens(&self) -> Option<usize> {
        self.input.row_tokens()
    }

    fn read(&self, epoch: u64, from: u64) -> Result<Batches> {
        let block = from / self.rows;
        Ok(Box::new(Blocks {
            input: RowFeed::new(self.input.read(epoch, block * self.rows)?),
            seed: self.seed.wrapping_add(epoch),
            rows: self.rows as usize,
            block,
            skip: (from % self.rows) as usize,
        }))
    }

    fn describe(&self) -> String {
        format!("{} -> shuffle({}, buffer_size: {})", self.input.describe(), self.seed, self.rows)
    }
}

struct Blocks {
    input: RowFeed,
    seed: u64,
    rows: usize,
    block: u64,
    /// The rows of the first block that are left out.
    skip: usize,
}

impl Iterator for Blocks {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let block = match self.input.next_rows(self.rows) {
            Ok(parts) if parts.is_empty() => return None,
            Ok(parts) => self.shuffled(&parts),
            Err(e) => Err(e),
        };
        self.block += 1;
        let skip = std::mem::take(&mut self.skip);
        Some(block.map(|block| {
            let skip = skip.min(block.num_rows());
            block.slice(skip, block.num_rows() - skip)
        }))
    }
}

impl Blocks {
    fn shuffled(&self, parts: &[RecordBatch]) -> Result<RecordBatch> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(self.block);
        let rows = parts.iter().map(|part| part.num_rows() as u64).sum();
        let mut order: Vec<u64> = (0..rows).collect();
        order.shuffle(&mut random);
        concat_batches(&parts[0].schema(), parts)
            .and_then(|block| take_record_batch(&block, &UInt64Array::from(order)))
            .map_err(|e| {
                let message = format!("these rows cannot be shuffled: {e}");
                Error::new(Code::Data, message).caused_by(e)
            })
    }
}
