//! `Engine` in scripts: DeepSpeed's three lines, forward, backward, step, and what goes with them.

use std::{rc::Rc, sync::Arc};

use rhai::{Map, plugin::*};

use super::{
    batch::api::Batch,
    dataset::api::Dataset,
    evaluation,
    loader::{self, api::Loader},
    model::api::Model,
    tensor::Handle as Tensor,
};
use crate::{
    checkpoint::Store,
    config::{EngineConfig, optimizer::StateDtype, options::option_table},
    dist::Mesh,
    engine::{self, MemoryUse, StepOutcome, fitting::fit_batch},
    error::{Error, Result},
    recipe::{
        error::ScriptResult,
        options::{self, Handed},
    },
    run::{load_checkpoint, save_checkpoint},
    script::{
        callback::Callback,
        engine_options::{self, EngineOptions},
        host::{self, Host},
        observers,
        shared::Shared,
    },
    tensor::AllocatorUse,
};

/// An engine as a script value.
pub type Engine = Shared<engine::Engine>;

/// Training, one micro batch at a time.
#[export_module]
pub mod api {
    /// A model with its optimizer. Made by `init_engine`.
    pub type Engine = super::Engine;

    /// Makes an engine that trains `model`.
    ///
    /// Names and defaults are those of DeepSpeed and transformers. With bf16 and fp16 the model's own
    /// parameters change their format. A skipped step does not advance the scheduler. Parameters go by
    /// patterns of their Hugging Face names, and two values of one setting for the same parameter are
    /// refused. libtorch has `matmul_precision` and `deterministic` for the whole process: each engine
    /// computes with its own, what runs outside of an engine with those of the one that ran last.
    ///
    /// ```rhai
    /// let engine = init_engine(model, #{
    ///     micro_batch_size: 4,
    ///     gradient_accumulation_steps: 2,
    ///     optimizer: #{ type: "AdamW", lr: 6e-4, betas: [0.9, 0.95], weight_decay: 0.1 },
    ///     scheduler: #{ type: "cosine", total_num_steps: 1000, warmup_num_steps: 100 },
    /// });
    /// ```
    #[rhai_fn(return_raw)]
    pub fn init_engine(ctx: NativeCallContext, model: Model, options: Map) -> ScriptResult<Engine> {
        let host = host::of(&ctx)?;
        let keep = |f| Callback::new(&ctx, f);
        let EngineOptions { config, loss } =
            engine_options::read(&options, host.world_size()?, keep)?;
        host.workspace.rights.check_engine(&config)?;
        let rows = host.row_lengths.shape(loss.is_some());
        if let Some(planning) = &host.planning {
            return Err(planning.end(&model.get(), config, rows)?);
        }
        let group = host.group()?;
        if config.mesh.shape(group.world_size())?.ranks() > host.local_ranks()? {
            config.mesh.check_machine("this machine", host.local_ranks()?)?;
        }
        let config = fit_batch(&model.get(), config, &rows, (&*group, host.local_ranks()?))?;
        let work_dir = host.workspace.rights.work_place();
        let mut engine = engine::Engine::new_in(&work_dir, model.get(), group, config)?;
        model.set(Rc::clone(engine.model()));
        host.ranks.replica().set(Some(engine.mesh().replica()));
        if let Some(loss) = loss {
            engine.set_loss(loss);
        }
        if let Some(on_engine) = &host.on_engine {
            on_engine(&mut engine);
        }
        engine.stop_when(Arc::new(host.stopper()));
        observers::trace(&host, &mut engine)?;
        observers::monitor(host, &mut engine)?;
        Ok(Shared::new(engine))
    }

    /// Computes the mean loss of a batch over its target tokens.
    ///
    /// ```rhai
    /// let loss = engine.forward(batch);
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn forward(
        ctx: NativeCallContext,
        engine: &mut Engine,
        batch: Batch,
    ) -> ScriptResult<Tensor> {
        let loss = engine.write()?.forward(&batch)?;
        if let Some(feed) = &host::of(&ctx)?.feed {
            feed.forward_done(&batch);
        }
        Ok(Tensor::new(loss))
    }

    /// Computes the gradients of the loss that `forward` returned, and adds them up.
    ///
    /// ```rhai
    /// engine.backward(loss);
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn backward(ctx: NativeCallContext, engine: &mut Engine, loss: Tensor) -> ScriptResult<()> {
        let outcome = engine.write()?.backward(loss.tensor());
        if let Some(feed) = &host::of(&ctx)?.feed {
            feed.backward_done(outcome.as_ref().err());
        }
        Ok(outcome?)
    }

    /// Applies the gradients when `gradient_accumulation_steps` micro batches are done, and returns
    /// whether it did. To be called after each `backward`.
    ///
    /// ```rhai
    /// if engine.step() { print(engine.loss); }
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn step(ctx: NativeCallContext, engine: &mut Engine) -> ScriptResult<bool> {
        let host = host::of(&ctx)?;
        host.check_tried(engine.read()?.is_trial())?;
        let is_done = engine.write()?.step()?;
        if is_done && let Some(feed) = &host.feed {
            feed.step_done();
        }
        Ok(is_done)
    }

    /// Makes one optimizer step of the next micro batches of a loader, and returns its mean loss; `()`
    /// where the loader has not as many any more. It is `forward`, `backward` and `step` in one call,
    /// and the only way to train a pipeline of several stages.
    ///
    /// ```rhai
    /// while engine.train_batch(loader) != () { print(engine.loss); }
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn train_batch(
        ctx: NativeCallContext,
        engine: &mut Engine,
        loader: Loader,
    ) -> ScriptResult<Dynamic> {
        let outcome = super::train_batch(&*host::of(&ctx)?, engine, &loader)?;
        Ok(outcome.map_or(Dynamic::UNIT, |outcome| outcome.loss.into()))
    }

    /// Computes the mean loss over all target tokens of a dataset, without dropout: a map with
    /// `loss`, `perplexity` and `targets`.
    ///
    /// ```rhai
    /// print(engine.evaluate(validation).perplexity);
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn evaluate(
        ctx: NativeCallContext,
        engine: &mut Engine,
        dataset: Dataset,
    ) -> ScriptResult<Map> {
        let host = host::of(&ctx)?;
        let found = evaluation::evaluate(&host, engine, &dataset, &|| host.must_stop())?;
        Ok(evaluation::map(&found.ok_or_else(Error::interrupted)?))
    }

    /// Saves parameters and optimizer into a directory of checkpoints, and returns the path of the
    /// new one.
    ///
    /// ```rhai
    /// engine.save_checkpoint("checkpoints");
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn save_checkpoint(
        ctx: NativeCallContext,
        engine: &mut Engine,
        dir: &str,
    ) -> ScriptResult<String> {
        save_checkpoint_with(ctx, engine, dir, Map::new())
    }

    /// Saves with the place of a loader in the data, and removes old checkpoints.
    ///
    /// ```rhai
    /// engine.save_checkpoint("checkpoints", #{ loader: loader, keep: 2 });
    /// ```
    #[rhai_fn(name = "save_checkpoint", return_raw, pure)]
    pub fn save_checkpoint_with(
        ctx: NativeCallContext,
        engine: &mut Engine,
        dir: &str,
        options: Map,
    ) -> ScriptResult<String> {
        Ok(super::save(&*host::of(&ctx)?, engine, dir, &options)?)
    }

    /// Goes on from a checkpoint, or from the latest of a directory of checkpoints or of a run.
    ///
    /// ```rhai
    /// engine.load_checkpoint("checkpoints");
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn load_checkpoint(
        ctx: NativeCallContext,
        engine: &mut Engine,
        path: &str,
    ) -> ScriptResult<()> {
        load_checkpoint_with(ctx, engine, path, Map::new())
    }

    /// Goes on from a checkpoint, and brings a `loader` to its place in the data.
    ///
    /// ```rhai
    /// engine.load_checkpoint("checkpoints", #{ loader: loader });
    /// ```
    #[rhai_fn(name = "load_checkpoint", return_raw, pure)]
    pub fn load_checkpoint_with(
        ctx: NativeCallContext,
        engine: &mut Engine,
        path: &str,
        options: Map,
    ) -> ScriptResult<()> {
        Ok(super::load(&*host::of(&ctx)?, engine, path, &options)?)
    }

    /// Returns the number of this process among those that train together: 0, where it is alone.
    /// What every rank takes part in (a step, an evaluation, a checkpoint) must not depend on it.
    #[rhai_fn(get = "rank", return_raw, pure)]
    pub fn rank(engine: &mut Engine) -> ScriptResult<i64> {
        Ok(engine.read()?.group().rank() as i64)
    }

    /// Returns how many processes train together.
    #[rhai_fn(get = "world_size", return_raw, pure)]
    pub fn world_size(engine: &mut Engine) -> ScriptResult<i64> {
        Ok(engine.read()?.group().world_size() as i64)
    }

    /// Returns where this process is in the mesh: a map with the numbers of its pipeline stage, `pp`, of
    /// its replica, `dp`, and of its part of each layer, `tp`, and how many there are of each,
    /// `pp_size`, `dp_size` and `tp_size`.
    ///
    /// ```rhai
    /// print(`stage ${engine.mesh.pp} of ${engine.mesh.pp_size}`);
    /// ```
    #[rhai_fn(get = "mesh", return_raw, pure)]
    pub fn mesh(engine: &mut Engine) -> ScriptResult<Map> {
        Ok(super::mesh_map(engine.read()?.mesh()))
    }

    /// Returns the number of optimizer steps done.
    #[rhai_fn(get = "global_step", return_raw, pure)]
    pub fn global_step(engine: &mut Engine) -> ScriptResult<i64> {
        Ok(engine.read()?.global_step() as i64)
    }

    /// Returns the number of micro batches of the step that has begun.
    #[rhai_fn(get = "micro_step", return_raw, pure)]
    pub fn micro_step(engine: &mut Engine) -> ScriptResult<i64> {
        Ok(engine.read()?.micro_step() as i64)
    }

    /// Returns the mean loss of the last step over the target tokens of its whole global batch; `()`
    /// before the first.
    #[rhai_fn(get = "loss", return_raw, pure)]
    pub fn loss(engine: &mut Engine) -> ScriptResult<Dynamic> {
        Ok(engine.read()?.last_step().map_or(Dynamic::UNIT, |last| last.loss.into()))
    }

    /// Returns the norm of the last step's gradient before clipping; `()` before the first.
    #[rhai_fn(get = "grad_norm", return_raw, pure)]
    pub fn grad_norm(engine: &mut Engine) -> ScriptResult<Dynamic> {
        Ok(engine.read()?.last_step().map_or(Dynamic::UNIT, |last| last.grad_norm.into()))
    }

    /// Returns whether the last step was skipped, because a gradient was not finite or as an outlier.
    #[rhai_fn(get = "skipped", return_raw, pure)]
    pub fn skipped(engine: &mut Engine) -> ScriptResult<bool> {
        Ok(engine.read()?.last_step().is_some_and(|last| last.skipped.is_some()))
    }

    /// Returns the number of steps that were skipped, because a gradient was not finite or as outliers;
    /// they count as steps, and do not advance the scheduler.
    #[rhai_fn(get = "skipped_steps", return_raw, pure)]
    pub fn skipped_steps(engine: &mut Engine) -> ScriptResult<i64> {
        Ok(engine.read()?.skipped_steps() as i64)
    }

    /// Returns what the loss of the next step is multiplied by for its backward pass; `()` without
    /// fp16.
    #[rhai_fn(get = "loss_scale", return_raw, pure)]
    pub fn loss_scale(engine: &mut Engine) -> ScriptResult<Dynamic> {
        Ok(engine.read()?.loss_scale().map_or(Dynamic::UNIT, Dynamic::from))
    }

    /// The name of the scheduler, such as "WarmupLR"; `()` where there is none.
    #[rhai_fn(get = "scheduler", return_raw, pure)]
    pub fn scheduler(engine: &mut Engine) -> ScriptResult<Dynamic> {
        let engine = engine.read()?;
        Ok(engine.config().scheduler.name().map_or(Dynamic::UNIT, Dynamic::from))
    }

    /// The learning rate of the next step. It can be set where there is no scheduler, and then holds
    /// from the next step on, also after a resumption; groups of parameters keep their ratio to it.
    ///
    /// ```rhai
    /// if engine.global_step == 1000 { engine.lr = engine.lr * 0.1; }
    /// ```
    #[rhai_fn(get = "lr", return_raw, pure)]
    pub fn lr(engine: &mut Engine) -> ScriptResult<f64> {
        Ok(engine.read()?.lr()?)
    }

    /// Sets the learning rate of the next steps.
    #[rhai_fn(set = "lr", return_raw, pure)]
    pub fn set_lr(engine: &mut Engine, lr: Dynamic) -> ScriptResult<()> {
        let lr: f64 = crate::recipe::value::argument("lr", &lr)?;
        Ok(engine.write()?.set_lr(lr)?)
    }

    /// Returns what the engine's memory was used for when it used most of it, in bytes: a map with
    /// `peak` and, adding up to it, `parameters`, `master_weights`, `gradients`, `optimizer_state`,
    /// `activations` and `buffers`, which is the rest. Counted from the tensors on the engine's
    /// device; batches do not count.
    ///
    /// On a GPU there is also `allocator`, a map with what PyTorch's allocator says of the device in
    /// this process: the bytes of tensors, `allocated` and at most `max_allocated`; the bytes taken
    /// from the GPU for them, used or kept for later, `reserved` and `max_reserved`, by which it is
    /// decided whether more fits; `num_alloc_retries`, how often all that was kept had to be given
    /// back to make room, which costs time; and `num_ooms`, how often there was none.
    ///
    /// ```rhai
    /// print(`${engine.memory().peak / 1000000} MB`);
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn memory(engine: &mut Engine) -> ScriptResult<Map> {
        let engine = engine.read()?;
        Ok(super::memory_map(engine.memory(), engine.allocator()?))
    }

    /// Returns the model that is trained.
    #[rhai_fn(get = "model", return_raw, pure)]
    pub fn model(engine: &mut Engine) -> ScriptResult<Model> {
        Ok(Model::of(engine.read()?.model()))
    }

    /// Describes the engine.
    #[rhai_fn(name = "to_string", name = "to_debug", return_raw, pure)]
    pub fn describe(engine: &mut Engine) -> ScriptResult<String> {
        Ok(super::describe(&*engine.read()?)?)
    }
}

/// Makes one step of the next micro batches of `loader`.
pub(super) fn train_batch(
    host: &Host,
    engine: &Engine,
    loader: &Loader,
) -> Result<Option<StepOutcome>> {
    host.check_tried(engine.read()?.is_trial())?;
    let mut next = || loader.write()?.next_batch();
    let outcome = engine.write()?.train_batch(&mut next, &mut host.feed.as_deref());
    if outcome.is_err() {
        loader::loop_left(loader);
    }
    outcome
}

fn mesh_map(mesh: &Mesh) -> Map {
    let (place, shape) = (mesh.place(), mesh.shape());
    let numbers = [
        ("pp", place.pp),
        ("dp", place.dp),
        ("tp", place.tp),
        ("pp_size", shape.pp),
        ("dp_size", shape.dp),
        ("tp_size", shape.tp),
    ];
    numbers.into_iter().map(|(name, number)| (name.into(), (number as i64).into())).collect()
}

fn memory_map(memory: MemoryUse, allocator: Option<AllocatorUse>) -> Map {
    let map = |numbers: &[(&str, u64)]| -> Map {
        numbers.iter().map(|&(name, number)| (name.into(), (number as i64).into())).collect()
    };
    let mut kinds = map(&memory.kinds());
    kinds.extend(map(&[("peak", memory.peak())]));
    if let Some(found) = allocator {
        let numbers = [
            ("allocated", found.allocated),
            ("max_allocated", found.max_allocated),
            ("reserved", found.reserved),
            ("max_reserved", found.max_reserved),
            ("num_alloc_retries", found.num_alloc_retries),
            ("num_ooms", found.num_ooms),
        ];
        kinds.insert("allocator".into(), map(&numbers).into());
    }
    kinds
}

option_table! {
    /// The options of `save_checkpoint`.
    #[derive(Debug)]
    pub(crate) struct SaveOptions {
        /// the loader to save with the engine
        #[option(default = Handed(None))]
        pub loader: Handed<Loader>,
        /// how many checkpoints of the directory stay; all by default
        #[option(optional, range = 1..)]
        pub keep: Option<usize>,
    }
}

option_table! {
    /// The option of `load_checkpoint`.
    #[derive(Debug)]
    pub(crate) struct LoadOptions {
        /// the loader that goes on with the engine
        #[option(default = Handed(None))]
        pub loader: Handed<Loader>,
    }
}

fn save(host: &Host, engine: &Engine, dir: &str, options: &Map) -> Result<String> {
    let SaveOptions { loader: Handed(loader), keep } =
        options::read_table("save_checkpoint", options)?;
    let loader = loader.as_ref().map(Shared::read).transpose()?;
    let engine = engine.read()?;
    let store = Store::open(host.workspace.rights.writable(dir)?);
    if engine.group().rank() == 0 {
        save_checkpoint(
            &engine,
            &store,
            keep,
            loader.as_deref().map(|l| &**l),
            Some(host.program.record(&host.workspace.sources)),
        )?;
    } else {
        engine.write_state(None, None, None)?;
    }
    engine.group().barrier()?;
    Ok(store.latest()?.display().to_string())
}

fn load(host: &Host, engine: &Engine, path: &str, options: &Map) -> Result<()> {
    let LoadOptions { loader: Handed(loader) } = options::read_table("load_checkpoint", options)?;
    let mut loader = loader.as_ref().map(Shared::write).transpose()?;
    let dir = Store::resolve(host.workspace.rights.readable(path)?)?;
    let loader = loader.as_deref_mut().map(|l| &mut **l);
    let warnings = load_checkpoint(&mut *engine.write()?, loader, &dir)?;
    warnings.iter().for_each(|warning| host.output.note(warning));
    Ok(())
}

fn describe(engine: &engine::Engine) -> Result<String> {
    let config = engine.config();
    Ok(format!(
        "Engine after step {} ({}{}, micro_batch_size {} x gradient_accumulation_steps {} x \
         world_size {}, {}, lr {:e})",
        engine.global_step(),
        config.precision.dtype.name(),
        config.numerics.unusual(),
        config.micro_batch_size,
        config.gradient_accumulation_steps,
        engine.group().world_size(),
        optimizer_name(config),
        engine.lr()?,
    ))
}

/// The optimizer's name, with what changes its memory.
fn optimizer_name(config: &EngineConfig) -> String {
    let name = config.optimizer.name();
    match config.optimizer.state_dtype {
        StateDtype::Fp32 => name.to_owned(),
        StateDtype::Bf16 => format!("{name} with bf16 state"),
    }
}
