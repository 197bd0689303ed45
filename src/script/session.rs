//! A recipe from its text to its end.
//!
//! A recipe is read in steps: parse, read the parameters, apply the values from the command line, check
//! the names, run. Each step reports all its mistakes before the next one begins. Nothing is loaded or
//! written before the last step.

use std::{rc::Rc, sync::atomic::Ordering};

use rhai::AST;

use super::{
    check,
    host::{EndOfRun, Host},
    mistakes,
    planning::{self, Planned, Planning},
    runtime,
};
use crate::{
    engine::RecipeRecord,
    error::{Code, Error},
    recipe::{
        bundle::code,
        description::scan,
        diagnostics::{Failure, diagnose},
        file::Recipe,
        imports::Imports,
        locate, locking, params,
        requests::{self, START_RUN},
    },
    run::{Start, State},
};

/// Runs recipes for one host.
pub struct Session {
    host: Rc<Host>,
    modules: Vec<Rc<rhai::Module>>,
}

impl Session {
    /// A session with this host.
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
        let workspace = &self.host.workspace;
        let sources = &workspace.sources;
        let (engine, ast) = self.compile(recipe)?;
        let (name, parameters) = (&recipe.name, workspace.parameters.borrow());
        let imports = Imports::load(&engine, workspace, name, &ast, &parameters);
        check::check(&engine, name, &ast, &imports, &parameters)
            .and_then(|()| {
                let given = &workspace.rights.params;
                check::check_given(name, &ast, &imports, &parameters, given)
            })
            .map_err(|e| Failure::of(e, &[], sources))?;
        drop(parameters);
        self.check_run_options(&ast, &imports)?;
        let ended = match engine.run_ast(&ast) {
            Err(_) if self.host.trial_is_over.get() => Ok(()),
            // It had time to use what was there, and is interrupted all the same.
            Ok(()) if self.host.interrupt.has_kept() => Err(Error::interrupted().into()),
            ended => ended.map_err(|e| diagnose(&engine, *e, &recipe.name, sources)),
        };
        let end_of_run = self.host.end_of_run.take();
        let ended = ended.map_err(|failure| saved(failure, end_of_run));
        // The last line may be the one that could not be kept.
        let ended =
            ended.and_then(|()| self.host.output.failure().map_or(Ok(()), |e| Err(e.into())));
        if self.host.run.is_trial && !self.host.trial_is_over.get() {
            // The directory of the run is gone.
            return ended.and_then(|()| Ok(self.unfinished_trial()?));
        }
        self.end_run(&ended)?;
        ended
    }

    /// Tells of a dry run whose recipe came to its end before the run did.
    fn unfinished_trial(&self) -> Result<(), Error> {
        if self.host.run_is_active.load(Ordering::Relaxed) {
            let line = "the dry run is done: one step, and no checkpoint, as the recipe has no run.finish()";
            self.host.output.note(line);
            return Ok(());
        }
        let message = "--dry-run tries a run, and the recipe starts none";
        Err(Error::new(Code::CallOrder, message)
            .hint("leave it out, or make a run with `start_run(...)`"))
    }

    /// Writes down how the run ended, where its recipe did not end it itself.
    fn end_run(&self, ended: &Result<(), Failure>) -> Result<(), Error> {
        let Some(run) = self.host.run_ending.take() else { return Ok(()) };
        match ended {
            Ok(()) => run.end(State::Stopped, None),
            Err(failure) => {
                let status = match failure.code() {
                    Code::Interrupted => State::Interrupted,
                    _ => State::Failed,
                };
                let error = failure.faults.first().map(|fault| {
                    format!("error[{}]: {}", failure.code().number(), fault.error.message())
                });
                // What ended the run is told before what could not be written of it.
                let _ = run.end(status, error);
                Ok(())
            }
        }
    }

    /// Looks for mistakes in a recipe and in its imports, without running it.
    ///
    /// Fails with all that it finds.
    pub fn check(&self, recipe: &Recipe) -> Result<(), Failure> {
        let workspace = &self.host.workspace;
        let (engine, ast) = self.compile(recipe)?;
        let parameters = workspace.parameters.borrow();
        let mut imports = Imports::load(&engine, workspace, &recipe.name, &ast, &parameters);
        check::check_whole(&engine, &recipe.name, &ast, &mut imports, &parameters)
            .map_err(|e| Failure::of(e, &[], &workspace.sources))?;
        Ok(self.check_run_options(&ast, &imports)?)
    }

    /// The text and the parameters of the recipe that was checked or run last, as its runs keep them.
    pub fn record(&self) -> RecipeRecord {
        self.host.program.record(&self.host.workspace.sources)
    }

    /// The recipe with the values of its parameters, and the engine that is to run it.
    ///
    /// Fails with all mistakes of the text where it does not parse.
    fn compile(&self, recipe: &Recipe) -> Result<(Rc<rhai::Engine>, AST), Failure> {
        let compiled = self.compile_written(recipe);
        compiled.map_err(|failure| mistakes::of_text(&self.host, recipe).unwrap_or(failure))
    }

    fn compile_written(&self, recipe: &Recipe) -> Result<(Rc<rhai::Engine>, AST), Failure> {
        let workspace = &self.host.workspace;
        let (name, sources) = (&recipe.name, &workspace.sources);
        locking::check_frozen(workspace, recipe)?;
        let (read, mut parameters) = scan(recipe, sources)?;
        workspace.open(recipe)?;
        params::give(&mut parameters, &workspace.rights.params)?;
        requests::note_uses(workspace, &read, &parameters);
        self.host.program.begin(name, &parameters)?;
        let module = params::module(&parameters);
        workspace.parameters.replace(parameters);
        workspace.rights.settle()?;
        let mut engine = runtime::engine(&self.host, module);
        for module in &self.modules {
            engine.register_global_module(Rc::clone(module));
        }
        let engine = Rc::new(engine);
        self.host.program.run_on(&engine);

        let failed = |e: Box<rhai::EvalAltResult>| diagnose(&engine, *e, name, sources);
        let ast =
            sources.compile(&engine, name, code(&recipe.text)).map_err(|e| failed(e.into()))?;
        Ok((engine, ast))
    }

    /// Runs a recipe up to its `init_engine`, as one of `world_size` ranks, without loading weights;
    /// returns its training.
    ///
    /// Fails as [`Session::run`] does, or where the recipe trains nothing.
    pub fn plan(
        mut host: Host,
        recipe: &Recipe,
        world_size: usize,
        has_bf16: bool,
    ) -> Result<Planned, Failure> {
        host.planning = Some(Planning::new(world_size, has_bf16));
        let session = Self::new(host);
        let ended = session.run(recipe);
        if let Some(planned) = session.host.planning.as_ref().and_then(Planning::take) {
            return Ok(planned);
        }
        ended?;
        Err(planning::trains_nothing().into())
    }

    /// Refuses options for a run before a recipe that starts none.
    fn check_run_options(&self, ast: &AST, imports: &Imports) -> Result<(), Error> {
        let run = &self.host.run;
        let option = match (&self.host.workspace.rights.start, &run.name) {
            _ if run.is_trial => "--dry-run",
            (Start::Afresh, None) => return Ok(()),
            (Start::Afresh, Some(_)) => run.named_by,
            _ => "--resume",
        };
        let mut sources = imports.sources().map(|(_, ast)| ast).chain([ast]);
        // A module whose path is put together may start one too.
        if !imports.computed.is_empty()
            || sources.any(|ast| !locate::calls_of(ast, START_RUN).is_empty())
        {
            return Ok(());
        }
        let message =
            format!("{option} has no meaning for this recipe: it does not call `{START_RUN}`");
        let e = Error::new(Code::Usage, message);
        Err(match option {
            "--resume" => e.hint(
                "a loop of its own goes on with engine.load_checkpoint(path, #{ loader: loader })",
            ),
            _ => e,
        })
    }
}

/// Saves the active run of a recipe that the user stopped amid a step: the error then says what is saved.
fn saved(failure: Failure, end_of_run: Option<EndOfRun>) -> Failure {
    match end_of_run.filter(|_| failure.code() == Code::Interrupted) {
        Some(end) => end().unwrap_or_else(|e| e).into(),
        None => failure,
    }
}
