//! One boundary at which a panic of libtorch's bindings becomes an error.
//!
//! Model code uses the bindings' short forms (`a.matmul(&b)`, which panic where libtorch throws), so
//! that it reads like the paper; shapes, dtypes and ids are checked first, and [`guard`] catches
//! whatever is left.

use crate::{
    bridge::{refusal, without_backtrace},
    error::{Error, Result},
    panics,
};

/// Runs `work`, turning a panic inside it into an error that names the operation.
///
/// # Errors
/// `Code::Memory` where libtorch ran out of memory, `Code::Torch` with libtorch's own words
/// otherwise, and whatever `work` returns.
pub fn guard<T>(doing: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    panics::catch(work).unwrap_or_else(|words| Err(panic_error(doing, &words)))
}

fn panic_error(doing: &str, text: &str) -> Error {
    // `Result::unwrap` prints the error's debug form: Torch("words\nof libtorch").
    let words = text.split_once("Torch(\"").map_or(text, |(_, words)| words);
    let words = words.replace("\\n", "\n").replace("\\\"", "\"");
    let words = without_backtrace(&words).trim_end_matches(['"', ')', '\n']).trim();
    refusal(&format!("{doing}: {words}"))
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
