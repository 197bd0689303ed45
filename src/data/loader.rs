//! `Loader`: micro batches for one rank, and the place in the data.
//!
//! The rows of an epoch are cut into blocks of `micro_batch_size * world_size`; rank r takes the
//! r-th part of each block. All ranks thus agree on one global order, which does not depend on
//! their number, and the place in it is one row number. Every rank yields equally many batches:
//! where the last block is short, ranks fill up with rows that have no target.
//!
//! A thread keeps the next batches ready. The place counts those that were handed out, so that nothing
//! of this is seen but the time. Where a function of the recipe stands in the plan, which belongs to
//! the recipe's thread, each batch is made when it is asked for.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use super::{
    batch::Batch,
    batcher::{Batcher, LoaderOptions, LoaderState, SavedPlace},
    prefetch::Prefetcher,
    stage::Stage,
    tokenizer::Tokenizer,
    tokens::require_tokens,
};
use crate::{
    error::{Code, Error, Result},
    hash::sha256,
};

/// Micro batches of one rank, in order; an iterator that knows its place.
pub struct Loader {
    rows: Arc<dyn Stage>,
    options: LoaderOptions,
    state: LoaderState,
    maker: Option<BatchSource>,
    /// The fingerprint of the data, once it was asked for.
    data: OnceLock<String>,
}

/// The source of the batches; made at the first batch, and again after a restore or an error.
enum BatchSource {
    /// This thread, when one is asked for.
    Batcher(Batcher),
    /// Another, ahead of time.
    Prefetcher(Prefetcher),
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Loader({}, {:?})", self.describe(), self.state)
    }
}

impl Loader {
    pub(super) fn new(rows: Arc<dyn Stage>, options: LoaderOptions) -> Result<Self> {
        let LoaderOptions { micro_batch_size, rank, world_size, .. } = options;
        check_rows(micro_batch_size)?;
        if rank >= world_size {
            bail!(Code::BadValue, "rank {rank} does not exist among {world_size} processes");
        }
        require_tokens(&rows.schema(), "loader(...)")?;
        Ok(Self {
            rows,
            options,
            state: LoaderState::default(),
            maker: None,
            data: OnceLock::new(),
        })
    }

    /// The next batch, or `None` after the last epoch.
    ///
    /// # Errors
    /// Whatever reading the data fails with; rows that make no batch. The place stays where it was.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        let began = Instant::now();
        let mut batch = self.advance();
        if let Ok(Some(batch)) = &mut batch {
            batch.load_time = began.elapsed();
        }
        batch
    }

    fn advance(&mut self) -> Result<Option<Batch>> {
        if self.options.epochs.is_some_and(|epochs| self.state.epoch >= epochs) {
            return Ok(None);
        }
        let mut maker = match self.maker.take() {
            Some(maker) => maker,
            None => self.maker()?,
        };
        let (made, state) = match &mut maker {
            BatchSource::Batcher(batcher) => (batcher.next(), batcher.state()),
            BatchSource::Prefetcher(prefetch) => prefetch.next()?,
        };
        self.state = state;
        match made {
            Ok(Some(batch)) => {
                self.maker = Some(maker);
                Ok(Some(batch))
            }
            // The user may have stopped something else, before this batch was asked for.
            Err(e)
                if matches!(maker, BatchSource::Prefetcher(_)) && e.code() == Code::Interrupted =>
            {
                drop(maker);
                let mut batcher = self.batcher();
                let made = batcher.next();
                self.state = batcher.state();
                made
            }
            made => made,
        }
    }

    fn batcher(&self) -> Batcher {
        Batcher::new(Arc::clone(&self.rows), self.options.clone(), self.state)
    }

    fn maker(&self) -> Result<BatchSource> {
        if self.options.prefetch_factor == 0 || self.rows.is_local() {
            return Ok(BatchSource::Batcher(self.batcher()));
        }
        let (rows, options, state) = (Arc::clone(&self.rows), self.options.clone(), self.state);
        let factor = options.prefetch_factor;
        Prefetcher::start(move || Batcher::new(rows, options, state), factor)
            .map(BatchSource::Prefetcher)
    }

    /// The place of the next batch.
    pub fn state(&self) -> LoaderState {
        self.state
    }

    /// Goes to a place that [`Loader::state`] gave, perhaps with another number of ranks.
    pub fn restore(&mut self, state: LoaderState) -> Result<()> {
        if let Some(rows) = self.rows.num_rows()? {
            self.check_row(state.row, rows)?;
        }
        self.state = state;
        self.maker = None;
        Ok(())
    }

    /// Goes on as rank `rank` of `world_size` that read different rows.
    pub fn read_as(&mut self, rank: usize, world_size: usize) {
        if (self.options.rank, self.options.world_size) != (rank, world_size) {
            (self.options.rank, self.options.world_size) = (rank, world_size);
            self.maker = None;
        }
    }

    /// Goes on with this many rows in a batch of one process.
    ///
    /// # Errors
    /// [`Code::BadValue`] for none.
    pub fn read_rows(&mut self, micro_batch_size: usize) -> Result<()> {
        check_rows(micro_batch_size)?;
        self.options.micro_batch_size = micro_batch_size;
        self.maker = None;
        Ok(())
    }

    /// The place of the next batch, as a checkpoint keeps it.
    pub fn saved_place(&self) -> Result<SavedPlace> {
        Ok(SavedPlace { state: self.state, data: Some(self.fingerprint()?) })
    }

    /// Goes to the place of a checkpoint. Returns what is to be said where the data is not that of the
    /// checkpoint.
    ///
    /// # Errors
    /// The data has fewer rows than were read.
    pub fn restore_saved(&mut self, place: &SavedPlace) -> Result<Option<String>> {
        let is_same = match &place.data {
            Some(data) => *data == self.fingerprint()?,
            None => true,
        };
        if !is_same {
            self.check_row(place.state.row, self.rows.count()?)?;
        }
        self.restore(place.state)?;
        Ok((!is_same).then(|| {
            format!(
                "warning: the data is not that of the checkpoint, or is made into rows in another \
                 way: of epoch {} some rows may come twice and others never",
                place.state.epoch
            )
        }))
    }

    /// What tells the data, and what is done to it, from others.
    fn fingerprint(&self) -> Result<String> {
        if let Some(data) = self.data.get() {
            return Ok(data.clone());
        }
        let described = self.rows.describe();
        // Where the files lie is no matter.
        let done = described.split_once(" -> ").map_or("", |(_, done)| done);
        let data = sha256(format!("{} -> {done}", self.rows.origin()?).as_bytes());
        Ok(self.data.get_or_init(|| data).clone())
    }

    fn check_row(&self, row: u64, rows: u64) -> Result<()> {
        if row <= rows {
            return Ok(());
        }
        let message = format!("cannot go on at row {row}: the dataset has {rows} rows");
        Err(Error::new(Code::Data, message)
            .hint("the data is not the one that the checkpoint was made with"))
    }

    /// The options the loader was made with.
    pub fn options(&self) -> &LoaderOptions {
        &self.options
    }

    /// Where the rows come from, in one line.
    pub fn describe(&self) -> String {
        self.rows.describe()
    }

    /// The tokenizer that made the tokens of the rows, if one did.
    pub fn tokenizer(&self) -> Option<Arc<Tokenizer>> {
        self.rows.tokenizer()
    }

    /// The tokens of each row, where all have as many.
    pub fn row_tokens(&self) -> Option<usize> {
        self.rows.row_tokens()
    }

    /// The number of batches in one epoch, where it can be known without going through the data
    /// only for this; a shuffled dataset is spooled now, which its first batch would do anyway.
    pub fn batches_per_epoch(&self) -> Result<Option<u64>> {
        let rows = match self.rows.num_rows()? {
            None if self.rows.is_spooled() => Some(self.rows.count()?),
            known => known,
        };
        let block = (self.options.micro_batch_size * self.options.world_size) as u64;
        Ok(rows.map(|rows| match self.options.drop_last {
            true => rows / block,
            false => rows.div_ceil(block),
        }))
    }
}

fn check_rows(micro_batch_size: usize) -> Result<()> {
    if micro_batch_size > 0 {
        return Ok(());
    }
    let e = Error::new(Code::BadValue, "micro_batch_size must be 1 or more, found 0");
    Err(e.option("micro_batch_size"))
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().transpose()
    }
}
