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
//! | `grants` | what the user gave and denied |
//! | `place` | real paths, and the places that are never given |
//! | `address` | hosts, and which of them are private |
//! | `audit` | the log of every access |
//! | `trust` | the file of recipes that the user trusts |
//! | `sandbox` | the same roots in the kernel, by Landlock |

mod access;
mod address;
mod audit;
mod grants;
mod place;
pub mod sandbox;
mod trust;

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use self::{
    access::Access,
    audit::Audit,
    grants::{Capability, Grants, Scope},
    trust::TrustFile,
};
use crate::{
    error::{Code, Error, IoContext, Result},
    foreign::{Foreign, ForeignPath},
    fs::{Found, Guard, Use, open_root},
};

/// The environment of a recipe: the places that it may use without a grant.
#[derive(Debug, Clone, Default)]
pub struct AccessContext {
    /// The user's place of work: read and written, but not what begins with a dot.
    pub work_dir: PathBuf,
    /// The recipe's directory: read, but not what begins with a dot.
    pub recipe_dir: PathBuf,
    /// Paths that the user named on the command line: read.
    pub named: Vec<PathBuf>,
    /// Directories that may be listed, without what is in them: the ways to what the user named by a
    /// pattern. They are real paths.
    pub listed: Vec<PathBuf>,
    /// Caches of dsr and of Hugging Face: read.
    pub caches: Vec<PathBuf>,
    /// The user's home, with the files that are never given.
    pub home: Option<PathBuf>,
    /// Further files that are never given, such as a token's.
    pub secrets: Vec<PathBuf>,
    /// The host that the user's settings name for the hub. It may be private.
    pub hub_host: Option<String>,
    /// Whether the user named something on the hub on the command line: the hub is asked.
    pub names_hub: bool,
}

/// The powers of one recipe.
#[derive(Debug, Default)]
pub struct Permissions {
    grants: Grants,
    context: AccessContext,
    never: Vec<PathBuf>,
    audit: Option<Audit>,
    /// The directories that are given, held open, the longest paths first.
    roots: Vec<(PathBuf, Arc<OwnedFd>)>,
}

/// Why an access is refused.
struct Refusal {
    why: String,
    flag: Option<String>,
}

impl Permissions {
    /// The powers that `grants` give in `environment`; each access is written to `audit`.
    pub fn new(grants: Grants, mut context: AccessContext, audit: Option<Audit>) -> Self {
        for path in [&mut context.work_dir, &mut context.recipe_dir] {
            *path = place::root(Path::new("."), path);
        }
        let work_dir = context.work_dir.clone();
        let all = context.named.iter_mut().chain(&mut context.caches);
        all.for_each(|path| *path = place::root(&work_dir, path));
        let never = place::secrets(context.home.as_deref(), &context.secrets);
        let grants = grants.resolved(&work_dir);
        let mut permissions = Self { grants, context, never, audit, roots: Vec::new() };
        permissions.roots = permissions.open_roots();
        permissions
    }

    /// Opens the directories that are given. One that does not exist yet is looked for from the root of
    /// the filesystem when it is asked for.
    fn open_roots(&self) -> Vec<(PathBuf, Arc<OwnedFd>)> {
        let mut paths = self.readable();
        paths.extend(self.writable());
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
    /// [`Code::Permission`]; [`Code::Io`] where the audit log cannot be written.
    pub fn check(&self, access: Access<'_>, at: &str) -> Result<()> {
        let verdict = self.judge(access);
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
        self.judge(access).is_ok()
    }

    /// Whether no grant allows the access.
    pub fn is_never(&self, access: Access<'_>) -> bool {
        self.judge(access).is_err_and(|refusal| refusal.flag.is_none())
    }

    /// The grants and denials.
    pub fn grants(&self) -> &Grants {
        &self.grants
    }

    /// The working directory as it really is.
    pub fn work_dir(&self) -> &Path {
        &self.context.work_dir
    }

    fn judge(&self, access: Access<'_>) -> std::result::Result<(), Refusal> {
        match access {
            Access::Read(path) => self.judge_path(path, Capability::Read),
            Access::Write(path) => self.judge_path(path, Capability::Write),
            Access::Net(host) => self.judge_host(host),
            Access::Import(host) => self.judge_import(host),
        }
    }

    fn judge_path(&self, path: &Path, wants: Capability) -> std::result::Result<(), Refusal> {
        let real = place::real(&self.context.work_dir, path).map_err(Refusal::never)?;
        self.judge_real(&real, path, wants)
    }

    fn judge_real(
        &self,
        real: &Path,
        path: &Path,
        wants: Capability,
    ) -> std::result::Result<(), Refusal> {
        if place::is_system(real) {
            return Err(Refusal::never("files of the kernel are never given to a recipe"));
        }
        if self.never.iter().any(|secret| real.starts_with(secret)) {
            return Err(Refusal::never("credentials are never given to a recipe"));
        }
        if self.grants.denied(wants).covers_path(real) {
            return Err(Refusal::never(format!("--deny-{} says so", wants.name())));
        }
        if self.grants.allowed(wants).covers_path(real) {
            return Ok(());
        }
        let by_default = match wants {
            Capability::Write => place::is_visible_in(&self.context.work_dir, real),
            _ => self.reads_by_default(real),
        };
        if by_default {
            return Ok(());
        }
        let why = match real.starts_with(&self.context.work_dir) {
            true => "names that begin with a dot are not given without a grant".to_owned(),
            false if real == path => "it is outside of the working directory".to_owned(),
            false => {
                format!("it is {}, outside of the working directory", ForeignPath(real))
            }
        };
        let flag = format!("--allow-{}={}", wants.name(), ForeignPath(real));
        Err(Refusal { why, flag: Some(flag) })
    }

    /// Whether the directory may be listed.
    pub fn lists(&self, path: &Path) -> bool {
        let real = place::root(&self.context.work_dir, path);
        self.context.listed.contains(&real)
    }

    fn reads_by_default(&self, real: &Path) -> bool {
        let mut visible = [&self.context.work_dir, &self.context.recipe_dir].into_iter();
        visible.any(|root| place::is_visible_in(root, real))
            || self.context.listed.iter().any(|dir| dir == real)
            || self
                .context
                .named
                .iter()
                .chain(&self.context.caches)
                .any(|root| real.starts_with(root))
    }

    fn judge_host(&self, host: &str) -> std::result::Result<(), Refusal> {
        let flag = || Some(format!("--allow-net={}", Foreign(host)));
        if self.grants.denied(Capability::Net).covers_host(host) {
            return Err(Refusal::never("--deny-net says so"));
        }
        let granted = self.grants.allowed(Capability::Net);
        let hub = self.context.hub_host.as_deref().filter(|_| self.context.names_hub);
        let by_name = hub.is_some_and(|hub| address::is_within(host, hub));
        if !granted.covers_host(host) && !by_name {
            let why = "a recipe has no network without a grant".to_owned();
            return Err(Refusal { why, flag: flag() });
        }
        let is_named = granted.names_host(host) || self.context.hub_host.as_deref() == Some(host);
        if !is_named && address::is_private(host) {
            let why = "it is a private address, which a grant must name".to_owned();
            return Err(Refusal { why, flag: flag() });
        }
        Ok(())
    }

    /// A host that may not be asked at all may not be asked for code either.
    fn judge_import(&self, host: &str) -> std::result::Result<(), Refusal> {
        for denied in [Capability::Import, Capability::Net] {
            if self.grants.denied(denied).covers_host(host) {
                return Err(Refusal::never(format!("--deny-{} says so", denied.name())));
            }
        }
        let granted = self.grants.allowed(Capability::Import);
        let why = if !granted.covers_host(host) {
            "code of another place needs a grant"
        } else if !granted.names_host(host) && address::is_private(host) {
            "it is a private address, which a grant must name"
        } else {
            return Ok(());
        };
        Err(Refusal {
            why: why.to_owned(),
            flag: Some(format!("--allow-import={}", Foreign(host))),
        })
    }

    /// The directories and files that may be read, for the sandbox.
    fn readable(&self) -> Vec<PathBuf> {
        let context = &self.context;
        let own = [context.work_dir.clone(), context.recipe_dir.clone()].into_iter();
        let given = self.grants.allowed(Capability::Read).paths();
        own.chain(context.named.iter().cloned())
            .chain(context.caches.iter().cloned())
            .chain(given)
            .collect()
    }

    /// The directories and files that may be written, for the sandbox: the caches too, as downloads
    /// go there.
    fn writable(&self) -> Vec<PathBuf> {
        let given = self.grants.allowed(Capability::Write).paths();
        let own = [self.context.work_dir.clone()].into_iter();
        own.chain(self.context.caches.iter().cloned()).chain(given).collect()
    }
}

/// What is found is judged by its real path, and opened by that path, part by part: a part that has become
/// a link since is not followed.
impl Guard for Permissions {
    fn find(&self, path: &Path, wants: Use) -> Result<Found> {
        let work_dir = &self.context.work_dir;
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
            self.judge_real(&real, path, capability)?;
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

impl Refusal {
    fn never(why: impl Into<String>) -> Self {
        Self { why: why.into(), flag: None }
    }

    fn error(self, access: Access<'_>) -> Error {
        let message = format!("the recipe may not {access}: {}", self.why);
        Error::new(Code::Permission, message)
            .hint_if(self.flag.map(|flag| format!("if you trust the recipe: {flag}")))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// A home with a place of work, a recipe's directory and a directory beside them.
    struct Home(tempfile::TempDir);

    impl Home {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            for dir in ["work/sub", "work/.git", "recipes", "other", ".ssh", ".config/dsr"] {
                fs::create_dir_all(home.path().join(dir)).unwrap();
            }
            for file in ["work/a", "other/a", ".ssh/id", ".config/dsr/trust.toml"] {
                fs::write(home.path().join(file), "x").unwrap();
            }
            Self(home)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn with(&self, grants: Grants) -> Permissions {
            let context = AccessContext {
                work_dir: self.path("work"),
                recipe_dir: self.path("recipes"),
                home: Some(self.0.path().to_owned()),
                ..AccessContext::default()
            };
            Permissions::new(grants, context, None)
        }

        fn list(&self, name: &str) -> Scope {
            Scope::These(vec![self.path(name).display().to_string()])
        }
    }

    #[test]
    fn what_the_user_names_on_the_hub_is_fetched() {
        let hub_host = Some("huggingface.co".to_owned());
        let context = |names_hub| AccessContext {
            hub_host: hub_host.clone(),
            names_hub,
            ..AccessContext::default()
        };
        let with = |names_hub| Permissions::new(Grants::default(), context(names_hub), None);
        assert!(with(true).allows(Access::Net("cdn-lfs.hf.co")));
        assert!(!with(true).allows(Access::Net("example.org")));
        assert!(!with(false).allows(Access::Net("huggingface.co")));
    }

    fn hint(error: &Error) -> &str {
        error.hints().first().map_or("", String::as_str)
    }

    #[test]
    fn defaults_are_the_working_directory_and_the_recipes() {
        let home = Home::new();
        let p = home.with(Grants::default());
        let reads = |name: &str| p.allows(Access::Read(&home.path(name)));
        let writes = |name: &str| p.allows(Access::Write(&home.path(name)));
        assert!(reads("work/a") && reads("work/none/at/all") && reads("recipes/a"));
        assert!(!reads("other/a") && !reads("work/.git/config") && !reads("work/../other/a"));
        assert!(writes("work/runs/x") && writes("work/new"));
        assert!(!writes("recipes/a") && !writes("other/a") && !writes("work/.git/hooks/x"));
        assert!(
            p.allows(Access::Read(Path::new("sub")))
                && !p.allows(Access::Read(Path::new("../other")))
        );
        assert!(!p.allows(Access::Read(Path::new("sub/none/../../../other"))));
    }

    #[test]
    fn links_are_judged_by_where_they_lead() {
        let home = Home::new();
        symlink(home.path("other"), home.path("work/link")).unwrap();
        symlink(home.path("other/none"), home.path("work/nowhere")).unwrap();
        symlink("loop", home.path("work/loop")).unwrap();
        let p = home.with(Grants::default());
        for name in ["work/link/a", "work/link/new", "work/nowhere", "work/loop"] {
            assert!(!p.allows(Access::Read(&home.path(name))), "{name}");
            assert!(!p.allows(Access::Write(&home.path(name))), "{name}");
        }
        let e = p.check_tree(&home.path("work"), "r.rhai:1:1").unwrap_err();
        assert_eq!(e.code(), Code::Permission);
        let p = home.with(Grants { read: home.list("other"), ..Grants::default() });
        assert!(p.allows(Access::Read(&home.path("work/link/a"))));
    }

    #[test]
    fn a_refusal_says_the_flag_and_the_flag_allows() {
        let home = Home::new();
        let e = home.with(Grants::default()).check(Access::Read(&home.path("other/a")), "");
        let e = e.unwrap_err();
        let expected = format!("--allow-read={}", home.path("other/a").display());
        assert!(hint(&e).ends_with(&expected), "{e:?}");
        let p = home.with(Grants { read: home.list("other/a"), ..Grants::default() });
        assert!(p.allows(Access::Read(&home.path("other/a"))));
        assert!(!p.allows(Access::Write(&home.path("other/a"))));
    }

    #[test]
    fn what_is_denied_or_never_given_stays_so() {
        let home = Home::new();
        let p = home.with(Grants { deny_read: home.list("work/sub"), ..Grants::all() });
        assert!(p.allows(Access::Read(&home.path("work/a"))));
        assert!(!p.allows(Access::Read(&home.path("work/sub/a"))));
        for path in [
            home.path(".ssh/id"),
            home.path("work/../.ssh"),
            home.path(".config/dsr/trust.toml"),
            "/proc/self/environ".into(),
            "/proc/1/environ".into(),
            "/sys/kernel".into(),
            "/dev/sda".into(),
        ] {
            assert!(p.is_never(Access::Read(&path)), "{}", path.display());
            assert!(p.is_never(Access::Write(&path)), "{}", path.display());
        }
    }

    #[test]
    fn hosts_need_a_grant_and_private_ones_their_name() {
        let home = Home::new();
        let with = |net| home.with(Grants { net, ..Grants::default() });
        let hub = || Scope::These(vec!["huggingface.co".to_owned()]);
        assert!(!with(Scope::None).allows(Access::Net("huggingface.co")));
        for host in ["huggingface.co", "cdn-lfs.huggingface.co", "cas-bridge.xethub.hf.co"] {
            assert!(with(hub()).allows(Access::Net(host)), "{host}");
        }
        for host in ["example.org", "nothuggingface.co", "huggingface.co.evil.org", "127.0.0.1"] {
            assert!(!with(hub()).allows(Access::Net(host)), "{host}");
        }
        for host in ["127.0.0.1", "169.254.169.254", "10.0.0.1", "[::1]", "localhost"] {
            assert!(!with(Scope::All).allows(Access::Net(host)), "{host}");
            let named = Scope::These(vec![host.to_owned()]);
            assert!(with(named).allows(Access::Net(host)), "{host}");
        }
        let p = home.with(Grants { deny_net: hub(), ..Grants::all() });
        assert!(!p.allows(Access::Net("huggingface.co")));
        assert!(!p.allows(Access::Import("huggingface.co")));
    }

    #[test]
    fn code_of_a_host_needs_a_grant_of_its_own() {
        let home = Home::new();
        let with = |grants| home.with(grants);
        let one = || Scope::These(vec!["example.org".to_owned()]);
        assert!(
            !with(Grants { net: Scope::All, ..Grants::default() })
                .allows(Access::Import("example.org"))
        );
        let p = with(Grants { import: one(), ..Grants::default() });
        assert!(p.allows(Access::Import("example.org")));
        assert!(!p.allows(Access::Import("example.com")));
        assert!(!p.allows(Access::Net("example.org")));
        assert!(
            !with(Grants { deny_import: one(), ..Grants::all() })
                .allows(Access::Import("example.org"))
        );
        assert!(!with(Grants::all()).allows(Access::Import("127.0.0.1")));
    }
}
