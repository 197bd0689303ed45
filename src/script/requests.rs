//! What a recipe will ask for, read from its text without running it.
//!
//! Seen are the arguments that stand in the text and the values of parameters, in the recipe and in
//! all that it imports. What a recipe puts together while it runs is not seen; it is checked then,
//! and refused unless it is among what was given.

use std::{collections::BTreeMap, path::Path};

use rhai::{AST, ASTNode, Expr};

use super::{
    Failure, Host, Recipe, START_RUN,
    imports::{Imports, text_of},
    locate,
    params::{self, Parameter},
    resolver::EMBEDDED,
    runtime, scan,
};
use crate::{
    data,
    hub::HubSettings,
    model::Gpt2Config,
    permission::{Access, Capability, Permissions, TrustFile},
};

/// What the named function does with its first text.
const FUNCTIONS: &[(&str, Use)] = &[
    ("load_model", Use::Source("models--")),
    ("tokenizer", Use::Source("models--")),
    ("dataset", Use::Source("datasets--")),
    ("new_model", Use::Shape),
    ("from_deepspeed", Use::Read),
    ("load_checkpoint", Use::Read),
    ("save_checkpoint", Use::Write),
    ("export_hf", Use::Write),
];

/// Options whose text is a path to write to.
const WRITTEN_OPTIONS: [&str; 3] = ["nvme_path", "output_path", "output_file"];

#[derive(Debug, Clone, Copy)]
enum Use {
    /// A path, or a name on the hub, whose directory in the cache has this prefix.
    Source(&'static str),
    /// A published size, or a path.
    Shape,
    Read,
    Write,
}

/// One thing that a recipe will ask for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// The power.
    pub capability: Capability,
    /// The path or the host.
    pub what: String,
    /// The function or option that it is for, with its text.
    pub wanted_by: String,
}

impl Request {
    /// The request as an access.
    pub fn access(&self) -> Access<'_> {
        match self.capability {
            Capability::Read => Access::Read(Path::new(&self.what)),
            Capability::Write => Access::Write(Path::new(&self.what)),
            Capability::Net => Access::Net(&self.what),
        }
    }
}

/// A recipe with its imports, and all that can be seen of what it will ask for.
#[derive(Debug, Default)]
pub struct Requests {
    /// In order, each once.
    pub list: Vec<Request>,
    /// Name and text of the recipe and of what it imports.
    pub texts: BTreeMap<String, String>,
}

impl Requests {
    /// The hash that the trust file knows the recipe by.
    pub fn hash(&self) -> String {
        TrustFile::hash(self.texts.iter().map(|(name, text)| (name.as_str(), text.as_str())))
    }

    /// Those that `permissions` does not allow and a grant would.
    pub fn missing<'a>(
        &'a self,
        permissions: &'a Permissions,
    ) -> impl Iterator<Item = &'a Request> {
        self.list.iter().filter(|request| {
            !permissions.allows(request.access()) && !permissions.is_never(request.access())
        })
    }
}

/// Reads a recipe for what it will ask for, with the parameters of `host`.
///
/// # Errors
/// Mistakes of the recipe that are found before it runs.
pub fn read(host: &Host, recipe: &Recipe) -> Result<Requests, Failure> {
    let (ast, mut parameters) = scan(recipe, &host.sources)?;
    params::give(&mut parameters, &host.params)?;
    let Recipe { name, text, .. } = recipe;
    let imports = Imports::load(&runtime::parser(), host, name, &ast, &parameters);
    let mut reader = Reader { host, parameters: &parameters, found: Requests::default() };
    reader.source(&ast);
    imports.sources().for_each(|(_, ast)| reader.source(ast));
    let mut found = reader.found;
    // Its directory may be another one tomorrow, its name not.
    let own = Path::new(name).file_name().map(|name| name.to_string_lossy().into_owned());
    found.texts.insert(own.unwrap_or_else(|| name.clone()), text.clone());
    let modules = imports.modules.into_iter();
    found.texts.extend(modules.map(|(name, module)| (name, module.text)));
    found.list.sort();
    found.list.dedup();
    Ok(found)
}

struct Reader<'a> {
    host: &'a Host,
    parameters: &'a [Parameter],
    found: Requests,
}

impl Reader<'_> {
    fn source(&mut self, ast: &AST) {
        ast.walk(&mut |nodes| {
            let Some(node) = nodes.last() else { return true };
            if let Some((call, _)) = locate::as_call(node) {
                self.call(&call.name, &call.args);
            }
            if let ASTNode::Expr(Expr::Map(map, _)) = node {
                for (key, value) in &map.0 {
                    self.option(&key.name, value);
                }
            }
            true
        });
    }

    fn call(&mut self, function: &str, args: &[Expr]) {
        if function == START_RUN {
            self.add(Capability::Write, "runs", START_RUN.to_owned());
            return;
        }
        let Some((_, what)) = FUNCTIONS.iter().find(|(name, _)| *name == function) else { return };
        let Some(text) = args.iter().find_map(|arg| text_of(arg, self.parameters)) else { return };
        let wanted_by = format!("{function}(\"{text}\")");
        let is_path = |text: &str| !text.is_empty() && !text.starts_with(EMBEDDED);
        match what {
            Use::Write => self.add(Capability::Write, &text, wanted_by),
            Use::Read => self.add(Capability::Read, &text, wanted_by),
            Use::Shape if Gpt2Config::named(&text).is_some() => {}
            Use::Shape => self.add(Capability::Read, &text, wanted_by),
            Use::Source(prefix) if data::is_hub_id(&text, &self.host.work_dir) => {
                self.hub(prefix, &text, wanted_by);
            }
            Use::Source(_) if is_path(&text) => self.add(Capability::Read, &text, wanted_by),
            Use::Source(_) => {}
        }
    }

    fn option(&mut self, name: &str, value: &Expr) {
        if WRITTEN_OPTIONS.contains(&name)
            && let Some(text) = text_of(value, self.parameters).filter(|text| !text.is_empty())
        {
            self.add(Capability::Write, &text, format!("{name}: \"{text}\""));
        }
    }

    /// What is in the cache needs no network.
    fn hub(&mut self, prefix: &str, id: &str, wanted_by: String) {
        let Ok(hub) = HubSettings::from_env(&self.host.env) else { return };
        let repo = id.split(':').next().unwrap_or(id).replace('/', "--");
        let refs = hub.cache_dir.join(format!("{prefix}{repo}")).join("refs");
        if let Some(host) = hub.host()
            && !hub.offline
            && !refs.exists()
        {
            self.add(Capability::Net, &host, wanted_by);
        }
    }

    fn add(&mut self, capability: Capability, what: &str, wanted_by: String) {
        self.found.list.push(Request { capability, what: what.to_owned(), wanted_by });
    }
}
