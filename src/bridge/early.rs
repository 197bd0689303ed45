//! The text printed before `main`, while libtorch started.

unsafe extern "C" {
    fn dsr_greeted() -> bool;
}

/// Whether the greeting of a session and its prompt stand on the terminal already.
pub(crate) fn greeted() -> bool {
    // SAFETY: it reads a flag that is written before `main` only.
    unsafe { dsr_greeted() }
}
