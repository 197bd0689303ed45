//! The Rhai engine, set up for recipes.
//!
//! The word *engine* alone means the training engine everywhere in dsr; Rhai's is `rhai::Engine`.
//!
//! No optimization: Rhai's default level folds constant maps, which loses the position of their
//! keys and makes an assignment into one panic. Variables and map keys are strict, so that a
//! misspelt name is an error and not `()`. There is no `eval` and no `curry`, and no access to files
//! but `import`.

use std::rc::Rc;

use rhai::{Dynamic, Module};

use super::{api::groups, check, host::Host};
use crate::{
    error::{Code, Error},
    recipe::{
        error::{ScriptError, interruption},
        params::PARAMETERS,
        parser::parser,
        resolver::Resolver,
        value,
    },
    units::Bytes,
};

/// A Rhai engine that runs a recipe for `host`, with the values of its parameters.
pub(crate) fn engine(host: &Rc<Host>, parameters: Module) -> rhai::Engine {
    let mut engine = parser();
    engine.set_strict_variables(true).set_fail_on_invalid_map_property(true);
    engine.set_module_resolver(Resolver::new(host, check::check));
    engine.register_static_module(PARAMETERS, parameters.into());
    engine.build_type::<ScriptError>();
    groups::register(&mut engine);
    engine.set_default_tag(Dynamic::from(Rc::clone(host)));

    unlock_handles(&mut engine);
    let output = Rc::clone(host);
    engine.on_print(move |line| output.output.print(line));
    let output = Rc::clone(host);
    engine.on_debug(move |text, source, position| {
        let place = source.map_or_else(|| position.to_string(), |s| format!("{s}:{position:?}"));
        output.output.print(&format!("[{place}] {text}"));
    });
    let host = Rc::clone(host);
    engine.on_progress(move |_| match (host.must_stop(), host.output.is_exceeded()) {
        (true, _) => Some(terminated(interruption())),
        (_, true) => Some(terminated(printed_too_much(host.output.limit))),
        _ => None,
    });
    engine
}

/// Lets a closure use the handle whose method it is passed to: `ds.filter(|row| ds.count() > 0)`.
///
/// A captured variable is shared from then on, and Rhai locks a shared variable during a method call on
/// it, arguments included. This hook reads the shared value without the lock. Only handles are read so:
/// a change of one copy is a change of all.
#[allow(deprecated, reason = "Rhai marks the hook as one that may change, and dsr pins Rhai")]
fn unlock_handles(engine: &mut rhai::Engine) {
    engine.on_var(|name, _, ctx| {
        let value = ctx.scope().get(name);
        Ok(value.filter(|v| v.is_shared() && !v.is_locked() && value::is_handle(v)).cloned())
    });
}

fn printed_too_much(most: u64) -> Error {
    Error::new(Code::Recipe, format!("the recipe has printed more than {}", Bytes(most)))
        .hint("a loop probably prints without an end; --max-output=SIZE sets the limit")
}

fn terminated(error: Error) -> Dynamic {
    Dynamic::from(ScriptError(Rc::new(error)))
}
