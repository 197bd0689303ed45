//! The place of one option inside a call.
//!
//! Rhai knows the position of a call, not of the key in its option map that was wrong. The syntax
//! tree has both: the call is found by its position, the map literal among its arguments (or the
//! variable that holds it), and the option's dotted path is followed down from there.

use rhai::{AST, ASTNode, Expr, FnCallExpr, Position, Stmt};

/// The part of an option to point at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OptionPart {
    /// Its key.
    Key,
    /// Its value.
    Value,
}

/// The position of the option at `path` in the call at `call`: its key or value, or the innermost
/// enclosing option that is written out; `None` if no part of the path can be found.
pub(crate) fn in_call(ast: &AST, call: Position, path: &str, part: OptionPart) -> Option<Position> {
    let segments = segments(path);
    let mut place = None;
    ast.walk(&mut |nodes| {
        if let Some((found, position)) = nodes.last().and_then(as_call)
            && position == call
        {
            place = found.args.iter().rev().find_map(|arg| follow(ast, arg, &segments, part));
        }
        place.is_none()
    });
    place
}

/// The first map literal that has the last key of `path`, for maps that were built elsewhere.
pub(crate) fn anywhere(ast: &AST, path: &str) -> Option<Position> {
    let segments = segments(path);
    let key = segments.last()?;
    let mut place = None;
    ast.walk(&mut |nodes| {
        if let Some(ASTNode::Expr(Expr::Map(map, _))) = nodes.last() {
            place = map.0.iter().find(|(k, _)| k.name == *key).map(|(k, _)| k.pos);
        }
        place.is_none()
    });
    place
}

/// The positions of all unqualified calls of the function `name`.
pub(crate) fn calls_of(ast: &AST, name: &str) -> Vec<Position> {
    let mut positions = Vec::new();
    ast.walk(&mut |nodes| {
        if let Some((call, position)) = nodes.last().and_then(as_call)
            && call.name == name
            && !call.is_qualified()
        {
            positions.push(position);
        }
        true
    });
    positions
}

/// A node that is a call of a function or method.
pub(crate) fn as_call<'a>(node: &ASTNode<'a>) -> Option<(&'a FnCallExpr, Position)> {
    match node {
        ASTNode::Stmt(Stmt::FnCall(call, position))
        | ASTNode::Expr(Expr::FnCall(call, position) | Expr::MethodCall(call, position)) => {
            Some((call, *position))
        }
        _ => None,
    }
}

/// `optimizer.betas[1]` as `["optimizer", "betas", "[1]"]`.
fn segments(path: &str) -> Vec<&str> {
    path.split('.')
        .flat_map(|part| {
            let (name, index) = part.split_at(part.find('[').unwrap_or(part.len()));
            [name, index]
        })
        .filter(|segment| !segment.is_empty())
        .collect()
}

fn follow(ast: &AST, expr: &Expr, segments: &[&str], part: OptionPart) -> Option<Position> {
    let (first, rest) = segments.split_first()?;
    match expr {
        Expr::Map(map, _) => {
            let (key, inner) = map.0.iter().find(|(key, _)| key.name == *first)?;
            let deeper = follow(ast, inner, rest, part);
            let value = inner.start_position();
            Some(deeper.unwrap_or(match part {
                OptionPart::Value if rest.is_empty() && !value.is_none() => value,
                _ => key.pos,
            }))
        }
        Expr::Array(items, _) => {
            let index: usize = first.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?;
            let item = items.get(index)?;
            follow(ast, item, rest, part).or_else(|| Some(item.start_position()))
        }
        Expr::Variable(variable, ..) => follow(ast, definition(ast, &variable.1)?, segments, part),
        _ => None,
    }
}

/// The literal that the variable `name` was declared with, at the top level of the recipe.
fn definition<'a>(ast: &'a AST, name: &str) -> Option<&'a Expr> {
    ast.statements().iter().rev().find_map(|statement| match statement {
        // A variable that is declared as another variable is not followed: it could be itself.
        Stmt::Var(var, ..) if var.0.name == name && matches!(var.1, Expr::Map(..)) => Some(&var.1),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(text: &str, call: (u16, u16), path: &str, part: OptionPart) -> Option<(usize, usize)> {
        let mut engine = rhai::Engine::new();
        engine.set_optimization_level(rhai::OptimizationLevel::None);
        let ast = engine.compile(text).unwrap();
        let position = in_call(&ast, Position::new(call.0, call.1), path, part)
            .or_else(|| anywhere(&ast, path))?;
        Some((position.line()?, position.position()?))
    }

    #[test]
    fn keys_and_values_of_literals() {
        let text = "let m = 1;\nf(m, #{\n  a: 1,\n  b: #{ c: [1, 2], d: 3 },\n});";
        assert_eq!(find(text, (2, 1), "a", OptionPart::Key), Some((3, 3)));
        assert_eq!(find(text, (2, 1), "a", OptionPart::Value), Some((3, 6)));
        assert_eq!(find(text, (2, 1), "b.d", OptionPart::Key), Some((4, 20)));
        assert_eq!(find(text, (2, 1), "b.c[1]", OptionPart::Value), Some((4, 16)));
        // A missing option is shown at the map that should have it.
        assert_eq!(find(text, (2, 1), "b.missing", OptionPart::Key), Some((4, 3)));
    }

    #[test]
    fn maps_in_variables_and_in_methods() {
        let text = "let o = #{ a: 1 };\nlet x = m.f(o).g(#{ b: o });";
        assert_eq!(find(text, (2, 11), "a", OptionPart::Key), Some((1, 12)));
        assert_eq!(find(text, (2, 16), "b.a", OptionPart::Key), Some((1, 12)));
    }

    #[test]
    fn a_map_that_is_built_elsewhere_is_searched_for() {
        let text = "fn opts() { #{ lr: 1 } }\nf(opts());";
        assert_eq!(find(text, (2, 1), "optimizer.lr", OptionPart::Key), Some((1, 16)));
        assert_eq!(find(text, (2, 1), "nowhere", OptionPart::Key), None);
    }
}
