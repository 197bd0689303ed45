//! What a recipe can call: one file for each concept, and one table of them all.
//!
//! A binding is thin: it reads its options, calls the layer below and wraps the result in a handle.
//! Its doc comment is its reference.

use rhai::{Module, exported_module};

pub mod console;
pub mod data;
pub mod param;
pub mod tensor;

/// The surface: every group of functions that scripts see.
const API: &[(&str, fn() -> Module)] = &[
    ("console", || exported_module!(console::api)),
    ("data", || exported_module!(data::api)),
    ("param", || exported_module!(param::api)),
    ("tensor", || exported_module!(tensor::api)),
];

/// Registers the whole surface.
pub(crate) fn register(engine: &mut rhai::Engine) {
    for (name, module) in API {
        let mut module = module();
        module.set_id(*name);
        engine.register_global_module(module.into());
    }
}
