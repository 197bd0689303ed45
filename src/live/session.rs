//! The state of a live session, and the steps of an input.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    rc::Rc,
    sync::{Arc, OnceLock},
    thread,
};

use rhai::{AST, ASTFlags, Dynamic, EvalAltResult, Expr, Ident, Position, Scope, Stmt};

use super::{
    curves::Curves,
    names::Names,
    record::Record,
    undo::{Undo, drop_shadowed},
};
use crate::{
    error::{Code, Error},
    fs::Place,
    recipe::{
        Failure, Recipe,
        address::has_files,
        bundle::code,
        diagnostics::diagnose,
        imports::{self, Imports},
        lexer::{Class, tokens},
        params::{self, GivenParameter, Parameter},
        parser, requests,
        sources::LIVE,
    },
    script::{
        Host,
        check::{self, KnownNames},
        feed::Feed,
        reference::{self, ReferenceEntry},
        runtime,
    },
};

/// The name of the session, in the place of a recipe's file name.
const NAME: &str = "repl";

/// A session, from the first input to the last.
pub struct Live {
    pub(super) host: Rc<Host>,
    pub(super) parser: rhai::Engine,
    pub(super) engine: Rc<rhai::Engine>,
    /// Engines of earlier parameters and imports: functions that datasets keep run on them.
    pub(super) retired: Vec<Rc<rhai::Engine>>,
    pub(super) scope: Scope<'static>,
    pub(super) functions: AST,
    pub(super) parameters: Vec<Parameter>,
    /// The imported modules, by the names that their functions are called by.
    pub(super) modules: BTreeMap<String, rhai::Shared<rhai::Module>>,
    /// The imports of files, each with its directory.
    pub(super) files: BTreeSet<(PathBuf, String)>,
    pub(super) known: KnownNames,
    pub(super) record: Record,
    pub(super) inputs: usize,
    /// Whether the user types the inputs.
    is_typed: bool,
    /// The functions and properties, until an input adds one.
    pub(super) names: RefCell<Option<Rc<Names>>>,
    pub(super) curves: Rc<Curves>,
    pub(super) docs: Arc<OnceLock<Vec<ReferenceEntry>>>,
}

/// A value that an input gave.
pub struct Value(pub(super) Dynamic);

/// An input that was read and can be run.
pub(super) struct ParsedInput {
    pub(super) ast: AST,
    pub(super) imports: Imports,
    pub(super) parameters: Vec<Parameter>,
    pub(super) engine: Rc<rhai::Engine>,
}

impl Live {
    /// A session with this host. Fails if the audit log cannot be opened.
    pub fn new(mut host: Host) -> Result<Self, Failure> {
        let curves = Rc::new(Curves::default());
        let followed = Rc::clone(&curves);
        host.on_engine = Some(Box::new(move |engine| followed.follow(engine)));
        host.feed = Some(Rc::new(Feed::new(host.interrupt.clone())));
        let host = Rc::new(host);
        host.program.begin(NAME, &[])?;
        host.workspace.rights.settle()?;
        let engine = Self::engine(&host, &[], &BTreeMap::new());
        Ok(Self {
            parser: parser::parser(),
            engine,
            retired: Vec::new(),
            scope: Scope::new(),
            functions: AST::empty(),
            parameters: Vec::new(),
            modules: BTreeMap::new(),
            files: BTreeSet::new(),
            known: KnownNames::default(),
            record: Record::default(),
            inputs: 0,
            is_typed: false,
            names: RefCell::default(),
            curves,
            docs: Arc::default(),
            host,
        })
    }

    /// The same session, whose inputs the user types: a path or a host that stands in an input is given
    /// to the session by being typed. A name that an input computes is asked for, and so is each name
    /// in a recipe that is loaded.
    pub fn typed(mut self) -> Self {
        self.is_typed = true;
        self
    }

    /// The file `path` of a command, to write.
    pub fn writable(&self, path: &str) -> Result<Place, Error> {
        let rights = &self.host.workspace.rights;
        match self.is_typed {
            true => rights.writable_as_typed(path),
            false => rights.writable(path),
        }
    }

    /// Runs an input. Fails with all mistakes that are found before it runs, or with the error that
    /// ended it; its code is [`Code::Interrupted`] if the user stopped it.
    pub fn eval(&mut self, text: &str) -> Result<Value, Failure> {
        self.inputs += 1;
        let name = format!("<repl:{}>", self.inputs);
        // A module that was edited is imported again.
        self.host.workspace.forget_files();
        let prepared = self.prepare_typed(&name, text)?;
        self.run(text, prepared)
    }

    /// Runs a recipe as one input, with the parameters that were given. Its directory is that of its
    /// imports and of those of later inputs.
    pub fn load(&mut self, recipe: &Recipe) -> Result<Value, Failure> {
        let host = Rc::clone(&self.host);
        let before = self.import_from(recipe.base_dir.clone());
        let text = code(&recipe.text);
        let prepared = self.prepare(&recipe.name, text, &host.workspace.rights.params);
        let value = prepared.and_then(|prepared| self.run(text, prepared));
        if value.as_ref().is_err_and(|failure| failure.code() != Code::Interrupted) {
            self.import_from(before);
        }
        host.workspace.forget_files();
        value
    }

    /// Changes the directory of imports, and returns the one before.
    fn import_from(&mut self, dir: PathBuf) -> PathBuf {
        let before = self.host.workspace.rights.base_dir.replace(dir);
        if before != *self.host.workspace.rights.base_dir.borrow() {
            // The resolver of an engine keeps modules by their paths in the directory.
            let engine = Self::engine(&self.host, &self.parameters, &self.modules);
            self.retired.push(std::mem::replace(&mut self.engine, engine));
        }
        before
    }

    /// Forgets all inputs.
    pub fn reset(&mut self) {
        self.scope = Scope::new();
        self.functions = AST::empty();
        self.parameters.clear();
        self.modules.clear();
        self.files.clear();
        self.known = KnownNames::default();
        self.record = Record::default();
        self.retired.clear();
        self.names.replace(None);
        self.curves.clear();
        self.host.workspace.sources.clear_inputs();
        self.engine = Self::engine(&self.host, &[], &self.modules);
    }

    /// A value as a recipe would print it.
    pub fn print(&self, value: &Value) -> String {
        self.described(&value.0)
    }

    /// The value as `print` shows it.
    pub(super) fn described(&self, value: &Dynamic) -> String {
        let text = self.engine.eval_fn_call::<Dynamic>("to_string", None, (value.clone(),));
        text.map_or_else(|_| value.to_string(), |text| text.to_string())
    }

    /// The session as the text of a recipe.
    pub fn saved(&self) -> String {
        self.record.text(&self.parameters)
    }

    /// The curve `name` of the engine that was made last of those that did a step.
    pub fn curve(&self, name: &str) -> Option<Vec<(u64, f64)>> {
        self.curves.curve(name)
    }

    /// The imports of files, each with its directory.
    pub fn imported_files(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.files.iter().map(|(dir, path)| (dir.as_path(), path.as_str()))
    }

    /// The host of the session.
    pub fn host(&self) -> &Rc<Host> {
        &self.host
    }

    /// Reads the reference on another thread, before somebody asks for help.
    pub fn read_ahead(&self) {
        let docs = Arc::clone(&self.docs);
        thread::spawn(move || {
            docs.get_or_init(reference::entries);
        });
    }

    /// The functions and properties of the session.
    pub(super) fn names(&self) -> Rc<Names> {
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

    fn run(&mut self, text: &str, (read, whole): (ParsedInput, AST)) -> Result<Value, Failure> {
        let so_far = self.record.text_with(text, &read.parameters);
        self.begin(&so_far, &read.parameters)?;
        let undo = Undo::of(&self.scope);
        let program = self.with_constants(&whole);
        self.host.program.run_on(&read.engine);
        match read.engine.eval_ast_with_scope::<Dynamic>(&mut self.scope, &program) {
            Ok(value) => {
                let value = self.shown(text, &read.ast, value);
                self.record.add(text);
                self.keep(read, whole);
                Ok(Value(value))
            }
            Err(error) => {
                let sources = &self.host.workspace.sources;
                let place = sources.place(LIVE, error.position());
                let failure = diagnose(&read.engine, *error, LIVE, sources);
                if failure.code() == Code::Interrupted {
                    self.record.add_until(text, place.as_ref());
                    self.keep(read, whole);
                } else {
                    undo.restore(&mut self.scope);
                    self.begin(&self.saved(), &self.parameters)?;
                }
                Err(failure)
            }
        }
    }

    /// Reads and checks an input, and gives the session the rights that are typed with it.
    pub(super) fn prepare_typed(
        &mut self,
        name: &str,
        text: &str,
    ) -> Result<(ParsedInput, AST), Failure> {
        let (read, whole) = self.prepare(name, text, &[])?;
        if self.is_typed {
            requests::give_typed(&self.host.workspace, LIVE, &read.ast, &read.parameters)?;
        }
        Ok((read, whole))
    }

    /// Reads and checks an input; returns it alone and behind the functions of earlier ones.
    fn prepare(
        &mut self,
        name: &str,
        text: &str,
        given: &[GivenParameter],
    ) -> Result<(ParsedInput, AST), Failure> {
        let values = self.host.workspace.sources.insert_input(name, text);
        let read = self.read(&values, given)?;
        let mut whole = self.functions.clone();
        whole.combine(read.ast.clone());
        whole.set_source(LIVE);
        self.check(&read, &whole)?;
        self.host.interrupt.clear();
        Ok((read, whole))
    }

    /// Notes the program that runs now: the session's text, which runs and checkpoints keep, and the
    /// parameters.
    fn begin(&self, text: &str, parameters: &[Parameter]) -> Result<(), Failure> {
        let Host { workspace, program, output, .. } = &*self.host;
        workspace.sources.insert_text(NAME, text);
        program.begin(NAME, parameters)?;
        output.restart();
        workspace.parameters.replace(parameters.to_vec());
        Ok(())
    }

    /// Parses the text of an input, declares its parameters and finds the engine that has them.
    fn read(&mut self, text: &str, given: &[GivenParameter]) -> Result<ParsedInput, Failure> {
        let host = Rc::clone(&self.host);
        let failed = |engine: &rhai::Engine, error: Box<EvalAltResult>| {
            diagnose(engine, *error, LIVE, &host.workspace.sources)
        };
        let of = |error| Failure::of(error, &[], &host.workspace.sources);
        let ast = self.parser.compile(text).map_err(|e| failed(&self.parser, e.into()))?;
        host.workspace.sources.insert_live_ast(&ast);
        let mut own = params::scan(LIVE, &ast).map_err(of)?;
        params::give(&mut own, given).map_err(of)?;
        if !given.is_empty() {
            requests::note_uses(&host.workspace, &ast, &own);
            host.workspace.rights.settle()?;
        }
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
        let imports = Imports::load(&engine, &host.workspace, LIVE, &ast, &parameters);
        Ok(ParsedInput { ast, imports, parameters, engine })
    }

    /// Looks for mistakes that can be seen before the input runs.
    fn check(&mut self, read: &ParsedInput, whole: &AST) -> Result<(), Failure> {
        self.known.variables = self
            .scope
            .iter_raw()
            .map(|(name, _, value)| (name.to_owned(), value.type_id()))
            .collect();
        let all = (whole, &read.ast);
        check::check_input(&read.engine, LIVE, all, &read.imports, &read.parameters, &self.known)
            .map_err(|e| Failure::of(e, &[], &self.host.workspace.sources))
    }

    /// The value that an input shows: its own, or that of the variable that its last statement gave
    /// one; none if it ends in a semicolon.
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

    /// Adds the declarations of an input to the session.
    fn keep(&mut self, read: ParsedInput, mut whole: AST) {
        self.known.add(LIVE, &read.ast, &read.imports);
        let ParsedInput { ast, parameters, engine, .. } = read;
        let imported = imports::of(&ast, &parameters);
        let files = imported.iter().filter(|import| has_files(&import.path));
        let dir = self.host.workspace.rights.base_dir.borrow().clone();
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
            // An import that did not run may fail.
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
    pub(super) fn with_constants(&self, whole: &AST) -> AST {
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
