//! The imports of a recipe: `dsr:NAME` from the binary, files in its own directory, and texts at
//! addresses, with their hash and a grant. Modules of its bundle come before the files.
//!
//! Rhai's own file resolver follows `../` and absolute paths anywhere. Here a path must be relative and
//! without `..`, and must stay in the recipe's directory after symbolic links. A module is compiled and
//! run once.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::{Rc, Weak},
};

use rhai::{AST, EvalAltResult, FnNamespace, Module, ModuleResolver, Position, Scope};

use super::{
    imports::Imports,
    params::Parameter,
    translate::CLOSURE,
    workspace::{Look, Workspace},
};
use crate::error::{Code, Error, Result};

type Resolved = std::result::Result<Rc<Module>, Box<EvalAltResult>>;

/// Looks for mistakes in a source before it runs.
pub(crate) type Check = fn(&rhai::Engine, &str, &AST, &Imports, &[Parameter]) -> Result<()>;

/// Resolves `import` for one host.
pub(crate) struct Resolver<H> {
    /// Weak, as the engine that owns this resolver is reachable from the host.
    host: Weak<H>,
    check: Check,
    loaded: RefCell<BTreeMap<String, Rc<Module>>>,
    loading: RefCell<Vec<String>>,
}

impl<H: AsRef<Workspace>> Resolver<H> {
    pub(crate) fn new(host: &Rc<H>, check: Check) -> Self {
        let (loaded, loading) = Default::default();
        Self { host: Rc::downgrade(host), check, loaded, loading }
    }

    fn load(
        &self,
        engine: &rhai::Engine,
        name: &str,
        text: &str,
        workspace: &Workspace,
    ) -> Resolved {
        let within = |e: Box<EvalAltResult>| {
            Box::new(EvalAltResult::ErrorInModule(name.to_owned(), e, Position::NONE))
        };
        let ast = workspace.sources.compile(engine, name, text).map_err(|e| within(e.into()))?;
        let parameters = workspace.parameters.borrow();
        let imports = Imports::load(engine, workspace, name, &ast, &parameters);
        (self.check)(engine, name, &ast, &imports, &parameters).map_err(|e| within(e.into()))?;
        drop(parameters);
        let mut module = Module::eval_ast_as_new(Scope::new(), &ast, engine).map_err(within)?;
        lend_closures(&mut module, &ast);
        Ok(module.into())
    }
}

/// Makes the closures of a module global, so that a caller of the module can call a closure that it
/// returned: Rhai looks for others only in the source that calls.
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

impl<H: AsRef<Workspace> + 'static> ModuleResolver for Resolver<H> {
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
        let workspace = H::as_ref(&host);
        workspace.rights.set_call(source, position);
        let (name, text) = workspace.find(source, path, Look::Run).map_err(|e| at(e.into()))?;
        if let Some(module) = self.loaded.borrow().get(&name) {
            return Ok(Rc::clone(module));
        }
        if self.loading.borrow().contains(&name) {
            let chain = self.loading.borrow().join(" -> ");
            let message = format!("imports go round in a circle: {chain} -> {name}");
            return Err(at(Error::new(Code::Recipe, message).into()));
        }
        self.loading.borrow_mut().push(name.clone());
        let module = self.load(engine, &name, &text, workspace);
        self.loading.borrow_mut().pop();
        let module = module.map_err(at)?;
        self.loaded.borrow_mut().insert(name, Rc::clone(&module));
        Ok(module)
    }
}
