//! The groups of functions that scripts see, in one table.

#![allow(clippy::unwrap_used, reason = "`#[export_module]` unwraps arguments it has checked")]

use rhai::{Module, exported_module};

use super::{
    adapters, batch, console, dataset, deepspeed, engine, engine_batch, engine_ema, engine_restore,
    engine_speed, generate, json, language, loader, model, nn, optimizer, options, param, plot,
    ranks, run, table, tensor, tokenizer, tokenizer_training,
};

/// A group of functions: its name, and what builds it.
type Group = (&'static str, fn() -> Module);

/// The surface: every group of functions that scripts see.
const API: &[Group] = &[
    ("batch", || exported_module!(batch::api)),
    ("console", || exported_module!(console::api)),
    ("dataset", dataset::build),
    ("deepspeed", || exported_module!(deepspeed::api)),
    ("engine", || exported_module!(engine::api)),
    ("engine_batch", || exported_module!(engine_batch::api)),
    ("engine_ema", || exported_module!(engine_ema::api)),
    ("engine_restore", || exported_module!(engine_restore::api)),
    ("engine_speed", || exported_module!(engine_speed::api)),
    ("generate", || exported_module!(generate::api)),
    ("json", || exported_module!(json::api)),
    ("language", || exported_module!(language::api)),
    ("loader", loader::build),
    ("model", || exported_module!(model::api)),
    ("adapters", || exported_module!(adapters::api)),
    ("optimizer", || exported_module!(optimizer::api)),
    ("options", || exported_module!(options::api)),
    ("param", || exported_module!(param::api)),
    ("plot", || exported_module!(plot::api)),
    ("ranks", || exported_module!(ranks::api)),
    ("run", run::build),
    ("table", || exported_module!(table::api)),
    ("tensor", || exported_module!(tensor::api)),
    ("tensor_autograd", || exported_module!(tensor::autograd::api)),
    ("tensor_create", || exported_module!(tensor::create::api)),
    ("tensor_index", tensor::index::build),
    ("tensor_math", tensor::math::build),
    ("tensor_reduce", tensor::reduce::build),
    ("tensor_shape", || exported_module!(tensor::shape::api)),
    ("tokenizer", || exported_module!(tokenizer::api)),
    ("tokenizer_training", || exported_module!(tokenizer_training::api)),
];

/// The functions that are called with the name of their group: `nn::linear(x, w)`.
const NAMED: &[Group] = &[("nn", || {
    let mut nn = exported_module!(nn::api);
    nn.combine(exported_module!(nn::loss::api));
    nn.combine(exported_module!(nn::sequential::api));
    nn
})];

/// Whether functions are called as `name::function`.
pub(crate) fn has_group(name: &str) -> bool {
    NAMED.iter().any(|(group, _)| *group == name)
}

/// Registers the whole surface.
pub(crate) fn register(engine: &mut rhai::Engine) {
    for (_, module) in modules() {
        engine.register_global_module(module.into());
    }
    for (name, module) in named_modules() {
        engine.register_static_module(name, module.into());
    }
}

/// Every group whose functions are called with its name.
pub(crate) fn named_modules() -> impl Iterator<Item = (&'static str, Module)> {
    NAMED.iter().map(|(name, module)| (*name, module()))
}

/// Every group with its name.
pub(crate) fn modules() -> impl Iterator<Item = (&'static str, Module)> {
    API.iter().map(|(name, module)| {
        let mut module = module();
        module.set_id(*name);
        (*name, module)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        recipe::{imports::Imports, indices::as_values, parser},
        script::check,
    };

    /// The documentation of every function, with its signature.
    fn documentation() -> Vec<(String, String)> {
        let mut engine = rhai::Engine::new_raw();
        register(&mut engine);
        engine.collect_fn_metadata(
            None,
            |f| {
                let signature = f.metadata.gen_signature(|t| t.into());
                Some((signature, f.metadata.comments.join("\n")))
            },
            false,
        )
    }

    fn examples(doc: &str) -> impl Iterator<Item = String> {
        let lines = doc.lines().map(|l| l.trim_start().trim_start_matches("///"));
        let text = lines.collect::<Vec<_>>().join("\n");
        let blocks = text.split("```rhai").skip(1);
        let blocks = blocks.map(|block| block.split("```").next().unwrap_or(block).to_owned());
        blocks.collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn every_function_is_documented() {
        let all = documentation();
        assert!(all.len() > 5);
        for (signature, doc) in all {
            assert!(doc.trim_start().starts_with("///"), "{signature} has no documentation");
        }
    }

    #[test]
    fn every_example_calls_functions_that_exist() {
        let mut engine = parser::parser();
        register(&mut engine);
        let mut checked = 0;
        for (signature, doc) in documentation() {
            for example in examples(&doc) {
                let (example, _) = as_values(&example);
                let ast = engine.compile(&example).unwrap_or_else(|e| panic!("{signature}: {e}"));
                let parameters = crate::recipe::params::scan("example", &ast);
                let parameters = parameters.unwrap_or_else(|e| panic!("{signature}: {e}"));
                let result =
                    check::check(&engine, "example", &ast, &Imports::default(), &parameters);
                result.unwrap_or_else(|e| panic!("{signature}: {e}"));
                checked += 1;
            }
        }
        assert!(checked > 3);
    }
}
