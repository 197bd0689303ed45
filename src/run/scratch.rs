//! Directories among the runs that go away with their owners: those of dry runs, and of checkpoints to which an
//! engine goes back. What killed owners left is removed when the next run starts.

use super::{RunDir, dir::numbered, lock::RunLock};
use crate::{
    checkpoint::Store,
    error::Result,
    fs::{Place, remove_dir},
};

/// The name of the directory of a checkpoint to go back to.
const NAME: &str = "engine.restore";

/// A directory for a checkpoint to go back to, on rank 0. It goes away when this is dropped.
#[derive(Debug)]
pub struct Scratch {
    dir: RunDir,
    number: u64,
    _lock: RunLock,
}

impl Scratch {
    /// Makes one in `root`.
    pub fn create(root: &Place) -> Result<Self> {
        clear(root)?;
        let (dir, lock, number) = RunDir::create_passing(root, NAME)?;
        Ok(Self { dir, number, _lock: lock })
    }

    /// Its number, by which other ranks [find](Scratch::store) it.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The checkpoints of the one in `root` with this number.
    pub fn store(root: &Place, number: u64) -> Store {
        RunDir::checkpoints_in(&numbered(root, NAME, number))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A directory that cannot be removed now is removed by the next start of a run.
        let _ = remove_dir(self.dir.place());
    }
}

/// Removes the directories in `root` whose owners are gone.
pub(super) fn clear(root: &Place) -> Result<()> {
    let left = RunDir::passing(root)?;
    left.iter().filter(|place| RunLock::take(*place).is_ok()).try_for_each(remove_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_away_with_its_owner_and_what_is_left_by_a_killed_one_with_the_next() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::from(root.path());
        let names = || {
            let names = place.list().unwrap();
            names.into_iter().map(|name| name.into_string().unwrap()).collect::<Vec<_>>()
        };
        let scratch = Scratch::create(&place).unwrap();
        let store = Scratch::store(&place, scratch.number());
        store.save(1, None, |_| Ok(())).unwrap();
        let beside = Scratch::create(&place).unwrap();
        assert_eq!(names(), ["engine.restore", "engine.restore-2"]);
        assert_eq!(store.list().unwrap().len(), 1, "its owner is there");
        assert!(super::super::list_runs(root.path()).unwrap().is_empty());
        drop(beside);
        drop(scratch);
        assert!(names().is_empty());
        // A killed process drops nothing, and holds no lock.
        let (dir, lock, _) = RunDir::create_passing(&place, NAME).unwrap();
        drop(lock);
        assert!(dir.path().is_dir());
        clear(&place).unwrap();
        assert!(names().is_empty());
    }
}
