//! Log lines of the layers below, on standard error and above the progress bar.

use std::io;

use tracing_subscriber::EnvFilter;

use super::console::{self, Console};

/// Shows warnings; with `verbose`, what dsr does in detail. DSR_LOG, where set, decides instead.
pub(super) fn install(console: &Console, verbose: bool) {
    let default = if verbose { "warn,dsr=debug" } else { "warn" };
    let filter = EnvFilter::try_from_env("DSR_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let console = console.clone();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || Line(console.clone()))
        .with_ansi(console::colors());
    let builder = builder.without_time().with_target(verbose);
    // A program that embeds this one may have installed its own.
    let _ = builder.try_init();
}

/// Writes one formatted event.
struct Line(Console);

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.note(String::from_utf8_lossy(bytes).trim_end_matches('\n'));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
