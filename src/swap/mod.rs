//! Files into which training state is swapped between its uses, as ZeRO-Infinity does with NVMe
//! (Rajbhandari et al. 2021, section 6.3).
//!
//! A [`SwapFile`] has no name: whatever ends the process, the space is free again. Its regions are
//! read and written beside the caller ([`Transfer`]), in chunks that threads work on together
//! (`queue.rs`).

mod file;
mod queue;

use std::{cell::RefCell, rc::Rc};

use self::{file::BLOCK, queue::Queue};
use crate::{
    bridge::disk::Direction,
    error::{Code, Result},
    fs::Place,
    tensor::{Device, Kind, Tensor, bytes_of},
};

/// A file of regions.
pub struct SwapFile {
    queue: Rc<RefCell<Queue>>,
    regions: Vec<Region>,
}

/// Where a region is, in bytes; both multiples of [`BLOCK`].
#[derive(Debug, Clone, Copy)]
struct Region {
    start: u64,
    bytes: u64,
}

/// A tensor of `numel` elements in the format `kind` in a [`SwapFile::buffer`], from the byte `start`
/// on, a multiple of an element's size.
pub fn view(buffer: &Tensor, start: u64, kind: Kind, numel: i64) -> Result<Tensor> {
    let part = buffer.f_narrow(0, start as i64, bytes_of(kind, numel) as i64)?;
    Ok(part.f_view_dtype(kind)?)
}

/// A read or write that goes on. Dropping it does not stop it.
#[must_use = "what is read may be used only after `wait`"]
pub struct Transfer {
    queue: Rc<RefCell<Queue>>,
    number: u64,
}

impl SwapFile {
    /// A file in the directory `dir` with a region of at least so many bytes for each number.
    ///
    /// # Errors
    /// [`Code::DiskFull`] with both numbers where the disk has less
    /// room; [`Code::Io`] where there is no such directory, or it cannot be
    /// written to.
    pub fn create(dir: impl Into<Place>, region_bytes: &[u64]) -> Result<Self> {
        let dir = dir.into();
        let mut end = 0;
        let region = |&bytes: &u64| {
            let region = Region { start: end, bytes: bytes.next_multiple_of(BLOCK) };
            end += region.bytes;
            region
        };
        let regions = region_bytes.iter().map(region).collect();
        let queue = Queue::new(dir.path(), file::create(&dir, end)?)?;
        Ok(Self { queue: Rc::new(RefCell::new(queue)), regions })
    }

    /// Bytes of a region, a multiple of `BLOCK`.
    pub fn region_bytes(&self, region: usize) -> u64 {
        self.regions[region].bytes
    }

    /// Memory for a region: its bytes, flat, on the CPU, in any state.
    pub fn buffer(&self, region: usize) -> Result<Tensor> {
        let bytes = self.regions[region].bytes;
        let memory = Tensor::f_empty([(bytes + BLOCK) as i64], (Kind::Uint8, Device::Cpu))?;
        let address = memory.data_ptr().addr() as u64;
        let start = address.next_multiple_of(BLOCK) - address;
        Ok(memory.f_narrow(0, start as i64, bytes as i64)?)
    }

    /// Starts to read a region into `buffer`, a [`SwapFile::buffer`] of its size, once it is written.
    ///
    /// # Errors
    /// The error of the last write to the region, also of one that nobody waited for.
    pub fn read(&self, region: usize, buffer: Tensor) -> Result<Transfer> {
        self.start(Direction::Read, region, buffer)
    }

    /// Starts to write `buffer` into a region.
    pub fn write(&self, region: usize, buffer: Tensor) -> Result<Transfer> {
        self.start(Direction::Write, region, buffer)
    }

    fn start(&self, direction: Direction, region: usize, buffer: Tensor) -> Result<Transfer> {
        let Region { start, bytes } = self.regions[region];
        if buffer.numel() as u64 != bytes {
            bail!(Code::Internal, "{} bytes for a region of {bytes}", buffer.numel());
        }
        let number = self.queue.borrow_mut().start(direction, start, buffer)?;
        Ok(Transfer { queue: Rc::clone(&self.queue), number })
    }
}

impl Transfer {
    /// Returns the buffer when all of it is read or written.
    pub fn wait(self) -> Result<Tensor> {
        self.queue.borrow_mut().wait(self.number)
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.queue.borrow_mut().forget(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [u64; 4] = [1, 0, 5 << 20, 4096];

    fn numbers(file: &SwapFile, region: usize, seed: i64) -> Tensor {
        let buffer = file.buffer(region).unwrap();
        let bytes = buffer.numel() as i64;
        let numbers = Tensor::arange(bytes, (Kind::Int64, Device::Cpu)) * 7 + seed;
        buffer.shallow_clone().copy_(&numbers.remainder(251));
        buffer
    }

    fn file() -> SwapFile {
        SwapFile::create(tempfile::tempdir().unwrap().path(), &SIZES).unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let file = file();
        for (region, size) in SIZES.iter().enumerate() {
            assert_eq!(file.region_bytes(region), size.next_multiple_of(BLOCK));
            let _ = file.write(region, numbers(&file, region, 1)).unwrap().wait().unwrap();
        }
        for region in 0..SIZES.len() {
            let read = file.read(region, file.buffer(region).unwrap()).unwrap().wait().unwrap();
            assert_eq!(read, numbers(&file, region, 1), "{region}");
        }
    }

    #[test]
    fn a_read_sees_the_writes_before_it_that_nobody_waited_for() {
        let file = file();
        for seed in 0..20 {
            drop(file.write(2, numbers(&file, 2, seed)).unwrap());
            let write = file.write(2, numbers(&file, 2, seed + 1)).unwrap();
            let read = file.read(2, file.buffer(2).unwrap()).unwrap();
            let other = file.write(0, numbers(&file, 0, seed)).unwrap();
            assert_eq!(read.wait().unwrap(), numbers(&file, 2, seed + 1));
            drop(write);
            let _ = other.wait().unwrap();
        }
    }

    #[test]
    fn a_write_that_failed_is_no_content_whether_or_not_somebody_waited_for_it() {
        let file = file();
        let full = std::fs::OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        file.queue.replace(Queue::new(std::path::Path::new("/dev/full"), full).unwrap());
        let code =
            |transfer: Result<Transfer>| transfer.and_then(Transfer::wait).err().map(|e| e.code());
        assert_eq!(code(file.read(2, file.buffer(2).unwrap())), None);
        assert_eq!(code(file.write(0, numbers(&file, 0, 1))), Some(Code::DiskFull));
        drop(file.write(2, numbers(&file, 2, 1)).unwrap());
        for region in [0, 2] {
            let read = file.read(region, file.buffer(region).unwrap());
            assert_eq!(code(read), Some(Code::DiskFull), "{region}");
        }
        assert_eq!(code(file.read(3, file.buffer(3).unwrap())), None);
    }

    #[test]
    fn nothing_is_ever_seen_in_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let file = SwapFile::create(dir.path(), &SIZES).unwrap();
        let pending = file.write(2, numbers(&file, 2, 1)).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        drop(pending);
    }

    #[test]
    fn a_directory_without_room_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let e = SwapFile::create(dir.path(), &[1 << 50]).err().unwrap();
        assert_eq!(e.code(), Code::DiskFull);
        assert!(e.message().contains("needs 1048576.0 GiB"), "{}", e.message());
        let missing = dir.path().join("missing");
        let e = SwapFile::create(&missing, &[1]).err().unwrap();
        assert_eq!(e.code(), Code::Io);
        assert!(e.message().contains("missing"), "{}", e.message());
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(SwapFile::create(&file, &[1]).err().unwrap().code(), Code::Io);
    }
}
