//! The functions that scripts can call, from the metadata of the registered functions.

use std::{any::TypeId, collections::BTreeMap};

use rhai::{AST, Array, Dynamic, FnPtr, FuncInfo, ImmutableString, Map};

/// A type; `None` if only the run knows it.
pub(crate) type ValueType = Option<TypeId>;

/// One form of a function: its parameters and its result.
#[derive(Debug)]
pub(crate) struct Form {
    /// The receiver of a method first; `None` for any type.
    params: Vec<ValueType>,
    pub(crate) returns: ValueType,
}

/// Every function by its name, with the functions that the recipe defines.
pub(crate) struct Surface {
    forms: BTreeMap<String, Vec<Form>>,
    /// The numbers of arguments of the recipe's own functions.
    own: BTreeMap<String, Vec<usize>>,
    /// The name of each type.
    names: BTreeMap<TypeId, String>,
}

/// The judgement of a call by the functions of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// Some form takes the arguments.
    Fits,
    /// There is no function of this name.
    Unknown,
    /// No form takes them.
    Misfits,
}

impl Surface {
    pub(crate) fn new(engine: &rhai::Engine, ast: &AST) -> Self {
        let read = |f: FuncInfo<'_>| {
            let meta = f.metadata;
            let types: Vec<_> = meta.param_types.iter().copied().collect();
            let labels: Vec<_> =
                meta.params_info.iter().map(|label| type_of_label(label).to_owned()).collect();
            let name = match f.namespace.as_str() {
                "" => meta.name.to_string(),
                group => format!("{group}::{}", meta.name),
            };
            Some((name, types, labels, meta.return_type.to_string()))
        };
        let all = engine.collect_fn_metadata(None, read, true);
        let mut names: BTreeMap<TypeId, String> = BTreeMap::new();
        for (_, types, labels, _) in &all {
            for (kind, label) in types.iter().zip(labels) {
                let known = names.entry(*kind).or_insert_with(|| label.clone());
                // Of several names for a type the shortest is the users'.
                if label.len() < known.len() {
                    known.clone_from(label);
                }
            }
        }
        for (kind, name) in primitives() {
            names.insert(kind, name.to_owned());
        }
        let by_name: BTreeMap<_, _> = all
            .iter()
            .flat_map(|(_, types, labels, _)| labels.iter().cloned().zip(types.iter().copied()))
            .chain(primitives().map(|(kind, name)| (name.to_owned(), kind)))
            .collect();
        let any = TypeId::of::<Dynamic>();
        let known = |kind: &TypeId| (*kind != any).then_some(*kind);
        let mut forms: BTreeMap<String, Vec<Form>> = BTreeMap::new();
        for (name, types, _, returns) in &all {
            let returns = by_name.get(result_of(returns)).and_then(&known);
            let params = types.iter().map(&known).collect();
            forms.entry(name.clone()).or_default().push(Form { params, returns });
        }
        let mut own: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for function in ast.iter_functions() {
            own.entry(function.name.to_owned()).or_default().push(function.params.len());
        }
        Self { forms, own, names }
    }

    /// Whether some function has this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.forms.contains_key(name) || self.own.contains_key(name)
    }

    /// The numbers of arguments of the recipe's own function `name`, in words.
    pub(crate) fn own_arguments(&self, name: &str) -> Option<String> {
        let counts = self.own.get(name)?.iter().map(ToString::to_string);
        Some(format!("{} arguments", counts.collect::<Vec<_>>().join(" or ")))
    }

    /// The names of the recipe's own functions.
    pub(crate) fn own_names(&self) -> Vec<String> {
        self.own.keys().cloned().collect()
    }

    /// Judges `name(arguments)`.
    pub(crate) fn judge(&self, name: &str, arguments: &[ValueType]) -> Judgement {
        self.judge_with(name, arguments, arguments.len())
    }

    /// Judges `receiver.name(arguments)`: the recipe's own functions have the receiver as `this`.
    pub(crate) fn judge_method(
        &self,
        name: &str,
        receiver: ValueType,
        arguments: &[ValueType],
    ) -> Judgement {
        let all: Vec<_> = std::iter::once(receiver).chain(arguments.iter().copied()).collect();
        self.judge_with(name, &all, arguments.len())
    }

    fn judge_with(&self, name: &str, arguments: &[ValueType], own_arguments: usize) -> Judgement {
        let own = self.own.get(name).is_some_and(|counts| {
            counts.contains(&own_arguments) || counts.contains(&arguments.len())
        });
        if own || self.fitting(name, arguments).next().is_some() {
            Judgement::Fits
        } else if self.has(name) {
            Judgement::Misfits
        } else {
            Judgement::Unknown
        }
    }

    /// The result of `name` for such arguments, if all of its forms that take them agree.
    pub(crate) fn returns(&self, name: &str, arguments: &[ValueType]) -> ValueType {
        if self.own.contains_key(name) {
            return None;
        }
        let mut fitting = self.fitting(name, arguments).map(|form| form.returns);
        let first = fitting.next()??;
        fitting.all(|other| other == Some(first)).then_some(first)
    }

    /// The type whose method or property `name` is, if it is that of one alone.
    pub(crate) fn receiver(&self, name: &str) -> ValueType {
        let mut receivers = self.forms.get(name)?.iter().map(|form| form.params.first().copied());
        let first = receivers.next()??;
        receivers.all(|other| other == Some(first)).then_some(first).flatten()
    }

    fn fitting<'a>(
        &'a self,
        name: &str,
        arguments: &'a [ValueType],
    ) -> impl Iterator<Item = &'a Form> + 'a {
        let fits = |(param, argument): (&ValueType, &ValueType)| match (param, argument) {
            (Some(param), Some(argument)) => param == argument,
            _ => true,
        };
        self.forms.get(name).into_iter().flatten().filter(move |form| {
            form.params.len() == arguments.len() && form.params.iter().zip(arguments).all(fits)
        })
    }

    /// The type under its registered name.
    pub(crate) fn name_of(&self, kind: ValueType) -> &str {
        kind.and_then(|kind| self.names.get(&kind)).map_or("Dynamic", String::as_str)
    }
}

/// The types that literals have, as signatures write them.
fn primitives() -> impl Iterator<Item = (TypeId, &'static str)> {
    [
        (TypeId::of::<()>(), "()"),
        (TypeId::of::<bool>(), "bool"),
        (TypeId::of::<i64>(), "i64"),
        (TypeId::of::<f64>(), "f64"),
        (TypeId::of::<char>(), "char"),
        (TypeId::of::<ImmutableString>(), "String"),
        (TypeId::of::<ImmutableString>(), "&str"),
        (TypeId::of::<ImmutableString>(), "string"),
        (TypeId::of::<Array>(), "Array"),
        (TypeId::of::<Map>(), "Map"),
        (TypeId::of::<FnPtr>(), "FnPtr"),
    ]
    .into_iter()
}

/// `Engine` of `engine: &mut Engine`.
fn type_of_label(label: &str) -> &str {
    let label = label.split_once(": ").map_or(label, |(_, kind)| kind).trim();
    label.strip_prefix("&mut ").unwrap_or(label).trim()
}

/// `Engine` of `ScriptResult<Engine >`.
fn result_of(returns: &str) -> &str {
    let inner = returns.trim().strip_prefix("ScriptResult<").and_then(|r| r.strip_suffix('>'));
    inner.unwrap_or(returns).trim()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{recipe::parser, script::api::groups};

    fn surface(script: &str) -> Surface {
        let mut engine = parser::parser();
        groups::register(&mut engine);
        Surface::new(&engine, &engine.compile(script).unwrap())
    }

    #[test]
    fn a_call_is_judged_by_count_and_types() {
        let surface = surface("fn mine(a, b) { a + b }");
        let text = surface.returns("get$dtype", &[None]);
        assert_eq!(surface.name_of(text), "string");
        let model = surface.returns("load_model", &[text]);
        assert_eq!(surface.name_of(model), "Model");
        assert_eq!(surface.judge("load_model", &[text]), Judgement::Fits);
        assert_eq!(surface.judge("load_model", &[model]), Judgement::Misfits);
        assert_eq!(surface.judge("load_model", &[]), Judgement::Misfits);
        assert_eq!(surface.judge("load_modle", &[text]), Judgement::Unknown);
        assert_eq!(surface.judge("mine", &[None, None]), Judgement::Fits);
        assert_eq!(surface.judge("mine", &[None]), Judgement::Misfits);
        assert_eq!(surface.judge_method("mine", model, &[None, None]), Judgement::Fits);
        assert_eq!(surface.judge_method("export_hf", model, &[text]), Judgement::Fits);
        assert_eq!(surface.judge_method("export_hf", text, &[text]), Judgement::Misfits);
    }
}
