//! The requests of a recipe for files and hosts, read from its text without running it.
//!
//! Arguments that stand in the text and values of parameters are seen, in the recipe and in its imports.
//! A name that a recipe puts together while it runs is not; it is checked then, and refused unless it
//! was given.

use std::{collections::BTreeMap, path::Path};

use rhai::{AST, ASTNode, Expr, Position};

use super::{
    address::is_address,
    description::scan,
    diagnostics::Failure,
    error::{AtPosition, duplicate},
    file::Recipe,
    hub_name::{HubName, HubUse},
    imports::{Imports, text_of},
    locate,
    parameter_uses::ParameterUses,
    params::{self, Parameter},
    parser,
    rights::fixed_part,
    sources::Sources,
    workspace::Workspace,
};
use crate::{
    data::SourceName,
    error::{Error, Result},
    hub::HubSettings,
    model::ModelConfig,
    permission::{Access, Capability, Grants, Permissions, TrustFile},
};

/// The name of the function that starts a run.
pub(crate) const START_RUN: &str = "start_run";

/// The use that each function makes of its first text.
const FUNCTIONS: &[(&str, Use)] = &[
    ("load_model", Use::Hub(HubUse::Model)),
    ("tokenizer", Use::Hub(HubUse::Tokenizer)),
    ("dataset", Use::Hub(HubUse::Dataset)),
    ("dataset_splits", Use::Hub(HubUse::Dataset)),
    ("new_model", Use::Shape),
    ("from_deepspeed", Use::Read),
    ("load_checkpoint", Use::Read),
    ("save_checkpoint", Use::Write),
    ("export_hf", Use::Write),
    ("load_adapter", Use::Hub(HubUse::Model)),
    ("export_adapter", Use::Write),
    ("save_plot", Use::Write),
];

/// Options whose text is a path to write to.
const WRITTEN_OPTIONS: [&str; 3] = ["nvme_path", "output_path", "output_file"];

#[derive(Debug, Clone, Copy)]
enum Use {
    /// A path, or a name on the hub.
    Hub(HubUse),
    /// A published size, or a path.
    Shape,
    Read,
    Write,
}

/// A request of a recipe.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// The capability.
    pub capability: Capability,
    /// The path or the host.
    pub what: String,
    /// The function or option that it is for, with its text.
    pub wanted_by: String,
    /// The first source that it stands in, and its position.
    place: (String, Position),
}

impl Request {
    /// The request as an access.
    pub fn access(&self) -> Access<'_> {
        match self.capability {
            Capability::Read => Access::Read(Path::new(&self.what)),
            Capability::Write => Access::Write(Path::new(&self.what)),
            Capability::Net => Access::Net(&self.what),
            Capability::Import => Access::Import(&self.what),
        }
    }
}

/// The grants that `requests` would need; relative paths start from `work_dir`.
pub fn grants<'a>(work_dir: &Path, requests: impl IntoIterator<Item = &'a Request>) -> Grants {
    let mut grants = Grants::default();
    for request in requests {
        let what = match request.access() {
            Access::Net(name) | Access::Import(name) => name.to_owned(),
            _ => work_dir.join(&request.what).display().to_string(),
        };
        grants.add(request.capability, what);
    }
    grants
}

/// A recipe with its imports, and the requests that can be seen.
#[derive(Debug, Default)]
pub struct Requests {
    /// In order, each once.
    pub list: Vec<Request>,
    /// Name and text of the recipe and of its imports.
    pub texts: BTreeMap<String, String>,
    /// The names that it loads from the hub.
    pub hub: Vec<HubName>,
    /// The name of the recipe in `texts`.
    main: String,
    /// Imports that cannot be read.
    faults: Vec<Error>,
    /// Imports that cannot be bundled.
    obstacles: Vec<Error>,
    /// Whether it imports what only the run knows.
    pub computes_imports: bool,
}

impl Requests {
    /// The hash that the trust file knows the recipe by. A text at an address counts by the hash that
    /// is written, whether or not it could be read yet.
    pub fn hash(&self) -> String {
        let texts = self.texts.iter().filter(|(name, _)| !is_address(name) || **name == self.main);
        TrustFile::hash(texts.map(|(name, text)| (name.as_str(), text.as_str())))
    }

    /// Name and text of the imports.
    pub fn modules(&self) -> impl Iterator<Item = (&str, &str)> {
        let modules = self.texts.iter().filter(|(name, _)| **name != self.main);
        modules.map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// Fails with the imports that could not be read.
    pub(super) fn check(&self, sources: &Sources) -> Result<(), Failure> {
        Failure::check(self.faults().collect(), sources)
    }

    /// Fails with the imports that no bundle can have.
    pub(super) fn check_bundling(&self, sources: &Sources) -> Result<(), Failure> {
        Failure::check(self.obstacles.iter().map(duplicate).collect(), sources)
    }

    /// The imports that could not be read.
    pub fn faults(&self) -> impl Iterator<Item = Error> {
        self.faults.iter().map(duplicate)
    }

    /// The requests that `permissions` do not allow and a grant would.
    pub fn missing<'a>(
        &'a self,
        permissions: &'a Permissions,
    ) -> impl Iterator<Item = &'a Request> {
        self.list.iter().filter(|request| {
            !permissions.allows(request.access()) && !permissions.is_never(request.access())
        })
    }

    /// Fails with the requests that are not allowed, each at its place, before the recipe runs. An
    /// import of an address is refused when it is read.
    pub fn check_given(&self, workspace: &Workspace) -> Result<(), Failure> {
        workspace.rights.settle()?;
        let permissions = workspace.rights.permissions();
        let mut missing: Vec<_> = self.missing(&permissions).collect();
        missing.retain(|request| request.capability != Capability::Import);
        missing.sort_by_key(|request| &request.place);
        let fault = |request: &&Request| {
            let (source, position) = &request.place;
            let refused = permissions.check(request.access(), &format!("{source}:{position:?}"));
            Some(refused.err()?.at(source, *position))
        };
        Failure::check(missing.iter().filter_map(fault).collect(), &workspace.sources)
    }
}

/// Reads the requests of a recipe, with the parameters that were given.
///
/// Fails with the mistakes of the recipe that are found before it runs.
pub fn read(workspace: &Workspace, recipe: &Recipe) -> Result<Requests, Failure> {
    let (ast, mut parameters) = scan(recipe, &workspace.sources)?;
    workspace.open(recipe)?;
    params::give(&mut parameters, &workspace.rights.params)?;
    note_uses(workspace, &ast, &parameters);
    let Recipe { name, text, .. } = recipe;
    let imports = Imports::load(&parser::parser(), workspace, name, &ast, &parameters);
    let found = Requests::default();
    let mut collector = Collector { workspace, parameters: &parameters, source: name, found };
    collector.read(&ast);
    for (source, ast) in imports.sources() {
        collector.source = source;
        collector.read(ast);
    }
    for address in imports.addresses.iter().filter(|address| !workspace.is_bundled(address)) {
        let wanted_by = format!("import \"{}\"", address.url);
        collector.add(Capability::Import, &address.host, wanted_by, Position::NONE);
    }
    let mut found = collector.found;
    found.obstacles = imports.bundling_obstacles(name);
    found.computes_imports = !imports.computed.is_empty();
    found.faults = imports.faults;
    // The recipe may be moved; its name stays.
    let own = Path::new(name).file_name().map(|name| name.to_string_lossy().into_owned());
    found.main = own.unwrap_or_else(|| name.clone());
    found.texts.insert(found.main.clone(), text.clone());
    let modules = imports.modules.into_iter();
    found.texts.extend(modules.map(|(name, module)| (name, module.text)));
    found.list.sort();
    found.list.dedup_by(|a, b| {
        (a.capability, &a.what, &a.wanted_by) == (b.capability, &b.what, &b.wanted_by)
    });
    Ok(found)
}

/// Gives the rights that the text of `ast` asks for, without its imports: the user has typed it.
pub(crate) fn give_typed(
    workspace: &Workspace,
    source: &str,
    ast: &AST,
    parameters: &[Parameter],
) -> Result<()> {
    let mut collector = Collector { workspace, parameters, source, found: Requests::default() };
    collector.read(ast);
    let permissions = workspace.rights.permissions();
    let missing: Vec<_> = collector.found.missing(&permissions).collect();
    if missing.is_empty() {
        return Ok(());
    }
    workspace.rights.give(&grants(&workspace.rights.work_dir, missing))
}

/// Notes what the recipe's text uses its parameters for, which the rights follow from.
pub(crate) fn note_uses(workspace: &Workspace, ast: &AST, parameters: &[Parameter]) {
    let is = |name: &str, is_meant: fn(&Use) -> bool| {
        FUNCTIONS.iter().any(|(known, what)| *known == name && is_meant(what))
    };
    let uses = ParameterUses::of(
        ast,
        parameters,
        |name| is(name, |_| true),
        |name| is(name, |what| matches!(what, Use::Hub(_))),
        |name| is(name, |what| matches!(what, Use::Write)) || WRITTEN_OPTIONS.contains(&name),
    );
    workspace.rights.uses.replace(uses);
}

/// Collects the requests of one source after another.
struct Collector<'a> {
    workspace: &'a Workspace,
    parameters: &'a [Parameter],
    /// The name of the source that is read.
    source: &'a str,
    found: Requests,
}

impl Collector<'_> {
    fn read(&mut self, ast: &AST) {
        ast.walk(&mut |nodes| {
            let Some(node) = nodes.last() else { return true };
            if let Some((call, position)) = locate::as_call(node) {
                self.call(&call.name, &call.args, position);
            }
            if let ASTNode::Expr(Expr::Map(map, _)) = node {
                for (key, value) in &map.0 {
                    self.option(&key.name, value);
                }
            }
            true
        });
    }

    fn call(&mut self, function: &str, args: &[Expr], position: Position) {
        if function == START_RUN {
            self.add(Capability::Write, "runs", START_RUN.to_owned(), position);
            return;
        }
        let Some((_, what)) = FUNCTIONS.iter().find(|(name, _)| *name == function) else { return };
        let Some(text) = args.iter().find_map(|arg| text_of(arg, self.parameters)) else { return };
        let wanted_by = format!("{function}(\"{text}\")");
        match what {
            Use::Write => self.add(Capability::Write, &text, wanted_by, position),
            Use::Read => self.add(Capability::Read, &text, wanted_by, position),
            Use::Shape if ModelConfig::named(&text).is_some() => {}
            Use::Shape => self.add(Capability::Read, &text, wanted_by, position),
            Use::Hub(used_as) => {
                let revision = args.iter().find_map(|arg| self.revision(arg));
                self.source_name(*used_as, &text, revision, wanted_by, position);
            }
        }
    }

    fn source_name(
        &mut self,
        used_as: HubUse,
        text: &str,
        revision: Option<String>,
        wanted_by: String,
        position: Position,
    ) {
        match SourceName::parse(text, &self.workspace.rights.work_dir) {
            SourceName::Embedded(_) => {}
            SourceName::Path(_) if text.is_empty() => {}
            SourceName::Path(_) => self.add(Capability::Read, text, wanted_by, position),
            SourceName::Pattern(pattern) => {
                let fixed = fixed_part(&pattern);
                let permissions = self.workspace.rights.permissions_with(Grants::default());
                if !permissions.lists(&self.workspace.rights.work_dir.join(&fixed)) {
                    let fixed = fixed.display().to_string();
                    self.add(Capability::Read, &fixed, wanted_by, position);
                }
            }
            SourceName::Hub { repo, config } => self.hub(
                HubName {
                    used_as,
                    repo,
                    config,
                    revision: revision.unwrap_or_else(|| "main".to_owned()),
                    source: self.source.to_owned(),
                    position,
                },
                wanted_by,
            ),
        }
    }

    fn option(&mut self, name: &str, value: &Expr) {
        if WRITTEN_OPTIONS.contains(&name)
            && let Some(text) = text_of(value, self.parameters).filter(|text| !text.is_empty())
        {
            let wanted_by = format!("{name}: \"{text}\"");
            self.add(Capability::Write, &text, wanted_by, value.position());
        }
    }

    /// The revision in an argument's options.
    fn revision(&self, arg: &Expr) -> Option<String> {
        let Expr::Map(map, _) = arg else { return None };
        let (_, value) = map.0.iter().find(|(key, _)| key.name == "revision")?;
        text_of(value, self.parameters)
    }

    /// Adds a name on the hub. A name in the cache needs no network, unless a new lock is made.
    fn hub(&mut self, name: HubName, wanted_by: String) {
        if let Ok(hub) = HubSettings::from_env(&self.workspace.rights.env)
            && let Some(host) = hub.host()
            && !hub.offline
            && (self.workspace.refresh || !self.is_cached(&hub, &name))
        {
            self.add(Capability::Net, &host, wanted_by, name.position);
        }
        self.found.hub.push(name);
    }

    fn is_cached(&self, hub: &HubSettings, name: &HubName) -> bool {
        let kind = name.used_as.kind();
        let folder = format!("{}--{}", kind.plural(), name.repo.replace('/', "--"));
        let dir = hub.cache_dir.join(folder);
        let lock = self.workspace.lock.as_ref();
        match lock.and_then(|lock| lock.commit(kind, &name.repo, &name.revision)) {
            Some(commit) => dir.join("snapshots").join(commit).exists(),
            None => dir.join("refs").exists(),
        }
    }

    fn add(&mut self, capability: Capability, what: &str, wanted_by: String, position: Position) {
        let place = (self.source.to_owned(), position);
        self.found.list.push(Request { capability, what: what.to_owned(), wanted_by, place });
    }
}
