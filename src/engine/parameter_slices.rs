//! This rank's slices of the parameters, in the place where they are kept.

use std::cell::RefCell;

use super::offload::Location;
use crate::{
    bridge::memory::{self, count_as},
    error::{Code, Error, Result},
    model::FlatUnit,
    swap::{SwapFile, Transfer, view},
    tensor::{Copying, Device, Kind, Tensor, bytes_of, no_grad, settled, start_copy},
};

/// The slices of all units; none for those that are whole on the device.
pub(super) struct ParameterSlices {
    /// Elements of each slice, 0 for none, and their format.
    slices: Vec<(i64, Kind)>,
    store: SliceStorage,
}

enum SliceStorage {
    /// In the memory of a device, with the copies that are on their way there.
    Memory(Device, Vec<Option<Tensor>>, RefCell<Vec<Copying>>),
    /// In a file, with the write that goes on.
    Disk(SwapFile, RefCell<Option<Transfer>>),
}

/// A slice that is asked for.
pub(super) enum SliceFetch {
    /// It is in memory.
    InMemory(Tensor),
    /// It is being read, and has so many elements in this format.
    Reading(Transfer, Kind, i64),
}

impl SliceFetch {
    /// The slice: flat, in the format of the model.
    pub(super) fn wait(self) -> Result<Tensor> {
        match self {
            Self::InMemory(slice) => Ok(slice),
            Self::Reading(transfer, kind, numel) => view(&transfer.wait()?, 0, kind, numel),
        }
    }
}

impl ParameterSlices {
    /// For slices of this many elements in these formats, none of which is kept yet.
    pub(super) fn new(location: &Location, slices: Vec<(i64, Kind)>) -> Result<Self> {
        let store = match location {
            Location::Memory(device) => {
                let none = slices.iter().map(|_| None).collect();
                SliceStorage::Memory(*device, none, RefCell::default())
            }
            Location::Disk(dir) => {
                let bytes = slices.iter().map(|&(numel, kind)| bytes_of(kind, numel));
                let bytes = bytes.collect::<Vec<_>>();
                SliceStorage::Disk(SwapFile::create(dir, &bytes)?, RefCell::default())
            }
        };
        Ok(Self { slices, store })
    }

    /// Whether there is a slice of unit `i`.
    pub(super) fn has(&self, i: usize) -> bool {
        self.slices[i].0 > 0
    }

    /// Keeps the slice of unit `i`; a copy of it where it is kept elsewhere.
    pub(super) fn keep(&mut self, i: usize, slice: Tensor) -> Result<()> {
        match &mut self.store {
            SliceStorage::Memory(device, slices, _) => slices[i] = Some(settled(&slice, *device)?),
            SliceStorage::Disk(..) => self.set(i, &slice)?,
        }
        Ok(())
    }

    /// The slice of unit `i`, where it is in memory and may be changed.
    pub(super) fn in_memory(&self, i: usize) -> Option<&Tensor> {
        match &self.store {
            SliceStorage::Memory(_, slices, _) => slices[i].as_ref(),
            SliceStorage::Disk(..) => None,
        }
    }

    /// Starts to bring the slice of unit `i`.
    pub(super) fn fetch(&self, i: usize) -> Result<SliceFetch> {
        match &self.store {
            SliceStorage::Memory(_, slices, _) => {
                Ok(SliceFetch::InMemory(own(slices, i)?.shallow_clone()))
            }
            SliceStorage::Disk(file, _) => {
                let _counting = count_as(memory::Kind::Parameters)?;
                let (numel, kind) = self.slices[i];
                Ok(SliceFetch::Reading(file.read(i, file.buffer(i)?)?, kind, numel))
            }
        }
    }

    /// Rounds `master` into the slice of unit `i`.
    pub(super) fn set(&self, i: usize, master: &Tensor) -> Result<()> {
        match &self.store {
            // A copy of the slice to a GPU is over: the gradient that led to `master` came later.
            SliceStorage::Memory(_, slices, copies) => {
                let copy = start_copy(own(slices, i)?, master)?;
                copies.borrow_mut().push(copy);
                Ok(())
            }
            SliceStorage::Disk(file, writing) => {
                let _counting = count_as(memory::Kind::Parameters)?;
                let buffer = file.buffer(i)?;
                let (numel, kind) = self.slices[i];
                let slice = view(&buffer, 0, kind, numel)?;
                no_grad(|| slice.shallow_clone().f_copy_(master))?;
                // One write at a time goes on beside the step.
                let before = writing.borrow_mut().take();
                before.map_or(Ok(()), |before| before.wait().map(drop))?;
                *writing.borrow_mut() = Some(file.write(i, buffer)?);
                Ok(())
            }
        }
    }

    /// Waits for what is being written.
    pub(super) fn finish(&self) -> Result<()> {
        match &self.store {
            SliceStorage::Memory(_, _, copies) => {
                copies.borrow_mut().drain(..).try_for_each(|copy| copy.wait().map(drop))
            }
            SliceStorage::Disk(_, writing) => {
                let last = writing.borrow_mut().take();
                last.map_or(Ok(()), |last| last.wait().map(drop))
            }
        }
    }

    /// Bytes that unit `i` always has on `device`: the slice, or all of it where it is whole.
    pub(super) fn bytes_on(&self, device: Device, i: usize, unit: &FlatUnit) -> u64 {
        match &self.store {
            _ if !self.has(i) => unit.bytes(),
            SliceStorage::Memory(location, ..) if *location == device => {
                let (numel, kind) = self.slices[i];
                bytes_of(kind, numel)
            }
            _ => 0,
        }
    }
}

fn own(slices: &[Option<Tensor>], i: usize) -> Result<&Tensor> {
    slices[i].as_ref().ok_or_else(|| Error::new(Code::Internal, "no slice of a unit"))
}
