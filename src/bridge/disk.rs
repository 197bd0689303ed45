//! Transfers between a file and the memory of tensors that go on beside the caller: by io_uring, or
//! where the kernel has none by threads.
//!
//! A transfer is cut into chunks by its owner (`swap`). An engine owns the file and the tensor of
//! each chunk until the chunk is done, so that memory is never freed under the kernel.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::FileExt,
    },
    slice,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use io_uring::{IoUring, Probe, opcode, types};
use tch::{Device, Kind, Tensor};

use crate::error::{Code, Result};

/// Chunks that io_uring has at once; the others wait until somebody waits for one of them.
const ENTRIES: u32 = 256;
/// Threads where there is no io_uring.
const THREADS: usize = 4;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the file.
    Read,
    /// Into the file.
    Write,
}

/// A part of a transfer.
#[derive(Debug)]
pub(crate) struct Chunk {
    direction: Direction,
    /// Bytes on the CPU, contiguous.
    memory: Tensor,
    /// Where they are in the file.
    offset: u64,
}

impl Chunk {
    /// Bytes of `memory`, at `offset` of the file.
    pub(crate) fn new(direction: Direction, memory: Tensor, offset: u64) -> Result<Self> {
        let is_bytes = memory.kind() == Kind::Uint8 && memory.device() == Device::Cpu;
        if !is_bytes || !memory.is_contiguous() || u32::try_from(memory.numel()).is_err() {
            bail!(Code::Internal, "a transfer is of contiguous bytes on the CPU");
        }
        Ok(Self { direction, memory, offset })
    }

    /// Which way they go.
    pub(crate) fn direction(&self) -> Direction {
        self.direction
    }

    /// How many bytes there are.
    pub(crate) fn bytes(&self) -> usize {
        self.memory.numel()
    }

    /// What is left after `done` bytes.
    pub(crate) fn rest(&self, done: usize) -> Result<Self> {
        let left = (self.bytes() - done) as i64;
        let memory = self.memory.f_narrow(0, done as i64, left)?;
        Self::new(self.direction, memory, self.offset + done as u64)
    }
}

/// A chunk that is over: its number, the chunk, and how many of its bytes went.
pub(crate) type Done = (u64, Chunk, io::Result<usize>);

/// Does the transfers of one file.
pub(crate) enum Engine {
    Uring(Box<Uring>),
    Threads(Threads),
}

impl Engine {
    /// Starts a chunk under a number of the caller's.
    pub(crate) fn start(&mut self, number: u64, chunk: Chunk) -> io::Result<()> {
        match self {
            Self::Uring(uring) => uring.start(number, chunk),
            Self::Threads(threads) => threads.start(number, chunk),
        }
    }

    /// Waits for the next chunk that is over. There must be one under way.
    pub(crate) fn next(&mut self) -> io::Result<Done> {
        match self {
            Self::Uring(uring) => uring.next(),
            Self::Threads(threads) => threads.done.recv().map_err(io::Error::other),
        }
    }
}

/// io_uring (Linux 5.6 and later).
pub(crate) struct Uring {
    ring: IoUring,
    file: File,
    running: HashMap<u64, Chunk>,
    waiting: VecDeque<(u64, Chunk)>,
}

impl Uring {
    /// A ring for `file`.
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let ring = IoUring::new(ENTRIES)?;
        // The first kernels with rings have other calls alone.
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Read::CODE) || !probe.is_supported(opcode::Write::CODE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self { ring, file, running: HashMap::new(), waiting: VecDeque::new() })
    }

    fn start(&mut self, number: u64, chunk: Chunk) -> io::Result<()> {
        self.waiting.push_back((number, chunk));
        self.submit()
    }

    /// Gives the kernel as many of the waiting chunks as it may have.
    fn submit(&mut self) -> io::Result<()> {
        while self.running.len() < ENTRIES as usize {
            let Some((number, chunk)) = self.waiting.pop_front() else { break };
            let entry = entry(self.file.as_raw_fd(), &chunk).user_data(number);
            // SAFETY: the file and the chunk's tensor are kept in `self` until the kernel has said
            // that the chunk is over, also by `drop`; nobody reads or writes the memory before, as
            // `swap` lends the buffer to the transfer.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            pushed.map_err(io::Error::other)?;
            self.running.insert(number, chunk);
        }
        match self.ring.submit() {
            // They are submitted with the next call.
            Err(e) if is_passing(&e) => Ok(()),
            other => other.map(drop),
        }
    }

    fn next(&mut self) -> io::Result<Done> {
        loop {
            let over = self.ring.completion().next();
            if let Some(over) = over
                && let Some(chunk) = self.running.remove(&over.user_data())
            {
                self.submit()?;
                let result = match over.result() {
                    e if e < 0 => Err(io::Error::from_raw_os_error(-e)),
                    bytes => Ok(bytes.unsigned_abs() as usize),
                };
                return Ok((over.user_data(), chunk, result));
            }
            if self.running.is_empty() {
                return Err(io::Error::other("no transfer is under way"));
            }
            match self.ring.submit_and_wait(1) {
                Err(e) if !is_passing(&e) => return Err(e),
                _ => {}
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.waiting.clear();
        while !self.running.is_empty() {
            if self.next().is_err() {
                // The kernel may still write into this memory: it is never freed.
                self.running.drain().for_each(|(_, chunk)| std::mem::forget(chunk));
            }
        }
    }
}

fn is_passing(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

fn entry(file: RawFd, chunk: &Chunk) -> io_uring::squeue::Entry {
    let (memory, bytes) = (chunk.memory.data_ptr().cast::<u8>(), chunk.bytes() as u32);
    match chunk.direction {
        Direction::Read => {
            opcode::Read::new(types::Fd(file), memory, bytes).offset(chunk.offset).build()
        }
        Direction::Write => {
            opcode::Write::new(types::Fd(file), memory, bytes).offset(chunk.offset).build()
        }
    }
}

/// A few threads with blocking calls.
pub(crate) struct Threads {
    /// `None` while it is dropped, which ends the threads.
    jobs: Option<Sender<(u64, Chunk)>>,
    done: Receiver<Done>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Threads {
    /// Threads for `file`.
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let (jobs, waiting) = channel::<(u64, Chunk)>();
        let (over, done) = channel();
        let (file, waiting) = (Arc::new(file), Arc::new(Mutex::new(waiting)));
        let threads = (0..THREADS).map(|_| {
            let (file, waiting, over) = (Arc::clone(&file), Arc::clone(&waiting), over.clone());
            thread::Builder::new().name("swap".to_owned()).spawn(move || {
                loop {
                    let Ok(job) = waiting.lock().map(|waiting| waiting.recv()) else { return };
                    let Ok((number, chunk)) = job else { return };
                    let result = transfer(&file, &chunk);
                    if over.send((number, chunk, result)).is_err() {
                        return;
                    }
                }
            })
        });
        Ok(Self { threads: threads.collect::<io::Result<_>>()?, jobs: Some(jobs), done })
    }

    fn start(&mut self, number: u64, chunk: Chunk) -> io::Result<()> {
        let sent = self.jobs.as_ref().map(|jobs| jobs.send((number, chunk)));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(io::Error::other("the threads have ended")),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // One that panicked has let go of its chunk.
            let _ = thread.join();
        }
    }
}

/// One call for a chunk.
fn transfer(file: &File, chunk: &Chunk) -> io::Result<usize> {
    let memory = chunk.memory.data_ptr().cast::<u8>();
    if chunk.bytes() == 0 {
        return Ok(0);
    }
    match chunk.direction {
        Direction::Read => {
            // SAFETY: the tensor, which `chunk` keeps, has so many contiguous bytes there, and is lent
            // to this transfer alone.
            file.read_at(unsafe { slice::from_raw_parts_mut(memory, chunk.bytes()) }, chunk.offset)
        }
        Direction::Write => {
            // SAFETY: as above; the bytes are only read.
            file.write_at(unsafe { slice::from_raw_parts(memory, chunk.bytes()) }, chunk.offset)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nine bytes through `engine`, and back.
    fn there_and_back(engine: &mut Engine) {
        let bytes = |first: i64| {
            Tensor::arange_start(first, first + 9, (Kind::Uint8, Device::Cpu)).contiguous()
        };
        for (number, direction) in [(1, Direction::Write), (2, Direction::Read)] {
            let memory = bytes(if direction == Direction::Write { 7 } else { 0 });
            let chunk = Chunk::new(direction, memory.shallow_clone(), 4096).unwrap();
            engine.start(number, chunk).unwrap();
            let (done, _, moved) = engine.next().unwrap();
            assert_eq!((done, moved.unwrap()), (number, 9));
            assert_eq!(memory, bytes(7), "{direction:?}");
        }
    }

    #[test]
    fn threads_move_bytes_both_ways() {
        let file = tempfile::tempfile().unwrap();
        there_and_back(&mut Engine::Threads(Threads::new(file).unwrap()));
    }

    #[test]
    fn io_uring_moves_bytes_both_ways() {
        match Uring::new(tempfile::tempfile().unwrap()) {
            Ok(uring) => there_and_back(&mut Engine::Uring(Box::new(uring))),
            Err(e) => println!("skipped: this kernel gives no io_uring: {e}"),
        }
    }
}
