//! The Rhai engine, set up for recipes.
//!
//! The word *engine* alone means the training engine everywhere in dsr; Rhai's is `rhai::Engine`.
//!
//! No optimization: Rhai's default level folds constant maps, which loses the position of their
//! keys and makes an assignment into one panic. Variables and map keys are strict, so that a
//! misspelt name is an error and not `()`. There is no `eval` and no `curry`, and no access to files but `import`.

use std::rc::Rc;

use rhai::{Dynamic, Module, OptimizationLevel};

use super::{PARAMETERS, api, error::ScriptError, host, host::Host, resolver::Resolver, value};
use crate::{
    error::{Code, Error},
    fs::Bytes,
};

/// How deep script functions may call each other.
const CALL_LEVELS: usize = 64;

/// Bytes of a string, with all that is in an array or a map that holds it.
const STRING_BYTES: usize = 16 << 20;

/// Items of an array, and keys of a map, with those of what they hold.
const ITEMS: usize = 1_000_000;
const KEYS: usize = 1_000_000;

/// Modules that one recipe imports, functions that one source defines, variables in one scope.
const MODULES: usize = 64;
const FUNCTIONS: usize = 1000;
const VARIABLES: usize = 1000;

/// How deep an expression may nest at the top level and in functions: method chains count.
const EXPRESSION_DEPTHS: (usize, usize) = (128, 64);

/// A Rhai engine that only parses: to read the parameters, before `P` exists.
pub(crate) fn parser() -> rhai::Engine {
    let mut engine = rhai::Engine::new();
    limit(&mut engine);
    engine
}

/// A Rhai engine that runs a recipe for `host`, with the values of its parameters.
pub(crate) fn engine(host: &Rc<Host>, parameters: Module) -> rhai::Engine {
    let mut engine = rhai::Engine::new();
    limit(&mut engine);
    engine.set_strict_variables(true).set_fail_on_invalid_map_property(true);
    engine.set_module_resolver(Resolver::new(host));
    engine.register_static_module(PARAMETERS, parameters.into());
    engine.build_type::<ScriptError>();
    api::register(&mut engine);
    engine.set_default_tag(Dynamic::from(Rc::clone(host)));

    unlock_handles(&mut engine);
    let output = Rc::clone(host);
    engine.on_print(move |line| output.print(line));
    let output = Rc::clone(host);
    engine.on_debug(move |text, source, position| {
        let place = source.map_or_else(|| position.to_string(), |s| format!("{s}:{position:?}"));
        output.print(&format!("[{place}] {text}"));
    });
    let host = Rc::clone(host);
    engine.on_progress(move |_| match (host.must_stop(), host.has_printed_too_much()) {
        (true, _) => Some(terminated(host::interruption())),
        (_, true) => Some(terminated(printed_too_much(host.max_output))),
        _ => None,
    });
    engine
}

/// Lets a closure use the handle whose method it is passed to: `ds.filter(|row| ds.count() > 0)`.
///
/// A captured variable is shared from then on, and Rhai keeps a shared variable locked for as long
/// as a method call on it lasts, arguments included. Reading it through this hook gives the shared
/// value without the lock. Only handles are read so: what is done to a copy of them is done to all.
#[allow(deprecated, reason = "Rhai marks the hook as one that may change, and dsr pins Rhai")]
fn unlock_handles(engine: &mut rhai::Engine) {
    engine.on_var(|name, _, ctx| {
        let value = ctx.scope().get(name);
        Ok(value.filter(|v| v.is_shared() && !v.is_locked() && value::is_handle(v)).cloned())
    });
}

fn limit(engine: &mut rhai::Engine) {
    engine
        .set_optimization_level(OptimizationLevel::None)
        .set_max_call_levels(CALL_LEVELS)
        .set_max_expr_depths(EXPRESSION_DEPTHS.0, EXPRESSION_DEPTHS.1)
        .set_max_string_size(STRING_BYTES)
        .set_max_array_size(ITEMS)
        .set_max_map_size(KEYS)
        .set_max_modules(MODULES)
        .set_max_functions(FUNCTIONS)
        .set_max_variables(VARIABLES)
        .disable_symbol("eval")
        // It would copy what a function holds at each call; no limit counts that. Closures share.
        .disable_symbol("curry");
}

fn printed_too_much(most: u64) -> Error {
    Error::new(Code::Recipe, format!("the recipe has printed more than {}", Bytes(most)))
        .hint("a loop probably prints without an end; --max-output=SIZE sets the limit")
}

fn terminated(error: Error) -> Dynamic {
    Dynamic::from(ScriptError(Rc::new(error)))
}
