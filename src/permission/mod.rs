//! The rights of a recipe on this machine, and the one check of them.
//!
//! A recipe is a text of a stranger. It has no power of its own: each function that touches a file
//! or the network asks [`Permissions::check`] first. The rights without a grant are few (see
//! [`AccessContext`]); the rest are [`Grants`] that the user gives by flags, by an answer or by a trust file.
//!
//! Paths are judged by where they really are: links are followed before the check, so a link out of
//! an allowed directory leads to a refusal.
//!
//! | file | concept |
//! |---|---|
//! | `access` | one thing that a recipe asks for |
//! | `context` | the places of a recipe without a grant |
//! | `judge` | the one check |
//! | `grants` | what the user gave and denied |
//! | `place` | real paths, and the places that are never given |
//! | `address` | hosts, and which of them are private |
//! | `audit` | the log of every access |
//! | `trust` | the file of recipes that the user trusts |
//! | `sandbox` | the same roots in the kernel, by Landlock |

mod access;
mod address;
mod audit;
mod context;
mod grants;
mod judge;
mod place;
pub mod sandbox;
mod trust;

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use self::judge::{Judge, Refusal};
pub use self::{
    access::Access,
    audit::Audit,
    context::AccessContext,
    grants::{Capability, Grants, Scope},
    trust::TrustFile,
};
use crate::{
    error::{IoContext, Result},
    fs::{Found, Guard, Use, open_root},
};

/// The powers of one recipe.
#[derive(Debug, Default)]
pub struct Permissions {
    judge: Judge,
    audit: Option<Audit>,
    /// The directories that are given, held open, the longest paths first.
    roots: Vec<(PathBuf, Arc<OwnedFd>)>,
}

impl Permissions {
    /// The powers that `grants` give in `context`; each access is written to `audit`.
    pub fn new(grants: Grants, context: AccessContext, audit: Option<Audit>) -> Self {
        let mut permissions = Self { judge: Judge::new(grants, context), audit, roots: Vec::new() };
        permissions.roots = permissions.open_roots();
        permissions
    }

    /// Opens the directories that are given. One that does not exist yet is looked for from the root of
    /// the filesystem when it is asked for.
    fn open_roots(&self) -> Vec<(PathBuf, Arc<OwnedFd>)> {
        let mut paths = self.judge.readable();
        paths.extend(self.judge.writable());
        paths.sort();
        paths.dedup();
        paths.reverse();
        let opened = |path: PathBuf| Some((path.clone(), Arc::new(open_root(&path).ok()?)));
        paths.into_iter().filter(|path| path.is_dir()).filter_map(opened).collect()
    }

    /// Allows what was granted, or refuses it with the flag that would allow it. `at` is the place
    /// in the recipe.
    ///
    /// # Errors
    /// [`Code::Permission`](crate::error::Code::Permission); [`Code::Io`](crate::error::Code::Io) where the
    /// audit log cannot be written.
    pub fn check(&self, access: Access<'_>, at: &str) -> Result<()> {
        let verdict = self.judge.verdict(access);
        if let Some(audit) = &self.audit {
            audit.write(access, verdict.is_ok(), at)?;
        }
        verdict.map_err(|refusal| refusal.error(access))
    }

    /// Checks a path to be read, and the links below it, which may lead elsewhere.
    pub fn check_tree(&self, path: &Path, at: &str) -> Result<()> {
        self.check(Access::Read(path), at)?;
        for link in place::links_below(path)? {
            self.check(Access::Read(&link), at)?;
        }
        Ok(())
    }

    /// Whether the access would be allowed; nothing is logged.
    pub fn allows(&self, access: Access<'_>) -> bool {
        self.judge.verdict(access).is_ok()
    }

    /// Whether no grant allows the access.
    pub fn is_never(&self, access: Access<'_>) -> bool {
        self.judge.verdict(access).is_err_and(|refusal| refusal.flag.is_none())
    }

    /// The grants and denials.
    pub fn grants(&self) -> &Grants {
        &self.judge.grants
    }

    /// The working directory as it really is.
    pub fn work_dir(&self) -> &Path {
        &self.judge.context.work_dir
    }

    /// Whether the directory may be listed.
    pub fn lists(&self, path: &Path) -> bool {
        self.judge.context.lists(path)
    }
}

/// What is found is judged by its real path, and opened by that path, part by part: a part that has become
/// a link since is not followed.
impl Guard for Permissions {
    fn find(&self, path: &Path, wants: Use) -> Result<Found> {
        let work_dir = self.work_dir();
        let (capability, access) = match wants {
            Use::Read => (Capability::Read, Access::Read(path)),
            Use::Write => (Capability::Write, Access::Write(path)),
        };
        let real = match (wants, path.parent(), path.file_name()) {
            // What has the name is replaced or made, whatever it is; only its directory is followed.
            (Use::Write, Some(parent), Some(name)) => {
                place::real(work_dir, parent).map(|parent| parent.join(name))
            }
            _ => place::real(work_dir, path),
        };
        let real = real.map_err(Refusal::never);
        let judged = real.and_then(|real| {
            self.judge.judge_real(&real, path, capability)?;
            Ok(real)
        });
        let real = judged.map_err(|refusal| refusal.error(access))?;
        // A directory is needed to make something in it.
        let held = |root: &Path| match wants {
            Use::Read => real.strip_prefix(root).ok(),
            Use::Write => real.strip_prefix(root).ok().filter(|rest| *rest != Path::new("")),
        };
        let found = self.roots.iter().find_map(|(root, handle)| Some((held(root)?, handle)));
        if let Some((below, root)) = found {
            return Ok(Found { root: Arc::clone(root), below: below.to_owned() });
        }
        let top = Path::new("/");
        let root = Arc::new(open_root(top).at("open", top)?);
        let below = real.strip_prefix(top).unwrap_or(&real).to_owned();
        Ok(Found { root, below })
    }
}
