//! Rhai's parser with the settings of recipes.
//!
//! No optimization: Rhai's default level folds constant maps, which loses the position of their
//! keys and makes an assignment into one panic. There is no `eval` and no `curry`.

use rhai::OptimizationLevel;

/// The depth of calls of script functions.
const CALL_LEVELS: usize = 64;

/// Bytes of a string, or of all strings in an array or a map.
pub(crate) const STRING_BYTES: usize = 16 << 20;

/// Items of an array and keys of a map, with nested ones.
const ITEMS: usize = 1_000_000;
const KEYS: usize = 1_000_000;

/// Modules that one recipe imports, functions that one source defines, variables in one scope.
const MODULES: usize = 64;
const FUNCTIONS: usize = 1000;
const VARIABLES: usize = 1000;

/// The depth of an expression at the top level and in functions; method chains count.
const EXPRESSION_DEPTHS: (usize, usize) = (128, 64);

/// A Rhai engine that only parses: to read the parameters, before `P` exists.
pub(crate) fn parser() -> rhai::Engine {
    let mut engine = rhai::Engine::new();
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
        // It would copy the captured values at each call; no limit counts that. Closures share.
        .disable_symbol("curry");
    engine
}
