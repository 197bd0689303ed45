//! An adapter's files: peft's `adapter_config.json` and `adapter_model.safetensors`.

use std::rc::Rc;

use super::{
    Attached, PREFIX, Part,
    attach::{added, names, saved},
    config::AdapterConfig,
    is_of_adapter, no_adapter,
    targets::own_params,
};
use crate::{
    error::{Code, Error, Result},
    fs::{NewDir, Place, write_json},
    model::{Model, initializer::AdapterValues},
    tensor::{SafetensorsFile, safetensors},
};

/// The names of the files.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The parameters.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// In a checkpoint: parameters of the base that are trained beside the adapter.
pub const TRAINED_WEIGHTS: &str = "trained.safetensors";
/// Written by peft beside them.
const README: &str = "README.md";

/// How all of it is had.
const WHOLE: &str = "export_hf writes the merged model with them, engine.load_checkpoint goes on with \
     them, and modules_to_save of lora trains modules that an adapter's files have";

/// Names listed in one error.
const MOST_NAMES: usize = 8;

impl Model {
    /// The same model, frozen, with the adapter in `dir`, as peft writes it.
    pub fn load_adapter(self: &Rc<Self>, dir: impl Into<Place>) -> Result<Rc<Self>> {
        let dir = dir.into();
        let file = dir.join(ADAPTER_CONFIG);
        if !file.is_file() {
            let message = format!("{} has no {ADAPTER_CONFIG}", dir.display());
            return Err(Error::new(Code::Weights, message)
                .hint("expected a directory that peft or `export_adapter` wrote"));
        }
        let trained = dir.join(TRAINED_WEIGHTS);
        if trained.is_file() {
            let message = format!(
                "{} has parameters that were trained beside the adapter, in {TRAINED_WEIGHTS}: the \
                 adapter without them is another model",
                dir.display()
            );
            return Err(Error::new(Code::Weights, message).hint(WHOLE));
        }
        let config = AdapterConfig::from_json(&file.read()?, &file.display().to_string())?;
        let weights = SafetensorsFile::open(dir.join(ADAPTER_WEIGHTS))?;
        let params = own_params(self);
        let mut targets = Vec::new();
        for own in params.iter().filter(|own| own.spec.fan_in_out.is_some()) {
            let [a, ..] = names(own.module());
            if weights.contains(&a) {
                let rank = weights.shape(&a)?.first().copied().unwrap_or(0);
                if !config.has_rank(rank) {
                    let message = format!(
                        "{}: {a} has rank {rank}, which is neither `r` of {ADAPTER_CONFIG} nor in its \
                         `rank_pattern`",
                        dir.display()
                    );
                    return Err(Error::new(Code::Weights, message)
                        .hint("the two files are of different adapters"));
                }
                targets.push((own, rank));
            }
        }
        let saved = saved(&params, &config.modules_to_save(), self)
            .map_err(|e| e.within(&format!("{}: modules_to_save", file.display())))?;
        let added = added(targets, saved, &config);
        let specs = added.values().flat_map(|(specs, _)| specs);
        let expected = specs.map(|spec| (spec.name.as_str(), &spec.shape[..])).collect();
        check(&dir, &weights, expected)?;
        self.adapted(added, config, AdapterValues::File(weights))
    }

    /// Writes the adapter as a directory that peft loads. Where the parameters are
    /// [sharded](Model::is_sharded), every rank must call it; those without a directory take part.
    pub fn export_adapter(&self, dir: Option<&Place>) -> Result<()> {
        self.adapter_json()?;
        self.check_nothing_beside()?;
        let Some(dir) = dir else { return self.write_adapter_weights(None) };
        refuse_other_files(dir)?;
        let new = NewDir::create(dir)?;
        self.write_adapter_config(new.place())?;
        self.write_adapter_weights(Some(&new.place().join(ADAPTER_WEIGHTS)))?;
        new.publish()
    }

    /// Refuses an export that would lose parameters that were trained beside the adapter.
    fn check_nothing_beside(&self) -> Result<()> {
        let trained = self.units[..self.trainable].iter().flat_map(|unit| unit.specs());
        let mut others = trained.map(|spec| &spec.name).filter(|name| !is_of_adapter(name));
        let Some(first) = others.next() else { return Ok(()) };
        let more = match others.count() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let message = format!(
            "{first}{more} are trained beside the adapter, whose files have no place for them"
        );
        Err(Error::new(Code::BadValue, message).hint(WHOLE))
    }

    /// Writes the adapter's settings into `dir`.
    pub fn write_adapter_config(&self, dir: &Place) -> Result<()> {
        write_json(dir.join(ADAPTER_CONFIG), &self.adapter_json()?)
    }

    fn adapter_json(&self) -> Result<serde_json::Map<String, serde_json::Value>> {
        let Some(adapter) = &self.adapter else { return Err(no_adapter()) };
        let targets = self.layers.iter().flat_map(|layer| {
            let is_lora = |a: &&Attached| matches!(a.part, Part::Lora(_));
            layer.places.attached.iter().filter(is_lora).map(|a| layer.places.of(a.target))
        });
        let is_transposed = targets.into_iter().any(|place| self.spec(place).input_dim() == 0);
        let base = self.origin_name();
        let is_seq2seq = self.facts.is_seq2seq();
        Ok(adapter.config().to_json(base.as_deref(), is_transposed, is_seq2seq))
    }

    fn write_adapter_weights(&self, place: Option<&Place>) -> Result<()> {
        let (entries, fetch) = self.brought(is_of_adapter);
        safetensors::write(place, entries, fetch)
    }
}

/// Refuses a file whose tensors are not exactly the expected ones.
fn check(dir: &Place, file: &SafetensorsFile, expected: Vec<(&str, &[i64])>) -> Result<()> {
    let mut faults = Vec::new();
    for (name, shape) in &expected {
        match file.contains(name) {
            false => faults.push(format!("{name} is missing")),
            true if file.shape(name)? != **shape => {
                let found = file.shape(name)?;
                faults.push(format!("{name} has the shape {found:?}, the model needs {shape:?}"));
            }
            true => {}
        }
    }
    let is_known = |name: &String| expected.iter().any(|(known, _)| known == name);
    let surplus = file.names().into_iter().filter(|name| !is_known(name));
    faults.extend(surplus.map(|name| format!("the model has no place for {name}")));
    if expected.is_empty() && faults.is_empty() {
        faults.push(format!("{ADAPTER_WEIGHTS} is empty"));
    }
    if faults.is_empty() {
        return Ok(());
    }
    let more = match faults.len().saturating_sub(MOST_NAMES) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    faults.truncate(MOST_NAMES);
    let shown = faults.join("; ");
    let message = format!("the adapter in {} is of another model: {shown}{more}", dir.display());
    Err(Error::new(Code::Weights, message)
        .hint(format!("names of its tensors begin with {PREFIX} and the base's own")))
}

/// Refuses to replace anything but an adapter.
fn refuse_other_files(target: &Place) -> Result<()> {
    if !target.is_taken()? {
        return Ok(());
    }
    let known = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, README];
    let is_adapter = target.is_dir()
        && !target.is_link()?
        && target.list()?.iter().all(|name| known.iter().any(|known| name == known));
    if is_adapter {
        return Ok(());
    }
    let message = format!("{} holds something that is no adapter", target.display());
    Err(Error::new(Code::BadValue, message).hint("export to a directory that does not exist yet"))
}
