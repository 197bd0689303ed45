//! The modules that are part of dsr: `dsr:NAME`.

use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
};

/// The prefix of the names of embedded files.
pub(crate) const EMBEDDED: &str = "dsr:";

/// The modules of the standard library: name and text.
pub(crate) const STDLIB: &[(&str, &str)] = &[
    ("dpo", include_str!("../../stdlib/dpo.rhai")),
    ("lr_finder", include_str!("../../stdlib/lr_finder.rhai")),
    ("metrics", include_str!("../../stdlib/metrics.rhai")),
    ("schedule", include_str!("../../stdlib/schedule.rhai")),
    ("trainer", include_str!("../../stdlib/trainer.rhai")),
];

/// The text of the module of the standard library called `name`.
pub(crate) fn module(name: &str) -> Option<&'static str> {
    STDLIB.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// As [`module`]; the error for another name lists the modules.
pub(crate) fn known_module(name: &str) -> Result<&'static str> {
    if let Some(text) = module(name) {
        return Ok(text);
    }
    let names: Vec<_> = STDLIB.iter().map(|(known, _)| *known).collect();
    let error =
        Error::new(Code::UnknownFunction, format!("dsr has no module \"{EMBEDDED}{name}\""));
    let near = nearest(name, names.iter().copied());
    Err(error
        .hint_if(near.map(|near| format!("did you mean \"{EMBEDDED}{near}\"?")))
        .hint(format!("it has: {}", names.join(", "))))
}
