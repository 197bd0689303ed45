//! The transfers of a file that are under way.

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use super::{BLOCK, Region};
use crate::{
    bridge::disk::{Chunk, Direction, Engine, Threads, Uring},
    error::{Code, Error, IoContext, Result},
    tensor::Tensor,
};

/// Bytes that one call moves: so many that an engine has all of a large unit at once.
const CHUNK: u64 = 4 << 20;

/// Transfers by number, and the engine that does them.
pub(super) struct Queue {
    engine: Engine,
    transfers: HashMap<u64, Ongoing>,
    /// Which transfer each chunk belongs to.
    chunks: HashMap<u64, u64>,
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
    /// For `file` in `dir`: by io_uring, or by threads where the kernel has none.
    pub(super) fn new(dir: &Path, file: File) -> Result<Self> {
        let again = file.try_clone().at("open again a file in", dir)?;
        match Uring::new(file) {
            Ok(uring) => Ok(Self::over(dir, Engine::Uring(Box::new(uring)))),
            Err(e) => {
                tracing::debug!("no io_uring, threads transfer instead: {e}");
                Self::with_threads(dir, again)
            }
        }
    }

    pub(super) fn with_threads(dir: &Path, file: File) -> Result<Self> {
        let threads = Threads::new(file).at("start threads for a file in", dir)?;
        Ok(Self::over(dir, Engine::Threads(threads)))
    }

    fn over(dir: &Path, engine: Engine) -> Self {
        let (transfers, chunks, broken) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { engine, transfers, chunks, broken, numbers: 0, dir: dir.to_path_buf() }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Starts a transfer of a whole region, after those of the region that are under way.
    pub(super) fn start(
        &mut self,
        direction: Direction,
        region: Region,
        buffer: Tensor,
    ) -> Result<u64> {
        if buffer.numel() as u64 != region.bytes {
            bail!(Code::Internal, "{} bytes for a region of {}", buffer.numel(), region.bytes);
        }
        while self.transfers.values().any(|other| other.start == region.start && other.left > 0) {
            self.finish_one()?;
        }
        match (direction, self.broken.get(&region.start)) {
            (Direction::Read, Some(e)) => Err(same(e)).at("move offloaded state of", &self.dir)?,
            (Direction::Read, None) => {}
            (Direction::Write, _) => drop(self.broken.remove(&region.start)),
        }
        let number = self.number();
        let mut left = 0;
        for start in (0..region.bytes).step_by(CHUNK as usize) {
            let memory =
                buffer.f_narrow(0, start as i64, CHUNK.min(region.bytes - start) as i64)?;
            let chunk = Chunk::new(direction, memory, region.start + start)?;
            let of_chunk = self.number();
            self.chunks.insert(of_chunk, number);
            self.engine.start(of_chunk, chunk).at("move offloaded state of", &self.dir)?;
            left += 1;
        }
        let ongoing = Ongoing {
            buffer,
            direction,
            start: region.start,
            left,
            failure: None,
            is_forgotten: false,
        };
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

    /// Waits for one chunk; what is left of it starts anew.
    fn finish_one(&mut self) -> Result<()> {
        let (number, chunk, result) = self.engine.next().at("wait for a file in", &self.dir)?;
        let failure = match result {
            // In whole blocks, without which the page cache cannot be bypassed.
            Ok(bytes) if bytes as u64 >= BLOCK && bytes < chunk.bytes() => {
                let done = bytes as u64 / BLOCK * BLOCK;
                let rest = chunk.rest(done as usize)?;
                return self.engine.start(number, rest).at("move offloaded state of", &self.dir);
            }
            Ok(bytes) if bytes < chunk.bytes() => Some(io::Error::from(match chunk.direction() {
                Direction::Read => io::ErrorKind::UnexpectedEof,
                Direction::Write => io::ErrorKind::StorageFull,
            })),
            Ok(_) => None,
            Err(e)
                if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) =>
            {
                let again = chunk.rest(0)?;
                return self.engine.start(number, again).at("move offloaded state of", &self.dir);
            }
            Err(e) => Some(e),
        };
        let Some(transfer) = self.chunks.remove(&number) else { return Ok(()) };
        if let Some(ongoing) = self.transfers.get_mut(&transfer) {
            ongoing.left -= 1;
            if let (Direction::Write, Some(e)) = (ongoing.direction, &failure) {
                self.broken.insert(ongoing.start, same(e));
            }
            ongoing.failure = ongoing.failure.take().or(failure);
            if ongoing.is_forgotten && ongoing.left == 0 {
                self.transfers.remove(&transfer);
            }
        }
        Ok(())
    }
}

/// The error once more.
fn same(e: &io::Error) -> io::Error {
    e.raw_os_error().map_or_else(|| e.kind().into(), io::Error::from_raw_os_error)
}
