//! The type of an expression, as far as it can be told without running it.
//!
//! A variable has a type where every value that the source gives to its name has that type, wherever
//! it stands: coarse, but never wrong.

use std::{
    any::TypeId,
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use rhai::{AST, ASTNode, Array, Expr, FnPtr, ImmutableString, Map, Stmt};

use super::surface::{Surface, ValueType};
use crate::recipe::params::{self, Parameter};

/// A value that a variable is given.
enum AssignedValue {
    /// The value of an expression.
    Of(Expr),
    /// An element of its value.
    ElementOf(Expr),
    /// A value of a type.
    A(TypeId),
    /// A value that only the run knows.
    Anything,
}

/// The types of a source.
pub(super) struct Types<'a> {
    surface: &'a Surface,
    parameters: &'a [Parameter],
    values: BTreeMap<String, Vec<AssignedValue>>,
    known: RefCell<BTreeMap<String, ValueType>>,
    /// Variables whose type is being looked for.
    open: RefCell<BTreeSet<String>>,
}

impl<'a> Types<'a> {
    pub(super) fn new(
        surface: &'a Surface,
        ast: &AST,
        parameters: &'a [Parameter],
        known: &[(String, TypeId)],
    ) -> Self {
        let mut values: BTreeMap<String, Vec<AssignedValue>> = BTreeMap::new();
        for (name, kind) in known {
            values.entry(name.clone()).or_default().push(AssignedValue::A(*kind));
        }
        let mut captured: BTreeMap<String, usize> = BTreeMap::new();
        ast.walk(&mut |nodes| {
            match nodes.last() {
                Some(ASTNode::Stmt(stmt)) => given(stmt, &mut |name, value| {
                    values.entry(name.to_owned()).or_default().push(value);
                }),
                Some(ASTNode::Expr(Expr::FnCall(call, _))) if call.name == "curry" => {
                    if let Some(Expr::DynamicConstant(function, _)) = call.args.first()
                        && let Some(function) = function.read_lock::<FnPtr>()
                    {
                        captured.insert(function.fn_name().to_owned(), call.args.len() - 1);
                    }
                }
                _ => {}
            }
            true
        });
        for function in ast.iter_functions() {
            // Captured variables come first, and are those outside.
            let outside = captured.get(function.name).copied().unwrap_or(0);
            for param in function.params.iter().skip(outside) {
                values.entry((*param).to_owned()).or_default().push(AssignedValue::Anything);
            }
        }
        let (known, open) = Default::default();
        Self { surface, parameters, values, known, open }
    }

    /// The type of an expression that is no part of a chain of members.
    pub(super) fn of(&self, expr: &Expr) -> ValueType {
        match expr {
            Expr::BoolConstant(..) | Expr::And(..) | Expr::Or(..) => Some(TypeId::of::<bool>()),
            Expr::IntegerConstant(..) => Some(TypeId::of::<i64>()),
            Expr::FloatConstant(..) => Some(TypeId::of::<f64>()),
            Expr::CharConstant(..) => Some(TypeId::of::<char>()),
            Expr::StringConstant(..) | Expr::InterpolatedString(..) => {
                Some(TypeId::of::<ImmutableString>())
            }
            Expr::Array(..) => Some(TypeId::of::<Array>()),
            Expr::Map(..) => Some(TypeId::of::<Map>()),
            Expr::Unit(..) => Some(TypeId::of::<()>()),
            Expr::DynamicConstant(value, _) if value.is_fnptr() => Some(TypeId::of::<FnPtr>()),
            Expr::Variable(variable, ..) if variable.2.is_empty() => self.of_variable(&variable.1),
            Expr::Variable(..) => {
                params::used(expr, self.parameters).map(|parameter| parameter.value.type_id())
            }
            Expr::FnCall(call, _) if !call.is_operator_call() => {
                let name = match call.is_qualified() {
                    true => format!("{}::{}", call.namespace, call.name),
                    false => call.name.to_string(),
                };
                self.surface.returns(&name, &self.of_all(&call.args))
            }
            Expr::Dot(pair, ..) => self.chain(self.of(&pair.lhs), &pair.rhs),
            _ => None,
        }
    }

    pub(super) fn of_all(&self, exprs: &[Expr]) -> Vec<ValueType> {
        exprs.iter().map(|expr| self.of(expr)).collect()
    }

    /// The type of the member `expr` of a `receiver`.
    pub(super) fn of_member(&self, receiver: ValueType, expr: &Expr) -> ValueType {
        let receiver = receiver.filter(|kind| *kind != TypeId::of::<Map>())?;
        match expr {
            Expr::Property(property, _) => {
                self.surface.returns(&format!("get${}", property.2), &[Some(receiver)])
            }
            Expr::MethodCall(call, _) => {
                let mut arguments = vec![Some(receiver)];
                arguments.extend(self.of_all(&call.args));
                self.surface.returns(&call.name, &arguments)
            }
            _ => None,
        }
    }

    fn chain(&self, receiver: ValueType, rest: &Expr) -> ValueType {
        match rest {
            Expr::Dot(pair, ..) => self.chain(self.of_member(receiver, &pair.lhs), &pair.rhs),
            member => self.of_member(receiver, member),
        }
    }

    fn of_variable(&self, name: &str) -> ValueType {
        if let Some(kind) = self.known.borrow().get(name) {
            return *kind;
        }
        if !self.open.borrow_mut().insert(name.to_owned()) {
            return None;
        }
        let mut kinds = self.values.get(name).into_iter().flatten().map(|value| match value {
            AssignedValue::Of(expr) => self.of(expr),
            AssignedValue::ElementOf(expr) => self.element(self.of(expr)),
            AssignedValue::A(kind) => Some(*kind),
            AssignedValue::Anything => None,
        });
        let kind = kinds.next().flatten().filter(|first| kinds.all(|kind| kind == Some(*first)));
        self.open.borrow_mut().remove(name);
        self.known.borrow_mut().insert(name.to_owned(), kind);
        kind
    }

    /// The type of the items of loaders and runs.
    fn element(&self, of: ValueType) -> ValueType {
        let batches = ["Loader", "Run"].contains(&self.surface.name_of(of));
        batches.then(|| self.surface.receiver("get$input_ids")).flatten()
    }
}

/// The variables that a statement gives a value.
fn given(stmt: &Stmt, give: &mut impl FnMut(&str, AssignedValue)) {
    match stmt {
        Stmt::Var(var, ..) => give(&var.0.name, AssignedValue::Of(var.1.clone())),
        Stmt::For(x, _) => {
            give(&x.0.name, AssignedValue::ElementOf(x.2.expr.clone()));
            if let Some(counter) = &x.1 {
                give(&counter.name, AssignedValue::A(TypeId::of::<i64>()));
            }
        }
        Stmt::Assignment(x) => {
            let (operation, pair) = &**x;
            if let Expr::Variable(variable, ..) = &pair.lhs {
                let value = match operation.is_op_assignment() {
                    true => AssignedValue::Anything,
                    false => AssignedValue::Of(pair.rhs.clone()),
                };
                give(&variable.1, value);
            }
        }
        Stmt::TryCatch(x, _) => {
            if let Expr::Variable(variable, ..) = &x.expr {
                give(&variable.1, AssignedValue::Anything);
            }
        }
        _ => {}
    }
}
