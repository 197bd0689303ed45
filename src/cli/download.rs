//! Downloads as the user sees them: a bar on a terminal; elsewhere one line when a file begins to
//! come and one when it is there.

use std::{cell::RefCell, time::Instant};

use indicatif::{DecimalBytes, HumanDuration};

use super::Console;
use crate::hub::Progress;

/// Shows one download after another.
pub(super) struct Downloads {
    console: Console,
    current: RefCell<Option<Current>>,
}

/// The file that is coming.
struct Current {
    name: String,
    started: Instant,
}

impl Downloads {
    /// Downloads on `console`.
    pub(super) fn new(console: Console) -> Self {
        Self { console, current: RefCell::new(None) }
    }

    /// Shows how far a download is.
    pub(super) fn show(&self, progress: &Progress<'_>) {
        let &Progress { repo, file, done, total } = progress;
        let name = format!("{repo}: {file}");
        let bar = self.console.bytes(done, total, &name);
        let mut current = self.current.borrow_mut();
        // A file that is retried has begun already.
        let begun = current.take().filter(|current| current.name == name);
        if begun.is_none() && !bar {
            self.console.note(&format!("downloading {name} ({})", DecimalBytes(total)));
        }
        let begun = begun.unwrap_or_else(|| Current { name, started: Instant::now() });
        if done < total {
            *current = Some(begun);
            return;
        }
        self.console.finish();
        if !bar {
            let time = HumanDuration(begun.started.elapsed());
            self.console.note(&format!("downloaded {} in {time}", begun.name));
        }
    }
}
