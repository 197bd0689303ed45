//! All mistakes of a recipe that does not parse, in one look.

use std::rc::Rc;

use super::{check, host::Host, runtime};
use crate::{
    error::Error,
    recipe::{
        bundle::code, diagnostics::Failure, error::Located, file::Recipe, imports::Imports, params,
        parser::parser, recovery::Recovery,
    },
};

/// The mistakes of a recipe whose text does not parse, with those behind the first; `None` where it does.
pub(super) fn of_text(host: &Rc<Host>, recipe: &Recipe) -> Option<Failure> {
    let workspace = &host.workspace;
    let (sources, name) = (&workspace.sources, &recipe.name);
    let mut recovery = Recovery::new(sources, name, code(&recipe.text));
    let mut more = Vec::new();
    if let Some(ast) = recovery.parse(&parser()) {
        match params::scan(name, &ast) {
            Err(error) => more = error.split(),
            Ok(parameters) => {
                let engine = || runtime::engine(host, params::module(&parameters));
                recovery.find_unknown_names(&engine());
                // With variables that do not exist, for the calls that they stand in.
                let mut lenient = engine();
                lenient.set_strict_variables(false);
                if let Some(ast) = recovery.parse(&lenient) {
                    let imports = Imports::load(&lenient, workspace, name, &ast, &parameters);
                    let checked = check::check(&lenient, name, &ast, &imports, &parameters);
                    more.extend(checked.err().into_iter().flat_map(Error::split));
                    more.extend(imports.faults);
                }
            }
        }
    }
    let mut faults = recovery.into_faults();
    if faults.is_empty() {
        return None;
    }
    faults.append(&mut more);
    faults.sort_by_key(|fault| {
        let frame = Located::of(fault).and_then(|located| located.frames.first());
        let position = frame.map(|frame| (frame.position.line(), frame.position.position()));
        (frame.is_some_and(|frame| frame.source != *name), position)
    });
    Error::all(faults).map(|all| Failure::of(all, &[], sources))
}
