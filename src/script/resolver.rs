//! What a recipe can import: `dsr:NAME` from the binary, files in its own directory, and what is at an
//! address, with its hash and a grant. What is in its bundle comes before the files.
//!
//! Rhai's own file resolver follows `../` and absolute paths anywhere; this one does not. A path
//! must be relative and without `..`, and what it leads to after symbolic links must still be
//! inside of the recipe's directory. A module is compiled and run once.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
    rc::{Rc, Weak},
};

use rhai::{AST, EvalAltResult, FnNamespace, Module, ModuleResolver, Position, Scope};

use super::{
    check,
    host::Host,
    imports::Imports,
    pinned::{Address, is_address},
};
use crate::{
    config::suggest::nearest,
    error::{Code, Error, IoContext, Result},
    fs,
};

/// The prefix of what is embedded in the binary.
pub(crate) const EMBEDDED: &str = "dsr:";

/// What the names of functions without a name begin with.
pub(super) const CLOSURE: &str = "anon$";

/// The modules of the standard library: name and text.
pub(crate) const STDLIB: &[(&str, &str)] = &[
    ("metrics", include_str!("../../stdlib/metrics.rhai")),
    ("schedule", include_str!("../../stdlib/schedule.rhai")),
    ("trainer", include_str!("../../stdlib/trainer.rhai")),
];

type Resolved = std::result::Result<Rc<Module>, Box<EvalAltResult>>;

/// Resolves `import` for one session.
pub(crate) struct Resolver {
    /// Weak, as the engine that owns this resolver is reachable from the host.
    host: Weak<Host>,
    loaded: RefCell<BTreeMap<String, Rc<Module>>>,
    loading: RefCell<Vec<String>>,
}

impl Resolver {
    pub(crate) fn new(host: &Rc<Host>) -> Self {
        let (loaded, loading) = Default::default();
        Self { host: Rc::downgrade(host), loaded, loading }
    }

    fn load(&self, engine: &rhai::Engine, name: &str, text: &str, host: &Host) -> Resolved {
        let within = |e: Box<EvalAltResult>| {
            Box::new(EvalAltResult::ErrorInModule(name.to_owned(), e, Position::NONE))
        };
        let ast = host.sources.compile(engine, name, text).map_err(|e| within(e.into()))?;
        let imports = Imports::load(engine, host, name, &ast, &host.parameters());
        check::check(engine, name, &ast, &imports, &host.parameters())
            .map_err(|e| within(e.into()))?;
        let mut module = Module::eval_ast_as_new(Scope::new(), &ast, engine).map_err(within)?;
        lend_closures(&mut module, &ast);
        Ok(module.into())
    }
}

/// Lets the closures of a module be called where it is imported: a function that it returns may be
/// one. Rhai looks for them in the source that calls only, unless they are global.
fn lend_closures(module: &mut Module, ast: &AST) {
    let mut hashes = Module::new();
    for (.., name, _, function) in ast.shared_lib().iter_script_fn_info() {
        if name.starts_with(CLOSURE) {
            let hash = hashes.set_script_fn(Rc::clone(function));
            #[allow(deprecated, reason = "Rhai has no other way for a function of a script")]
            module.update_fn_namespace(hash, FnNamespace::Global);
        }
    }
    module.build_index();
}

impl ModuleResolver for Resolver {
    fn resolve(
        &self,
        engine: &rhai::Engine,
        source: Option<&str>,
        path: &str,
        position: Position,
    ) -> Resolved {
        let at = |mut e: Box<EvalAltResult>| {
            if e.position().is_none() {
                e.set_position(position);
            }
            e
        };
        let Some(host) = self.host.upgrade() else {
            return Err(Error::new(Code::Internal, "import after the session ended").into());
        };
        host.set_place(source, position);
        let (name, text) = find(&host, source, path, Look::Run).map_err(|e| at(e.into()))?;
        if let Some(module) = self.loaded.borrow().get(&name) {
            return Ok(Rc::clone(module));
        }
        if self.loading.borrow().contains(&name) {
            let chain = self.loading.borrow().join(" -> ");
            let message = format!("imports go round in a circle: {chain} -> {name}");
            return Err(at(Error::new(Code::Recipe, message).into()));
        }
        self.loading.borrow_mut().push(name.clone());
        let module = self.load(engine, &name, &text, &host);
        self.loading.borrow_mut().pop();
        let module = module.map_err(at)?;
        self.loaded.borrow_mut().insert(name, Rc::clone(&module));
        Ok(module)
    }
}

/// Why an import is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// To be read: what is in the cache is nobody's business.
    Read,
    /// To be run.
    Run,
}

/// The name and text of what `path` means when it is imported from `importer`.
pub(super) fn find(
    host: &Host,
    importer: Option<&str>,
    path: &str,
    look: Look,
) -> Result<(String, String)> {
    let (name, text) = unlocked(host, importer, path, look)?;
    host.check_locked(&name, &text)?;
    Ok((name, text))
}

fn unlocked(
    host: &Host,
    importer: Option<&str>,
    path: &str,
    look: Look,
) -> Result<(String, String)> {
    if let Some(name) = path.strip_prefix(EMBEDDED) {
        return embedded(name).map(|text| (path.to_owned(), text.to_owned()));
    }
    if is_address(path) {
        let address = Address::parse(path)?;
        let text = host.text_at(&address, look)?;
        let sha256 = address.sha256.as_deref().unwrap_or_default();
        return Ok((address.with_hash(sha256), text));
    }
    if let Some(found) = host.bundled(importer, path) {
        return Ok(found);
    }
    let is_embedded = importer.is_some_and(|source| source.starts_with(EMBEDDED));
    if is_embedded || !host.has_files() || importer.is_some_and(is_address) {
        let what = if is_embedded { "a module of dsr" } else { "what is at an address" };
        let message = format!("{what} cannot import the file \"{path}\"");
        return Err(Error::new(Code::Permission, message)
            .hint("it imports \"dsr:NAME\", or an address with its hash"));
    }
    let base = &*host.base_dir.borrow();
    let file = confined(base, importer, path)?;
    let text = fs::read_to_string(&file)?;
    let relative = file.strip_prefix(base.canonicalize().at("open", base)?).unwrap_or(&file);
    Ok((relative.display().to_string(), text))
}

/// The name of the file that `path` means in the folder of the module `importer`, or in the recipe's
/// own, as far as it can be told without looking; `None` for what may not be imported.
pub(super) fn relative_name(importer: Option<&str>, path: &str) -> Option<String> {
    let path = Path::new(path);
    let mut file =
        importer.and_then(|name| Path::new(name).parent()).unwrap_or(Path::new("")).join(path);
    if !path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return None;
    }
    if file.extension().is_none_or(|e| e != "rhai") {
        file.as_mut_os_string().push(".rhai");
    }
    let parts = file.components().filter(|c| matches!(c, Component::Normal(_)));
    let parts: Vec<_> = parts.map(|c| c.as_os_str().to_string_lossy()).collect();
    Some(parts.join("/"))
}

/// The text of the module of the standard library called `name`.
pub(super) fn module(name: &str) -> Option<&'static str> {
    STDLIB.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

fn embedded(name: &str) -> Result<&'static str> {
    if let Some(text) = module(name) {
        return Ok(text);
    }
    let names: Vec<_> = STDLIB.iter().map(|(known, _)| *known).collect();
    let error =
        Error::new(Code::UnknownFunction, format!("dsr has no module \"{EMBEDDED}{name}\""));
    let error = match nearest(name, names.iter().copied()) {
        Some(near) => error.hint(format!("did you mean \"{EMBEDDED}{near}\"?")),
        None => error,
    };
    Err(match names.is_empty() {
        true => error,
        false => error.hint(format!("it has: {}", names.join(", "))),
    })
}

/// The file that `path` names, proven to be inside of `base`.
fn confined(base: &Path, importer: Option<&str>, path: &str) -> Result<PathBuf> {
    let refused = |why: &str| {
        Error::new(Code::Permission, format!("cannot import \"{path}\": {why}"))
            .hint("a recipe imports from its own directory: \"name\" or \"folder/name\"")
    };
    let relative = Path::new(path);
    if path.contains("://") {
        return Err(refused("an address begins https://"));
    }
    if relative.is_absolute() {
        return Err(refused("the path is absolute"));
    }
    if !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(refused("the path leaves the recipe's directory"));
    }
    let base = base.canonicalize().at("open", base)?;
    // Files that were imported are known by their path from the base; the recipe itself is in it.
    let from = importer.map(Path::new).filter(|source| source.is_relative());
    let from = from.map(|source| base.join(source)).filter(|source| source.is_file());
    let folder =
        from.and_then(|source| source.parent().map(Path::to_owned)).unwrap_or(base.clone());
    let mut file = folder.join(relative);
    if file.extension().is_none_or(|e| e != "rhai") {
        file.as_mut_os_string().push(".rhai");
    }
    if !file.exists() {
        return Err(Error::new(
            Code::Io,
            format!("cannot import \"{path}\": there is no file {}", file.display()),
        ));
    }
    let file = file.canonicalize().at("open", &file)?;
    if !file.starts_with(&base) {
        return Err(refused("it is a link that leaves the recipe's directory"));
    }
    Ok(file)
}
