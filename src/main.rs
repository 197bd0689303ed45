//! The `dsr` program.

use std::process::ExitCode;

use dsr::bridge::alloc::Allocator;

// Tokenising and Arrow allocate much and briefly; mimalloc also serves libtorch, as it overrides
// malloc for the whole process.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    dsr::cli::main(std::env::args_os())
}
