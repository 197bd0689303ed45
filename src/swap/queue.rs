//! The transfers of a file that are under way.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
};

use crate::{
    bridge::disk::{Chunk, Direction, Threads},
    error::{Code, Error, IoContext, Result},
    fs::File,
    tensor::Tensor,
};

/// Bytes that one call moves: so many that the threads share a large unit.
const CHUNK: u64 = 4 << 20;

/// Transfers by number, and the threads that do them.
pub(super) struct Queue {
    /// Dropped first, as the threads work on the buffers of the transfers.
    threads: Threads,
    transfers: HashMap<u64, Ongoing>,
    /// Regions, by their first byte, that do not hold what was last written to them, and why.
    broken: HashMap<u64, io::Error>,
    numbers: u64,
    dir: PathBuf,
}

/// A transfer that its owner has not taken back.
struct Ongoing {
    buffer: Tensor,
    direction: Direction,
    /// The first byte of its region.
    start: u64,
    /// Chunks under way.
    left: usize,
    failure: Option<io::Error>,
    /// Whether nobody waits for it.
    is_forgotten: bool,
}

impl Queue {
    /// The queue of `file` in `dir`.
    pub(super) fn new(dir: &Path, file: File) -> Result<Self> {
        let threads = Threads::new(file).at("start threads for a file in", dir)?;
        let (transfers, broken) = (HashMap::new(), HashMap::new());
        Ok(Self { threads, transfers, broken, numbers: 0, dir: dir.to_path_buf() })
    }

    /// Starts a transfer of the whole region that begins at the byte `start`, after those of the region
    /// that are under way.
    pub(super) fn start(
        &mut self,
        direction: Direction,
        start: u64,
        buffer: Tensor,
    ) -> Result<u64> {
        while self.transfers.values().any(|other| other.start == start && other.left > 0) {
            self.finish_one()?;
        }
        match (direction, self.broken.get(&start)) {
            (Direction::Read, Some(e)) => Err(same(e)).at("move offloaded state of", &self.dir)?,
            (Direction::Read, None) => {}
            (Direction::Write, _) => drop(self.broken.remove(&start)),
        }
        self.numbers += 1;
        let (number, bytes) = (self.numbers, buffer.numel() as u64);
        let mut left = 0;
        for from in (0..bytes).step_by(CHUNK as usize) {
            let memory = buffer.f_narrow(0, from as i64, CHUNK.min(bytes - from) as i64)?;
            let chunk = Chunk::new(direction, memory, start + from)?;
            self.threads.start(number, chunk).at("move offloaded state of", &self.dir)?;
            left += 1;
        }
        let (failure, is_forgotten) = (None, false);
        let ongoing = Ongoing { buffer, direction, start, left, failure, is_forgotten };
        self.transfers.insert(number, ongoing);
        Ok(number)
    }

    /// Waits for the end of a transfer, and gives its buffer back.
    pub(super) fn wait(&mut self, number: u64) -> Result<Tensor> {
        while self.transfers.get(&number).is_some_and(|transfer| transfer.left > 0) {
            self.finish_one()?;
        }
        let gone = || Error::new(Code::Internal, "a transfer is gone");
        let Ongoing { buffer, failure, .. } = self.transfers.remove(&number).ok_or_else(gone)?;
        failure.map_or(Ok(buffer), Err).at("move offloaded state of", &self.dir)
    }

    /// Nobody will wait for this transfer.
    pub(super) fn forget(&mut self, number: u64) {
        if let Some(transfer) = self.transfers.get_mut(&number) {
            transfer.is_forgotten = true;
            if transfer.left == 0 {
                self.transfers.remove(&number);
            }
        }
    }

    /// Waits for one chunk.
    fn finish_one(&mut self) -> Result<()> {
        let (number, result) = self.threads.next().at("wait for a file in", &self.dir)?;
        let Some(ongoing) = self.transfers.get_mut(&number) else { return Ok(()) };
        ongoing.left -= 1;
        if let (Direction::Write, Err(e)) = (ongoing.direction, &result) {
            self.broken.insert(ongoing.start, same(e));
        }
        ongoing.failure = ongoing.failure.take().or(result.err());
        if ongoing.is_forgotten && ongoing.left == 0 {
            self.transfers.remove(&number);
        }
        Ok(())
    }
}

/// The error once more.
fn same(e: &io::Error) -> io::Error {
    e.raw_os_error().map_or_else(|| e.kind().into(), io::Error::from_raw_os_error)
}
