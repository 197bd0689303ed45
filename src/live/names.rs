//! The functions and properties of a session, with a line of help each: for completion.

use std::{any::TypeId, collections::BTreeMap};

use rhai::{AST, FuncInfo, Map};

use crate::{
    recipe::{description::first_sentence, translate::parameters},
    script::check::{Surface, ValueType},
};

/// Functions that no user completes.
const HIDDEN: [&str; 4] = ["to_string", "to_debug", "print", "debug"];

/// A function or a property.
#[derive(Debug, Clone)]
pub(super) struct Callable {
    pub(super) name: String,
    /// Whether it is read without brackets.
    pub(super) is_property: bool,
    /// The type that it belongs to, as a member; `None` for any.
    pub(super) receiver: ValueType,
    pub(super) help: String,
}

/// All functions and properties, by the module that they are called through, or by the empty name.
pub(super) struct Names {
    pub(super) by_module: BTreeMap<String, Vec<Callable>>,
    pub(super) surface: Surface,
}

impl Names {
    pub(super) fn new(engine: &rhai::Engine, functions: &AST) -> Self {
        let read = |f: FuncInfo<'_>| Some((f.namespace.to_string(), callable(engine, &f)?));
        let mut by_module: BTreeMap<String, Vec<Callable>> = BTreeMap::new();
        for (module, callable) in engine.collect_fn_metadata(None, read, true) {
            by_module.entry(module).or_default().push(callable);
        }
        let own = by_module.entry(String::new()).or_default();
        for function in functions.iter_functions() {
            if rhai::is_valid_identifier(function.name) {
                let doc = function.comments.join("\n");
                let signature = format!("{}({})", function.name, function.params.join(", "));
                own.push(Callable {
                    name: function.name.to_owned(),
                    is_property: false,
                    receiver: None,
                    help: with_summary(&signature, &doc),
                });
            }
        }
        for all in by_module.values_mut() {
            // The first of several forms in this order stands for them.
            all.sort_by(|a, b| {
                (&a.name, a.help.len(), &a.help).cmp(&(&b.name, b.help.len(), &b.help))
            });
        }
        Self { by_module, surface: Surface::new(engine, functions) }
    }

    /// The functions that need no receiver, each name once.
    pub(super) fn functions(&self, module: &str) -> Vec<&Callable> {
        self.once_each(module, |callable| !callable.is_property)
    }

    /// The members of a value of a type, each name once.
    pub(super) fn members(&self, kind: TypeId) -> Vec<&Callable> {
        self.once_each("", |callable| callable.receiver == Some(kind))
    }

    /// The first of each name among those that are `wanted`.
    fn once_each(&self, module: &str, wanted: impl Fn(&Callable) -> bool) -> Vec<&Callable> {
        let all = self.by_module.get(module).into_iter().flatten();
        let mut found: Vec<_> = all.filter(|callable| wanted(callable)).collect();
        found.dedup_by(|a, b| a.name == b.name);
        found
    }
}

fn callable(engine: &rhai::Engine, f: &FuncInfo<'_>) -> Option<Callable> {
    let meta = f.metadata;
    let name = meta.name.as_str();
    let property = name.strip_prefix("get$");
    let name = property.unwrap_or(name);
    if !rhai::is_valid_identifier(name) || HIDDEN.contains(&name) {
        return None;
    }
    let first = meta.param_types.iter().next().copied();
    let any = TypeId::of::<rhai::Dynamic>();
    let receiver = first.filter(|kind| *kind != any);
    let doc = meta.comments.iter().map(|c| c.as_str()).collect::<Vec<_>>().join("\n");
    let help = match property {
        Some(_) => with_summary("", &doc),
        None => with_summary(&format!("({})", parameters(engine, f)), &doc),
    };
    Some(Callable { name: name.to_owned(), is_property: property.is_some(), receiver, help })
}

/// The first sentence of a documentation, and a signature.
fn with_summary(signature: &str, doc: &str) -> String {
    let summary = summary(doc);
    match (signature.is_empty(), summary.is_empty()) {
        (true, _) => summary,
        (_, true) => signature.to_owned(),
        _ => format!("{summary}  {signature}"),
    }
}

/// The first sentence of a documentation.
fn summary(doc: &str) -> String {
    let lines =
        doc.lines().map(|line| line.trim_start().trim_start_matches(['/', '!', '*']).trim());
    let text = lines.collect::<Vec<_>>().join("\n");
    first_sentence(text.trim()).trim_end_matches('.').to_owned()
}

/// Whether the type is that of maps, whose keys are members too.
pub(super) fn is_map(kind: TypeId) -> bool {
    kind == TypeId::of::<Map>()
}
