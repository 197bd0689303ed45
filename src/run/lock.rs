//! The one owner of a run: a lock in its directory that the kernel releases when its holder ends,
//! however it ends.

use std::{
    io::{Read, Seek, Write},
    thread,
    time::Duration,
};

use crate::{
    error::{Code, Error, IoContext, Result},
    fs::{File, Place, TryLockError},
};

const LOCK: &str = "lock";

/// How often a lock that is held is tried again, and after how long: longer than a look at it takes.
const LOOKS: usize = 3;
const LOOK_TAKES: Duration = Duration::from_millis(10);

/// Held for as long as this process goes on with a run.
#[derive(Debug)]
pub(super) struct RunLock(
    #[expect(dead_code, reason = "it is held, and released when dropped")] File,
);

impl RunLock {
    /// Makes this process the owner of the run in `dir`.
    ///
    /// # Errors
    /// [`Code::Checkpoint`] where another process goes on with it.
    pub(super) fn take(dir: impl Into<Place>) -> Result<Self> {
        let dir = dir.into();
        let place = dir.join(LOCK);
        let mut file = place.append()?;
        // A look at the run holds the lock for a moment too.
        let mut tried = file.try_lock();
        for _ in 0..LOOKS {
            if !matches!(tried, Err(TryLockError::WouldBlock)) {
                break;
            }
            thread::sleep(LOOK_TAKES);
            tried = file.try_lock();
        }
        match tried {
            Err(TryLockError::WouldBlock) => Err(taken(&dir, &mut file)),
            // Without locks (some network filesystems) there is nobody to ask.
            Err(TryLockError::Error(_)) => Ok(Self(file)),
            Ok(()) => {
                let told = file.set_len(0).and_then(|()| write!(file, "{}", owner()));
                told.at("write", place.path())?;
                Ok(Self(file))
            }
        }
    }
}

/// Whether a process goes on with the run in `dir`; `None` where there are no locks.
pub(super) fn is_held(dir: &Place) -> Option<bool> {
    let place = dir.join(LOCK);
    if !place.exists() {
        return Some(false);
    }
    match place.open().ok()?.try_lock_shared() {
        Ok(()) => Some(false),
        Err(TryLockError::WouldBlock) => Some(true),
        Err(TryLockError::Error(_)) => None,
    }
}

/// The owner's words for whoever comes second.
fn owner() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("process {} on {host}", std::process::id())
}

fn taken(dir: &Place, file: &mut File) -> Error {
    let mut owner = String::new();
    // Without its words it is still taken.
    let _ = file.rewind();
    let _ = file.take(200).read_to_string(&mut owner);
    let owner = owner.replace(char::is_control, "");
    let owner = if owner.is_empty() { "another process" } else { owner.as_str() };
    Error::new(Code::Checkpoint, format!("{owner} goes on with {} already", dir.display()))
        .hint("wait for it or stop it, or begin a new run by leaving out --resume")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_one_owner_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunLock::take(dir.path()).unwrap();
        let e = RunLock::take(dir.path()).unwrap_err();
        assert_eq!(e.code(), Code::Checkpoint);
        let own = format!("process {} on ", std::process::id());
        assert!(e.message().starts_with(&own), "{e}");
        drop(first);
        RunLock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_lock_that_is_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("notes");
        std::fs::write(&outside, "mine").unwrap();
        std::os::unix::fs::symlink(&outside, dir.path().join(LOCK)).unwrap();
        assert!(RunLock::take(dir.path()).is_err());
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "mine");
    }
}
