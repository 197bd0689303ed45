//! The surroundings of a recipe's text: its rights, its lock, and the texts that it may load.

use std::{cell::RefCell, collections::BTreeMap, path::PathBuf};

use super::{
    address::{Address, has_files, is_address, without_hash},
    bundle::Bundle,
    diagnostics::Failure,
    embedded::{self, EMBEDDED},
    file::Recipe,
    imported_files::ImportedFiles,
    lock::{self, Lock},
    params::Parameter,
    rights::Rights,
    sources::Sources,
};
use crate::error::{Code, Error, Result};

/// The surroundings of a recipe's text.
pub struct Workspace {
    /// Directories, environment, parameters and permissions.
    pub rights: Rights,
    /// The hashes that the hub's files and the imports must have.
    pub lock: Option<Lock>,
    /// Whether the recipe may load only what is in the lock.
    pub frozen: bool,
    /// Whether the hub is asked for the commits of branches although the cache has an answer.
    pub refresh: bool,
    pub(crate) sources: Sources,
    /// The parameters that the recipe declares.
    pub(crate) parameters: RefCell<Vec<Parameter>>,
    opened: RefCell<Opened>,
    files: RefCell<ImportedFiles>,
    /// Texts of addresses by their hash; the cache on disk may be missing.
    fetched: RefCell<BTreeMap<String, String>>,
}

/// The recipe that is read.
#[derive(Debug, Default)]
struct Opened {
    name: String,
    bundle: Option<Bundle>,
}

/// Why an import is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// To be read; a text in the cache needs no grant.
    Read,
    /// To be run.
    Run,
}

impl Workspace {
    /// For a recipe in `base_dir`, without parameters, environment and lock.
    pub fn new(base_dir: impl Into<PathBuf>) -> Self {
        Self {
            rights: Rights::new(base_dir),
            lock: None,
            frozen: false,
            refresh: false,
            sources: Sources::default(),
            parameters: RefCell::default(),
            opened: RefCell::default(),
            files: RefCell::default(),
            fetched: RefCell::default(),
        }
    }

    /// Notes which recipe is read or run, and its bundle, if it is one.
    pub(crate) fn open(&self, recipe: &Recipe) -> Result<(), Failure> {
        let bundle = Bundle::open(recipe)?;
        self.opened.replace(Opened { name: recipe.name.clone(), bundle });
        Ok(())
    }

    /// The name and text of the module `path` that `importer` imports.
    pub(super) fn find(
        &self,
        importer: Option<&str>,
        path: &str,
        look: Look,
    ) -> Result<(String, String)> {
        let (name, text) = self.find_unlocked(importer, path, look)?;
        if look == Look::Run {
            self.rights.check_trusted(&name, &text)?;
        }
        match (&self.lock, self.frozen) {
            (_, false) => {}
            (Some(lock), true) => lock.check_text(without_hash(&name), &text)?,
            (None, true) => return Err(lock::missing()),
        }
        Ok((name, text))
    }

    fn find_unlocked(
        &self,
        importer: Option<&str>,
        path: &str,
        look: Look,
    ) -> Result<(String, String)> {
        if let Some(name) = path.strip_prefix(EMBEDDED) {
            return embedded::known_module(name).map(|text| (path.to_owned(), text.to_owned()));
        }
        if is_address(path) {
            let address = Address::parse(path)?;
            let text = self.text_at(&address, look)?;
            let sha256 = address.sha256.as_deref().unwrap_or_default();
            return Ok((address.with_hash(sha256), text));
        }
        if let Some(found) = self.bundled_module(importer, path) {
            return Ok(found);
        }
        let is_embedded = importer.is_some_and(|source| source.starts_with(EMBEDDED));
        let recipe_has_files = has_files(&self.opened.borrow().name);
        if is_embedded || !recipe_has_files || importer.is_some_and(is_address) {
            let what = if is_embedded { "a module of dsr" } else { "what is at an address" };
            let message = format!("{what} cannot import the file \"{path}\"");
            return Err(Error::new(Code::Permission, message)
                .hint("it imports \"dsr:NAME\", or an address with its hash"));
        }
        let recipe = self.opened.borrow().name.clone();
        let importer = importer.filter(|importer| *importer != recipe);
        self.files.borrow_mut().find(&self.rights.base_dir.borrow(), importer, path)
    }

    /// Reads imported files anew from now on.
    pub(crate) fn forget_files(&self) {
        self.files.take();
    }

    /// The module `path` of the bundle that `importer` imports.
    fn bundled_module(&self, importer: Option<&str>, path: &str) -> Option<(String, String)> {
        let Opened { name, bundle } = &*self.opened.borrow();
        match importer {
            // Code at an address reaches none of the recipe's files here either.
            Some(importer) if importer != name && !has_files(importer) => None,
            _ => bundle.as_ref()?.module(importer, path),
        }
    }

    /// The text at an address that is imported. A text of the recipe's bundle is the recipe's own;
    /// other code runs only where the user lets it be imported.
    fn text_at(&self, address: &Address, look: Look) -> Result<String> {
        if let Some(text) = self.bundled_text(address)? {
            return Ok(text);
        }
        if look == Look::Run {
            let allowed = self.rights.check_import(&address.host);
            allowed.map_err(|e| address.with_hint(e))?;
        }
        let known = |sha256: &String| self.fetched.borrow().get(sha256).cloned();
        if let Some(text) = address.sha256.as_ref().and_then(known) {
            return Ok(text);
        }
        let permissions = self.rights.permissions_with(self.rights.grants.clone());
        let text = address.obtain(&self.rights.env, permissions)?;
        let sha256 = address.sha256.clone().unwrap_or_default();
        self.fetched.borrow_mut().insert(sha256, text.clone());
        Ok(text)
    }

    /// The text at an address, if the bundle has it.
    fn bundled_text(&self, address: &Address) -> Result<Option<String>> {
        let opened = self.opened.borrow();
        opened.bundle.as_ref().map_or(Ok(None), |bundle| bundle.at_address(address))
    }

    /// Whether the bundle has the text at an address.
    pub(super) fn is_bundled(&self, address: &Address) -> bool {
        !matches!(self.bundled_text(address), Ok(None))
    }
}
