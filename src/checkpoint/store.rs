//! A directory of checkpoints: publishing, finding, verifying and pruning them.
//!
//! A checkpoint is written under a temporary name and renamed when it is whole, then `latest` is
//! replaced, then `best` where it is the best, then the oldest ones go, in this order: at every instant
//! `latest` names a whole checkpoint, and no checkpoint goes that is better than the one in `best`. `latest` may be one behind the newest directory when a process was killed between
//! the first two; that costs the steps in between, not correctness.
//!
//! A store knows one writer. With several ranks it is rank 0's.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::{
    manifest::{self, Manifest},
    step_dir::{check_ours, directory_name, step_of},
};
use crate::{
    error::{Code, Error, Result},
    fs::{
        NewDir, Place, available_bytes, copy, read_to_string, remove_dir, remove_leftovers,
        write_atomic,
    },
    units::Bytes,
};

/// The file that names the latest checkpoint, as in DeepSpeed.
pub const LATEST: &str = "latest";
/// The file that names the checkpoint that stays because it is the best.
pub const BEST: &str = "best";

/// A directory of checkpoints. It need not exist until something is saved.
#[derive(Debug, Clone)]
pub struct Store {
    root: Place,
}

/// How a store is kept small.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// How many checkpoints are kept, the newest ones; `None` is all.
    pub keep: Option<usize>,
    /// Whether the checkpoint that is saved is the best so far, which stays beside these until there is a
    /// better one.
    pub is_best: bool,
}

impl From<Option<usize>> for Retention {
    fn from(keep: Option<usize>) -> Self {
        Self { keep, is_best: false }
    }
}

/// A published checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The optimizer steps that were done.
    pub step: u64,
    /// Its directory.
    pub path: PathBuf,
}

impl Store {
    /// The store at `root`. Nothing is read or made yet.
    pub fn open(root: impl Into<Place>) -> Self {
        Self { root: root.into() }
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Refuses to begin what cannot fit: `needed` is an estimate of a checkpoint's bytes.
    ///
    /// # Errors
    /// [`Code::DiskFull`] naming what is needed and what is free.
    pub fn check_space(&self, needed: u64) -> Result<()> {
        let free = available_bytes(&self.root)?;
        if free >= needed {
            return Ok(());
        }
        Err(Error::new(
            Code::DiskFull,
            format!(
                "a checkpoint needs {} and {} has {} free",
                Bytes(needed),
                self.root.display(),
                Bytes(free)
            ),
        )
        .hint("free some space, keep fewer checkpoints, or write them to another disk"))
    }

    /// Saves a checkpoint: `write` fills a directory, which then appears as `step-XXXXXXXX` with its
    /// manifest and becomes the latest. It is marked as the best, where it is, before an older one goes.
    /// One of the same step is replaced.
    ///
    /// # Errors
    /// The error of `write`, or of the disk: the earlier checkpoints and `latest` are then unchanged.
    /// [`Code::Checkpoint`] where `latest` is a file of something else, such as DeepSpeed's.
    pub fn save(
        &self,
        step: u64,
        retention: impl Into<Retention>,
        write: impl FnOnce(&Place) -> Result<()>,
    ) -> Result<PathBuf> {
        let Retention { keep, is_best } = retention.into();
        if keep == Some(0) {
            bail!(Code::BadValue, "0 checkpoints cannot be kept: keep at least 1");
        }
        self.check_latest()?;
        let name = directory_name(step);
        let place = self.root.join(&name);
        check_ours(&place)?;
        self.root.create_dir_all()?;
        remove_leftovers(&self.root, |name| {
            [LATEST, BEST].contains(&name) || step_of(name).is_some()
        })?;
        let path = place.path().to_owned();
        let new = NewDir::create(&place)?;
        write(new.place())?;
        Manifest::of(new.place(), step)?.write(new.place())?;
        new.publish()?;
        write_atomic(self.root.join(LATEST), format!("{name}\n").as_bytes())?;
        if is_best {
            self.mark_best(step)?;
        }
        if let Some(keep) = keep {
            self.prune(keep, &path)?;
        }
        Ok(path)
    }

    /// Copies the whole checkpoint of `step` in `from`, which is another store's. It does not become the
    /// latest.
    pub fn adopt(&self, step: u64, from: &Place) -> Result<()> {
        let manifest = Manifest::read(from)?;
        self.check_space(manifest.bytes())?;
        let place = self.root.join(directory_name(step));
        check_ours(&place)?;
        let new = NewDir::create(&place)?;
        for name in manifest.files.keys().map(String::as_str).chain([manifest::FILE_NAME]) {
            copy(&from.join(name), &new.place().join(name))?;
        }
        new.publish()
    }

    /// Marks the checkpoint of `step` as the best: it stays until another is marked.
    pub fn mark_best(&self, step: u64) -> Result<()> {
        write_atomic(self.root.join(BEST), format!("{}\n", directory_name(step)).as_bytes())
    }

    /// The checkpoint that is marked as the best, if one is and is there.
    pub fn best(&self) -> Result<Option<Saved>> {
        let file = self.root.join(BEST);
        if !file.is_file() {
            return Ok(None);
        }
        let name = read_to_string(&file)?;
        let is_named = |saved: &Saved| directory_name(saved.step) == name.trim();
        Ok(self.list()?.into_iter().find(is_named))
    }

    /// DeepSpeed has a file of this name too, which tells it where to go on.
    fn check_latest(&self) -> Result<()> {
        let file = self.root.join(LATEST);
        let text = if file.exists() { read_to_string(&file)? } else { String::new() };
        let name = text.trim();
        if name.is_empty() || step_of(name).is_some() {
            return Ok(());
        }
        let message = format!("{} names {name:?}, which is no checkpoint of dsr", file.display());
        Err(Error::new(Code::Checkpoint, message).hint("save into a directory of its own"))
    }

    /// The checkpoint that `latest` names; where that file is absent, the newest: a process killed
    /// after its first checkpoint was published leaves none.
    pub fn latest(&self) -> Result<Place> {
        let file = self.root.join(LATEST);
        if !file.exists() {
            return match self.list()?.pop() {
                Some(newest) => Ok(self.root.beside(newest.path)),
                None => Err(Error::new(
                    Code::Checkpoint,
                    format!("no checkpoint in {}", self.root.display()),
                )),
            };
        }
        let text = read_to_string(&file)?;
        let name = text.trim();
        // A name, not a path: `latest` cannot lead out of the store.
        if step_of(name).is_some() && self.root.join(name).join(manifest::FILE_NAME).exists() {
            return Ok(self.root.join(name));
        }
        let message = format!("{} names {name:?}, and there is no such checkpoint", file.display());
        let hint = self
            .good_before(None)?
            .map(|good| format!("the newest good checkpoint is {}", good.path.display()));
        Err(Error::new(Code::Checkpoint, message).hint_if(hint))
    }

    /// The published checkpoints, by step. None when the store does not exist.
    pub fn list(&self) -> Result<Vec<Saved>> {
        if !self.root.exists() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for name in self.root.list()? {
            let place = self.root.join(&name);
            if let Some(step) = name.to_str().and_then(step_of)
                && place.join(manifest::FILE_NAME).exists()
            {
                found.push(Saved { step, path: place.path().to_owned() });
            }
        }
        found.sort_by_key(|saved| saved.step);
        Ok(found)
    }

    /// Checks every byte of the checkpoint in `dir` against its manifest.
    ///
    /// # Errors
    /// [`Code::Checkpoint`] naming the file that is missing, truncated or altered, with the
    /// previous good checkpoint of the same store, if there is one, as a hint.
    pub fn verify(dir: impl Into<Place>) -> Result<()> {
        let dir = dir.into();
        let Err(e) = Manifest::read(&dir).and_then(|manifest| manifest.check(&dir)) else {
            return Ok(());
        };
        let previous = match (dir.parent(), dir.name().and_then(step_of)) {
            (Some(root), Some(step)) => Self::open(root).good_before(Some(step))?,
            _ => None,
        };
        let hint = |good: Saved| format!("the previous good checkpoint is {}", good.path.display());
        Err(e.hint_if(previous.map(hint)))
    }

    /// Removes the oldest until `keep` are left, but never `latest` and the best.
    fn prune(&self, keep: usize, latest: &Path) -> Result<()> {
        let best = self.best()?;
        let mut saved = self.list()?;
        saved.retain(|old| best.as_ref() != Some(old));
        let surplus = saved.len().saturating_sub(keep);
        for old in saved.iter().filter(|old| old.path != latest).take(surplus) {
            let place = self.root.beside(&old.path);
            match check_ours(&place) {
                Ok(()) => remove_dir(place)?,
                // A directory with something of the user's in it stays.
                Err(e) => tell_once(&old.path, &e),
            }
        }
        Ok(())
    }

    /// The newest checkpoint before `step`, or of all, that is whole.
    fn good_before(&self, step: Option<u64>) -> Result<Option<Saved>> {
        let whole = |dir: &Path| {
            let dir = self.root.beside(dir);
            Manifest::read(&dir).and_then(|m| m.check(&dir)).is_ok()
        };
        let mut earlier = self.list()?;
        earlier.retain(|saved| step.is_none_or(|step| saved.step < step));
        Ok(earlier.into_iter().rev().find(|saved| whole(&saved.path)))
    }
}

/// Tells that a directory is passed over, once, as each save comes by it.
fn tell_once(path: &Path, why: &Error) {
    static TOLD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let is_new = TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned());
    if is_new {
        tracing::warn!("an old checkpoint is not removed: {}", why.message());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use super::*;
    use crate::fs::create_dir_all;

    pub(in crate::checkpoint) fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("checkpoints"));
        (dir, store)
    }

    pub(in crate::checkpoint) fn save(store: &Store, step: u64, keep: Option<usize>) -> PathBuf {
        store
            .save(step, keep, |dir| write_atomic(dir.join("weights"), &step.to_le_bytes()))
            .unwrap()
    }

    fn steps(store: &Store) -> Vec<u64> {
        store.list().unwrap().iter().map(|saved| saved.step).collect()
    }

    #[test]
    fn the_saved_checkpoint_is_the_latest_and_whole() {
        let (_dir, store) = store();
        save(&store, 60, None);
        let path = save(&store, 120, None);
        assert!(path.ends_with("step-00000120"));
        assert_eq!(store.latest().unwrap(), path);
        assert_eq!(steps(&store), [60, 120]);
        let latest = fs::read_to_string(store.root().join("latest")).unwrap();
        assert_eq!(latest, "step-00000120\n");
        Store::verify(&path).unwrap();
    }

    #[test]
    fn the_oldest_go_but_never_the_latest() {
        let (_dir, store) = store();
        for step in [10, 20, 30] {
            save(&store, step, Some(2));
        }
        assert_eq!(steps(&store), [20, 30]);
        // Training went back to an earlier state: the latest is now also the oldest.
        save(&store, 15, Some(1));
        assert_eq!(steps(&store), [15]);
        let e = store.save(40, Some(0), |_| Ok(())).unwrap_err();
        assert_eq!(e.code(), Code::BadValue);
    }

    #[test]
    fn a_failed_write_changes_nothing() {
        let (_dir, store) = store();
        let first = save(&store, 1, None);
        let e = store
            .save(2, Some(1), |dir| {
                write_atomic(dir.join("half"), b"x")?;
                bail!(Code::DiskFull, "no space")
            })
            .unwrap_err();
        assert_eq!(e.code(), Code::DiskFull);
        assert_eq!(store.latest().unwrap(), first);
        assert_eq!(fs::read_dir(store.root()).unwrap().count(), 2, "the checkpoint and `latest`");
    }

    #[test]
    fn the_file_of_another_program_stays() {
        let (_dir, store) = store();
        create_dir_all(store.root()).unwrap();
        let latest = store.root().join("latest");
        fs::write(&latest, "global_step10").unwrap();
        let e = store.save(1, None, |_| Ok(())).unwrap_err();
        assert!(e.message().contains("global_step10"), "{e}");
        assert_eq!(fs::read_to_string(latest).unwrap(), "global_step10");
        assert!(steps(&store).is_empty());
    }

    #[test]
    fn the_same_step_is_replaced() {
        let (_dir, store) = store();
        save(&store, 5, None);
        let path = store.save(5, None, |dir| write_atomic(dir.join("other"), b"")).unwrap();
        Store::verify(&path).unwrap();
        assert!(!path.join("weights").exists() && path.join("other").exists());
    }

    #[test]
    fn leftovers_of_a_killed_writer_go_with_the_next_save() {
        let (_dir, store) = store();
        let leftover = store.root().join(".step-00000001.dsr-tmp-x1Aa9z");
        fs::create_dir_all(&leftover).unwrap();
        assert!(steps(&store).is_empty());
        save(&store, 2, None);
        assert!(!leftover.exists());
    }

    #[test]
    fn space_is_checked_with_both_numbers_named() {
        let (_dir, store) = store();
        store.check_space(1).unwrap();
        let e = store.check_space(u64::MAX).unwrap_err();
        assert_eq!(e.code(), Code::DiskFull);
        assert!(e.message().starts_with("a checkpoint needs 17179869184.0 GiB and "), "{e}");
        assert!(e.message().ends_with("GiB free") || e.message().ends_with("MiB free"), "{e}");
        assert!(!store.root().exists());
    }

    #[test]
    fn damage_is_named_and_the_previous_good_checkpoint_offered() {
        let (_dir, store) = store();
        let good = save(&store, 1, None);
        let damaged = save(&store, 2, None);
        let weights = damaged.join("weights");
        let cases: [(&str, &dyn Fn()); 3] = [
            ("weights was altered (CRC-32", &|| fs::write(&weights, [9; 8]).unwrap()),
            ("weights has 3 bytes, 8 expected", &|| fs::write(&weights, [2; 3]).unwrap()),
            ("weights is missing", &|| fs::remove_file(&weights).unwrap()),
        ];
        for (expected, damage) in cases {
            damage();
            let e = Store::verify(&damaged).unwrap_err();
            assert_eq!(e.code(), Code::Checkpoint);
            assert!(e.message().contains(expected), "{e}");
            assert_eq!(e.hints(), [format!("the previous good checkpoint is {}", good.display())]);
        }
        fs::remove_file(good.join("weights")).unwrap();
        assert!(Store::verify(&damaged).unwrap_err().hints().is_empty());
    }

    #[test]
    fn latest_that_names_nothing_is_an_error_with_the_newest_good_one() {
        let (_dir, store) = store();
        let good = save(&store, 1, None);
        for content in ["step-00000009\n", "../../etc\n", "\n"] {
            fs::write(store.root().join("latest"), content).unwrap();
            let e = store.latest().unwrap_err();
            assert_eq!(e.code(), Code::Checkpoint);
            assert_eq!(e.hints(), [format!("the newest good checkpoint is {}", good.display())]);
        }
        fs::remove_file(store.root().join("latest")).unwrap();
        assert_eq!(store.latest().unwrap(), good);
    }
}
