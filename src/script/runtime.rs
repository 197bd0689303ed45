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
    recipe::{error::ScriptError, params::PARAMETERS, parser::parser, resolver::Resolver, value},
    tensor::{available_bytes, held_by_rust},
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
    let memory = MemoryLimit::of_now();
    engine.on_progress(move |operations| {
        if host.must_end_script() {
            return Some(terminated(Error::interrupted()));
        }
        if host.output.is_exceeded() {
            return Some(terminated(printed_too_much(host.output.limit)));
        }
        if let Some(e) = host.output.failure() {
            return Some(terminated(e));
        }
        let is_due = operations.is_multiple_of(OPERATIONS_PER_LOOK);
        is_due.then(|| memory.exceeded()).flatten().map(terminated)
    });
    engine
}

/// Operations of a recipe between two looks at its memory; one takes as much as the longest string.
const OPERATIONS_PER_LOOK: u64 = 16;

/// The memory that a recipe's values may take: each is limited, and their number is not.
struct MemoryLimit {
    /// What Rust code held before the recipe ran.
    before: u64,
    most: u64,
}

impl MemoryLimit {
    /// Half of the memory that is available now; tensors are not counted.
    fn of_now() -> Self {
        let available = available_bytes().unwrap_or(u64::MAX);
        Self { before: held_by_rust(), most: available / 2 }
    }

    fn exceeded(&self) -> Option<Error> {
        let held = held_by_rust().saturating_sub(self.before);
        (held > self.most).then(|| {
            let most = Bytes(self.most);
            Error::new(Code::Recipe, format!("the recipe's values take more than {most} of memory"))
                .hint("a list or a map of many large values is probably filled without an end")
        })
    }
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
