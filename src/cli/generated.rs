//! Completion scripts and manual pages, made from the definition of the command line.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{args::Cli, console};
use crate::error::{Code, Error, Result};

/// Prints the completion script for `shell`.
pub(super) fn completions(shell: Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "dsr", &mut script);
    console::out(&String::from_utf8_lossy(&script));
}

/// Writes dsr.1 and a page for each command into `directory`, which must be there.
pub(super) fn manual(directory: &Path) -> Result<()> {
    clap_mangen::generate_to(Cli::command(), directory).map_err(|e| {
        let message = format!("the manual cannot be written to {}: {e}", directory.display());
        Error::new(Code::Io, message)
    })
}
