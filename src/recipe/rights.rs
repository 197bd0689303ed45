//! The rights of a recipe that runs: the paths and hosts that it may use.
//!
//! Every function of a recipe that reads, writes or fetches asks here first. It gives the name that
//! stands in the recipe, and gets the path from the working directory.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    rc::Rc,
};

use super::{
    address,
    embedded::EMBEDDED,
    params::{GivenParameter, GivenValue},
};
use crate::{
    config::EngineConfig,
    data,
    error::{Code, Error, Result},
    hub::HubSettings,
    permission::{Access, AccessContext, Audit, Capability, Grants, Permissions, Scope},
    run::Start,
};

/// The characters that make a path a pattern.
const WILD: [char; 3] = ['*', '?', '['];

/// Asks the user for an access.
pub type Ask = Box<dyn Fn(&Access<'_>) -> bool>;

/// Looks an environment variable up.
pub type Environment = Box<dyn Fn(&str) -> Option<String>>;

/// The rights of the recipe that runs, and the command line and directories that they follow from.
pub struct Rights {
    /// The recipe's directory, which imports are confined to; if a session loads several recipes,
    /// that of the last one.
    pub(crate) base_dir: RefCell<PathBuf>,
    /// The directory that all other relative paths of a recipe start from; the process's working
    /// directory, if this is empty.
    pub work_dir: PathBuf,
    /// The environment, as far as the user lets dsr see it. Scripts have no access to it.
    pub env: Environment,
    /// Values for the recipe's parameters, in the order given; a later one wins.
    pub params: Vec<GivenParameter>,
    /// The checkpoint that a run of the recipe starts from.
    pub start: Start,
    /// The user's grants, beside the rights that every recipe has.
    pub grants: Grants,
    /// Asks the user, while the script runs, for an access that is not allowed; true gives it to the
    /// session.
    pub ask: Option<Ask>,
    /// The file that gets a line for each access, if there is one.
    pub audit: Option<PathBuf>,
    permissions: RefCell<Rc<Permissions>>,
    /// Grants of the user's answers.
    answered: RefCell<Grants>,
    /// The place in the recipe of the call that runs, for the audit log.
    call: RefCell<String>,
}

impl Rights {
    /// For a recipe in `base_dir`, without grants, parameters and environment.
    pub fn new(base_dir: impl Into<PathBuf>) -> Self {
        Self {
            base_dir: RefCell::new(base_dir.into()),
            work_dir: PathBuf::new(),
            env: Box::new(|_| None),
            params: Vec::new(),
            start: Start::Afresh,
            grants: Grants::default(),
            ask: None,
            audit: None,
            permissions: RefCell::default(),
            answered: RefCell::default(),
            call: RefCell::default(),
        }
    }

    /// Settles the permissions; to be called when the parameters are given. Fails if the audit log
    /// cannot be opened.
    pub(crate) fn settle(&self) -> Result<()> {
        let audit = self.audit.as_deref().map(Audit::open).transpose()?;
        let mut grants = self.grants.clone();
        grants.extend(&self.answered.borrow());
        let permissions = Permissions::new(grants, self.world(), audit);
        self.permissions.replace(Rc::new(permissions));
        Ok(())
    }

    /// The permissions of the recipe.
    pub fn permissions(&self) -> Rc<Permissions> {
        Rc::clone(&self.permissions.borrow())
    }

    /// The permissions that it would have with `grants`, before it runs.
    pub fn permissions_with(&self, grants: Grants) -> Permissions {
        Permissions::new(grants, self.world(), None)
    }

    /// The rights, in lines.
    pub fn in_words(&self) -> Vec<String> {
        let permissions = self.permissions();
        let grants = permissions.grants();
        let scopes = [
            ("read", &grants.read),
            ("write", &grants.write),
            ("net", &grants.net),
            ("not read", &grants.deny_read),
            ("not write", &grants.deny_write),
            ("not net", &grants.deny_net),
        ];
        let words = |scope: &Scope| match scope {
            Scope::None => None,
            Scope::All => Some("everything".to_owned()),
            Scope::These(items) => Some(items.join(", ")),
        };
        let default = format!(
            "read, write  {} and what is below, without a question",
            permissions.work_dir().display()
        );
        let scopes =
            scopes.iter().filter_map(|(name, scope)| Some(format!("{name}  {}", words(scope)?)));
        std::iter::once(default).chain(scopes).collect()
    }

    /// Notes the call that the recipe has come to.
    pub(crate) fn set_call(&self, source: Option<&str>, position: rhai::Position) {
        if self.audit.is_some() {
            let call = format!("{}:{position:?}", source.unwrap_or_default());
            self.call.replace(call);
        }
    }

    /// Asks the user for an access that is not allowed and could be, if there is somebody to ask.
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
        self.answered.borrow_mut().add(capability, what);
        self.settle()
    }

    /// Checks an access, after asking the user for it.
    fn check(&self, access: Access<'_>) -> Result<()> {
        self.ask_for(access)?;
        self.permissions().check(access, &self.call.borrow())
    }

    /// The file or directory `spec`, to read.
    pub(crate) fn readable(&self, spec: &str) -> Result<PathBuf> {
        let path = self.work_dir.join(spec);
        self.ask_for(Access::Read(&path))?;
        self.permissions().check_tree(&path, &self.call.borrow())?;
        Ok(path)
    }

    /// Checks the source of a model, a tokenizer or a dataset, unless `spec` names one that is embedded
    /// or on the hub.
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
        let at = self.call.borrow();
        let permissions = self.permissions();
        let pattern = self.work_dir.join(spec);
        // A pattern that is none, or cannot be listed, is an error of the code that opens it.
        let found = glob::glob(&pattern.to_string_lossy()).into_iter().flatten().flatten();
        for path in found.chain([pattern.clone()].into_iter().filter(|path| path.exists())) {
            permissions.check_tree(&path, &at)?;
        }
        Ok(())
    }

    /// The file or directory `spec`, to write.
    pub(crate) fn writable(&self, spec: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.work_dir.join(spec);
        self.check(Access::Write(&path))?;
        Ok(path)
    }

    /// Checks every path of the options of `init_engine` that is written to.
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

    /// Refuses a host that the recipe may not connect to.
    pub(crate) fn check_host(&self, host: &str) -> Result<()> {
        self.check(Access::Net(host))
    }

    /// Refuses a host that the recipe may not import code from.
    pub(super) fn check_import(&self, host: &str) -> Result<()> {
        self.permissions().check(Access::Import(host), &self.call.borrow())
    }

    fn world(&self) -> AccessContext {
        let path = |name: &str| (self.env)(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let hub = HubSettings::from_env(&self.env).ok();
        let mut caches: Vec<_> = hub.iter().map(|hub| hub.cache_dir.clone()).collect();
        let homes = path("HF_HOME").into_iter();
        let homes = homes.chain(caches.iter().filter_map(|dir| dir.parent().map(Path::to_owned)));
        let homes: Vec<_> = homes.collect();
        caches.extend(address::cache_dir(&self.env));
        let tokens =
            homes.into_iter().flat_map(|dir| [dir.join("token"), dir.join("stored_tokens")]);
        let trust = path("XDG_CONFIG_HOME").map(|dir| dir.join("dsr"));
        AccessContext {
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

    /// The values of parameters on the command line.
    fn given_texts(&self) -> impl Iterator<Item = &str> {
        self.params.iter().filter_map(|given| match &given.value {
            GivenValue::Text(text) => Some(text.as_str()),
            GivenValue::Json(_) => None,
        })
    }

    /// The paths on the command line: to name one is to give it. A file of parameters may have come
    /// with the recipe.
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
