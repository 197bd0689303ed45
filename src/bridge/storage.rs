//! The memory behind a tensor, given back and taken again while the tensor stays.
//!
//! Tensors over a storage without memory have their shape and no elements. libtorch asks the storage
//! before each read and write, and the storage then refuses with [`RELEASED`], so that whoever kept
//! such a tensor gets an error. What autograd saved of one is read after its memory was taken again.

use std::ffi::{c_char, c_int};

use tch::Tensor;

use super::{RawTensor, check, raw, refusal::RELEASED};
use crate::error::Result;

unsafe extern "C" {
    fn dsr_storage_allocate(tensor: RawTensor, bytes: i64, released: *const c_char) -> c_int;
}

/// Gives the memory of `tensor` back, and that of all tensors over the same storage.
pub(crate) fn release(tensor: &Tensor) -> Result<()> {
    set(tensor, 0)
}

/// Takes memory with any content for `tensor`, which begins its storage and is contiguous.
pub(crate) fn allocate(tensor: &Tensor) -> Result<()> {
    set(tensor, (tensor.numel() * tensor.kind().elt_size_in_bytes()) as i64)
}

fn set(tensor: &Tensor, bytes: i64) -> Result<()> {
    // SAFETY: the pointers are to a live tensor, whose storage frees the old memory itself, and to text
    // that is copied.
    check(unsafe { dsr_storage_allocate(raw(tensor), bytes, RELEASED.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, no_grad};

    use super::*;
    use crate::bridge::{
        autograd,
        memory::{self, Ledger},
    };

    /// A graph that saved a view of a weight goes backward with what the weight has by then.
    #[test]
    fn autograd_finds_the_memory_that_was_taken_again() {
        let cpu = (Kind::Float, Device::Cpu);
        let flat = Tensor::full([6], 2.0, cpu);
        let weight = flat.view([2, 3]).detach().set_requires_grad(true);
        let x = Tensor::ones([1, 3], cpu).set_requires_grad(true);
        let y = x.matmul(&weight.transpose(0, 1));
        release(&flat).unwrap();
        allocate(&flat).unwrap();
        let _ = no_grad(|| flat.f_data().unwrap().fill_(5.0));
        let grads = autograd::grad(&[(&y, &Tensor::ones([1, 2], cpu))], &[&x, &weight]).unwrap();
        let sum = |i: usize| grads[i].as_ref().unwrap().sum(Kind::Double).double_value(&[]);
        assert_eq!((sum(0), sum(1)), (30.0, 6.0));
    }

    #[test]
    fn parts_of_a_released_storage_are_refused_and_not_read() {
        let flat = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
        let parts = [
            flat.shallow_clone(),
            flat.narrow(0, 1, 2),
            flat.transpose(0, 1),
            flat.detach(),
            flat.view([16]),
        ];
        release(&flat).unwrap();
        for part in &parts {
            let refused = [
                part.f_sum(Kind::Float).map(drop),
                part.f_max().map(drop),
                part.shallow_clone().f_zero_().map(drop),
                part.f_contiguous().and_then(|t| t.f_add(&t)).map(drop),
            ];
            for e in refused.map(Result::unwrap_err) {
                assert!(e.to_string().contains(RELEASED.to_str().unwrap()), "{e}");
            }
        }
        allocate(&flat).unwrap();
        let _ = flat.shallow_clone().fill_(2.0);
        assert_eq!(parts[1].sum(Kind::Float).double_value(&[]), 16.0);
    }

    #[test]
    fn the_memory_is_counted_while_it_is_there() {
        let ledger = Ledger::new(Device::Cpu).unwrap();
        let now = || ledger.counts().0.of(memory::Kind::Buffers);
        let _open = ledger.open(memory::Kind::Buffers).unwrap();
        let flat = Tensor::zeros([1000], (Kind::Float, Device::Cpu));
        assert_eq!(now(), 4000);
        release(&flat).unwrap();
        assert_eq!((now(), flat.numel()), (0, 1000));
        allocate(&flat).unwrap();
        assert_eq!(now(), 4000);
    }
}
