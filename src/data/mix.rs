//! `mix`: rows of several datasets among each other, by weight, as `interleave_datasets` has them.
//!
//! Which dataset gives a row is drawn from the seed alone, so that every epoch, rank and resumed run has
//! the same turns, and the number of rows is known. The rows of each dataset come in its own order, which
//! a shuffled one has anew in every epoch.

use std::sync::{Arc, OnceLock};

use arrow::{array::RecordBatch, compute::interleave_record_batch, datatypes::SchemaRef};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    parts::Parts,
    stage::{Batches, ROWS_PER_BATCH, Stage, origin_of},
    wanted::check_wanted,
};
use crate::{
    config::options::{option_table, option_words},
    error::{Code, Error, Result},
};

option_words! {
    /// When a mixture ends.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum MixStop {
        /// With the last row of the dataset that is the first to end.
        First = "first",
        /// When each dataset has ended at least once; one that has ended begins anew.
        All = "all",
    }
}

option_table! {
    /// The options of `mix`.
    #[derive(Debug, Clone)]
    pub struct MixOptions {
        /// how often each dataset gives a row, in any unit; without it they take turns, in whole rounds
        #[option(default = None)]
        pub weights: Option<Vec<f64>>,
        /// the seed of the turns
        #[option(default = 42)]
        pub seed: u64,
        /// whether the first dataset that ends is the end, or all have to
        #[option(default = MixStop::First)]
        pub stop: MixStop,
    }
}

/// Datasets with the same columns, among each other.
pub(super) struct Mix {
    parts: Parts,
    options: MixOptions,
    rows: OnceLock<u64>,
}

impl Mix {
    /// Mixes datasets.
    ///
    /// # Errors
    /// They do not go together, or the weights are not one positive number for each.
    pub(super) fn new(parts: Vec<Arc<dyn Stage>>, options: MixOptions) -> Result<Self> {
        let wrong = |message| Err(Error::new(Code::BadValue, message).option("weights"));
        if let Some(weights) = &options.weights {
            if weights.len() != parts.len() {
                let (found, expected) = (weights.len(), parts.len());
                return wrong(format!("mix: {found} weights for {expected} datasets"));
            }
            if weights.iter().any(|weight| !(weight.is_finite() && *weight > 0.0)) {
                return wrong(format!("mix: weights are above 0, found {weights:?}"));
            }
        }
        Ok(Self { parts: Parts::new("mix", parts)?, options, rows: OnceLock::new() })
    }

    fn turns(&self) -> Result<Turns> {
        let rows = (0..self.parts.len()).map(|part| self.parts.count(part));
        let rows = rows.collect::<Result<Vec<u64>>>()?;
        if let Some(empty) = rows.iter().position(|rows| *rows == 0) {
            let message = format!("mix: dataset {} of {} has no rows", empty + 1, rows.len());
            return Err(Error::new(Code::Data, message));
        }
        Ok(Turns::new(rows, &self.options))
    }
}

impl Stage for Mix {
    fn inputs(&self) -> Vec<&dyn Stage> {
        self.parts.iter().map(|part| &**part).collect()
    }

    fn schema(&self) -> SchemaRef {
        self.parts.schema()
    }

    fn num_rows(&self) -> Result<Option<u64>> {
        let known = self.parts.iter().map(|part| part.num_rows()).collect::<Result<Vec<_>>>()?;
        match known.iter().all(Option::is_some) {
            true => self.count().map(Some),
            false => Ok(self.rows.get().copied()),
        }
    }

    fn count(&self) -> Result<u64> {
        if let Some(&rows) = self.rows.get() {
            return Ok(rows);
        }
        let rows = self.turns()?.count() as u64;
        Ok(*self.rows.get_or_init(|| rows))
    }

    fn is_spooled(&self) -> bool {
        self.parts.iter().all(|part| part.is_spooled())
    }

    fn read(&self, epoch: u64, from: u64) -> Result<Batches> {
        let mut turns = self.turns()?;
        for _ in 0..from {
            if turns.next().is_none() {
                break;
            }
        }
        let place = |part: usize| Feed::new(self.parts.clone(), part, epoch, &turns);
        let mut feeds: Vec<_> = (0..self.parts.len()).map(place).collect();
        Ok(Box::new(std::iter::from_fn(move || {
            let block: Vec<usize> = turns.by_ref().take(ROWS_PER_BATCH).collect();
            (!block.is_empty()).then(|| gather(&mut feeds, &block))
        })))
    }

    fn origin(&self) -> Result<String> {
        Ok(format!("{} mixed by {:?}", origin_of(&self.inputs())?, self.options))
    }

    fn describe(&self) -> String {
        format!("mix({})", self.parts.describe(", "))
    }
}

/// The rows of the datasets whose turn it is.
fn gather(feeds: &mut [Feed], block: &[usize]) -> Result<RecordBatch> {
    check_wanted()?;
    let mut batches: Vec<RecordBatch> = Vec::new();
    // For each dataset: the batch that it gives rows of, and the next of them.
    let mut open: Vec<Option<(usize, usize)>> = vec![None; feeds.len()];
    let mut rows = Vec::with_capacity(block.len());
    let mut left = vec![0; feeds.len()];
    block.iter().for_each(|part| left[*part] += 1);
    for &part in block {
        let (batch, row) = match open[part] {
            Some((batch, row)) if row < batches[batch].num_rows() => (batch, row),
            _ => {
                batches.push(feeds[part].take(left[part])?);
                (batches.len() - 1, 0)
            }
        };
        rows.push((batch, row));
        open[part] = Some((batch, row + 1));
        left[part] -= 1;
    }
    let batches: Vec<&RecordBatch> = batches.iter().collect();
    interleave_record_batch(&batches, &rows)
        .map_err(|e| Error::new(Code::Data, format!("mix: {e}")).caused_by(e))
}

/// The rows of one dataset, which begins anew where it has ended.
struct Feed {
    parts: Parts,
    part: usize,
    /// The epoch of the dataset's present pass.
    epoch: u64,
    /// Where the pass is read from.
    from: u64,
    batches: Option<Batches>,
    /// Rows that were read and not taken.
    rest: Option<RecordBatch>,
}

impl Feed {
    fn new(parts: Parts, part: usize, epoch: u64, turns: &Turns) -> Self {
        let (pass, from) = turns.place(part);
        Self { parts, part, epoch: epoch + pass, from, batches: None, rest: None }
    }

    /// Rows, one to `most`.
    fn take(&mut self, most: usize) -> Result<RecordBatch> {
        loop {
            if let Some(rest) = self.rest.take_if(|rest| rest.num_rows() > 0) {
                let rows = most.min(rest.num_rows());
                self.rest = Some(rest.slice(rows, rest.num_rows() - rows));
                return Ok(rest.slice(0, rows));
            }
            let batches = match &mut self.batches {
                Some(batches) => batches,
                none => none.insert(self.parts.read(self.part, self.epoch, self.from)?),
            };
            match batches.next().transpose()? {
                Some(batch) => self.rest = Some(batch),
                None => {
                    self.batches = None;
                    self.epoch += 1;
                    self.from = 0;
                }
            }
        }
    }
}

/// Which dataset gives the next row, until the mixture ends.
struct Turns {
    /// The rows of each dataset.
    rows: Vec<u64>,
    /// The rows that each has given.
    given: Vec<u64>,
    /// The sums of the weights up to each dataset; none where they take turns.
    bounds: Option<Vec<f64>>,
    draws: ChaCha8Rng,
    stop: MixStop,
    next: usize,
}

impl Turns {
    fn new(rows: Vec<u64>, options: &MixOptions) -> Self {
        let sums = |weights: &Vec<f64>| {
            let add = |sum: &mut f64, weight: &f64| {
                *sum += weight;
                Some(*sum)
            };
            weights.iter().scan(0.0, add).collect()
        };
        Self {
            given: vec![0; rows.len()],
            rows,
            bounds: options.weights.as_ref().map(sums),
            draws: ChaCha8Rng::seed_from_u64(options.seed),
            stop: options.stop,
            next: 0,
        }
    }

    /// The passes that a dataset has made, and its row that comes next.
    fn place(&self, part: usize) -> (u64, u64) {
        (self.given[part] / self.rows[part], self.given[part] % self.rows[part])
    }

    fn has_ended(&self) -> bool {
        let mut ended = self.given.iter().zip(&self.rows).map(|(given, rows)| given >= rows);
        match self.stop {
            MixStop::First => ended.any(|ended| ended),
            MixStop::All => ended.all(|ended| ended),
        }
    }
}

impl Iterator for Turns {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        // A round of turns is whole.
        if self.next == 0 && self.has_ended() {
            return None;
        }
        let part = match &self.bounds {
            Some(bounds) => {
                let at = self.draws.random::<f64>() * bounds[bounds.len() - 1];
                bounds.partition_point(|bound| *bound <= at).min(bounds.len() - 1)
            }
            None => {
                let part = self.next;
                self.next = (part + 1) % self.rows.len();
                part
            }
        };
        self.given[part] += 1;
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(rows: &[u64], weights: Option<&[f64]>, stop: MixStop) -> Vec<usize> {
        let weights = weights.map(<[f64]>::to_vec);
        Turns::new(rows.to_vec(), &MixOptions { weights, seed: 42, stop }).collect()
    }

    #[test]
    fn datasets_without_weights_take_turns() {
        assert_eq!(turns(&[2, 5], None, MixStop::First), [0, 1, 0, 1]);
        assert_eq!(turns(&[2, 3], None, MixStop::All), [0, 1, 0, 1, 0, 1]);
    }

    /// Within four standard deviations of the share, which one seed in 16,000 would miss.
    #[test]
    fn weights_are_shares_of_the_rows() {
        let turns = turns(&[1_000_000, 1_000_000], Some(&[3.0, 1.0]), MixStop::First);
        let second = turns.iter().sum::<usize>() as f64 / turns.len() as f64;
        let deviation = (0.25_f64 * 0.75 / turns.len() as f64).sqrt();
        assert!((second - 0.25).abs() < 4.0 * deviation, "{second}");
    }

    /// A checkpoint has the number of a row: other draws in a new version would mix a resumed run anew.
    #[test]
    fn the_turns_of_a_seed_never_change() {
        let turns = turns(&[10, 10], Some(&[0.5, 0.5]), MixStop::First);
        assert_eq!(turns[..8], [1, 1, 0, 1, 0, 0, 0, 1]);
    }
}
