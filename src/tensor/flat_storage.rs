//! One flat tensor whose memory comes and goes while the tensor stays.

use std::{cell::Cell, rc::Rc};

use crate::{
    bridge::storage,
    error::{Code, Result},
    tensor::{Device, Kind, Tensor, bytes_of, no_grad},
};

/// Each parameter starts at a multiple of this many elements, for aligned vector loads.
pub const ALIGNMENT: i64 = 16;

/// Each parameter of `BLOCKS_FROM` elements or more starts at a multiple of this many, and the slices
/// of storages as large too: blocks of state that share a scale then lie within one slice.
const BLOCK_ALIGNMENT: i64 = 256;

/// Elements from which on a parameter may have state in blocks.
pub const BLOCKS_FROM: i64 = 4096;

/// The alignment of a parameter or a slice, where there are `numel` elements in all.
pub fn alignment(numel: i64) -> i64 {
    if numel >= BLOCKS_FROM { BLOCK_ALIGNMENT } else { ALIGNMENT }
}

/// A flat tensor that has its shape always, and elements while it is here.
#[derive(Debug)]
pub struct FlatStorage {
    flat: Tensor,
    is_here: Rc<Cell<bool>>,
}

impl FlatStorage {
    /// A storage with any content.
    pub fn empty(numel: i64, kind: Kind, device: Device) -> Result<Self> {
        Ok(Self::of(Tensor::f_empty([numel], (kind, device))?))
    }

    /// A storage of one zero that cannot be written to.
    pub fn outline(numel: i64, kind: Kind, device: Device) -> Result<Self> {
        let zero = Tensor::f_zeros([1], (kind, device))?;
        Ok(Self::of(zero.f_expand([numel], false)?))
    }

    fn of(flat: Tensor) -> Self {
        Self { flat, is_here: Rc::new(Cell::new(true)) }
    }

    /// The same storage.
    pub fn shallow_clone(&self) -> Self {
        Self { flat: self.flat.shallow_clone(), is_here: Rc::clone(&self.is_here) }
    }

    /// Another storage over the same memory, which is here.
    pub fn sharing(&self) -> Self {
        Self::of(self.flat.shallow_clone())
    }

    /// The tensor, which may have no elements now.
    pub fn tensor(&self) -> &Tensor {
        &self.flat
    }

    /// Whether its elements are here.
    pub fn is_here(&self) -> bool {
        self.is_here.get()
    }

    /// The whole tensor.
    ///
    /// # Errors
    /// [`Code::Internal`] while it is [released](Self::release).
    pub fn flat(&self) -> Result<&Tensor> {
        if !self.is_here.get() {
            bail!(Code::Internal, "a storage of parameters is not on this rank now");
        }
        Ok(&self.flat)
    }

    /// Elements, padding included.
    pub fn numel(&self) -> i64 {
        self.flat.numel() as i64
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> u64 {
        bytes_of(self.kind(), self.numel())
    }

    /// The format of the elements.
    pub fn kind(&self) -> Kind {
        self.flat.kind()
    }

    /// Elements of a storage that `slices` ranks can divide evenly, padding included.
    pub fn numel_for(&self, slices: usize) -> i64 {
        let multiple = alignment(self.numel()) as u64 * slices as u64;
        (self.numel() as u64).next_multiple_of(multiple) as i64
    }

    /// Puts the elements into `kind` and appends zeros until `slices` ranks can divide them evenly.
    /// Returns the storage as it was, and as it is.
    pub fn cast_and_pad(&self, kind: Kind, slices: usize) -> Result<(Tensor, Tensor)> {
        let mut before = self.flat()?.f_detach()?;
        no_grad(|| {
            let padding = self.numel_for(slices) - self.numel();
            if padding > 0 {
                before = before.f_constant_pad_nd([0, padding])?;
            }
            let laid = before.f_to_kind(kind)?;
            self.flat.shallow_clone().f_set_data(&laid)?;
            Ok((before, laid))
        })
    }

    /// Gives the memory back. Whoever kept a part of it gets an error instead of its values, until they
    /// are there again; so does what autograd saved.
    pub fn release(&self) -> Result<()> {
        self.is_here.set(false);
        storage::release(&self.flat)
    }

    /// Takes memory again, with any content, and returns the tensor to be filled. Autograd does not
    /// notice that it is written to.
    pub fn allocate(&self) -> Result<Tensor> {
        if !self.is_here.get() {
            storage::allocate(&self.flat)?;
            self.is_here.set(true);
        }
        Ok(no_grad(|| self.flat.f_data())?)
    }
}
