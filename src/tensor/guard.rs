//! One boundary at which a panic of libtorch's bindings becomes an error.
//!
//! Model code uses the bindings' short forms (`a.matmul(&b)`, which panic where libtorch throws), so
//! that it reads like the paper; shapes, dtypes and ids are checked first, and [`guard`] catches
//! whatever is left. This needs `panic = "unwind"`.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
};

use crate::{
    bridge::without_backtrace,
    error::{Error, Result},
    tensor::errors,
};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, turning a panic inside it into an error that names the operation.
///
/// # Errors
/// `Code::Memory` where libtorch ran out of memory, `Code::Torch` with libtorch's own words
/// otherwise, and whatever `work` returns.
pub fn guard<T>(doing: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    silence_guarded_panics();
    let outer = GUARDED.replace(true);
    // Whatever `work` was changing is dropped or, in the engine, marked as unusable by the caller.
    let outcome = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    outcome.unwrap_or_else(|panic| Err(panic_error(doing, panic.as_ref())))
}

/// Installs, once, a panic hook that stays silent inside [`guard`] and is the old one elsewhere.
fn silence_guarded_panics() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                usual(info);
            }
        }));
    });
}

fn panic_error(doing: &str, panic: &(dyn Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message");
    // `Result::unwrap` prints the error's debug form: Torch("words\nof libtorch").
    let words = text.split_once("Torch(\"").map_or(text, |(_, words)| words);
    let words = without_backtrace(&words.replace("\\n", "\n").replace("\\\"", "\"")).to_owned();
    let words = words.trim_end_matches(['"', ')', '\n']).trim();
    errors::from_words(&format!("{doing}: {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::tensor::{Device, Kind, Tensor};

    #[test]
    fn a_refused_operation_is_an_error_in_libtorchs_words() {
        let a = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        let e = guard("forward", || Ok(a.matmul(&a))).unwrap_err();
        assert_eq!(e.code(), Code::Torch);
        assert!(e.message().starts_with("forward: mat1 and mat2 shapes"), "{e}");
        assert!(!e.message().contains("frame #"), "{e}");
    }

    #[test]
    fn the_value_and_the_error_of_the_work_pass_through() {
        assert_eq!(guard("x", || Ok(7)).unwrap(), 7);
        let e = guard::<()>("x", || bail!(Code::Shape, "no")).unwrap_err();
        assert_eq!(e.code(), Code::Shape);
    }
}
