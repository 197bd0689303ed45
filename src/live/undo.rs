//! The variables before an input, to be restored if it fails.

use rhai::{Dynamic, Scope};

/// The values of the variables. Handles (a model, an engine) are shared: changes of a model remain.
pub(super) struct Undo {
    /// The newest first, as Rhai lists them.
    values: Vec<(String, Dynamic)>,
}

impl Undo {
    pub(super) fn of(scope: &Scope<'_>) -> Self {
        // A variable that a closure has captured is a shared cell: its content is kept.
        let kept =
            |(name, _, value): (&str, bool, &Dynamic)| (name.to_owned(), value.flatten_clone());
        Self { values: scope.iter_raw().map(kept).collect() }
    }

    /// Gives the variables their values again, and drops those that came later.
    pub(super) fn restore(self, scope: &mut Scope<'_>) {
        scope.rewind(self.values.len());
        for (name, value) in self.values {
            let Some(place) = scope.get_mut(&name) else { continue };
            if let Some(mut content) = place.write_lock::<Dynamic>() {
                *content = value;
            }
        }
    }
}

/// Keeps only the newest variable of each name: an older one is hidden, and may hold the memory of a
/// model.
pub(super) fn drop_shadowed(scope: Scope<'static>) -> Scope<'static> {
    let mut names = std::collections::BTreeSet::new();
    if scope.iter_raw().all(|(name, ..)| names.insert(name.to_owned())) {
        return scope;
    }
    let mut newest: Vec<(String, Dynamic)> = Vec::new();
    for (name, value, _) in scope {
        newest.retain(|(known, _)| *known != name);
        newest.push((name, value));
    }
    let mut scope = Scope::new();
    for (name, value) in newest {
        match value.is_read_only() {
            true => scope.push_constant_dynamic(name, value),
            false => scope.push_dynamic(name, value),
        };
    }
    scope
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_and_later_variables_go() {
        let engine = rhai::Engine::new();
        let mut scope = Scope::new();
        let run =
            |scope: &mut Scope<'static>, text: &str| engine.run_with_scope(scope, text).unwrap();
        run(&mut scope, "let a = [1, 2]; let n = 0; const C = 5; let add = || n += 1;");
        let undo = Undo::of(&scope);
        run(&mut scope, "a.push(3); let b = 4; n = 7; let a = 9;");
        undo.restore(&mut scope);
        let names: Vec<_> = scope.iter_raw().map(|(name, ..)| name.to_owned()).collect();
        assert_eq!(names, ["add", "C", "n", "a"]);
        let value = |name: &str| scope.get(name).unwrap().flatten_clone().to_string();
        assert_eq!((value("a").as_str(), value("n").as_str()), ("[1, 2]", "0"));
    }

    #[test]
    fn the_newest_of_a_name_stays() {
        let mut scope = Scope::new();
        scope.push("x", 1_i64).push("y", 2_i64).push_constant("x", 3_i64);
        let scope = drop_shadowed(scope);
        let all: Vec<_> = scope
            .iter_raw()
            .map(|(name, constant, value)| format!("{name} {constant} {value}"))
            .collect();
        assert_eq!(all, ["x true 3", "y false 2"]);
    }
}
