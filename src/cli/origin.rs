//! The origin of a recipe and its imports: an address, the caches, a lock.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{
    error::Result,
    permission::{Grants, Scope},
    recipe::{
        Failure, Recipe, Workspace, address,
        lock::{self, Lock},
        rights::Environment,
    },
};

/// From where code may be fetched.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Where its code may come from")]
pub(super) struct FetchArgs {
    /// Let the recipe import code from these hosts, or from all; each import needs a hash.
    #[arg(long, value_name = "HOSTS", num_args = 0..=1, require_equals = true, value_delimiter = ',', default_missing_value = "")]
    allow_import: Option<Vec<String>>,

    /// Refuse imports from these hosts, or from all; denying wins over allowing.
    #[arg(long, value_name = "HOSTS", num_args = 0..=1, require_equals = true, value_delimiter = ',', default_missing_value = "")]
    deny_import: Option<Vec<String>>,

    /// Use the caches only, never the network.
    #[arg(long)]
    offline: bool,
}

impl FetchArgs {
    /// The grants and denials.
    pub(super) fn grants(&self) -> Grants {
        let scope = |flag: &Option<Vec<String>>| flag.clone().map_or(Scope::None, Scope::of_flag);
        let (import, deny_import) = (scope(&self.allow_import), scope(&self.deny_import));
        Grants { import, deny_import, ..Grants::default() }
    }

    /// Lets hosts be imported from.
    pub(super) fn allow(&mut self, hosts: &Scope) {
        if !hosts.items().is_empty() {
            self.allow_import.get_or_insert_default().extend(hosts.items().iter().cloned());
        }
    }

    /// The lists among the flags, by name.
    pub(super) fn lists(&self) -> [(&'static str, &Option<Vec<String>>); 2] {
        [("--allow-import", &self.allow_import), ("--deny-import", &self.deny_import)]
    }

    /// The flags that are no lists.
    pub(super) fn words(&self) -> Option<String> {
        self.offline.then(|| "--offline".to_owned())
    }

    /// The recipe that `spec` names: an address with its hash, a file, or a recipe of dsr.
    pub(super) fn open(&self, spec: &Path) -> Result<Recipe> {
        self.open_with(spec, self.grants())
    }

    /// The same with more that is given and denied.
    pub(super) fn open_with(&self, spec: &Path, grants: Grants) -> Result<Recipe> {
        match spec.to_str().filter(|text| address::is_address(text)) {
            Some(address) => address::recipe(address, &self.env(), grants),
            None => Recipe::open(spec),
        }
    }

    /// The environment, as these flags let dsr see it.
    pub(super) fn env(&self) -> Environment {
        environment(self.offline)
    }
}

/// The environment; offline as `HF_HUB_OFFLINE` says it.
pub(super) fn environment(offline: bool) -> Environment {
    Box::new(move |name| match name {
        "HF_HUB_OFFLINE" if offline => Some("1".to_owned()),
        _ => std::env::var(name).ok(),
    })
}

/// The lock that is used.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Where its code may come from")]
pub(super) struct LockArgs {
    /// Use this lock [default: NAME.lock beside the recipe, where there is one].
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,

    /// Refuse everything that is not in the lock, or has another hash there.
    #[arg(long)]
    frozen: bool,
}

impl LockArgs {
    /// Gives `workspace` the lock of the recipe.
    pub(super) fn settle(&self, workspace: &mut Workspace, recipe: &Recipe) -> Result<(), Failure> {
        workspace.lock = Lock::find(recipe, self.lock.as_deref())?;
        workspace.frozen = self.frozen;
        match &workspace.lock {
            None if self.frozen => Err(lock::missing().into()),
            _ => Ok(()),
        }
    }

    /// The arguments that say the same, for a rank.
    pub(super) fn words(&self) -> Vec<String> {
        let lock = self.lock.as_ref().map(|file| format!("--lock={}", file.display()));
        lock.into_iter().chain(self.frozen.then(|| "--frozen".to_owned())).collect()
    }
}
