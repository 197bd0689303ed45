//! Giving a model an adapter.

use std::{collections::BTreeMap, rc::Rc};

use super::{
    Attached, Lora, PREFIX, Part,
    config::{Adapter, AdapterConfig},
    is_of_adapter, no_adapter,
    targets::{Own, is_within, matrices, no_module, own_params},
};
use crate::{
    config::LoraOptions,
    error::{Code, Error, Result},
    model::{
        Init, Model, ParamSpec,
        initializer::AdapterValues,
        trainable::{Added, Regroup},
    },
};

impl Model {
    /// The same model, frozen, with a new adapter, which changes nothing yet.
    pub fn lora(self: &Rc<Self>, options: &LoraOptions) -> Result<Rc<Self>> {
        let params = own_params(self);
        let (targets, names) = matrices(&params, options.target_modules.as_ref())?;
        let config = AdapterConfig::new(options, &names);
        let saved = saved(&params, &config.modules_to_save(), self)?;
        let targets = targets.into_iter().map(|own| (own, options.r));
        let added = added(targets, saved, &config);
        self.adapted(added, config, AdapterValues::Seed(options.seed))
    }

    /// The same with the parameters `added`, which begin with `values`.
    pub(super) fn adapted(
        self: &Rc<Self>,
        added: Added,
        config: AdapterConfig,
        values: AdapterValues,
    ) -> Result<Rc<Self>> {
        if self.adapter.is_some() {
            return Err(Error::new(Code::CallOrder, "the model has an adapter already")
                .hint("merge it into the model first, with `model.merge()`"));
        }
        let regroup = Regroup {
            added,
            drops_adapter: false,
            copies: false,
            quantizer: self.quantizer.clone(),
            is_trained: &is_of_adapter,
        };
        let mut model = self.rebuilt(regroup)?;
        model.adapter = Some(Adapter::new(config));
        model.begin_adapter(values);
        Ok(Rc::new(model))
    }

    /// The adapter, if there is one.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// Refuses a model without an adapter.
    pub fn check_adapter(&self) -> Result<()> {
        if self.adapter.is_some() { Ok(()) } else { Err(no_adapter()) }
    }

    /// Whether it computes without its adapter.
    pub fn is_adapter_off(&self) -> bool {
        self.adapter.is_some() && self.is_adapter_off.get()
    }

    /// Notes that `call` put another model in the place of this one, for the engine that trains this one.
    pub fn set_replaced_by(&self, call: &'static str) {
        self.replaced_by.set(Some(call));
    }

    /// The call that put another model in the place of this one.
    pub fn replaced_by(&self) -> Option<&'static str> {
        self.replaced_by.get()
    }

    /// Runs `work` on the model without its adapter.
    pub fn without_adapter<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Restore<'a>(&'a Model, bool);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                self.0.is_adapter_off.set(self.1);
            }
        }
        let _restore = Restore(self, self.is_adapter_off.replace(true));
        work()
    }
}

/// The parameters of an adapter for matrices with their ranks and for modules that are saved.
pub(super) fn added<'a>(
    targets: impl IntoIterator<Item = (&'a Own<'a>, i64)>,
    saved: Vec<&Own<'_>>,
    config: &AdapterConfig,
) -> Added {
    let mut added: Added = BTreeMap::new();
    for (own, rank) in targets {
        let (specs, attached) = beside_matrix(own, rank, config);
        let of_layer = added.entry(own.layer).or_default();
        of_layer.0.extend(specs);
        of_layer.1.push(attached);
    }
    for own in saved {
        let name = format!("{PREFIX}{}", own.spec.name);
        let of_layer = added.entry(own.layer).or_default();
        of_layer.0.push(ParamSpec::new(&*name, &own.spec.shape, Init::Saved));
        of_layer.1.push(Attached { target: own.id, part: Part::Saved(name) });
    }
    added
}

fn beside_matrix(
    own: &Own<'_>,
    rank: i64,
    config: &AdapterConfig,
) -> (Vec<ParamSpec>, Attached<String>) {
    let (inputs, outputs) = own.spec.fan_in_out.unwrap_or_default();
    let [a, b, magnitude] = names(own.module());
    // PyTorch's nn.Linear begins so.
    let first = Init::Uniform(1.0 / (inputs.max(1) as f64).sqrt());
    let mut specs = vec![
        ParamSpec::new(&*a, &[rank, inputs], first),
        ParamSpec::new(&*b, &[outputs, rank], Init::Zeros),
    ];
    let magnitude = config.use_dora().then_some(magnitude);
    specs.extend(
        magnitude.as_ref().map(|name| ParamSpec::new(&**name, &[outputs], Init::Magnitude)),
    );
    let (scaling, dropout) = (config.scaling(rank), config.dropout());
    let lora = Lora { a, b, magnitude, rank, scaling, dropout };
    (specs, Attached { target: own.id, part: Part::Lora(lora) })
}

/// The names of the parameters beside the matrix of a module.
pub(super) fn names(module: &str) -> [String; 3] {
    ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"]
        .map(|end| format!("{PREFIX}{module}.{end}"))
}

/// The parameters of modules that are trained as they are.
pub(super) fn saved<'a>(
    params: &'a [Own<'a>],
    names: &[String],
    model: &Model,
) -> Result<Vec<&'a Own<'a>>> {
    for name in names {
        if params.iter().any(|own| is_within(own.module(), name)) {
            continue;
        }
        let mut known: Vec<String> = params.iter().map(|own| own.module().to_owned()).collect();
        known.dedup();
        let e = no_module(name, "modules_to_save", "module", &known);
        let aliases = model.facts.names.map_or(&[][..], |names| names.aliases);
        let tied = aliases.iter().find(|(alias, _)| alias.strip_suffix(".weight") == Some(name));
        return Err(e.hint_if(tied.map(|(_, with)| format!("{name} is tied to {with}"))));
    }
    let is_meant = |own: &&Own<'_>| names.iter().any(|name| is_within(own.module(), name));
    Ok(params.iter().filter(is_meant).collect())
}
