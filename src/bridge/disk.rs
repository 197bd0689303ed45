//! Transfers between a file and the memory of tensors, by threads beside the caller.
//!
//! The owner of a transfer (`swap`) cuts it into chunks. A thread keeps the tensor of its chunk until
//! the chunk is done, so that memory is never freed under the kernel.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    slice,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use tch::{Device, Kind, Tensor};

use crate::error::{Code, Result};

/// Threads of one file: with so many, transfers are as fast as by io_uring.
const THREADS: usize = 8;

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
        if !is_bytes || !memory.is_contiguous() {
            bail!(Code::Internal, "a transfer is of contiguous bytes on the CPU");
        }
        Ok(Self { direction, memory, offset })
    }

    /// Moves all of it.
    fn run(&self, file: &File) -> io::Result<()> {
        let (memory, bytes) = (self.memory.data_ptr().cast::<u8>(), self.memory.numel());
        if bytes == 0 {
            return Ok(());
        }
        match self.direction {
            Direction::Read => {
                // SAFETY: the tensor, which `self` keeps, has so many contiguous bytes there, and is
                // lent to this transfer alone.
                file.read_exact_at(unsafe { slice::from_raw_parts_mut(memory, bytes) }, self.offset)
            }
            Direction::Write => {
                // SAFETY: as above; the bytes are only read.
                file.write_all_at(unsafe { slice::from_raw_parts(memory, bytes) }, self.offset)
            }
        }
    }
}

/// Threads that do the transfers of one file with blocking calls.
pub(crate) struct Threads {
    /// `None` while it is dropped, which ends the threads.
    jobs: Option<Sender<(u64, Chunk)>>,
    done: Receiver<(u64, io::Result<()>)>,
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
                    let result = chunk.run(&file);
                    // Before its owner learns that it is done, and may free the memory.
                    drop(chunk);
                    if over.send((number, result)).is_err() {
                        return;
                    }
                }
            })
        });
        Ok(Self { threads: threads.collect::<io::Result<_>>()?, jobs: Some(jobs), done })
    }

    /// Starts a chunk under a number of the caller's.
    pub(crate) fn start(&mut self, number: u64, chunk: Chunk) -> io::Result<()> {
        let sent = self.jobs.as_ref().map(|jobs| jobs.send((number, chunk)));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(io::Error::other("the threads have ended")),
        }
    }

    /// Waits for the next chunk that is done: its number, and whether all of it was moved. There must
    /// be one under way.
    pub(crate) fn next(&mut self) -> io::Result<(u64, io::Result<()>)> {
        self.done.recv().map_err(io::Error::other)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A thread that panicked has let go of its chunk.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_move_bytes_both_ways() {
        let mut threads = Threads::new(tempfile::tempfile().unwrap()).unwrap();
        let bytes = |first: i64| {
            Tensor::arange_start(first, first + 9, (Kind::Uint8, Device::Cpu)).contiguous()
        };
        for (number, direction) in [(1, Direction::Write), (2, Direction::Read)] {
            let memory = bytes(if direction == Direction::Write { 7 } else { 0 });
            let chunk = Chunk::new(direction, memory.shallow_clone(), 4096).unwrap();
            threads.start(number, chunk).unwrap();
            let (done, moved) = threads.next().unwrap();
            assert_eq!((done, moved.is_ok()), (number, true));
            assert_eq!(memory, bytes(7), "{direction:?}");
        }
    }
}
