//! The parameters that a recipe declares: `param("lr", 3e-4, "peak learning rate");`.
//!
//! Declarations are read from the syntax tree, before anything runs, so that the command line knows the
//! parameters, refuses others and prints the help. The values become the module `P` (`P::lr`), which is
//! visible in functions and cannot be assigned. When the script runs, `param` itself does nothing.

use std::path::Path;

use rhai::{AST, Dynamic, Expr, FnCallExpr, Module, Position, Stmt};

use super::{error::AtPosition, locate, options, value};
use crate::{
    config::{
        options::{OptionValue, limits},
        suggest::nearest,
    },
    error::{Code, Error, Result},
    fs,
};

/// The module that holds a recipe's parameters.
pub(crate) const PARAMETERS: &str = "P";

/// The name of the function that declares a parameter.
pub(crate) const DECLARE: &str = "param";

/// A value for a parameter from outside of the recipe.
#[derive(Debug, Clone, PartialEq)]
pub struct GivenParameter {
    /// The parameter's name.
    pub name: String,
    /// The value.
    pub value: GivenValue,
}

/// A value in the form in which it was given.
#[derive(Debug, Clone, PartialEq)]
pub enum GivenValue {
    /// Text of the command line, read as the declared type asks.
    Text(String),
    /// A value of a parameter file.
    Json(serde_json::Value),
}

/// Reads `name=value`.
pub fn parse_assignment(text: &str) -> Result<GivenParameter> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok(GivenParameter {
            name: name.trim().to_owned(),
            value: GivenValue::Text(value.to_owned()),
        }),
        _ => Err(Error::new(Code::Usage, format!("`-p {text}` is not of the form name=value"))
            .hint("for example: -p lr=1e-4")),
    }
}

/// Reads a JSON object of parameter values.
pub fn read_file(path: &Path) -> Result<Vec<GivenParameter>> {
    let text = fs::read_named(path)?;
    let shown = path.display();
    let parsed = serde_json::from_str(&text).map_err(|e| {
        Error::new(Code::Usage, format!("{shown} is not valid JSON: {e}")).caused_by(e)
    })?;
    let serde_json::Value::Object(map) = parsed else {
        return Err(Error::new(Code::Usage, format!("{shown} must hold one JSON object"))
            .hint(r#"for example: {"lr": 1e-4, "seed": 1}"#));
    };
    let given = |(name, json)| GivenParameter { name, value: GivenValue::Json(json) };
    Ok(map.into_iter().map(given).collect())
}

/// One parameter of a recipe.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name, `P::name` in the recipe.
    pub name: String,
    /// Its value unless another is given. Its type is the parameter's type.
    pub(crate) default: Dynamic,
    /// Its value: the default, until another is given.
    pub(crate) value: Dynamic,
    /// Its description, in the recipe's words.
    pub help: String,
    choices: Vec<Dynamic>,
    min: Option<f64>,
    max: Option<f64>,
    /// The position of its declaration.
    pub(crate) position: Position,
}

impl Parameter {
    /// The default as it would be written in a recipe.
    pub fn default_text(&self) -> String {
        written(&self.default)
    }

    /// The type's name: int, float, bool, string or array.
    pub fn type_name(&self) -> &'static str {
        type_of(&self.default)
    }

    /// The limits in words, or nothing.
    pub fn limits_text(&self) -> String {
        if !self.choices.is_empty() {
            return self.choices.iter().map(written).collect::<Vec<_>>().join(" | ");
        }
        match (self.min, self.max) {
            (Some(a), Some(b)) => limits(&(a..=b)),
            (Some(a), None) => limits(&(a..)),
            (None, Some(b)) => limits(&(..=b)),
            (None, None) => String::new(),
        }
    }

    /// Its declaration, with the value that it has as its default.
    pub(crate) fn declaration(&self) -> String {
        let mut limits = Vec::new();
        if !self.choices.is_empty() {
            limits.push(format!("choices: {}", written(&self.choices.clone().into())));
        }
        limits.extend(self.min.map(|min| format!("min: {min:?}")));
        limits.extend(self.max.map(|max| format!("max: {max:?}")));
        let (name, value) = (&self.name, written(&self.value));
        match (limits.is_empty(), self.help.is_empty()) {
            (true, true) => format!("param(\"{name}\", {value});"),
            (true, false) => format!("param(\"{name}\", {value}, {:?});", self.help),
            (false, _) => {
                let limits = limits.join(", ");
                format!("param(\"{name}\", {value}, {:?}, #{{ {limits} }});", self.help)
            }
        }
    }

    /// The given value in the parameter's own type.
    fn coerce(&self, given: &GivenValue) -> Result<Dynamic> {
        let (value, found) = match given {
            GivenValue::Text(text) => (from_text(text, &self.default), format!("`{text}`")),
            GivenValue::Json(json) => (from_json(json, &self.default), format!("{json}")),
        };
        let name = &self.name;
        let value = value.ok_or_else(|| {
            let expected = match self.type_name() {
                "int" => "a whole number",
                "float" => "a number",
                "bool" => "true or false",
                "array" => "an array such as [1, 2] or 1,2",
                _ => "a string",
            };
            let message = format!("parameter `{name}` must be {expected}, found {found}");
            Error::new(Code::WrongType, message)
                .hint(format!("its default is {}", self.default_text()))
        })?;
        self.check(&value)?;
        Ok(value)
    }

    fn check(&self, value: &Dynamic) -> Result<()> {
        let name = &self.name;
        let found = written(value);
        if !self.choices.is_empty() && !self.choices.iter().any(|c| written(c) == found) {
            let choices = self.limits_text();
            bail!(Code::BadValue, "parameter `{name}` must be one of {choices}, found {found}");
        }
        if let Some(number) = value::number(value)
            && (self.min.is_some_and(|min| number < min)
                || self.max.is_some_and(|max| number > max))
        {
            let limits = self.limits_text();
            bail!(Code::BadValue, "parameter `{name}` must be {limits}, found {found}");
        }
        Ok(())
    }
}

/// Every declaration of a recipe, or all the mistakes in them.
pub(crate) fn scan(source: &str, ast: &AST) -> Result<Vec<Parameter>> {
    let mut found: Vec<Parameter> = Vec::new();
    let mut faults = Vec::new();
    let mut seen = Vec::new();
    for (call, position) in ast.statements().iter().filter_map(declaration) {
        seen.push(position);
        match read(call, position) {
            Ok(p) if found.iter().any(|other| other.name == p.name) => {
                let message = format!("parameter `{}` is declared twice", p.name);
                faults.push(Error::new(Code::BadValue, message).at(source, position));
            }
            Ok(p) => found.push(p),
            Err(e) => faults.extend(e.split().into_iter().map(|e| e.at(source, position))),
        }
    }
    for position in locate::calls_of(ast, DECLARE) {
        if !seen.contains(&position) {
            let message = "`param` must be a statement of its own at the top level of the recipe";
            let error = Error::new(Code::CallOrder, message)
                .hint("declare it at the top, and use its value as P::name");
            faults.push(error.at(source, position));
        }
    }
    Error::all(faults).map_or(Ok(found), Err)
}

/// Gives the parameters the values that were given; the others keep their defaults.
pub(crate) fn give(parameters: &mut [Parameter], given: &[GivenParameter]) -> Result<()> {
    let mut faults = Vec::new();
    for GivenParameter { name, value } in given {
        match parameters.iter_mut().find(|p| p.name == *name) {
            Some(parameter) => match parameter.coerce(value) {
                Ok(value) => parameter.value = value,
                Err(e) => faults.push(e),
            },
            None => faults.push(undeclared(name, parameters)),
        }
    }
    Error::all(faults).map_or(Ok(()), Err)
}

/// The parameter that the expression `P::name` uses.
pub(crate) fn used<'a>(expression: &Expr, parameters: &'a [Parameter]) -> Option<&'a Parameter> {
    let Expr::Variable(variable, ..) = expression else { return None };
    let is_parameter = variable.2.to_string() == PARAMETERS;
    parameters.iter().find(|p| is_parameter && p.name == *variable.1)
}

/// The error for a parameter that the recipe does not declare.
pub(crate) fn undeclared(name: &str, parameters: &[Parameter]) -> Error {
    let names: Vec<_> = parameters.iter().map(|p| p.name.as_str()).collect();
    let near = nearest(name, names.iter().copied()).map(|near| format!("did you mean `{near}`?"));
    let error = Error::new(Code::UnknownOption, format!("the recipe has no parameter `{name}`"));
    error.hint_if(near).hint(match names.is_empty() {
        true => "it declares none".to_owned(),
        false => format!("its parameters: {}", names.join(", ")),
    })
}

/// The values as JSON, as runs and checkpoints keep them.
pub(crate) fn to_json(
    parameters: &[Parameter],
) -> Result<serde_json::Map<String, serde_json::Value>> {
    parameters.iter().map(|p| Ok((p.name.clone(), value::to_json(&p.value)?))).collect()
}

/// The module `P`.
pub(crate) fn module(parameters: &[Parameter]) -> Module {
    let mut module = Module::new();
    for Parameter { name, value, .. } in parameters {
        module.set_var(name.as_str(), value.clone());
    }
    module
}

fn declaration(statement: &Stmt) -> Option<(&FnCallExpr, Position)> {
    let (call, position) = match statement {
        Stmt::FnCall(call, position) => (call, position),
        Stmt::Expr(expr) => match &**expr {
            Expr::FnCall(call, position) => (call, position),
            _ => return None,
        },
        _ => return None,
    };
    (call.name == DECLARE && !call.is_qualified()).then_some((call, *position))
}

/// Reads `param(name, default, help, #{ choices, min, max })`.
fn read(call: &FnCallExpr, position: Position) -> Result<Parameter> {
    let literal = |i: usize, what: &str| -> Result<Dynamic> {
        call.args[i].get_literal_value(None).ok_or_else(|| {
            Error::new(Code::BadValue, format!("the {what} of `param` must be written out"))
                .hint("it is read before the recipe runs: a number, a string, true, false or an array of these")
        })
    };
    if !(2..=4).contains(&call.args.len()) {
        return Err(Error::new(Code::Missing, "`param` takes a name, a default and a help text")
            .hint(r#"for example: param("lr", 3e-4, "peak learning rate");"#));
    }
    let word = |value: Dynamic, what: &str| {
        String::read(&value::option_value(&value))
            .map_err(|wrong| wrong.into_error(&format!("{what} of param")))
    };
    let name = word(literal(0, "name")?, "name")?;
    if !rhai::is_valid_identifier(&name) {
        bail!(Code::BadValue, "`{name}` cannot be a parameter's name: it is used as P::{name}");
    }
    let default = literal(1, "default")?;
    if !matches!(default.type_name(), "i64" | "f64" | "bool" | "string" | "array") {
        let found = value::describe(&default);
        bail!(
            Code::WrongType,
            "the default of `{name}` must be a number, a string, true, false or an array, found {found}"
        );
    }
    let help =
        if call.args.len() > 2 { word(literal(2, "help text")?, "help")? } else { String::new() };
    let value = default.clone();
    let mut parameter = Parameter {
        name,
        default,
        value,
        help,
        choices: Vec::new(),
        min: None,
        max: None,
        position,
    };
    if call.args.len() > 3 {
        let limits = literal(3, "limits")?;
        let limits = limits.as_map_ref().map_err(|_| {
            Error::new(Code::WrongType, "the limits of `param` must be a map: #{ min: 0, max: 1 }")
        })?;
        (parameter.choices, parameter.min, parameter.max) = options::read(DECLARE, &limits, |o| {
            let choices = o
                .raw("choices")
                .map(value::of_option)
                .and_then(|c| c.into_array().ok())
                .unwrap_or_default();
            (choices, o.get("min").optional(), o.get("max").optional())
        })?;
    }
    parameter.check(&parameter.default)?;
    Ok(parameter)
}

fn type_of(value: &Dynamic) -> &'static str {
    match value.type_name() {
        "i64" => "int",
        "f64" => "float",
        "bool" => "bool",
        "array" => "array",
        _ => "string",
    }
}

fn written(value: &Dynamic) -> String {
    format!("{value:?}")
}

/// Reads the text of a command line as a value of the same type as `like`.
fn from_text(text: &str, like: &Dynamic) -> Option<Dynamic> {
    let trimmed = text.trim();
    match type_of(like) {
        "int" | "float" => {
            let digits = trimmed.replace('_', "");
            match digits.parse::<i64>() {
                Ok(int) => from_json(&int.into(), like),
                Err(_) => from_json(&digits.parse::<f64>().ok()?.into(), like),
            }
        }
        "bool" => trimmed.parse::<bool>().ok().map(Dynamic::from),
        "array" if trimmed.starts_with('[') => {
            from_json(&serde_json::from_str(trimmed).ok()?, like)
        }
        "array" => {
            let first = like.as_array_ref().ok()?.first().cloned();
            let element = first.unwrap_or_else(|| String::new().into());
            let items = trimmed.split(',').filter(|item| !item.is_empty());
            let items = items.map(|item| from_text(item, &element)).collect::<Option<Vec<_>>>()?;
            Some(Dynamic::from_array(items))
        }
        _ => Some(text.to_owned().into()),
    }
}

/// Reads JSON as a value of the same type as `like`; the elements of an array follow its first.
fn from_json(json: &serde_json::Value, like: &Dynamic) -> Option<Dynamic> {
    let value = value::from_json(json.clone());
    match type_of(like) {
        "int" => i64::read(&value::option_value(&value)).ok().map(Dynamic::from),
        "float" => value::number(&value).map(Dynamic::from),
        "bool" => value.as_bool().ok().map(Dynamic::from),
        "array" => {
            let like = like.as_array_ref().ok()?;
            let Some(first) = like.first() else { return value.is_array().then_some(value) };
            let items = json.as_array()?.iter().map(|item| from_json(item, first));
            Some(Dynamic::from_array(items.collect::<Option<Vec<_>>>()?))
        }
        _ => value.is_string().then_some(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(text: &str) -> Result<Vec<Parameter>> {
        scan("r.rhai", &crate::recipe::parser::parser().compile(text).unwrap())
    }

    fn given(assignments: &[&str]) -> Vec<GivenParameter> {
        assignments.iter().map(|a| parse_assignment(a).unwrap()).collect()
    }

    fn resolved(text: &str, assignments: &[&str]) -> Vec<String> {
        let mut parameters = declared(text).unwrap();
        give(&mut parameters, &given(assignments)).unwrap();
        let shown =
            |p: Parameter| format!("{}={}:{}", p.name, written(&p.value), type_of(&p.value));
        parameters.into_iter().map(shown).collect()
    }

    const RECIPE: &str = r#"
        param("lr", 3e-4, "peak learning rate", #{ min: 0 });
        param("steps", 100, "optimizer steps");
        param("offset", -3);
        param("model", "gpt2", "which", #{ choices: ["gpt2", "tiny"] });
        param("fused", true);
        param("betas", [0.9, 0.95], "Adam's");
        print(P::lr);
    "#;

    #[test]
    fn declarations_are_read_without_running() {
        let parameters = declared(RECIPE).unwrap();
        let names: Vec<_> = parameters.iter().map(|p| (p.name.as_str(), p.type_name())).collect();
        assert_eq!(
            names,
            [
                ("lr", "float"),
                ("steps", "int"),
                ("offset", "int"),
                ("model", "string"),
                ("fused", "bool"),
                ("betas", "array")
            ]
        );
        assert_eq!(parameters[0].help, "peak learning rate");
        assert_eq!(parameters[2].default_text(), "-3");
        assert_eq!(parameters[3].limits_text(), r#""gpt2" | "tiny""#);
    }

    #[test]
    fn text_becomes_the_declared_type() {
        assert_eq!(
            resolved(RECIPE, &["lr=1", "steps=1e3", "model=tiny", "fused=false", "betas=1,0.5"]),
            [
                "lr=1.0:float",
                "steps=1000:int",
                "offset=-3:int",
                "model=\"tiny\":string",
                "fused=false:bool",
                "betas=[1.0, 0.5]:array"
            ]
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut parameters = declared(RECIPE).unwrap();
        let error = give(
            &mut parameters,
            &given(&["lrr=1", "steps=1.5", "lr=-1", "model=huge", "fused=yes", "betas=[1,\"x\"]"]),
        )
        .unwrap_err();
        let all: Vec<_> =
            std::iter::once(&error).chain(error.others()).map(Error::message).collect();
        assert_eq!(
            all,
            [
                "the recipe has no parameter `lrr`",
                "parameter `steps` must be a whole number, found `1.5`",
                "parameter `lr` must be 0 or more, found -1.0",
                r#"parameter `model` must be one of "gpt2" | "tiny", found "huge""#,
                "parameter `fused` must be true or false, found `yes`",
                r#"parameter `betas` must be an array such as [1, 2] or 1,2, found `[1,"x"]`"#,
            ]
        );
        assert_eq!(error.hints()[0], "did you mean `lr`?");
    }

    #[test]
    fn a_declaration_must_be_literal_and_at_the_top() {
        let error = declared("let x = 1; param(\"a\", x);").unwrap_err();
        assert!(error.message().contains("default of `param` must be written out"), "{error}");
        let error = declared("if true { param(\"a\", 1); }").unwrap_err();
        assert_eq!(error.code(), Code::CallOrder);
        let error = declared("param(\"a\", 1); param(\"a\", 2);").unwrap_err();
        assert!(error.message().contains("declared twice"), "{error}");
    }
}
