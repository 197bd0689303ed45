//! The first values of a model.
//!
//! A unit gets them when it is needed, so that a rank that keeps slices alone never has the whole
//! model (`zero.Init` and `from_pretrained` under ZeRO-3, in DeepSpeed and transformers).

use std::{collections::BTreeMap, rc::Rc};

use super::{FlatUnit, Init, files::StoredWeights, part::UnitPart};
use crate::{
    error::{Code, Result},
    tensor::{Device, SafetensorsFile, Tensor, fill_normal, fill_uniform, guard, no_grad, seed_of},
};

/// The source of the units' first values.
#[derive(Debug)]
pub(super) enum Initializer {
    /// Drawn at random, as the family starts.
    Seed(u64),
    /// Read from a directory.
    Files(StoredWeights),
    /// Copied by name, from the CPU.
    Values(BTreeMap<String, Tensor>),
    /// Those of a base, which may all be here, and of its adapter.
    Adapted { base: Option<Rc<Self>>, adapter: AdapterValues },
}

/// The source of an adapter's first values.
#[derive(Debug)]
pub(super) enum AdapterValues {
    /// Drawn at random, or those of the base.
    Seed(u64),
    /// Read from a file under the parameters' names.
    File(SafetensorsFile),
}

impl Initializer {
    /// Whether the values are those that a recipe gave.
    pub(super) fn is_of_values(&self) -> bool {
        match self {
            Self::Adapted { base, .. } => base.as_ref().is_some_and(|base| base.is_of_values()),
            other => matches!(other, Self::Values(_)),
        }
    }

    /// Takes memory for a unit and gives it its first values, which are the same in whatever order
    /// the units come. A unit that is here stays as it is.
    pub(super) fn fill(&self, unit: &FlatUnit, part: Option<&UnitPart<'_>>) -> Result<()> {
        if unit.is_here() {
            return Ok(());
        }
        let filled = guard("the first values of the model", || {
            no_grad(|| {
                // The padding too.
                let _ = unit.allocate()?.f_zero_()?;
                if unit.quantization().is_some() {
                    return self.quantize(unit);
                }
                if let Some(part) = part {
                    return self.fill_part(unit, part);
                }
                match self {
                    Self::Seed(seed) => draw(unit, *seed),
                    Self::Files(weights) => weights.fill(unit),
                    Self::Values(values) => {
                        for (name, param) in unit.names().zip(unit.params()) {
                            param.f_data()?.f_copy_(&values[name])?;
                        }
                        Ok(())
                    }
                    Self::Adapted { .. } => Ok(()),
                }
            })
        });
        if filled.is_err() {
            unit.release()?;
        }
        filled
    }

    /// Gives a unit the codes of its values, each of which is whole for a moment.
    fn quantize(&self, unit: &FlatUnit) -> Result<()> {
        let device = unit.stored().tensor().device();
        unit.quantize(|spec| {
            let whole = FlatUnit::absent(vec![spec.clone()], device)?;
            self.fill(&whole, None)?;
            Ok(whole.params()[0].f_detach()?)
        })
    }

    /// Gives a rank its part of each parameter: what it reads of a file is no more; what is drawn is whole for
    /// a moment.
    fn fill_part(&self, unit: &FlatUnit, part: &UnitPart<'_>) -> Result<()> {
        for ((spec, param), split) in part.specs.iter().zip(unit.params()).zip(part.splits) {
            if let Self::Files(weights) = self {
                let runs = split.runs(&spec.shape, part.rank, part.ranks);
                if weights.fill_runs(&spec.name, &runs, param)? {
                    continue;
                }
            }
            let whole = FlatUnit::absent(vec![spec.clone()], Device::Cpu)?;
            let _ = whole.allocate()?.f_zero_()?;
            match self {
                Self::Seed(seed) => draw(&whole, *seed)?,
                Self::Files(weights) => weights.fill(&whole)?,
                Self::Values(_) | Self::Adapted { .. } => {
                    bail!(Code::Internal, "values that are not shared among ranks")
                }
            }
            let own = split.take(&whole.params()[0], part.rank, part.ranks)?;
            param.f_data()?.f_copy_(&own)?;
        }
        Ok(())
    }
}

/// Draws the parameters of a unit of zeros, each from the seed and its own name, so that neither the
/// order of layers nor their grouping changes a value, nor anything else that draws.
pub(super) fn draw(unit: &FlatUnit, seed: u64) -> Result<()> {
    for (spec, param) in unit.specs().iter().zip(unit.params()) {
        let seed = seed_of(seed, &spec.name);
        let mut values = param.f_data()?;
        match spec.init {
            // An adapter's are copied over.
            Init::Zeros | Init::Saved | Init::Magnitude => {}
            Init::Constant(value) => drop(values.f_fill_(value)?),
            Init::Uniform(bound) => fill_uniform(&mut values, -bound, bound, seed)?,
            Init::Normal(std) => fill_normal(&mut values, 0.0, std, seed)?,
            Init::Padded { std, padding_idx } => {
                fill_normal(&mut values, 0.0, std, seed)?;
                drop(values.f_select(0, padding_idx)?.f_zero_()?);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::ParamSpec, tensor::Kind};

    fn unit(names: [&str; 2]) -> FlatUnit {
        let normal = ParamSpec::new(names[0], &[4, 8], Init::Normal(0.5));
        let specs = vec![normal, ParamSpec::new(names[1], &[3], Init::Constant(1.0))];
        FlatUnit::absent(specs, Device::Cpu).unwrap()
    }

    fn numbers(unit: &FlatUnit) -> Vec<f64> {
        Vec::try_from(unit.flat().unwrap().to_kind(Kind::Double)).unwrap()
    }

    #[test]
    fn values_depend_on_the_seed_and_the_name_alone() {
        let units = [unit(["a", "b"]), unit(["c", "b"]), unit(["a", "d"])];
        let initializer = Initializer::Seed(7);
        for i in [1, 0, 2] {
            initializer.fill(&units[i], None).unwrap();
        }
        let [one, other, again] = units.each_ref().map(numbers);
        assert_eq!(one, again);
        assert_ne!(one, other);
        assert_eq!(one[32..], [vec![1.0; 3], vec![0.0; 13]].concat());
        let mean_square = one[..32].iter().map(|x| x * x).sum::<f64>() / 32.0;
        // Of 32 draws with variance 0.25, five standard errors: 5 * 0.25 * sqrt(2 / 32) = 0.31.
        assert!((mean_square - 0.25).abs() < 0.31, "{mean_square}");
    }

    /// As transformers' `_init_weights` leaves the row of `pad_token_id`.
    #[test]
    fn the_row_of_padding_starts_at_zero() {
        let drawn = |init: Init| {
            let unit = FlatUnit::absent(vec![ParamSpec::new("a", &[4, 4], init)], Device::Cpu);
            let unit = unit.unwrap();
            Initializer::Seed(7).fill(&unit, None).unwrap();
            numbers(&unit)
        };
        let plain = drawn(Init::Normal(0.5));
        let padded = drawn(Init::Normal(0.5).padded(Some(1)));
        assert_eq!(padded, [&plain[..4], &[0.0; 4], &plain[8..]].concat());
    }

    #[test]
    fn what_is_here_stays_as_it_is() {
        let unit = unit(["a", "b"]);
        Initializer::Seed(7).fill(&unit, None).unwrap();
        let _ = unit.flat().unwrap().shallow_clone().fill_(3.0);
        Initializer::Seed(8).fill(&unit, None).unwrap();
        assert!(numbers(&unit).iter().all(|&x| x == 3.0));
    }
}
