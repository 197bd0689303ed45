//! A live session: one input after another, over variables and functions that stay.
//!
//! There is one scope for all inputs and one syntax tree of all functions. An input is read like a
//! recipe: parsed, its parameters declared, its names checked against what the session has; only then
//! does it run. One that fails leaves variables, functions, imports and parameters as they were,
//! also those of its own statements before the fault. One that is interrupted keeps what it had done:
//! a loop that the user stops is no mistake.
//!
//! Nothing here prints; what a value is like comes as a [`Card`].

pub mod card;
pub mod complete;
pub mod curves;
pub mod input;

mod chain;
mod cursor;
mod help;
mod inspect;
mod names;
mod record;
mod statements;
mod trial;
mod undo;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    rc::Rc,
    sync::{Arc, OnceLock},
    thread,
};

use rhai::{AST, ASTFlags, Dynamic, EvalAltResult, Expr, Ident, Position, Scope, Stmt};

pub use self::inspect::Variable;
use self::{
    names::Names,
    record::Record,
    undo::{Undo, drop_shadowed},
};
pub use super::lexer::{Class, KEYWORDS, Token, tokens, word};
use super::{
    Failure, Host, Recipe,
    check::{self, Known},
    diagnostics::diagnose,
    feed::Feed,
    imports::{self, Imports},
    params::{self, Parameter},
    pinned::has_files,
    reference::{self, Entry},
    runtime,
    sources::LIVE,
};
use crate::error::Code;

/// What the session is called where a recipe would be called by its file.
const NAME: &str = "repl";

/// A session, from the first input to the last.
pub struct Live {
    host: Rc<Host>,
    parser: rhai::Engine,
    engine: Rc<rhai::Engine>,
    /// Engines of earlier parameters and imports: functions that datasets keep run on them.
    retired: Vec<Rc<rhai::Engine>>,
    scope: Scope<'static>,
    functions: AST,
    parameters: Vec<Parameter>,
    /// What was imported, by the name that it is used under.
    modules: BTreeMap<String, rhai::Shared<rhai::Module>>,
    /// The imports of files, each with the directory that it was looked for in.
    files: BTreeSet<(PathBuf, String)>,
    known: Known,
    record: Record,
    inputs: usize,
    /// What can be called, until an input adds to it.
    names: RefCell<Option<Rc<Names>>>,
    docs: Arc<OnceLock<Vec<Entry>>>,
}

/// A value that an input gave.
pub struct Value(Dynamic);

/// An input that was read and can be run.
struct Read {
    ast: AST,
    imports: Imports,
    parameters: Vec<Parameter>,
    engine: Rc<rhai::Engine>,
}

impl Live {
    /// A session in the world that `host` describes.
    ///
    /// # Errors
    /// The audit log cannot be opened.
    pub fn new(mut host: Host) -> Result<Self, Failure> {
        host.feed = Some(Rc::new(Feed::new(host.interrupt.clone())));
        let host = Rc::new(host);
        host.main.replace(NAME.to_owned());
        host.settle_permissions()?;
        let engine = Self::engine(&host, &[], &BTreeMap::new());
        Ok(Self {
            parser: runtime::parser(),
            engine,
            retired: Vec::new(),
            scope: Scope::new(),
            functions: AST::empty(),
            parameters: Vec::new(),
            modules: BTreeMap::new(),
            files: BTreeSet::new(),
            known: Known::default(),
            record: Record::default(),
            inputs: 0,
            names: RefCell::default(),
            docs: Arc::default(),
            host,
        })
    }

    /// Runs what the user typed.
    ///
    /// # Errors
    /// All mistakes that are found before it runs, or the one that ended it;
    /// [`Code::Interrupted`] where the user stopped it.
    pub fn eval(&mut self, text: &str) -> Result<Value, Failure> {
        self.inputs += 1;
        let name = format!("<repl:{}>", self.inputs);
        self.run(&name, text, &[])
    }

    /// Runs a recipe as one input. Its parameters have the values that the host was given; what it
    /// and later inputs import is looked for in its directory.
    pub fn load(&mut self, recipe: &Recipe) -> Result<Value, Failure> {
        let host = Rc::clone(&self.host);
        let before = self.import_from(recipe.base_dir.clone());
        let value = self.run(&recipe.name, &recipe.text, &host.params);
        if value.as_ref().is_err_and(|failure| failure.code() != Code::Interrupted) {
            self.import_from(before);
        }
        value
    }

    /// Changes the directory that imports are looked for in, and gives the one before.
    fn import_from(&mut self, dir: PathBuf) -> PathBuf {
        let before = self.host.base_dir.replace(dir);
        if before != *self.host.base_dir.borrow() {
            // The resolver of an engine keeps modules by their paths in the directory.
            let engine = Self::engine(&self.host, &self.parameters, &self.modules);
            self.retired.push(std::mem::replace(&mut self.engine, engine));
        }
        before
    }

    /// Forgets all that the inputs made.
    pub fn reset(&mut self) {
        self.scope = Scope::new();
        self.functions = AST::empty();
        self.parameters.clear();
        self.modules.clear();
        self.files.clear();
        self.known = Known::default();
        self.record = Record::default();
        self.retired.clear();
        self.names.replace(None);
        self.clear_curves();
        self.host.sources.clear_inputs();
        self.engine = Self::engine(&self.host, &[], &self.modules);
    }

    /// A value as a recipe would print it.
    pub fn print(&self, value: &Value) -> String {
        self.described(&value.0)
    }

    /// The session as the text of a recipe.
    pub fn saved(&self) -> String {
        self.record.text(&self.parameters)
    }

    /// The imports of files, each with the directory that it was looked for in.
    pub fn imported_files(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.files.iter().map(|(dir, path)| (dir.as_path(), path.as_str()))
    }

    /// The world of the session.
    pub fn host(&self) -> &Rc<Host> {
        &self.host
    }

    /// Reads the reference on another thread, for the help that somebody will soon ask for.
    pub fn read_ahead(&self) {
        let docs = Arc::clone(&self.docs);
        thread::spawn(move || {
            docs.get_or_init(reference::entries);
        });
    }

    /// What can be called now.
    fn names(&self) -> Rc<Names> {
        let make = || Rc::new(Names::new(&self.engine, &self.functions));
        Rc::clone(self.names.borrow_mut().get_or_insert_with(make))
    }

    fn engine(
        host: &Rc<Host>,
        parameters: &[Parameter],
        modules: &BTreeMap<String, rhai::Shared<rhai::Module>>,
    ) -> Rc<rhai::Engine> {
        let mut engine = runtime::engine(host, params::module(parameters));
        for (name, module) in modules {
            engine.register_static_module(name, Rc::clone(module));
        }
        Rc::new(engine)
    }

    fn run(&mut self, name: &str, text: &str, given: &[params::Given]) -> Result<Value, Failure> {
        let values = self.host.sources.insert_input(name, text);
        let read = self.read(&values, given)?;
        let mut whole = self.functions.clone();
        whole.combine(read.ast.clone());
        whole.set_source(LIVE);
        self.check(&read, &whole)?;

        self.host.interrupt.clear();
        let so_far = self.record.text_with(text, &read.parameters);
        self.host.begin(so_far, &read.parameters)?;
        let undo = Undo::of(&self.scope);
        let program = self.with_constants(&whole);
        self.host.engine.replace(Rc::downgrade(&read.engine));
        let outcome = read.engine.eval_ast_with_scope::<Dynamic>(&mut self.scope, &program);
        let failure = match outcome {
            Ok(value) => {
                let value = self.shown(text, &read.ast, value);
                self.record.add(text);
                self.keep(read, whole);
                return Ok(Value(value));
            }
            Err(error) => {
                (error.position(), diagnose(&read.engine, *error, LIVE, &self.host.sources))
            }
        };
        match failure {
            (position, failure) if failure.code() == Code::Interrupted => {
                self.record.add_until(text, self.host.sources.place(LIVE, position).as_ref());
                self.keep(read, whole);
                Err(failure)
            }
            (_, failure) => {
                undo.restore(&mut self.scope);
                self.host.begin(self.saved(), &self.parameters)?;
                Err(failure)
            }
        }
    }

    /// Parses the text of an input, declares its parameters and finds the engine that has them.
    fn read(&mut self, text: &str, given: &[params::Given]) -> Result<Read, Failure> {
        let host = Rc::clone(&self.host);
        let failed = |engine: &rhai::Engine, error: Box<EvalAltResult>| {
            diagnose(engine, *error, LIVE, &host.sources)
        };
        let of = |error| Failure::of(error, &[], &host.sources);
        let ast = self.parser.compile(text).map_err(|e| failed(&self.parser, e.into()))?;
        host.sources.insert_live_ast(&ast);
        let mut own = params::scan(LIVE, &ast).map_err(of)?;
        params::give(&mut own, given).map_err(of)?;
        let mut parameters = self.parameters.clone();
        parameters.retain(|p| own.iter().all(|new| new.name != p.name));
        let engine = match own.is_empty() {
            true => Rc::clone(&self.engine),
            false => {
                parameters.extend(own);
                Self::engine(&host, &parameters, &self.modules)
            }
        };
        let mut ast =
            engine.compile_with_scope(&self.scope, text).map_err(|e| failed(&engine, e.into()))?;
        ast.set_source(LIVE);
        let imports = Imports::load(&engine, &host, LIVE, &ast, &parameters);
        Ok(Read { ast, imports, parameters, engine })
    }

    /// Looks for mistakes that can be seen before the input runs.
    fn check(&mut self, read: &Read, whole: &AST) -> Result<(), Failure> {
        self.known.variables = self
            .scope
            .iter_raw()
            .map(|(name, _, value)| (name.to_owned(), value.type_id()))
            .collect();
        let all = (whole, &read.ast);
        check::check_input(&read.engine, LIVE, all, &read.imports, &read.parameters, &self.known)
            .map_err(|e| Failure::of(e, &[], &self.host.sources))
    }

    /// What is to be seen of an input: its value, or that of the variable that its last statement
    /// gave one; nothing where it ends in a semicolon.
    fn shown(&self, text: &str, ast: &AST, value: Dynamic) -> Dynamic {
        let tokens = tokens(text);
        let last = tokens.iter().rev().find(|token| token.class != Class::Comment);
        if last.is_some_and(|last| last.of(text) == ";") {
            return Dynamic::UNIT;
        }
        let given = match ast.statements().last() {
            Some(Stmt::Var(variable, ..)) => Some(variable.0.name.clone()),
            Some(Stmt::Assignment(assignment)) => match &assignment.1.lhs {
                Expr::Variable(variable, ..) => Some(variable.1.clone()),
                _ => None,
            },
            _ => None,
        };
        given.and_then(|name| self.scope.get(&name).cloned()).unwrap_or(value)
    }

    /// Makes what the input declared a part of the session.
    fn keep(&mut self, read: Read, mut whole: AST) {
        self.known.add(LIVE, &read.ast, &read.imports);
        let Read { ast, parameters, engine, .. } = read;
        let imported = imports::of(&ast, &parameters);
        let files = imported.iter().filter(|import| has_files(&import.path));
        let dir = self.host.base_dir.borrow().clone();
        self.files.extend(files.map(|import| (dir.clone(), import.path.clone())));
        let imported: Vec<_> = imported
            .into_iter()
            .filter(|import| {
                let is_at_the_top = |s: &Stmt| s.position() == import.position;
                ast.statements().iter().any(is_at_the_top)
            })
            .collect();
        let mut is_new = false;
        for import in imported {
            let resolver = engine.module_resolver();
            // An import that was not come to may fail.
            if let Ok(module) = resolver.resolve(&engine, Some(LIVE), &import.path, import.position)
            {
                self.modules.insert(import.alias, module);
                is_new = true;
            }
        }
        self.parameters = parameters;
        let engine = match is_new {
            true => {
                self.retired.push(engine);
                Self::engine(&self.host, &self.parameters, &self.modules)
            }
            false => engine,
        };
        let ast_has_names = ast.has_functions() || !Rc::ptr_eq(&engine, &self.engine);
        if !Rc::ptr_eq(&engine, &self.engine) {
            self.retired.push(std::mem::replace(&mut self.engine, engine));
        }
        whole.clear_statements();
        if ast_has_names {
            self.names.replace(None);
        }
        self.functions = whole;
        self.scope = drop_shadowed(std::mem::take(&mut self.scope));
    }

    /// The program with the constants of earlier inputs in front, each in its own place, so that
    /// functions see them as `global::NAME`.
    fn with_constants(&self, whole: &AST) -> AST {
        let len = self.scope.len();
        let again = |(from_end, (name, is_constant, value)): (usize, (&str, bool, &Dynamic))| {
            let index = std::num::NonZeroUsize::new(from_end + 1)?;
            let value = Expr::DynamicConstant(value.clone().into(), Position::NONE);
            let ident = Ident { name: name.into(), pos: Position::NONE };
            let variable = (ident, value, Some(index));
            is_constant.then(|| Stmt::Var(variable.into(), ASTFlags::CONSTANT, Position::NONE))
        };
        let constants: Vec<Stmt> = match whole.has_functions() && len > 0 {
            true => self.scope.iter_raw().enumerate().filter_map(again).collect(),
            false => Vec::new(),
        };
        let statements = constants.into_iter().chain(whole.statements().iter().cloned());
        AST::new_with_source(statements, whole.shared_lib().clone(), LIVE)
    }
}

impl Value {
    /// Whether there is nothing to show.
    pub fn is_nothing(&self) -> bool {
        self.0.is_unit()
    }
}

impl Host {
    /// Notes what runs now: the session's text, for runs and checkpoints that keep it, and the
    /// parameters.
    fn begin(&self, text: String, parameters: &[Parameter]) -> Result<(), Failure> {
        self.sources.insert_text(NAME, &text);
        self.values.replace(params::to_json(parameters)?);
        self.printed.set(0);
        self.parameters.replace(parameters.to_vec());
        Ok(())
    }
}
