//! The observers that a host gives to an engine: traces, lines and logs of its steps.

use std::rc::Rc;

use super::host::Host;
use crate::{
    engine::{Engine, Tracer},
    error::Result,
    run::Monitors,
};

/// Traces the first engine of the recipe, if the user asked for it: each rank into a file of its own.
pub(super) fn trace(host: &Rc<Host>, engine: &mut Engine) -> Result<()> {
    let Some(mut file) = host.run.profile.take() else { return Ok(()) };
    let group = Rc::clone(engine.group());
    if group.world_size() > 1 {
        let of_rank = format!("rank-{}", group.rank());
        let extension = file.extension().map(|end| format!("{of_rank}.{}", end.display()));
        file.set_extension(extension.unwrap_or(of_rank));
    }
    let shown = Rc::clone(host);
    let show = Box::new(move |line: &str| shown.output.note(line));
    engine.observe(Box::new(Tracer::new(
        host.workspace.rights.work_place().join(file),
        group.device(),
        show,
    )?));
    Ok(())
}

/// Prints and logs steps on rank 0, as the options ask for it.
pub(super) fn monitor(host: Rc<Host>, engine: &mut Engine) -> Result<()> {
    if engine.group().rank() > 0 || host.run.is_trial {
        return Ok(());
    }
    let work_dir = host.workspace.rights.work_place();
    let show = Box::new(move |line: &str| host.output.note(line));
    if let Some(monitors) = Monitors::open(&engine.config().monitor, work_dir, show)? {
        engine.observe(Box::new(monitors));
    }
    Ok(())
}
