//! `dsr check RECIPE`: the mistakes that can be seen without running it, for people or for editors.

use serde_json::{Value, json};

use super::{Console, args::CheckArgs, console, host};
use crate::{
    recipe::{Failure, diagnostics::Fault},
    script::Session,
};

/// Checks a recipe; the result is the exit status.
pub(super) fn run(args: &CheckArgs, console: &Console) -> Result<u8, Failure> {
    let recipe = args.fetch.open(&args.recipe)?;
    let mut host = host::of(&recipe, &args.given, &args.fetch, console, |_| ())?;
    args.lock.settle(&mut host.workspace, &recipe)?;
    let checked = Session::new(host).check(&recipe);
    if !args.json {
        checked?;
        console::out(&format!("{}: no mistake found\n", recipe.name));
        return Ok(0);
    }
    let (faults, status) = match &checked {
        Ok(()) => (&[][..], 0),
        Err(failure) => (&failure.faults[..], failure.code().exit_status()),
    };
    let faults: Vec<_> = faults.iter().map(fault).collect();
    console::out_json(format_args!("{:#}", Value::from(faults)));
    Ok(status)
}

/// Lines and columns count from 1, columns in characters; `end_column` is behind the last.
fn fault(Fault { error, place }: &Fault) -> Value {
    let mut json = json!({
        "code": error.code().number(),
        "severity": "error",
        "message": error.message(),
        "hints": error.hints(),
    });
    if let Some(place) = place {
        json["file"] = place.source.name.as_str().into();
        json["line"] = place.line.into();
        json["column"] = place.column.into();
        json["end_column"] = (place.column + place.length()).into();
    }
    json
}
