//! Rows that a thread of their own makes ahead of their reader.

use std::sync::{
    Arc,
    mpsc::{Receiver, Sender, SyncSender, channel},
};

use arrow::array::RecordBatch;

use super::{stage::Batches, wanted::check_wanted, worker::Worker};
use crate::{
    error::{Code, Error, Result},
    panics::catch,
};

/// The batches that wait for the reader at most.
const WAITING: usize = 4;

/// The rows from one on; called in the thread that reads them.
pub(super) type Open = Arc<dyn Fn(u64) -> Result<Batches> + Send + Sync>;

/// The batches that `open` gives from row `from` on, made ahead. The first is made when it is asked for,
/// and nothing further before the second is: a look at one row costs no more than that.
pub(super) fn ahead(open: Open, from: u64) -> Batches {
    Box::new(Ahead { open, row: from, source: None })
}

struct Ahead {
    open: Open,
    /// The row that comes next.
    row: u64,
    source: Option<Made>,
}

/// The maker of the batches.
enum Made {
    Thread(Thread),
    /// This thread, where another cannot be had.
    Here(Batches),
}

impl Iterator for Ahead {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut source = match self.source.take() {
            Some(source) => source,
            None => match Thread::start(Arc::clone(&self.open), self.row) {
                Some(thread) => Made::Thread(thread),
                None => self.here(),
            },
        };
        let mut next = source.next();
        // The user may have stopped something else, before this batch was asked for.
        let is_stopped = matches!(&next, Some(Err(e)) if e.code() == Code::Interrupted);
        if is_stopped && matches!(source, Made::Thread(_)) && check_wanted().is_ok() {
            source = self.here();
            next = source.next();
        }
        self.source = Some(source);
        if let Some(Ok(batch)) = &next {
            self.row += batch.num_rows() as u64;
        }
        next
    }
}

impl Ahead {
    fn here(&self) -> Made {
        let batches = (self.open)(self.row);
        Made::Here(batches.unwrap_or_else(|e| Box::new(std::iter::once(Err(e)))))
    }
}

impl Made {
    fn next(&mut self) -> Option<Result<RecordBatch>> {
        match self {
            Self::Thread(thread) => thread.next(),
            Self::Here(batches) => batches.next(),
        }
    }
}

/// The thread, which waits for a second question after its first answer.
struct Thread {
    /// `None` once a second batch was asked for. Dropped before the worker, which may wait for it.
    go: Option<Sender<()>>,
    is_first: bool,
    worker: Worker<Option<Result<RecordBatch>>>,
}

impl Thread {
    fn start(open: Open, from: u64) -> Option<Self> {
        let (go, gone) = channel();
        let worker = Worker::start("tokenizer", WAITING, move |ready| {
            if let Err(words) = catch(|| make_all(&open, from, ready, &gone)) {
                let _ = ready.send(Some(Err(Error::new(Code::Internal, words))));
            }
        });
        Some(Self { go: Some(go), is_first: true, worker: worker.ok()? })
    }

    fn next(&mut self) -> Option<Result<RecordBatch>> {
        if !self.is_first
            && let Some(go) = self.go.take()
        {
            // A thread that has ended has said why.
            let _ = go.send(());
        }
        self.is_first = false;
        match self.worker.next_if_wanted() {
            Ok(made) => made.flatten(),
            Err(e) => Some(Err(e)),
        }
    }
}

/// Hands batches over until they end or one fails.
fn make_all(
    open: &Open,
    from: u64,
    ready: &SyncSender<Option<Result<RecordBatch>>>,
    go: &Receiver<()>,
) {
    let mut batches = open(from).unwrap_or_else(|e| Box::new(std::iter::once(Err(e))));
    for nth in 0.. {
        let made = batches.next();
        let is_last = !matches!(made, Some(Ok(_)));
        if ready.send(made).is_err() || is_last || nth == 0 && go.recv().is_err() {
            return;
        }
    }
}
