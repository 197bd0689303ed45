//! Recipes: the only code that knows Rhai.
//!
//! A recipe is read in steps, and each step reports all the mistakes it finds before the next one
//! begins: parse, read the parameters, apply the values from the command line, check the names,
//! run. Nothing is loaded or written before the last step. The functions that a recipe can call
//! are in [`api`]; what they may reach is the [`Host`].

pub mod api;
pub mod bundle;
pub mod callback;
pub mod deepspeed;
pub mod diagnostics;
pub mod engine_options;
pub mod host;
pub mod literal;
pub mod live;
pub mod lock;
pub mod options;
pub mod params;
pub mod pinned;
pub mod planning;
pub mod recipe;
pub mod reference;
pub mod requests;
pub mod shared;
pub mod sources;
pub mod value;

mod check;
mod error;
mod feed;
mod imports;
mod indices;
mod iterate;
mod lexer;
mod locate;
mod observers;
mod powers;
mod resolver;
mod runtime;
mod translate;

use std::rc::Rc;

use rhai::AST;

use self::{
    bundle::Bundle, diagnostics::diagnose, imports::Imports, planning::Planning,
    resolver::EMBEDDED, sources::Sources,
};
/// The language; a program that adds functions needs the same version.
pub use rhai;

pub use self::{
    callback::Callback, check::check_options, diagnostics::Failure, error::ScriptResult,
    host::Host, params::Parameter, planning::Planned, recipe::Recipe, shared::Shared,
};
use crate::{
    error::{Code, Error},
    run::Start,
};

/// The module that holds a recipe's parameters.
const PARAMETERS: &str = "P";
/// The function that `--resume` and `--name` are for.
const START_RUN: &str = "start_run";

/// What a recipe says about itself, read without running it.
#[derive(Debug)]
pub struct Description {
    /// The text of its `//!` lines.
    pub doc: String,
    /// Its parameters, in order.
    pub parameters: Vec<Parameter>,
}

/// Reads what a recipe says about itself.
pub fn describe(recipe: &Recipe) -> Result<Description, Failure> {
    let sources = Sources::default();
    let (ast, parameters) = scan(recipe, &sources)?;
    Ok(Description { doc: doc_text(ast.doc()), parameters })
}

/// Runs recipes for one host.
pub struct Session {
    host: Rc<Host>,
    modules: Vec<Rc<rhai::Module>>,
}

impl Session {
    /// A session in the world that `host` describes.
    pub fn new(host: Host) -> Self {
        Self { host: Rc::new(host), modules: Vec::new() }
    }

    /// Adds functions of the embedding program to those of dsr.
    pub fn add_functions(&mut self, module: rhai::Module) {
        self.modules.push(module.into());
    }

    /// Runs a recipe to its end.
    ///
    /// Fails with every mistake found before the recipe ran, or with the error that ended it.
    pub fn run(&self, recipe: &Recipe) -> Result<(), Failure> {
        let sources = &self.host.sources;
        self.host.check_frozen(recipe)?;
        let (engine, ast) = self.compile(recipe)?;
        let (name, parameters) = (&recipe.name, self.host.parameters());
        let imports = Imports::load(&engine, &self.host, name, &ast, &parameters);
        check::check(&engine, name, &ast, &imports, &parameters)
            .map_err(|e| Failure::of(e, &[], sources))?;
        drop(parameters);
        self.check_run_options(&ast)?;
        engine.run_ast(&ast).map_err(|e| diagnose(&engine, *e, &recipe.name, sources))
    }

    /// Looks for mistakes in a recipe and in what it imports, without running it.
    ///
    /// Fails with all that it finds.
    pub fn check(&self, recipe: &Recipe) -> Result<(), Failure> {
        self.host.check_frozen(recipe)?;
        let (engine, ast) = self.compile(recipe)?;
        let host = &self.host;
        check::check_whole(&engine, host, &recipe.name, &ast, &host.parameters())
            .map_err(|e| Failure::of(e, &[], &host.sources))
    }

    /// The recipe with the values of its parameters, and what is to run it.
    fn compile(&self, recipe: &Recipe) -> Result<(Rc<rhai::Engine>, AST), Failure> {
        let sources = &self.host.sources;
        let name = recipe.name.clone();
        let (_, mut parameters) = scan(recipe, sources)?;
        self.host.open_bundle(recipe)?;
        params::give(&mut parameters, &self.host.params)?;
        self.host.main.replace(name.clone());
        self.host.values.replace(params::to_json(&parameters)?);
        let module = params::module(&parameters);
        *self.host.parameters.borrow_mut() = parameters;
        self.host.settle_permissions()?;
        let mut engine = runtime::engine(&self.host, module);
        for module in &self.modules {
            engine.register_global_module(Rc::clone(module));
        }
        let engine = Rc::new(engine);
        *self.host.engine.borrow_mut() = Rc::downgrade(&engine);

        let failed = |e: Box<rhai::EvalAltResult>| diagnose(&engine, *e, &name, sources);
        let ast = sources.compile(&engine, &name, &recipe.text).map_err(|e| failed(e.into()))?;
        Ok((engine, ast))
    }

    /// Runs a recipe up to its `init_engine`, as one of `world_size` ranks, without loading weights;
    /// gives what it would train.
    ///
    /// Fails as [`Session::run`] does, or where the recipe trains nothing.
    pub fn plan(mut host: Host, recipe: &Recipe, world_size: usize) -> Result<Planned, Failure> {
        host.planning = Some(Planning::new(world_size));
        let session = Self::new(host);
        let ended = session.run(recipe);
        if let Some(planned) = session.host.planning.as_ref().and_then(Planning::take) {
            return Ok(planned);
        }
        ended?;
        Err(planning::trains_nothing().into())
    }

    /// Refuses options for a run before a recipe that starts none.
    fn check_run_options(&self, ast: &AST) -> Result<(), Error> {
        let option = match (&self.host.start, &self.host.run_name) {
            (Start::Afresh, None) => return Ok(()),
            (Start::Afresh, Some(_)) => "--name",
            _ => "--resume",
        };
        // An import may start it.
        let imports = ast.statements().iter().any(|s| matches!(s, rhai::Stmt::Import(..)));
        if imports || !locate::calls_of(ast, START_RUN).is_empty() {
            return Ok(());
        }
        let message =
            format!("{option} has no meaning for this recipe: it does not call `{START_RUN}`");
        Err(Error::new(Code::Usage, message).hint(
            "a loop of its own goes on with engine.load_checkpoint(path, #{ loader: loader })",
        ))
    }
}

/// Parses the recipe and reads its parameters.
fn scan(recipe: &Recipe, sources: &Sources) -> Result<(AST, Vec<Parameter>), Failure> {
    let Recipe { name, text, .. } = recipe;
    sources.insert_text(name, text);
    Bundle::open(recipe)?;
    let parser = runtime::parser();
    let ast = sources
        .compile(&parser, name, text)
        .map_err(|e| diagnose(&parser, *Box::from(e), name, sources))?;
    let parameters = params::scan(name, &ast).map_err(|e| Failure::of(e, &[], sources))?;
    Ok((ast, parameters))
}

/// The text of `//!` lines without the marks.
fn doc_text(doc: &str) -> String {
    let lines = doc.lines().map(|line| {
        let line = line.strip_prefix("//!").unwrap_or(line);
        line.strip_prefix(' ').unwrap_or(line).trim_end()
    });
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}
