//! Adapters of a model: LoRA and DoRA, as peft has them.

use std::rc::Rc;

use rhai::{FnPtr, Map, plugin::*};

use super::model::{api::Model, directory};
use crate::{
    data::DataSource,
    error::Result,
    hub::MODEL_FILES,
    recipe::{error::ScriptResult, options},
    script::{callback::Callback, host},
};

/// Adapters.
#[export_module]
pub mod api {
    /// Freezes the model and gives it a new LoRA adapter, which `init_engine` trains; returns the model. An
    /// engine that was made before has the model without it, and trains no more.
    ///
    /// Names, defaults and arithmetic are those of peft. A checkpoint has the adapter and its
    /// optimizer, and names the base by its path and hash.
    ///
    /// ```rhai
    /// model.lora(#{ r: 16, lora_alpha: 32, target_modules: ["c_attn", "c_proj"] });
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn lora(model: &mut Model, options: Map) -> ScriptResult<Model> {
        let options = options::read_table("lora", &options)?;
        let adapted = model.get().lora(&options)?;
        Ok(super::replace(model, adapted, "lora"))
    }

    /// Freezes the model and gives it the adapter in a directory or on the hub, as peft and
    /// `export_adapter` write it; returns the model.
    ///
    /// ```rhai
    /// model.lora(#{ r: 4 });
    /// model.export_adapter("adapter");
    /// model.merge();
    /// model.load_adapter("adapter");
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn load_adapter(
        ctx: NativeCallContext,
        model: &mut Model,
        dir: &str,
    ) -> ScriptResult<Model> {
        let host = host::of(&ctx)?;
        let dir = match host.workspace.rights.source(dir)? {
            DataSource::Hub { .. } => directory(&host, dir, None, MODEL_FILES)?,
            _ => host.workspace.rights.readable(dir)?,
        };
        let adapted = model.get().load_adapter(dir)?;
        Ok(super::replace(model, adapted, "load_adapter"))
    }

    /// Writes the adapter as a directory that peft loads: `adapter_config.json` and
    /// `adapter_model.safetensors`. The directory is whole or absent at every instant.
    ///
    /// ```rhai
    /// model.lora(#{ r: 4 });
    /// model.export_adapter("exports/adapter");
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn export_adapter(
        ctx: NativeCallContext,
        model: &mut Model,
        dir: &str,
    ) -> ScriptResult<()> {
        let host = host::of(&ctx)?;
        host.check_weights("export_adapter")?;
        let dir = host.workspace.rights.writable(dir)?;
        let model = model.get();
        if host.group()?.rank() == 0 {
            model.export_adapter(Some(&dir))?;
        } else if model.is_sharded() {
            model.export_adapter(None)?;
        }
        Ok(())
    }

    /// Puts the adapter into the parameters of the model, which is a usual one then; returns the model.
    /// An engine that trains the adapter has the model as it was, and trains no more. `export_hf` writes a
    /// model with its adapter merged, and needs no `merge`.
    ///
    /// ```rhai
    /// model.lora(#{ r: 4 });
    /// model.merge();
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn merge(ctx: NativeCallContext, model: &mut Model) -> ScriptResult<Model> {
        host::of(&ctx)?.check_weights("merge")?;
        let now = model.get();
        // The handle has one, this function the other.
        let is_used = Rc::strong_count(&now) > 2;
        let merged = now.merged(is_used)?;
        Ok(super::replace(model, merged, "merge"))
    }

    /// Calls a function while the model computes without its adapter, and returns what it returns.
    ///
    /// ```rhai
    /// model.lora(#{ r: 4 });
    /// let before = model.disable_adapter(|| model.logits(tensor([[1, 2, 3]])));
    /// ```
    // By value, so that the function can use the variable that it is called on.
    #[rhai_fn(return_raw)]
    pub fn disable_adapter(
        ctx: NativeCallContext,
        model: Model,
        run: FnPtr,
    ) -> ScriptResult<Dynamic> {
        let callback = Callback::new(&ctx, run)?;
        Ok(super::disabled(&model, &callback)?)
    }
}

fn replace(handle: &Model, model: Rc<crate::model::Model>, call: &'static str) -> Model {
    handle.get().set_replaced_by(call);
    handle.set(model);
    handle.clone()
}

fn disabled(model: &Model, run: &Callback) -> Result<rhai::Dynamic> {
    // Silently the same model otherwise, as the reference of what it is compared with.
    model.get().check_adapter()?;
    model.get().without_adapter(|| run.call(()))
}
