//! Batches that a thread makes before they are asked for.
//!
//! The thread has a plan of its own and hands each batch over with the place behind it; it ends at the
//! end of the data, at an error, which arrives where its batch would, and when nobody wants more.

use std::sync::mpsc::SyncSender;

use super::{
    batch::Batch,
    batcher::{Batcher, LoaderState},
    worker::Worker,
};
use crate::{
    error::{Code, Error, Result},
    tensor::guard,
};

/// A batch, or why there is none, and the place behind it.
type Prefetched = (Result<Option<Batch>>, LoaderState);

/// The batches that a thread of their own keeps ready.
pub(super) struct Prefetcher(Worker<Prefetched>);

impl Prefetcher {
    /// Keeps `count` batches ready, 1 or more.
    pub(super) fn start(
        batcher: impl FnOnce() -> Batcher + Send + 'static,
        count: usize,
    ) -> Result<Self> {
        let work = move |ready: &SyncSender<Prefetched>| make_all(batcher(), ready);
        // One more waits in the thread's hand.
        Worker::start("loader", count - 1, work).map(Self).map_err(|e| {
            Error::new(Code::Io, "cannot start the thread of a loader")
                .caused_by(e)
                .hint("prefetch_factor: 0 needs none")
        })
    }

    /// The next batch, waited for.
    pub(super) fn next(&mut self) -> Result<Prefetched> {
        let ended = || Error::new(Code::Internal, "the thread of a loader has ended");
        self.0.next().ok_or_else(ended)
    }
}

fn make_all(mut batcher: Batcher, ready: &SyncSender<Prefetched>) {
    loop {
        let made = guard("the loader", || batcher.next());
        let is_last = !matches!(made, Ok(Some(_)));
        let refused = ready.send((made, batcher.state())).is_err();
        if is_last || refused {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicU64, Ordering},
        },
        thread,
    };

    use arrow::{array::RecordBatch, datatypes::SchemaRef};

    use super::*;
    use crate::data::{
        Loader, LoaderOptions,
        stage::{Batches, Stage},
        tokens,
        wanted::check_wanted,
    };

    /// One row after another, each of which may fail.
    struct Rows<F>(F);

    impl<F: Fn(u64) -> Result<()> + Clone + Send + Sync + 'static> Stage for Rows<F> {
        fn schema(&self) -> SchemaRef {
            row().schema()
        }

        fn read(&self, _epoch: u64, from: u64) -> Result<Batches> {
            let check = self.0.clone();
            Ok(Box::new((from..).map(move |i| check(i).map(|()| row()))))
        }

        fn origin(&self) -> Result<String> {
            Ok(String::new())
        }

        fn describe(&self) -> String {
            "rows".to_owned()
        }
    }

    fn row() -> RecordBatch {
        let list = tokens::lists(vec![7, 7], [2]);
        RecordBatch::try_from_iter([(tokens::INPUT_IDS, list)]).unwrap()
    }

    fn loader(check: impl Fn(u64) -> Result<()> + Clone + Send + Sync + 'static) -> Loader {
        Loader::new(Arc::new(Rows(check)), LoaderOptions::default()).unwrap()
    }

    /// Without the flag the thread would read for ever, and this test wait for it.
    #[test]
    fn a_thread_that_is_reading_ends_when_nobody_wants_the_rows() {
        let mut loader = loader(|i| {
            while i > 0 && check_wanted().is_ok() {
                thread::yield_now();
            }
            check_wanted()
        });
        loader.next_batch().unwrap().unwrap();
        drop(loader);
        assert!(check_wanted().is_ok(), "other threads read on");
    }

    #[test]
    fn a_panic_is_an_error_at_its_batch() {
        let mut loader = loader(|i| {
            assert!(i != 1, "row {i} is broken");
            Ok(())
        });
        loader.next_batch().unwrap().unwrap();
        let e = loader.next_batch().unwrap_err();
        assert!(e.message().contains("row 1 is broken"), "{e}");
    }

    /// The user stops something while row 1 is read ahead, and asks for it afterwards.
    #[test]
    fn an_interruption_that_is_over_stops_nothing() {
        let (stops, met) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (seen, meets) = (Arc::clone(&stops), Arc::clone(&met));
        let mut loader = loader(move |i| {
            let is_ahead = thread::current().name() == Some("loader");
            while i == 1 && is_ahead && meets.load(Ordering::SeqCst) == 0 {
                if seen.load(Ordering::SeqCst) {
                    meets.fetch_add(1, Ordering::SeqCst);
                    return Err(Error::interrupted());
                }
                thread::yield_now();
            }
            match seen.load(Ordering::SeqCst) {
                true => Err(Error::interrupted()),
                false => Ok(()),
            }
        });
        loader.next_batch().unwrap().unwrap();
        stops.store(true, Ordering::SeqCst);
        while met.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        stops.store(false, Ordering::SeqCst);
        assert_eq!(loader.next_batch().unwrap().unwrap().first_row, 1);
    }
}
