//! Steps of an `Engine` that are undone.

use std::{
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use rhai::{FnPtr, plugin::*};

use super::{engine::Engine, loader::api::Loader};
use crate::{
    checkpoint::Store,
    error::Result,
    fs::{Place, remove_dir},
    recipe::error::ScriptResult,
    run::{load_checkpoint, save_checkpoint},
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
    let place = scratch(host)?;
    engine.write()?.begin_trial()?;
    let tried = try_out(engine, loader, &place, run);
    engine.write()?.end_trial();
    // A rank may still read it.
    host.group()?.barrier()?;
    if host.group()?.rank() == 0 {
        remove_dir(place)?;
    }
    tried
}

fn try_out(engine: &Engine, loader: &Loader, place: &Place, run: &Callback) -> Result<Dynamic> {
    let store = Store::open(place.clone());
    let at = loader.read()?.state();
    save(&*engine.read()?, &store)?;
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

/// A directory that no other process or call has, which rank 0 names for all.
fn scratch(host: &Host) -> Result<Place> {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let own = [u64::from(process::id()), CALLS.fetch_add(1, Ordering::Relaxed)];
    let name = host.group()?.told(own.map(|n| n as f64).to_vec())?;
    let name = name.iter().map(|n| format!("-{n}")).collect::<String>();
    Ok(host.workspace.rights.writable("runs")?.join(format!("restore{name}")))
}
