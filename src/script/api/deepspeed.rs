//! `from_deepspeed`: the options of `init_engine` out of DeepSpeed's own config file.

use rhai::{Dynamic, Map, plugin::*};
use serde_json::Value;

use crate::{
    error::{Code, Error, Result},
    recipe::{error::ScriptResult, value},
    script::{
        deepspeed,
        host::{self, Host},
    },
};

/// DeepSpeed's config file.
#[export_module]
pub mod api {
    /// Reads a DeepSpeed config file, such as `ds_config.json`, as options of `init_engine` that mean
    /// the same as the file in DeepSpeed 0.19. Comments and trailing commas are fine. A key without a
    /// meaning in dsr is shown with its line and the reason. Keys that cannot be honoured, unknown keys
    /// and wrong types are refused, all together. `dsr config FILE` prints the same options, and
    /// `dsr config --keys` the options of every key.
    ///
    /// A value "auto" is left out: the recipe's own value decides.
    ///
    /// ```rhai
    /// let options = from_deepspeed("ds_config.json");
    /// options.micro_batch_size = 4;
    /// let engine = init_engine(model, options);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn from_deepspeed(ctx: NativeCallContext, path: &str) -> ScriptResult<Map> {
        Ok(super::load(&*host::of(&ctx)?, path, None)?)
    }

    /// Reads a DeepSpeed config file, and takes these options of `init_engine` for what is "auto" in
    /// it or not there. An option that contradicts the file is refused, and so is a needed "auto" that
    /// stays open.
    ///
    /// ```rhai
    /// let options = from_deepspeed("ds_config.json", #{
    ///     micro_batch_size: 4,
    ///     optimizer: #{ lr: 1e-4 },
    ///     scheduler: #{ type: "cosine", total_num_steps: 1000, warmup_num_steps: 100 },
    /// });
    /// let engine = init_engine(model, options);
    /// ```
    #[rhai_fn(name = "from_deepspeed", return_raw)]
    pub fn from_deepspeed_with(
        ctx: NativeCallContext,
        path: &str,
        options: Map,
    ) -> ScriptResult<Map> {
        Ok(super::load(&*host::of(&ctx)?, path, Some(options))?)
    }
}

fn load(host: &Host, path: &str, given: Option<Map>) -> Result<Map> {
    let path = host.workspace.rights.readable(path)?;
    let given = given.map(plain).transpose()?;
    let world_size = Some(host.world_size()?);
    let settings = deepspeed::load(&path, given.as_ref(), world_size, &host.workspace.sources)?;
    if host.group()?.rank() == 0 {
        deepspeed::notes(path.path(), &settings).for_each(|line| host.output.note(&line));
    }
    Ok(deepspeed::script_map(&settings))
}

/// The options as plain data: a function of the step can be set afterwards.
fn plain(options: Map) -> Result<serde_json::Map<String, Value>> {
    match value::to_json(&Dynamic::from_map(options))? {
        Value::Object(map) => Ok(map),
        other => Err(Error::new(Code::Internal, format!("a map became {other}"))),
    }
}
