//! Checks of each call, member and parameter of a source.

use std::{
    any::TypeId,
    collections::{BTreeMap, BTreeSet},
};

use rhai::{AST, ASTNode, Expr, FnAccess, FnCallExpr, Map, Position, Stmt};

use super::{
    known::{KnownNames, is_assigned, keys},
    own_options::OwnOptions,
    reader::OptionReader,
    surface::{Judgement, Surface, ValueType},
    types::Types,
    written::{self, Seen},
};
use crate::{
    config::suggest::nearest,
    error::{Code, Error},
    recipe::{
        imports::Imports,
        locate,
        params::{self, PARAMETERS, Parameter},
        translate,
    },
    script::api::groups,
};

/// Calls that Rhai answers itself and that are in no list of functions.
const BUILT_IN: [&str; 13] = [
    "Fn",
    "call",
    "curry",
    "debug",
    "eval",
    "exit",
    "global",
    "import",
    "is_def_fn",
    "is_def_var",
    "is_shared",
    "print",
    "type_of",
];

/// The functions of recipes that a source can call.
pub(super) struct Functions<'a> {
    /// The source's own.
    pub(super) own: &'a AST,
    /// Functions of modules, by the names that they are called by.
    pub(super) modules: BTreeMap<String, &'a AST>,
}

/// A walk through a source.
pub(super) struct Calls<'a> {
    engine: &'a rhai::Engine,
    surface: &'a Surface,
    functions: Functions<'a>,
    types: Types<'a>,
    parameters: &'a [Parameter],
    /// Keys of maps, also in imports: a method may be a function in a map.
    keys: BTreeSet<String>,
    faults: Vec<(Position, Error)>,
    /// Whether the node stands in a branch, which the run may not come to.
    is_guarded: bool,
    /// Whether it stands in a `try`, which may catch what is wrong with sizes.
    is_tried: bool,
}

/// Whether what stands in this node depends on a condition.
pub(super) fn is_condition(node: &ASTNode<'_>) -> bool {
    match node {
        ASTNode::Stmt(stmt) => matches!(stmt, Stmt::If(..) | Stmt::Switch(..) | Stmt::While(..)),
        ASTNode::Expr(expr) => matches!(expr, Expr::And(..) | Expr::Or(..) | Expr::Coalesce(..)),
        _ => false,
    }
}

impl<'a> Calls<'a> {
    pub(super) fn new(
        engine: &'a rhai::Engine,
        surface: &'a Surface,
        functions: Functions<'a>,
        (ast, imports): (&AST, &Imports),
        parameters: &'a [Parameter],
        known: &KnownNames,
    ) -> Self {
        let modules = imports.sources().map(|(_, module)| module);
        let keys = modules.chain([ast]).flat_map(keys).chain(known.keys.iter().cloned()).collect();
        let types = Types::new(surface, ast, parameters, &known.variables);
        Self {
            engine,
            surface,
            functions,
            types,
            parameters,
            keys,
            faults: Vec::new(),
            is_guarded: false,
            is_tried: false,
        }
    }

    /// All mistakes of the source, in its order.
    pub(super) fn faults(mut self, ast: &AST) -> Vec<(Position, Error)> {
        ast.walk(&mut |nodes| {
            self.node(nodes);
            true
        });
        self.faults.sort_by_key(|(position, _)| (position.line(), position.position()));
        self.faults
    }

    fn node(&mut self, nodes: &[ASTNode<'_>]) {
        let Some(node) = nodes.last() else { return };
        self.is_guarded = nodes.iter().any(is_condition);
        let is_try = |node: &ASTNode<'_>| matches!(node, ASTNode::Stmt(Stmt::TryCatch(..)));
        self.is_tried = nodes.iter().any(is_try);
        match node {
            ASTNode::Expr(Expr::Variable(variable, _, position))
                if variable.2.to_string() == PARAMETERS
                    && !self.parameters.iter().any(|p| p.name == *variable.1) =>
            {
                let fault = params::undeclared(&variable.1, self.parameters);
                self.faults.push((*position, fault));
            }
            ASTNode::Stmt(Stmt::For(x, position)) if x.2.body.is_empty() => {
                // Rhai ignores errors of the iterator of an empty loop.
                let message =
                    "the body of this loop is empty: it would hide errors in what it goes over";
                self.faults.push((*position, Error::new(Code::Recipe, message)));
            }
            ASTNode::Expr(Expr::Property(property, position)) => {
                self.property(&property.2, *position, nodes);
            }
            ASTNode::Expr(Expr::MethodCall(call, position)) => {
                let receiver = self.receiver(nodes);
                self.method(call, *position, receiver);
            }
            _ => {
                if let Some((call, position)) = locate::as_call(node) {
                    self.call(call, position);
                }
            }
        }
    }

    fn call(&mut self, call: &FnCallExpr, position: Position) {
        let name = call.name.as_str();
        let is_word = rhai::is_valid_identifier(name);
        if call.is_qualified() {
            return self.of_group(call, position);
        }
        if call.is_operator_call() || !is_word || BUILT_IN.contains(&name) {
            return;
        }
        let kinds = self.types.of_all(&call.args);
        match self.surface.judge(name, &kinds) {
            Judgement::Fits => self.options(call, position),
            judgement => {
                let fault = self.misfit(name, &kinds, judgement);
                self.faults.push((position, fault));
            }
        }
    }

    /// A call such as `nn::gelu(x)`, or of a module that the recipe imports.
    fn of_group(&mut self, call: &FnCallExpr, position: Position) {
        let group = call.namespace.to_string();
        if let Some(module) = self.functions.modules.get(&group) {
            return match fault_of_module(call, module) {
                Some(fault) => self.faults.push((position, fault)),
                None => self.options_of(module, call, position),
            };
        }
        if !groups::has_group(&group) {
            return;
        }
        let kinds = self.types.of_all(&call.args);
        let fault = match self.surface.judge(&format!("{group}::{}", call.name), &kinds) {
            Judgement::Fits => return self.options(call, position),
            Judgement::Misfits => self.misfit(&call.name, &kinds, Judgement::Misfits),
            Judgement::Unknown => {
                let names = translate::function_names_in(self.engine, &group);
                translate::unknown_in_group(&group, &call.name, &names)
            }
        };
        self.faults.push((position, fault));
    }

    fn method(&mut self, call: &FnCallExpr, position: Position, receiver: ValueType) {
        let name = call.name.as_str();
        let may_be_a_map = receiver.is_none_or(|kind| kind == TypeId::of::<Map>());
        let is_key = may_be_a_map && self.keys.contains(name);
        if BUILT_IN.contains(&name) || is_key {
            return;
        }
        let arguments = self.types.of_all(&call.args);
        match self.surface.judge_method(name, receiver, &arguments) {
            Judgement::Fits => self.options(call, position),
            judgement => {
                let kinds: Vec<_> = std::iter::once(receiver).chain(arguments).collect();
                let fault = self.misfit(name, &kinds, judgement);
                self.faults.push((position, fault));
            }
        }
    }

    fn options(&mut self, call: &FnCallExpr, position: Position) {
        if self.surface.own_arguments(&call.name).is_some() {
            self.options_of(self.functions.own, call, position);
        } else if let Some(reader) = OptionReader::native(&call.name, self.first_text(call)) {
            self.read_options(&reader, call, position);
        }
    }

    /// The first argument, where it is a text that is known before the run.
    fn first_text(&self, call: &FnCallExpr) -> Option<String> {
        Seen::certain(call.args.first()?, self.certain_parameters())?.into_string().ok()
    }

    /// The options of a call of a function that `source` defines.
    fn options_of(&mut self, source: &AST, call: &FnCallExpr, position: Position) {
        let own = OwnOptions::of(source, &call.name, call.args.len(), self.parameters);
        if let Some(own) = own {
            self.read_options(&OptionReader::Own(own), call, position);
        }
    }

    /// The parameters whose values hold here: a branch may be there for the very values with which its
    /// options are fine.
    fn certain_parameters(&self) -> &'a [Parameter] {
        if self.is_guarded { &[] } else { self.parameters }
    }

    fn read_options(&mut self, reader: &OptionReader, call: &FnCallExpr, position: Position) {
        let read = |map: &Map| reader.read(map);
        let faults = written::faults(&read, &call.args, self.certain_parameters());
        let is_caught = |fault: &Error| self.is_tried && fault.code() == Code::ModelConfig;
        let faults = faults.into_iter().filter(|fault| !is_caught(fault));
        self.faults.extend(faults.map(|fault| (position, fault)).collect::<Vec<_>>());
    }

    fn property(&mut self, name: &str, position: Position, nodes: &[ASTNode<'_>]) {
        let receiver = self.receiver(nodes).filter(|kind| *kind != TypeId::of::<Map>());
        let Some(kind) = receiver else { return };
        let (prefix, word) = match is_assigned(nodes) {
            true => ("set$", "setter"),
            false => ("get$", "getter"),
        };
        let value = (prefix == "set$").then_some(None);
        let arguments: Vec<ValueType> = std::iter::once(Some(kind)).chain(value).collect();
        if self.surface.judge(&format!("{prefix}{name}"), &arguments) != Judgement::Fits {
            let owner = self.surface.name_of(Some(kind));
            let message = format!("'{name}' '{owner}' {word}");
            self.faults.push((position, translate::unknown_property(self.engine, &message)));
        }
    }

    fn misfit(&self, name: &str, kinds: &[ValueType], judgement: Judgement) -> Error {
        let own = self.surface.own_names();
        if judgement == Judgement::Unknown {
            return translate::unknown_function(self.engine, name, &own);
        }
        if let Some(counts) = self.surface.own_arguments(name) {
            let message = format!("`{name}` takes {counts}, found {}", kinds.len());
            return Error::new(Code::WrongType, message);
        }
        let kinds: Vec<_> = kinds.iter().map(|kind| self.surface.name_of(*kind)).collect();
        translate::no_such_function(self.engine, &format!("{name} ({})", kinds.join(", ")))
    }

    /// The type of the value whose member the last node is.
    fn receiver(&self, nodes: &[ASTNode<'_>]) -> ValueType {
        let (ASTNode::Expr(member), before) = nodes.split_last()? else { return None };
        let (ASTNode::Expr(parent), above) = before.split_last()? else { return None };
        match parent {
            Expr::Dot(pair, ..) if std::ptr::eq(&raw const pair.rhs, *member) => {
                // Behind an index the left side is what was indexed with.
                let is_indexed = matches!(
                    above.last(),
                    Some(ASTNode::Expr(Expr::Index(outer, ..)))
                        if std::ptr::eq(&raw const outer.rhs, *parent)
                );
                match &pair.lhs {
                    _ if is_indexed => None,
                    left @ (Expr::Property(..) | Expr::MethodCall(..)) => {
                        self.types.of_member(self.receiver(before), left)
                    }
                    left => self.types.of(left),
                }
            }
            Expr::Dot(pair, ..) | Expr::Index(pair, ..)
                if std::ptr::eq(&raw const pair.lhs, *member) =>
            {
                self.receiver(before)
            }
            _ => None,
        }
    }
}

/// The fault of a call such as `schedule::cosine(x)` of a function of `module`.
fn fault_of_module(call: &FnCallExpr, module: &AST) -> Option<Error> {
    let public = || module.iter_functions().filter(|f| f.access == FnAccess::Public);
    let (alias, name, arguments) = (&call.namespace, call.name.as_str(), call.args.len());
    let counts: Vec<_> = public().filter(|f| f.name == name).map(|f| f.params.len()).collect();
    if counts.contains(&arguments) {
        return None;
    }
    if !counts.is_empty() {
        let counts: Vec<_> = counts.iter().map(ToString::to_string).collect();
        let counts = counts.join(" or ");
        let message = format!("`{alias}::{name}` takes {counts} arguments, found {arguments}");
        return Some(Error::new(Code::WrongType, message));
    }
    let near = nearest(name, public().map(|f| f.name));
    let error = Error::new(Code::UnknownFunction, format!("unknown function `{alias}::{name}`"));
    Some(error.hint_if(near.map(|near| format!("did you mean `{alias}::{near}`?"))))
}
