//! Gradients for given output gradients, and operations whose gradient is written in Rust.

use std::{
    cell::RefCell,
    ffi::{c_int, c_void},
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::null_mut,
};

use tch::Tensor;

use super::{RawTensor, check, raw, raws};
use crate::error::{Code, Error, Result};

unsafe extern "C" {
    fn dsr_grad(
        outputs: *const RawTensor,
        output_grads: *const RawTensor,
        outputs_count: i64,
        inputs: *const RawTensor,
        inputs_count: i64,
        grads: *mut RawTensor,
    ) -> c_int;
    fn dsr_own_gradient(
        inputs: *const RawTensor,
        inputs_count: i64,
        outputs: *const RawTensor,
        outputs_count: i64,
        data: *mut c_void,
        call: extern "C" fn(*mut c_void, *const RawTensor, *mut RawTensor) -> c_int,
        drop: extern "C" fn(*mut c_void),
    ) -> c_int;
}

/// The gradients of an operation's inputs, from those of its outputs; `None` where an output or an
/// input has none.
type Backward = Box<dyn Fn(&[Option<Tensor>]) -> Result<Vec<Option<Tensor>>>>;

struct CustomFunction {
    inputs: usize,
    outputs: usize,
    backward: Backward,
}

thread_local! {
    /// The error of the last own gradient that failed, which libtorch cannot carry.
    static FAILURE: RefCell<Option<Error>> = const { RefCell::new(None) };
}

/// The gradients of `outputs` with respect to `inputs`, each output weighted with the gradient beside
/// it; `None` where no output depends on an input. Frees the graph. The whole pass runs in this
/// thread.
pub(crate) fn grad(
    outputs: &[(&Tensor, &Tensor)],
    inputs: &[&Tensor],
) -> Result<Vec<Option<Tensor>>> {
    let (output_grads, outputs): (Vec<_>, Vec<_>) =
        outputs.iter().map(|(output, grad)| (raw(grad), raw(output))).unzip();
    let inputs = raws(inputs.iter().copied());
    let mut grads = vec![null_mut(); inputs.len()];
    // SAFETY: every pointer is to a live tensor or array of the stated length for the whole call.
    let status = unsafe {
        dsr_grad(
            outputs.as_ptr(),
            output_grads.as_ptr(),
            outputs.len() as i64,
            inputs.as_ptr(),
            inputs.len() as i64,
            grads.as_mut_ptr(),
        )
    };
    if let Err(e) = check(status) {
        return Err(FAILURE.take().unwrap_or(e));
    }
    // SAFETY: each pointer that is not null is a new tensor that nobody else owns.
    let own = |p: RawTensor| (!p.is_null()).then(|| unsafe { Tensor::from_ptr(p.cast()) });
    Ok(grads.into_iter().map(own).collect())
}

/// Gives `output`, which was computed from `inputs` without a graph, the gradient `backward`. It is
/// called by [`grad`], at most once, and its error is that of [`grad`].
pub(crate) fn own_gradient(
    inputs: &[&Tensor],
    output: &Tensor,
    backward: impl Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + 'static,
) -> Result<()> {
    let none = inputs.len();
    own_gradients(inputs, &[output], move |grads| match grads {
        [Some(grad)] => backward(grad),
        _ => Ok((0..none).map(|_| None).collect()),
    })
}

/// As [`own_gradient`], for an operation with several outputs.
pub(crate) fn own_gradients(
    inputs: &[&Tensor],
    outputs: &[&Tensor],
    backward: impl Fn(&[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> + 'static,
) -> Result<()> {
    let own = Box::new(CustomFunction {
        inputs: inputs.len(),
        outputs: outputs.len(),
        backward: Box::new(backward),
    });
    let raw_inputs = raws(inputs.iter().copied());
    let raw_outputs = raws(outputs.iter().copied());
    // SAFETY: tensors and arrays live for the whole call; the box is given away, to be freed by
    // `drop_own` once.
    check(unsafe {
        dsr_own_gradient(
            raw_inputs.as_ptr(),
            raw_inputs.len() as i64,
            raw_outputs.as_ptr(),
            raw_outputs.len() as i64,
            Box::into_raw(own).cast(),
            call_own,
            drop_own,
        )
    })
}

extern "C" fn call_own(data: *mut c_void, given: *const RawTensor, grads: *mut RawTensor) -> c_int {
    // SAFETY: `data` is the box of `own_gradients`, not yet freed, and used by this thread alone.
    let own = unsafe { &*data.cast::<CustomFunction>() };
    // SAFETY: `given` has a live tensor or null for each output; a clone is a reference of our own.
    let grad = |i| unsafe {
        let raw = *given.add(i);
        (!raw.is_null()).then(|| Tensor::clone_from_ptr(raw.cast()))
    };
    let given: Vec<Option<Tensor>> = (0..own.outputs).map(grad).collect();
    let made = catch_unwind(AssertUnwindSafe(|| (own.backward)(&given)));
    let made = made.unwrap_or_else(|_| {
        Err(Error::new(Code::Torch, "an operation's own gradient ended in a panic"))
    });
    match made {
        Ok(made) if made.len() == own.inputs => {
            for (i, tensor) in made.into_iter().enumerate() {
                let Some(tensor) = tensor else { continue };
                // SAFETY: `grads` has a place for each input; the caller frees what is put there.
                unsafe { *grads.add(i) = raw(&tensor) };
                mem::forget(tensor);
            }
            0
        }
        Ok(_) => fail(Error::new(Code::Internal, "an own gradient for each input was expected")),
        Err(e) => fail(e),
    }
}

fn fail(e: Error) -> c_int {
    FAILURE.set(Some(e));
    1
}

extern "C" fn drop_own(data: *mut c_void) {
    // SAFETY: `data` is the box of `own_gradients`, which is freed once.
    drop(unsafe { Box::from_raw(data.cast::<CustomFunction>()) });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gradient_is_weighted_with_the_gradient_of_the_output() {
        let x = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
        let unused = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
        let y = &x * &x;
        let grads = grad(&[(&y, &Tensor::from_slice(&[1.0f32, 10.0]))], &[&x, &unused]).unwrap();
        let dx = grads[0].as_ref().unwrap();
        assert_eq!(Vec::<f32>::try_from(dx).unwrap(), [2.0, 40.0]);
        assert!(grads[1].is_none());
    }

    /// `3 * x`, with a gradient that goes into `sink` where there is no other.
    fn tripled(
        x: &Tensor,
        backward: impl Fn(&Tensor) -> Result<Option<Tensor>> + 'static,
    ) -> Tensor {
        let y = tch::no_grad(|| x * 3.0);
        own_gradient(&[x], &y, move |grad| Ok(vec![backward(grad)?])).unwrap();
        y
    }

    #[test]
    fn an_operation_may_have_a_gradient_of_its_own() {
        let x = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
        let one = Tensor::ones([2], (tch::Kind::Float, tch::Device::Cpu));
        let y = tripled(&x, |grad| Ok(Some(grad * 3.0))) * 2.0;
        let dx = grad(&[(&y, &one)], &[&x]).unwrap().remove(0).unwrap();
        assert_eq!(Vec::<f32>::try_from(dx).unwrap(), [6.0, 6.0]);
        // Autograd gets no gradient that went elsewhere.
        let sink = std::rc::Rc::new(RefCell::new(None));
        let into = std::rc::Rc::clone(&sink);
        let y = tripled(&x, move |grad| {
            *into.borrow_mut() = Some(grad.shallow_clone());
            Ok(None)
        });
        assert!(grad(&[(&y, &one)], &[&x]).unwrap()[0].is_none());
        assert!(sink.borrow().is_some());
        // Its graph is freed, and with it the closure.
        assert_eq!(std::rc::Rc::strong_count(&sink), 1);
    }

    #[test]
    fn an_operation_may_have_several_outputs() {
        let x = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
        let (double, triple) = tch::no_grad(|| (&x * 2.0, &x * 3.0));
        own_gradients(&[&x], &[&double, &triple], |grads| {
            let part = |i: usize, factor: f64| grads[i].as_ref().map(|grad| grad * factor);
            Ok(vec![match (part(0, 2.0), part(1, 3.0)) {
                (Some(a), Some(b)) => Some(a + b),
                (a, b) => a.or(b),
            }])
        })
        .unwrap();
        let one = Tensor::ones([2], (tch::Kind::Float, tch::Device::Cpu));
        let dx = grad(&[(&triple, &one)], &[&x]).unwrap().remove(0).unwrap();
        assert_eq!(Vec::<f32>::try_from(dx).unwrap(), [3.0, 3.0], "of one output alone");
    }

    #[test]
    fn the_error_of_an_own_gradient_is_that_of_the_pass() {
        let x = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
        let y = tripled(&x, |_| Err(Error::new(Code::Data, "no such gradient")));
        let e = grad(&[(&y, &x.ones_like())], &[&x]).unwrap_err();
        assert_eq!((e.code(), e.message()), (Code::Data, "no such gradient"));
        let y = tripled(&x, |_| panic!("a panic in a gradient"));
        assert_eq!(grad(&[(&y, &x.ones_like())], &[&x]).unwrap_err().code(), Code::Torch);
    }
}
