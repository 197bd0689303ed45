//! The modules that an adapter is for.

use crate::{
    config::{TargetModules, suggest::nearest},
    error::{Code, Error, Result},
    model::{Model, ParamSpec, param_id::ParamId},
};

/// The targets that peft takes for the families of models, the first that a model has.
const DEFAULTS: [&[&str]; 5] =
    [&["query_key_value"], &["c_attn"], &["qkv_proj"], &["q_proj", "v_proj"], &["q", "v"]];

/// A parameter of a layer's own.
pub(super) struct Own<'a> {
    pub(super) layer: usize,
    pub(super) id: ParamId,
    pub(super) spec: &'a ParamSpec,
}

impl Own<'_> {
    /// The name of its module: `model.layers.0.self_attn.q_proj`.
    pub(super) fn module(&self) -> &str {
        self.spec.name.rsplit_once('.').map_or("", |(module, _)| module)
    }
}

/// All parameters of the layers.
pub(super) fn own_params(model: &Model) -> Vec<Own<'_>> {
    let of_layer = |layer: usize| {
        let places = &model.layers[layer].places.own;
        let own = move |(i, &place)| Own { layer, id: ParamId::Own(i), spec: model.spec(place) };
        places.iter().enumerate().map(own)
    };
    (0..model.layers.len()).flat_map(of_layer).collect()
}

/// Whether a module of the name `module` is meant by `name`, as peft sees it.
fn is_meant(module: &str, name: &str) -> bool {
    module == name || module.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

/// Whether a parameter belongs to a module that is meant by `name`, or to one inside of it.
pub(super) fn is_within(module: &str, name: &str) -> bool {
    let ends = module.match_indices('.').map(|(at, _)| &module[..at]).chain([module]);
    ends.into_iter().any(|part| is_meant(part, name))
}

/// The matrices of the linear layers that are meant, and the ends of their names.
pub(super) fn matrices<'a>(
    params: &'a [Own<'a>],
    targets: Option<&TargetModules>,
) -> Result<(Vec<&'a Own<'a>>, Vec<String>)> {
    let linear = || params.iter().filter(|own| own.spec.fan_in_out.is_some());
    let last = |own: &Own<'a>| own.module().rsplit('.').next().unwrap_or_default().to_owned();
    let mut known: Vec<String> = linear().map(last).collect();
    known.sort();
    known.dedup();
    let names = match targets {
        Some(TargetModules::AllLinear) => known.clone(),
        Some(TargetModules::Named(names)) => names.clone(),
        None => {
            let is_there = |names: &&&[&str]| names.iter().all(|n| known.iter().any(|k| k == n));
            let names = DEFAULTS.iter().find(is_there).copied().unwrap_or(&[]);
            names.iter().map(|&name| name.to_owned()).collect()
        }
    };
    if names.is_empty() {
        return Err(Error::new(Code::BadValue, "the adapter has no target")
            .option("target_modules")
            .hint(format!("the linear layers of the model are {}", known.join(", "))));
    }
    let unknown = |name: &&String| !linear().any(|own| is_meant(own.module(), name));
    if let Some(name) = names.iter().find(unknown) {
        return Err(no_module(
            name,
            "target_modules",
            "linear layer between embedding and head",
            &known,
        ));
    }
    let meant = |own: &&Own<'_>| names.iter().any(|name| is_meant(own.module(), name));
    Ok((linear().filter(meant).collect(), names))
}

/// The error of a name that no module has.
pub(super) fn no_module(name: &str, option: &str, what: &str, known: &[String]) -> Error {
    let e =
        Error::new(Code::BadValue, format!("the model has no {what} \"{name}\"")).option(option);
    let near = nearest(name, known.iter().map(String::as_str));
    let e = e.hint_if(near.map(|near| format!("did you mean \"{near}\"?")));
    e.hint(format!("there are {}", known.join(", ")))
}
