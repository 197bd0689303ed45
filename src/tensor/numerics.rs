//! The precision of libtorch's arithmetic, which is the whole process's.

use super::Device;
use crate::{
    bridge::context,
    config::Numerics,
    error::{Code, Error, Result},
};

/// Has libtorch compute as `numerics` say, on every thread, until somebody says otherwise.
pub fn compute_with(numerics: Numerics) -> Result<()> {
    context::set_matmul_precision(numerics.matmul_precision as u8)?;
    context::set_deterministic(numerics.deterministic)
}

/// Refuses what `device` cannot do in this process.
pub fn check_numerics(numerics: Numerics, device: Device) -> Result<()> {
    check(numerics, device, context::cublas_repeats())
}

fn check(numerics: Numerics, device: Device, cublas_repeats: bool) -> Result<()> {
    if !numerics.deterministic || device == Device::Cpu || cublas_repeats {
        return Ok(());
    }
    let message = "`deterministic` needs CUBLAS_WORKSPACE_CONFIG to be :4096:8 or :16:8, and this \
                   process was started with another value";
    Err(Error::new(Code::BadValue, message)
        .option("deterministic")
        .hint("unset CUBLAS_WORKSPACE_CONFIG, dsr then sets it itself"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MatmulPrecision;

    #[test]
    fn cublas_is_asked_only_where_it_computes() {
        let numerics = Numerics { deterministic: true, matmul_precision: MatmulPrecision::Highest };
        check(numerics, Device::Cpu, false).unwrap();
        check(numerics, Device::Cuda(0), true).unwrap();
        check(Numerics::default(), Device::Cuda(0), false).unwrap();
        let e = check(numerics, Device::Cuda(0), false).unwrap_err();
        assert_eq!((e.code(), e.option_path()), (Code::BadValue, Some("deterministic")));
        assert!(e.message().contains("CUBLAS_WORKSPACE_CONFIG"), "{}", e.message());
    }
}
