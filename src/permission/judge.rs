//! The one check: what grants and environment allow, and why the rest is refused.

use std::path::{Path, PathBuf};

use super::{
    access::Access,
    address,
    context::AccessContext,
    grants::{Capability, Grants},
    place,
};
use crate::{
    error::{Code, Error},
    foreign::{Foreign, ForeignPath},
};

/// The grants of one recipe, its environment, and the places that are never given.
#[derive(Debug, Default)]
pub(super) struct Judge {
    pub(super) grants: Grants,
    pub(super) context: AccessContext,
    never: Vec<PathBuf>,
}

/// Why an access is refused.
pub(super) struct Refusal {
    why: String,
    pub(super) flag: Option<String>,
}

impl Judge {
    pub(super) fn new(grants: Grants, context: AccessContext) -> Self {
        let context = context.resolved();
        let never = place::secrets(context.home.as_deref(), &context.secrets);
        let grants = grants.resolved(&context.work_dir);
        Self { grants, context, never }
    }

    /// Whether the access is allowed.
    pub(super) fn verdict(&self, access: Access<'_>) -> std::result::Result<(), Refusal> {
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

    /// Whether `real`, where `path` really is, may be used.
    pub(super) fn judge_real(
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
            Capability::Write => self.context.writes(real),
            _ => self.context.reads(real),
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
    pub(super) fn readable(&self) -> Vec<PathBuf> {
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
    pub(super) fn writable(&self) -> Vec<PathBuf> {
        let given = self.grants.allowed(Capability::Write).paths();
        let own = [self.context.work_dir.clone()].into_iter();
        own.chain(self.context.caches.iter().cloned()).chain(given).collect()
    }
}

impl Refusal {
    pub(super) fn never(why: impl Into<String>) -> Self {
        Self { why: why.into(), flag: None }
    }

    pub(super) fn error(self, access: Access<'_>) -> Error {
        let message = format!("the recipe may not {access}: {}", self.why);
        Error::new(Code::Permission, message)
            .hint_if(self.flag.map(|flag| format!("if you trust the recipe: {flag}")))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::permission::{Permissions, Scope};

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
