//! Steps of an `Engine` that are undone.

use rhai::{FnPtr, plugin::*};

use super::{engine::Engine, loader::api::Loader};
use crate::{
    checkpoint::Store,
    error::Result,
    recipe::error::ScriptResult,
    run::{Scratch, load_checkpoint, save_checkpoint},
    script::{
        callback::Callback,
        host::{self, Host},
    },
};

/// Steps that are undone.
#[export_module]
pub mod api {
    /// Calls a function, brings engine and loader back to where they were, also where the function fails,
    /// and returns what it returned. Its steps go to no monitor, and a run of the engine is refused in it:
    /// `run.train_batch()`, `run.evaluate(...)` and the like would write them down. Meanwhile a checkpoint
    /// lies in `runs`, which is removed. Every rank must call it.
    ///
    /// ```rhai
    /// let loss = engine.with_restore(loader, || {
    ///     for i in 0..10 { engine.train_batch(loader); }
    ///     engine.loss
    /// });
    /// ```
    // By value, so that the function can use the variable that it is called on.
    #[rhai_fn(return_raw)]
    pub fn with_restore(
        ctx: NativeCallContext,
        engine: Engine,
        loader: Loader,
        run: FnPtr,
    ) -> ScriptResult<Dynamic> {
        let callback = Callback::new(&ctx, run)?;
        Ok(super::restored(&*host::of(&ctx)?, &engine, &loader, &callback)?)
    }
}

fn restored(host: &Host, engine: &Engine, loader: &Loader, run: &Callback) -> Result<Dynamic> {
    let root = host.workspace.rights.writable("runs")?;
    let is_first = host.group()?.rank() == 0;
    let scratch = is_first.then(|| Scratch::create(&root)).transpose()?;
    let own = scratch.iter().map(|scratch| scratch.number() as f64);
    let number = host.group()?.told(own.collect())?.first().map_or(1, |&number| number as u64);
    engine.write()?.begin_trial()?;
    let tried = try_out(engine, loader, &Scratch::store(&root, number), run);
    engine.write()?.end_trial();
    // A rank may still read it.
    host.group()?.barrier()?;
    tried
}

fn try_out(engine: &Engine, loader: &Loader, store: &Store, run: &Callback) -> Result<Dynamic> {
    let at = loader.read()?.state();
    save(&*engine.read()?, store)?;
    let outcome = run.call(());
    load_checkpoint(&mut *engine.write()?, None, store.latest()?)?;
    loader.write()?.restore(at)?;
    outcome
}

fn save(engine: &crate::engine::Engine, store: &Store) -> Result<()> {
    match engine.group().rank() {
        0 => save_checkpoint(engine, store, None, None, None).map(drop)?,
        _ => engine.write_state(None, None, None)?,
    }
    engine.group().barrier()
}
