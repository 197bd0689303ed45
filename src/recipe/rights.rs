//! The rights of a recipe that runs: the paths and hosts that it may use.
//!
//! Every function of a recipe that reads, writes or fetches asks here first. It gives the name that
//! stands in the recipe, and gets the path from the working directory.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    address,
    embedded::EMBEDDED,
    parameter_uses::ParameterUses,
    params::{GivenParameter, GivenValue},
};
use crate::{
    config::EngineConfig,
    data::{self, DataSource, SourceName},
    error::{Code, Error, Result},
    fs::Place,
    hub::HubSettings,
    permission::{Access, AccessContext, Audit, Capability, Grants, Permissions, Scope},
    run::Start,
};

/// Asks the user for an access.
pub type Ask = Box<dyn Fn(&Access<'_>) -> bool>;

/// Asks the user whether a text may run: its name and the text.
pub type AskToRun = Box<dyn Fn(&str, &str) -> bool>;

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
    /// Asks the user whether a text may run that the trust is not in, by its name.
    pub ask_to_run: Option<AskToRun>,
    /// The file that gets a line for each access, if there is one.
    pub audit: Option<PathBuf>,
    permissions: RefCell<Arc<Permissions>>,
    /// The uses that the recipe's text makes of its parameters.
    pub(super) uses: RefCell<ParameterUses>,
    /// The texts that the user's trust is in, where it gave the grants.
    trusted: RefCell<Option<BTreeMap<String, String>>>,
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
            ask_to_run: None,
            audit: None,
            permissions: RefCell::default(),
            uses: RefCell::default(),
            trusted: RefCell::default(),
            answered: RefCell::default(),
            call: RefCell::default(),
        }
    }

    /// Settles the permissions; to be called when the parameters are given. Fails if the audit log
    /// cannot be opened.
    pub(crate) fn settle(&self) -> Result<()> {
        let open = |path| Audit::open(path, &self.work_dir);
        let audit = self.audit.as_deref().map(open).transpose()?;
        let mut grants = self.with_named(self.grants.clone());
        grants.extend(&self.answered.borrow());
        let permissions = Permissions::new(grants, self.world(), audit);
        self.permissions.replace(Arc::new(permissions));
        Ok(())
    }

    /// The permissions of the recipe.
    pub fn permissions(&self) -> Arc<Permissions> {
        Arc::clone(&self.permissions.borrow())
    }

    /// The permissions that it would have with `grants`, before it runs.
    pub fn permissions_with(&self, grants: Grants) -> Permissions {
        Permissions::new(self.with_named(grants), self.world(), None)
    }

    /// The grants, with the paths on the command line that the recipe writes to.
    fn with_named(&self, mut grants: Grants) -> Grants {
        let uses = self.uses.borrow();
        for (_, text) in self.given_texts().filter(|(name, _)| uses.written.contains(*name)) {
            if !text.is_empty() {
                grants.add(Capability::Write, text.to_owned());
            }
        }
        grants
    }

    /// The rights, in lines.
    pub fn in_words(&self) -> Vec<String> {
        let permissions = self.permissions();
        let grants = permissions.grants();
        let scopes = [
            ("read", &grants.read),
            ("write", &grants.write),
            ("net", &grants.net),
            ("import", &grants.import),
            ("not read", &grants.deny_read),
            ("not write", &grants.deny_write),
            ("not net", &grants.deny_net),
            ("not import", &grants.deny_import),
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

    /// Gives the session more rights.
    pub(crate) fn give(&self, grants: &Grants) -> Result<()> {
        self.answered.borrow_mut().extend(grants);
        self.settle()
    }

    /// Asks the user for an access that is not allowed and could be, if there is somebody to ask.
    fn ask_for(&self, access: Access<'_>) -> Result<()> {
        let permissions = self.permissions();
        let Some(ask) = &self.ask else { return Ok(()) };
        if permissions.allows(access) || permissions.is_never(access) || !ask(&access) {
            return Ok(());
        }
        self.give_access(access)
    }

    /// Gives the session the right to one access.
    fn give_access(&self, access: Access<'_>) -> Result<()> {
        self.answered.borrow_mut().add(access.capability(), access.what());
        self.settle()
    }

    /// Checks an access, after asking the user for it.
    fn check(&self, access: Access<'_>) -> Result<()> {
        self.ask_for(access)?;
        self.permissions().check(access, &self.call.borrow())
    }

    /// A path as what the permissions of now judge, whenever it is opened.
    pub(crate) fn place(&self, path: impl AsRef<Path>) -> Place {
        Place::guarded(self.work_dir.join(path), self.permissions())
    }

    /// The working directory, whose files are judged when they are opened.
    pub(crate) fn work_place(&self) -> Place {
        self.place("")
    }

    /// The file or directory `spec`, to read.
    pub(crate) fn readable(&self, spec: impl AsRef<Path>) -> Result<Place> {
        let path = self.work_dir.join(spec);
        self.ask_for(Access::Read(&path))?;
        self.permissions().check_tree(&path, &self.call.borrow())?;
        Ok(self.place(path))
    }

    /// The source of a model, a tokenizer or a dataset that `text` names.
    pub(crate) fn source(&self, text: &str) -> Result<DataSource> {
        let name = SourceName::parse(text, &self.work_dir);
        match &name {
            SourceName::Embedded(_) | SourceName::Hub { .. } => {}
            SourceName::Path(path) if path.as_os_str().is_empty() => {}
            SourceName::Path(path) => {
                self.readable(path)?;
            }
            SourceName::Pattern(pattern) => {
                let fixed = fixed_part(pattern);
                // The user may have given what it matches and nothing else.
                if !self.permissions().lists(&self.work_dir.join(&fixed)) {
                    self.check(Access::Read(&self.work_dir.join(fixed)))?;
                }
                let permissions = self.permissions();
                let at = self.call.borrow();
                for found in data::matches(&self.place(pattern))? {
                    permissions.check_tree(found.path(), &at)?;
                }
            }
        }
        Ok(name.beneath(&self.work_place()))
    }

    /// The file or directory `spec`, to write.
    pub fn writable(&self, spec: impl AsRef<Path>) -> Result<Place> {
        let path = self.work_dir.join(spec);
        self.check(Access::Write(&path))?;
        Ok(self.place(path))
    }

    /// The file or directory `spec`, to write, which is given as the user has typed it.
    pub(crate) fn writable_as_typed(&self, spec: &str) -> Result<Place> {
        self.give_access(Access::Write(&self.work_dir.join(spec)))?;
        self.writable(spec)
    }

    /// Notes that the grants are those of the user's trust in these texts.
    pub fn trust(&self, texts: BTreeMap<String, String>) {
        self.trusted.replace(Some(texts));
    }

    /// Refuses to run a text that the user's trust is not in.
    pub(super) fn check_trusted(&self, name: &str, text: &str) -> Result<()> {
        let trusted = self.trusted.borrow();
        let is_other =
            |texts: &BTreeMap<String, String>| texts.get(name).map(String::as_str) != Some(text);
        if name.starts_with(EMBEDDED) || !trusted.as_ref().is_some_and(is_other) {
            return Ok(());
        }
        if self.ask_to_run.as_ref().is_some_and(|ask| ask(name, text)) {
            return Ok(());
        }
        let message = format!("the recipe is trusted without {name}, which it imports");
        Err(Error::new(Code::Permission, message)
            .hint("write its path out and let the recipe ask again, or give the grants by flags"))
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

    /// Refuses, in every thread, a host that the recipe may not ask now.
    pub(crate) fn host_checker(&self) -> impl Fn(&str) -> Result<()> + Send + Sync + use<> {
        let (permissions, at) = (self.permissions(), self.call.borrow().clone());
        move |host| permissions.check(Access::Net(host), &at)
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
            names_hub: self.names_hub(),
            listed: self.named_by_patterns().1,
        }
    }

    /// Whether the text hands a name on the hub, which the user gave, to what loads from there.
    fn names_hub(&self) -> bool {
        let uses = self.uses.borrow();
        let is_hub =
            |text| matches!(SourceName::parse(text, &self.work_dir), SourceName::Hub { .. });
        self.given_texts().any(|(name, text)| uses.sources.contains(name) && is_hub(text))
    }

    /// The parameters on the command line, with their texts.
    fn given_texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.params.iter().filter_map(|given| match &given.value {
            GivenValue::Text(text) => Some((given.name.as_str(), text.as_str())),
            GivenValue::Json(_) => None,
        })
    }

    /// The paths on the command line that the recipe's text uses as paths: to name one is to give it. A
    /// file of parameters may have come with the recipe.
    fn named_paths(&self) -> Vec<PathBuf> {
        let uses = self.uses.borrow();
        let given = self.given_texts().filter(|(name, _)| uses.paths.contains(*name));
        let named = given.filter_map(|(_, text)| match SourceName::parse(text, &self.work_dir) {
            SourceName::Path(path) => Some(path),
            _ => None,
        });
        let start = match &self.start {
            Start::From(path) => Some(path.clone()),
            Start::Afresh | Start::Latest => None,
        };
        let paths = named.chain(start).filter(|path| !path.as_os_str().is_empty());
        let paths = paths.filter(|path| self.work_dir.join(path).exists());
        paths.chain(self.named_by_patterns().0).collect()
    }

    /// The files that patterns on the command line match, and the directories on the way to them. A link
    /// that leads out of the directory before the first wildcard is none of them.
    fn named_by_patterns(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let uses = self.uses.borrow();
        let (mut files, mut dirs) = (Vec::new(), Vec::new());
        for (_, text) in self.given_texts().filter(|(name, _)| uses.paths.contains(*name)) {
            let SourceName::Pattern(pattern) = SourceName::parse(text, &self.work_dir) else {
                continue;
            };
            let Ok(fixed) = self.work_dir.join(fixed_part(&pattern)).canonicalize() else {
                continue;
            };
            // A pattern that is none, or cannot be listed, is an error of the code that opens it.
            let found = data::matches(&Place::unguarded(self.work_dir.join(pattern)));
            for file in found.unwrap_or_default() {
                let Ok(real) = file.path().canonicalize() else { continue };
                if real.starts_with(&fixed) {
                    let parents = real.ancestors().skip(1);
                    dirs.extend(
                        parents.take_while(|dir| dir.starts_with(&fixed)).map(Path::to_owned),
                    );
                    files.push(real);
                }
            }
        }
        (files, dirs)
    }
}

/// A path's directories before its first wildcard.
pub(super) fn fixed_part(path: &Path) -> PathBuf {
    let is_wild =
        |part: &std::path::Component<'_>| part.as_os_str().to_string_lossy().contains(data::WILD);
    let fixed: PathBuf = path.components().take_while(|part| !is_wild(part)).collect();
    if fixed.as_os_str().is_empty() { ".".into() } else { fixed }
}
