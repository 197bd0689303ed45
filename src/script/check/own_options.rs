//! The options of functions that recipes define, from the calls of `read_options` in their bodies.

use std::collections::BTreeMap;

use rhai::{AST, ASTNode, Expr, FnCallExpr, Map, ScriptFnMetadata};

use super::written::Seen;
use crate::{
    error::Result,
    recipe::{imports, locate, params::Parameter},
    script::api,
};

/// The function that reads options for functions of recipes.
const READER: &str = "read_options";

/// The most functions that hand a map on; a function may call itself.
const MOST_HANDS: usize = 8;

/// The options in the map that is a function's last argument.
pub(crate) struct OwnOptions {
    owner: String,
    defaults: Map,
    required: Map,
}

impl OwnOptions {
    /// The options of the function `name` with so many parameters, if its body, or another function that
    /// it gives the map to, reads them first: an earlier statement may have changed the map.
    pub(crate) fn of(
        ast: &AST,
        name: &str,
        parameters: usize,
        values: &[Parameter],
    ) -> Option<Self> {
        let search = Search { ast, values, texts: BTreeMap::new(), depth: 0 };
        search.in_function(name, parameters, parameters.checked_sub(1)?)
    }

    /// The names of the options of the map at `path`, down from the function's own.
    pub(crate) fn names(&self, path: &[String]) -> Vec<String> {
        let inner = |maps: Vec<Map>, key: &String| {
            let at = |map: Map| map.get(key.as_str())?.clone().try_cast::<Map>();
            maps.into_iter().filter_map(at).collect()
        };
        let maps = path.iter().fold(vec![self.defaults.clone(), self.required.clone()], inner);
        maps.iter().flat_map(|map| map.keys().map(ToString::to_string)).collect()
    }

    /// Reads a map as the function would.
    pub(crate) fn read(&self, given: &Map) -> Result<()> {
        api::options::read(&self.owner, given, &self.defaults, &self.required).map(drop)
    }
}

/// A way through functions that hand an option map on.
struct Search<'a> {
    ast: &'a AST,
    values: &'a [Parameter],
    /// Texts that the function was called with, by its parameters.
    texts: BTreeMap<String, String>,
    depth: usize,
}

impl Search<'_> {
    /// The options that the function reads from its parameter number `at`.
    fn in_function(&self, name: &str, parameters: usize, at: usize) -> Option<OwnOptions> {
        let is_it = |other: &str, count: usize| other == name && count == parameters;
        let mut all = self.ast.iter_functions();
        let given = *all.find(|f| is_it(f.name, f.params.len()))?.params.get(at)?;
        let mut alone = self.ast.clone_functions_only();
        alone.retain_functions(|_, _, other, count| is_it(other, count));
        let mut found = None;
        alone.walk(&mut |nodes| {
            let is_nested = nodes.iter().skip(1).any(|node| matches!(node, ASTNode::Stmt(_)));
            let call = nodes.last().and_then(locate::as_call).filter(|_| !is_nested);
            if let Some((call, _)) = call
                && let Some(at) = call.args.iter().position(|argument| is_variable(argument, given))
            {
                found = match call.name == READER {
                    true => (at == 1).then(|| self.in_reader(&call.args)).flatten(),
                    false => self.handed_on(call, at),
                };
                return false;
            }
            !matches!(nodes.last(), Some(ASTNode::Expr(e)) if is_variable(e, given))
        });
        found
    }

    /// The options that the called function reads from its argument number `at`.
    fn handed_on(&self, call: &FnCallExpr, at: usize) -> Option<OwnOptions> {
        if call.is_qualified() || self.depth >= MOST_HANDS {
            return None;
        }
        let called = |f: &ScriptFnMetadata<'_>| {
            f.name == call.name.as_str() && f.params.len() == call.args.len()
        };
        let called = self.ast.iter_functions().find(called)?;
        let text =
            |(name, argument): (&&str, &Expr)| Some(((*name).to_owned(), self.text(argument)?));
        let texts = called.params.iter().zip(&call.args).filter_map(text).collect();
        let inner = Search { texts, depth: self.depth + 1, ..*self };
        inner.in_function(&call.name, call.args.len(), at)
    }

    /// The options of `read_options(owner, given, defaults, required)`.
    fn in_reader(&self, arguments: &[Expr]) -> Option<OwnOptions> {
        let (owner, defaults, required) = match arguments {
            [owner, _, defaults] => (owner, defaults, None),
            [owner, _, defaults, required] => (owner, defaults, Some(required)),
            _ => return None,
        };
        let known = |map: &Expr| {
            let is_written_out = matches!(map, Expr::Map(..));
            Seen::of_any_type(map, self.values).try_cast::<Map>().filter(|_| is_written_out)
        };
        Some(OwnOptions {
            owner: self.text(owner)?,
            defaults: known(defaults)?,
            required: required.map_or(Some(Map::new()), known)?,
        })
    }

    fn text(&self, expr: &Expr) -> Option<String> {
        let given = self.texts.iter().find(|(name, _)| is_variable(expr, name));
        imports::text_of(expr, self.values).or_else(|| Some(given?.1.clone()))
    }
}

fn is_variable(expr: &Expr, name: &str) -> bool {
    matches!(expr, Expr::Variable(variable, ..) if variable.2.is_empty() && variable.1 == name)
}

#[cfg(test)]
mod tests {
    use rhai::Dynamic;

    use super::*;
    use crate::recipe::parser;

    fn options(source: &str) -> Option<OwnOptions> {
        let ast = parser::parser().compile(source).unwrap();
        OwnOptions::of(&ast, "fit", 2, &[])
    }

    #[test]
    fn options_are_those_that_the_body_reads() {
        let found = options(
            "fn fit(engine, options) {
                 let steps = engine.steps;
                 let o = read_options(\"fit\", options, #{ lr: 0.1, inner: #{ n: 1 }, any: f() }, #{ steps: 1 });
             }",
        )
        .unwrap();
        let faults = |map: &[(&str, Dynamic)]| {
            let map = map.iter().map(|(key, value)| ((*key).into(), value.clone())).collect();
            found.read(&map).map_err(|e| e.to_string())
        };
        let handed_on = options(
            "fn fit(engine, options) { let o = common(\"fit\", options); }
             private fn common(name, map) { read_options(name, map, #{ lr: 0.1 }) }
             fn other(options) { read_options(\"other\", options, #{ n: 1 }) }",
        )
        .unwrap();
        let error = handed_on.read(&Map::from([("n".into(), 1.into())])).unwrap_err().to_string();
        assert!(error.contains("`fit` has no option `n`"), "{error}");
        assert_eq!(faults(&[("steps", 3.into()), ("any", "x".into())]), Ok(()));
        let error = faults(&[("lr", "x".into()), ("step", 3.into())]).unwrap_err();
        for part in ["`lr` must be a number", "has no option `step`", "`steps` is required"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_map_that_may_have_changed_is_left_to_the_run() {
        for body in [
            "options.lr = 1; read_options(\"fit\", options, #{ lr: 0.1 })",
            "if engine { read_options(\"fit\", options, #{ lr: 0.1 }) }",
            "read_options(\"fit\", engine, #{ lr: 0.1 })",
            "read_options(\"fit\", options, DEFAULTS)",
            "other(\"fit\", options, #{ lr: 0.1 })",
            "fit(engine, options)",
        ] {
            assert!(options(&format!("fn fit(engine, options) {{ {body} }}")).is_none(), "{body}");
        }
    }
}
