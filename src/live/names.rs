//! The functions and properties of a session, with a line of help each: for completion.

use std::{any::TypeId, collections::BTreeMap};

use rhai::{AST, FuncInfo, Map};

use crate::{
    recipe::translate::friendly,
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
    pub(super) fn functions(&self, module: &str) -> impl Iterator<Item = &Callable> {
        let all = self.by_module.get(module).into_iter().flatten();
        let mut last = "";
        all.filter(|callable| !callable.is_property).filter(move |callable| {
            let is_new = callable.name != last;
            last = &callable.name;
            is_new
        })
    }

    /// The members of a value of a type, each name once.
    pub(super) fn members(&self, kind: TypeId) -> impl Iterator<Item = &Callable> {
        let all = self.by_module.get("").into_iter().flatten();
        let mut last = "";
        all.filter(move |callable| callable.receiver == Some(kind)).filter(move |callable| {
            let is_new = callable.name != last;
            last = &callable.name;
            is_new
        })
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
    let parameters =
        meta.params_info.iter().take(meta.num_params).map(|p| match p.split_once(": ") {
            Some((name, kind)) => format!("{name}: {}", friendly(engine, kind)),
            None => p.to_string(),
        });
    let doc = meta.comments.iter().map(|c| c.as_str()).collect::<Vec<_>>().join("\n");
    let help = match property {
        Some(_) => with_summary("", &doc),
        None => {
            let parameters: Vec<_> = parameters.collect();
            with_summary(&format!("({})", parameters.join(", ")), &doc)
        }
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
    let paragraph: Vec<_> =
        lines.skip_while(|line| line.is_empty()).take_while(|line| !line.is_empty()).collect();
    let paragraph = paragraph.join(" ");
    paragraph.split(". ").next().unwrap_or_default().trim_end_matches('.').to_owned()
}

/// Whether the type is that of maps, whose keys are members too.
pub(super) fn is_map(kind: TypeId) -> bool {
    kind == TypeId::of::<Map>()
}
