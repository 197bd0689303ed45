//! What the recipe that runs may touch: the host's side of the permissions.
//!
//! Every function of a recipe that reads, writes or fetches comes through here first. A name as it
//! stands in the recipe goes in; the path from the working directory comes out.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
    rc::Rc,
};

use super::{
    Host,
    params::GivenValue,
    pinned::{self, Address},
    resolver::{EMBEDDED, Look},
};
use crate::{
    config::EngineConfig,
    data,
    error::{Code, Error, Result},
    hub::HubSettings,
    permission::{Access, Audit, Capability, Grants, Permissions, Scope, World},
    run::Start,
};

/// What makes a path a pattern.
const WILD: [char; 3] = ['*', '?', '['];

/// The powers of the recipe that runs.
#[derive(Debug, Default)]
pub(crate) struct Powers {
    permissions: RefCell<Rc<Permissions>>,
    /// What the user gave when asked.
    answered: RefCell<Grants>,
    /// The place in the recipe of the call that runs, for the audit log.
    place: RefCell<String>,
    /// Texts of addresses by their hash, for where they cannot be kept.
    texts: RefCell<BTreeMap<String, String>>,
}

impl Host {
    /// Settles what the recipe may do; to be called when its parameters are given.
    ///
    /// # Errors
    /// [`Code::Io`] where the audit log cannot be opened.
    pub(crate) fn settle_permissions(&self) -> Result<()> {
        let audit = self.audit.as_deref().map(Audit::open).transpose()?;
        let mut grants = self.grants.clone();
        grants.extend(&self.powers.answered.borrow());
        let permissions = Permissions::new(grants, self.world(), audit);
        self.powers.permissions.replace(Rc::new(permissions));
        Ok(())
    }

    /// What the recipe may do.
    pub fn permissions(&self) -> Rc<Permissions> {
        Rc::clone(&self.powers.permissions.borrow())
    }

    /// What it could do with `grants`, before it runs.
    pub fn permissions_with(&self, grants: Grants) -> Permissions {
        Permissions::new(grants, self.world(), None)
    }

    /// What the user gave, in lines.
    pub fn powers_in_words(&self) -> Vec<String> {
        let permissions = self.permissions();
        let grants = permissions.grants();
        let given = [("read", &grants.read), ("write", &grants.write), ("net", &grants.net)];
        let denied =
            [("read", &grants.deny_read), ("write", &grants.deny_write), ("net", &grants.deny_net)];
        let words = |scope: &Scope| match scope {
            Scope::None => None,
            Scope::All => Some("everything".to_owned()),
            Scope::These(items) => Some(items.join(", ")),
        };
        let default = format!(
            "read, write  {} and what is below, without a question",
            permissions.work_dir().display()
        );
        let given =
            given.iter().filter_map(|(name, scope)| Some(format!("{name}  {}", words(scope)?)));
        let denied = denied
            .iter()
            .filter_map(|(name, scope)| Some(format!("not {name}  {}", words(scope)?)));
        std::iter::once(default).chain(given).chain(denied).collect()
    }

    /// Notes where the recipe is.
    pub(crate) fn set_place(&self, source: Option<&str>, position: rhai::Position) {
        if self.audit.is_some() {
            let place = format!("{}:{position:?}", source.unwrap_or_default());
            self.powers.place.replace(place);
        }
    }

    /// Asks the user for what is not allowed and could be, where somebody can be asked.
    fn ask_for(&self, access: Access<'_>) -> Result<()> {
        let permissions = self.permissions();
        let Some(ask) = &self.ask else { return Ok(()) };
        if permissions.allows(access) || permissions.is_never(access) || !ask(&access) {
            return Ok(());
        }
        let (capability, what) = match access {
            Access::Read(path) => (Capability::Read, path.display().to_string()),
            Access::Write(path) => (Capability::Write, path.display().to_string()),
            Access::Net(host) => (Capability::Net, host.to_owned()),
            Access::Import(host) => (Capability::Import, host.to_owned()),
        };
        self.powers.answered.borrow_mut().add(capability, what);
        self.settle_permissions()
    }

    /// Checks an access, and asks the user where that may help.
    fn check(&self, access: Access<'_>) -> Result<()> {
        self.ask_for(access)?;
        self.permissions().check(access, &self.powers.place.borrow())
    }

    /// The file or directory `spec`, to read.
    ///
    /// # Errors
    /// [`Code::Permission`].
    pub(crate) fn readable(&self, spec: &str) -> Result<PathBuf> {
        let path = self.work_dir.join(spec);
        self.ask_for(Access::Read(&path))?;
        self.permissions().check_tree(&path, &self.powers.place.borrow())?;
        Ok(path)
    }

    /// Checks what a model, a tokenizer or a dataset is read from: nothing where `spec` names what
    /// is embedded or on the hub.
    ///
    /// # Errors
    /// [`Code::Permission`].
    pub(crate) fn check_source(&self, spec: &str) -> Result<()> {
        if spec.is_empty() || spec.starts_with(EMBEDDED) || data::is_hub_id(spec, &self.work_dir) {
            return Ok(());
        }
        if !spec.contains(WILD) {
            return self.readable(spec).map(drop);
        }
        let (fixed, wild) = fixed_part(Path::new(spec));
        if wild.components().any(|part| part == std::path::Component::ParentDir) {
            return Err(Error::new(
                Code::Permission,
                format!("the pattern {spec} may not have `..` behind its wildcards"),
            ));
        }
        self.check(Access::Read(&self.work_dir.join(fixed)))?;
        let at = self.powers.place.borrow();
        let permissions = self.permissions();
        let pattern = self.work_dir.join(spec);
        // What is no pattern, or cannot be listed, is an error of what opens it.
        let found = glob::glob(&pattern.to_string_lossy()).into_iter().flatten().flatten();
        for path in found.chain([pattern.clone()].into_iter().filter(|path| path.exists())) {
            permissions.check_tree(&path, &at)?;
        }
        Ok(())
    }

    /// The file or directory `spec`, to write.
    ///
    /// # Errors
    /// [`Code::Permission`].
    pub(crate) fn writable(&self, spec: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.work_dir.join(spec);
        self.check(Access::Write(&path))?;
        Ok(path)
    }

    /// Checks every path that the options of `init_engine` have dsr write to.
    ///
    /// # Errors
    /// [`Code::Permission`], with the option.
    pub(crate) fn check_engine(&self, config: &EngineConfig) -> Result<()> {
        let monitor = &config.monitor;
        let directory = |dir: &crate::config::LogDir| dir.path();
        let profile = monitor.flops_profiler.as_ref().and_then(|p| p.file()).map(Path::to_owned);
        let paths = [
            ("csv_monitor", monitor.csv_monitor.as_ref().map(directory)),
            ("tensorboard", monitor.tensorboard.as_ref().map(directory)),
            ("flops_profiler.output_file", profile),
            ("zero.nvme_path", config.zero.nvme_path.clone()),
        ];
        for (option, path) in paths {
            if let Some(path) = path {
                self.writable(path).map_err(|e| e.option(option))?;
            }
        }
        Ok(())
    }

    /// Refuses a host that the recipe was not given.
    pub(super) fn check_host(&self, host: &str) -> Result<()> {
        self.check(Access::Net(host))
    }

    /// The text at an address that is imported. What is in the recipe's bundle is the recipe's own;
    /// other code runs only where the user lets it be imported.
    ///
    /// # Errors
    /// [`Code::Permission`], and as [`pinned::recipe`].
    pub(super) fn text_at(&self, address: &Address, look: Look) -> Result<String> {
        if let Some(text) = self.bundled_address(address)? {
            return Ok(text);
        }
        if look == Look::Run {
            let at = self.powers.place.borrow();
            let allowed = self.permissions().check(Access::Import(&address.host), &at);
            allowed.map_err(|e| address.with_hint(e))?;
        }
        let known = |sha256: &String| self.powers.texts.borrow().get(sha256).cloned();
        if let Some(text) = address.sha256.as_ref().and_then(known) {
            return Ok(text);
        }
        let text = address.obtain(&self.env, self.permissions_with(self.grants.clone()))?;
        let sha256 = address.sha256.clone().unwrap_or_default();
        self.powers.texts.borrow_mut().insert(sha256, text.clone());
        Ok(text)
    }

    fn world(&self) -> World {
        let path = |name: &str| (self.env)(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let hub = HubSettings::from_env(&self.env).ok();
        let mut caches: Vec<_> = hub.iter().map(|hub| hub.cache_dir.clone()).collect();
        let homes = path("HF_HOME").into_iter();
        let homes = homes.chain(caches.iter().filter_map(|dir| dir.parent().map(Path::to_owned)));
        let homes: Vec<_> = homes.collect();
        caches.extend(pinned::cache_dir(&self.env));
        let tokens =
            homes.into_iter().flat_map(|dir| [dir.join("token"), dir.join("stored_tokens")]);
        let trust = path("XDG_CONFIG_HOME").map(|dir| dir.join("dsr"));
        World {
            work_dir: self.work_dir.clone(),
            recipe_dir: self.base_dir.borrow().clone(),
            named: self.named_paths(),
            secrets: tokens.chain(path("HF_TOKEN_PATH")).chain(trust).collect(),
            caches,
            home: path("HOME"),
            hub_host: hub.and_then(|hub| hub.host()),
            names_hub: self.given_texts().any(|text| data::is_hub_id(text, &self.work_dir)),
        }
    }

    /// The values of parameters that stand on the command line.
    fn given_texts(&self) -> impl Iterator<Item = &str> {
        self.params.iter().filter_map(|given| match &given.value {
            GivenValue::Text(text) => Some(text.as_str()),
            GivenValue::Json(_) => None,
        })
    }

    /// What of the command line is a path: to name it is to give it. A file of parameters may have
    /// come with the recipe.
    fn named_paths(&self) -> Vec<PathBuf> {
        let texts = self.given_texts().map(PathBuf::from);
        let start = match &self.start {
            Start::From(path) => Some(path.clone()),
            Start::Afresh | Start::Latest => None,
        };
        let paths = texts.chain(start).filter(|path| !path.as_os_str().is_empty());
        let paths = paths.map(|path| fixed_part(&path).0);
        paths.filter(|path| self.work_dir.join(path).exists()).collect()
    }
}

/// A path's directories before its first wildcard, and the rest.
fn fixed_part(path: &Path) -> (PathBuf, PathBuf) {
    let mut parts = path.components().peekable();
    let mut fixed = PathBuf::new();
    while let Some(part) = parts.next_if(|part| !part.as_os_str().to_string_lossy().contains(WILD))
    {
        fixed.push(part);
    }
    (fixed, parts.collect())
}
