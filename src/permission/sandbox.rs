//! The same roots once more, in the kernel: Landlock keeps this process to them, whatever a mistake
//! in dsr or in a library it loads may do.
//!
//! It is the second lock, and wider than the first: it lets the program itself work (libraries,
//! devices, caches, temporary files), and knows no hosts. It holds for this thread and for those
//! that it starts.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    thread,
};

use landlock::{
    ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    path_beneath_rules,
};

use super::Permissions;
use crate::{
    error::{Code, Error, Result},
    fs::{self, Place},
};

/// The paths that libtorch, CUDA, the C library and name look-up read.
const SYSTEM_READS: [&str; 11] =
    ["/usr", "/lib", "/lib64", "/bin", "/opt", "/etc", "/proc", "/sys", "/run", "/var/run", "/nix"];

/// Devices, shared memory and temporary files.
const SYSTEM_WRITES: [&str; 4] = ["/dev", "/tmp", "/var/tmp", "/proc/self"];

/// How far the kernel went along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sandbox {
    /// The kernel keeps this process to the roots.
    On,
    /// This kernel has no Landlock.
    Unavailable,
}

impl Sandbox {
    fn of(status: RulesetStatus) -> Self {
        match status {
            RulesetStatus::NotEnforced => Self::Unavailable,
            RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Self::On,
        }
    }
}

/// Paths that the program needs for itself.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    /// To read.
    pub read: Vec<PathBuf>,
    /// To write.
    pub write: Vec<PathBuf>,
}

/// Keeps this thread, and those that it starts from now on, to what `permissions` give and to what
/// the program itself needs. There is no way back.
pub fn apply(permissions: &Permissions, needs: &Needs) -> Result<Sandbox> {
    for cache in &permissions.judge.context.caches {
        // A cache that cannot be made is missed when something is to be put there.
        let _ = fs::create_dir_all(Place::unguarded(cache));
    }
    let mut read: BTreeSet<PathBuf> = SYSTEM_READS.iter().map(PathBuf::from).collect();
    read.extend(loaded_libraries());
    read.extend(permissions.judge.readable().into_iter().chain(needs.read.iter().cloned()));
    let mut write: BTreeSet<PathBuf> = SYSTEM_WRITES.iter().map(PathBuf::from).collect();
    write.extend(permissions.judge.writable().into_iter().chain(needs.write.iter().cloned()));
    let write = write.into_iter().filter_map(|path| existing(&path));
    let status = restrict(read, write).map_err(|e| {
        Error::new(Code::Permission, "the kernel refuses the sandbox of the recipe")
            .hint("--sandbox=off runs it without; what it may do is checked all the same")
            .caused_by(e)
    })?;
    Ok(Sandbox::of(status))
}

/// Whether this kernel has Landlock: tried on a thread of its own, which then ends.
pub fn probe() -> Result<Sandbox> {
    let refused = || Error::new(Code::Permission, "the kernel refuses a rule of Landlock");
    let everything = || [PathBuf::from("/")];
    let tried = thread::spawn(move || restrict(everything(), everything()));
    let status = tried.join().map_err(|_| refused())?.map_err(|e| refused().caused_by(e))?;
    Ok(Sandbox::of(status))
}

fn restrict(
    read: impl IntoIterator<Item = PathBuf>,
    write: impl IntoIterator<Item = PathBuf>,
) -> std::result::Result<RulesetStatus, RulesetError> {
    // The third version has all that concerns files; older kernels take what they know of it.
    let abi = ABI::V3;
    let rules = Ruleset::default().handle_access(AccessFs::from_all(abi))?.create()?;
    let rules = rules.add_rules(path_beneath_rules(read, AccessFs::from_read(abi)))?;
    let rules = rules.add_rules(path_beneath_rules(write, AccessFs::from_all(abi)))?;
    Ok(rules.restrict_self()?.ruleset)
}

/// The path, or the deepest directory above it that exists: rules are for what exists.
fn existing(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|path| path.exists()).map(Path::to_owned)
}

/// The directories of the libraries that this process has loaded; more of them may be loaded later.
fn loaded_libraries() -> Vec<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    let dirs: BTreeSet<_> = paths.filter_map(|path| Path::new(path).parent()).collect();
    dirs.into_iter().map(Path::to_owned).collect()
}
