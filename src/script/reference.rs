//! The reference of the functions that recipes can call, made from the metadata of the registered
//! functions: for `dsr doc`, and for help.

use std::collections::BTreeMap;

use rhai::{FnAccess, FuncInfo};
use serde::Serialize;
use serde_json::Value;

use super::{api::groups, check::option_function};
use crate::{
    config::{options::document, suggest::nearest},
    error::{Code, Error, Result},
    recipe::{
        description::{first_sentence, without_marks},
        embedded::{EMBEDDED, STDLIB},
        indices::as_values,
        parser,
        translate::friendly,
    },
};

/// A function, a property or a type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReferenceEntry {
    /// The name that is looked up: `forward`, `loss`, `Engine`.
    pub name: String,
    /// The concept that it belongs to: `engine`, `dataset`.
    pub group: String,
    /// The signature: `forward(engine: Engine, batch: Batch) -> Tensor`, `engine.loss -> any`.
    pub signature: String,
    /// The documentation, as Markdown.
    pub doc: String,
}

impl ReferenceEntry {
    /// The recipes in its documentation.
    pub fn examples(&self) -> impl Iterator<Item = &str> {
        self.doc.split("```rhai\n").skip(1).map(|rest| rest.split("```").next().unwrap_or(rest))
    }

    /// By concept; a type before what it can do, and shorter forms before longer ones.
    fn order(&self) -> (&str, bool, &str, usize, &str) {
        let is_type = self.signature.starts_with("type ");
        (&self.group, !is_type, &self.name, self.signature.len(), &self.signature)
    }

    /// The first sentence of its documentation.
    pub fn summary(&self) -> String {
        first_sentence(&self.doc).trim_end_matches('.').to_owned()
    }
}

/// Functions that every value has, and that nobody looks up.
const HIDDEN: [&str; 2] = ["to_string", "to_debug"];

/// Everything that dsr adds to the language, by concept and name; a type before what it can do.
pub fn entries() -> Vec<ReferenceEntry> {
    let mut all = Vec::new();
    // Types have their names from all modules.
    let mut engine = rhai::Engine::new_raw();
    groups::register(&mut engine);
    for (group, module) in groups::modules() {
        let mut alone = rhai::Engine::new_raw();
        alone.register_global_module(module.into());
        // `tensor_math` is a part of `tensor`.
        let group = group.split('_').next().unwrap_or(group);
        all.extend(types(&alone, group));
        all.extend(functions(&engine, &alone, group));
    }
    for (group, module) in groups::named_modules() {
        let mut alone = rhai::Engine::new_raw();
        alone.register_static_module(group, module.into());
        all.extend(functions(&engine, &alone, group));
    }
    all.sort_by(|a, b| a.order().cmp(&b.order()));
    all.extend(STDLIB.iter().flat_map(|(module, text)| module_entries(module, text)));
    all
}

/// A module of the standard library and its functions, in their order.
fn module_entries(module: &str, text: &str) -> Vec<ReferenceEntry> {
    let Ok(ast) = parser::parser().compile(as_values(text).0) else { return Vec::new() };
    let group = format!("{EMBEDDED}{module}");
    let mut all = vec![ReferenceEntry {
        name: module.to_owned(),
        signature: format!("import \"{group}\" as {module}"),
        doc: without_marks(ast.doc()),
        group: group.clone(),
    }];
    let public = ast.iter_functions().filter(|f| f.access == FnAccess::Public);
    let mut functions: Vec<_> = public
        .filter(|f| rhai::is_valid_identifier(f.name))
        .map(|f| ReferenceEntry {
            name: f.name.to_owned(),
            signature: format!("{module}::{}({})", f.name, f.params.join(", ")),
            doc: without_marks(&f.comments.join("\n")),
            group: group.clone(),
        })
        .collect();
    functions.sort_by(|a, b| a.name.cmp(&b.name));
    all.extend(functions);
    all
}

/// The entries called `name`: `forward`, `engine.forward` or `Engine`.
///
/// # Errors
/// [`Code::UnknownFunction`] with the nearest name.
pub fn find(name: &str) -> Result<Vec<ReferenceEntry>> {
    let all = entries();
    let (owner, member) = match name.rsplit_once(['.', ':']) {
        Some((owner, member)) => (Some(owner.trim_end_matches(':').to_lowercase()), member),
        None => (None, name),
    };
    let wanted = |entry: &&ReferenceEntry| {
        entry.name == member
            && owner.as_ref().is_none_or(|owner| {
                entry.group == *owner || entry.signature.to_lowercase().contains(owner.as_str())
            })
    };
    let found: Vec<_> = all.iter().filter(wanted).cloned().collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let of_group: Vec<_> = all.iter().filter(|entry| entry.group == name).cloned().collect();
    if !of_group.is_empty() {
        return Ok(of_group);
    }
    let error = Error::new(Code::UnknownFunction, format!("nothing is called `{name}`"));
    let names = all.iter().map(|entry| entry.name.as_str());
    Err(match nearest(member, names) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint("`dsr doc` lists all that there is"),
    })
}

fn types(alone: &rhai::Engine, group: &str) -> Vec<ReferenceEntry> {
    let json = alone.gen_fn_metadata_to_json(false).unwrap_or_default();
    let json: Value = serde_json::from_str(&json).unwrap_or_default();
    let types = json["customTypes"].as_array().cloned().unwrap_or_default();
    let entry = |found: &Value| {
        let name = found["displayName"].as_str()?.to_owned();
        let doc = found["docComments"].as_array()?.iter().filter_map(Value::as_str);
        let doc = without_marks(&doc.collect::<Vec<_>>().join("\n"));
        Some(ReferenceEntry {
            signature: format!("type {name}"),
            name,
            group: group.to_owned(),
            doc,
        })
    };
    types.iter().filter_map(entry).collect()
}

fn functions(engine: &rhai::Engine, alone: &rhai::Engine, group: &str) -> Vec<ReferenceEntry> {
    let read = |f: FuncInfo<'_>| {
        let meta = f.metadata;
        let (name, signature) = written(engine, &f, group)?;
        let doc =
            without_marks(&meta.comments.iter().map(|c| c.as_str()).collect::<Vec<_>>().join("\n"));
        let doc = with_options(&name, &signature, doc);
        Some(ReferenceEntry { name, group: group.to_owned(), signature, doc })
    };
    let mut all = alone.collect_fn_metadata(None, read, false);
    // Rhai has no order of its own.
    all.sort_by(|a, b| (&a.signature, &a.doc).cmp(&(&b.signature, &b.doc)));
    // A property that can be read and set is one entry.
    let mut by_signature: BTreeMap<String, ReferenceEntry> = BTreeMap::new();
    for entry in all {
        let plain = entry.signature.trim_end_matches(SETTABLE).to_owned();
        let is_setter = entry.signature.ends_with(SETTABLE);
        let key = plain.split(" -> ").next().unwrap_or(&plain).to_owned();
        match by_signature.get_mut(&key) {
            Some(known) if is_setter => known.signature.push_str(SETTABLE),
            Some(known) if known.signature.ends_with(SETTABLE) => {
                known.doc = entry.doc;
                known.signature = plain + SETTABLE;
            }
            Some(known) if known.signature == entry.signature => {
                if known.doc != entry.doc {
                    known.doc = format!("{}\n\n{}", known.doc, entry.doc);
                }
            }
            _ => drop(by_signature.insert(key, entry)),
        }
    }
    by_signature.into_values().collect()
}

/// The documentation of a function with that of its options before the first recipe.
fn with_options(name: &str, signature: &str, doc: String) -> String {
    let Some(function) = option_function(name).filter(|_| signature.contains("options: map"))
    else {
        return doc;
    };
    let options = document(function.tables);
    match doc.split_once("```rhai") {
        Some((text, recipe)) => format!("{text}{options}\n```rhai{recipe}"),
        None => format!("{doc}\n\n{options}"),
    }
}

const SETTABLE: &str = " (can be set)";

/// The name and the signature of a function as recipes write it; `None` for what is not shown.
fn written(engine: &rhai::Engine, f: &FuncInfo<'_>, group: &str) -> Option<(String, String)> {
    let meta = f.metadata;
    let name = meta.name.as_str();
    if HIDDEN.contains(&name) {
        return None;
    }
    let parameters: Vec<(String, String)> = meta
        .params_info
        .iter()
        .take(meta.num_params)
        .map(|p| match p.split_once(": ") {
            Some((name, kind)) => (name.to_owned(), friendly(engine, kind)),
            None => (p.to_string(), "any".to_owned()),
        })
        .collect();
    let returns = meta.return_type.as_str();
    let returns = returns
        .trim()
        .strip_prefix("ScriptResult<")
        .map_or(returns, |inner| inner.trim_end_matches('>'));
    let returns = match friendly(engine, returns.trim()) {
        nothing if nothing.starts_with("nothing") => String::new(),
        kind => format!(" -> {kind}"),
    };
    let receiver = parameters.first().map_or("", |(name, _)| name);
    let list = |parameters: &[(String, String)]| {
        let all: Vec<_> = parameters.iter().map(|(name, kind)| format!("{name}: {kind}")).collect();
        all.join(", ")
    };
    let prefix = if f.namespace.is_empty() { String::new() } else { format!("{}::", f.namespace) };
    Some(if let Some(property) = name.strip_prefix("get$") {
        (property.to_owned(), format!("{receiver}.{property}{returns}"))
    } else if let Some(property) = name.strip_prefix("set$") {
        (property.to_owned(), format!("{receiver}.{property}{SETTABLE}"))
    } else if name.starts_with("index$get$") {
        (receiver.to_owned(), format!("{receiver}[{}]{returns}", list(&parameters[1..])))
    } else if name.contains('$') {
        return None;
    } else if receiver == group {
        // A function that takes the concept itself first is its method.
        let signature = format!("{receiver}.{name}({}){returns}", list(&parameters[1..]));
        (name.to_owned(), signature)
    } else {
        let signature = format!("{prefix}{name}({}){returns}", list(&parameters));
        (name.to_owned(), signature)
    })
}
