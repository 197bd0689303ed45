//! Where the first values of a model come from.
//!
//! A unit gets them when it is needed, so that a rank that keeps slices alone never has the whole
//! model (`zero.Init` and `from_pretrained` under ZeRO-3, in DeepSpeed and transformers).

use super::{FlatUnit, Init, weights::StoredWeights};
use crate::{
    error::Result,
    tensor::{Device, Kind, Tensor, guard, manual_seed, mix, no_grad},
};

/// What gives units their first values.
#[derive(Debug)]
pub(super) enum Origin {
    /// GPT-2's random start.
    Seed(u64),
    /// A directory.
    Files(StoredWeights),
    /// The parameters of each unit, on the CPU.
    Values(Vec<Vec<Tensor>>),
}

impl Origin {
    /// Takes memory for unit `i` and gives it its first values, which are the same in whatever order
    /// the units come. A unit that is here stays as it is.
    ///
    /// # Errors
    /// Memory is exhausted; the unit is then still absent.
    pub(super) fn bring(&self, unit: &FlatUnit, i: usize) -> Result<()> {
        if unit.is_here() {
            return Ok(());
        }
        let filled = guard("the first values of the model", || {
            no_grad(|| {
                // The padding too.
                let _ = unit.allocate()?.f_zero_()?;
                match self {
                    Self::Seed(seed) => draw(unit, mix(&[*seed, i as u64])),
                    Self::Files(weights) => weights.fill(unit),
                    Self::Values(values) => {
                        for (param, value) in unit.params().iter().zip(&values[i]) {
                            param.f_data()?.f_copy_(value)?;
                        }
                        Ok(())
                    }
                }
            })
        });
        if filled.is_err() {
            unit.release()?;
        }
        filled
    }
}

/// Draws the parameters of a unit of zeros. Always on the CPU, so that the device does not matter.
fn draw(unit: &FlatUnit, seed: u64) -> Result<()> {
    manual_seed(seed);
    for (spec, param) in unit.specs().iter().zip(unit.params()) {
        let mut values = param.f_data()?;
        match spec.init {
            Init::Zeros => {}
            Init::Ones => drop(values.f_fill_(1.0)?),
            Init::Normal(std) if values.device() == Device::Cpu && values.kind() == Kind::Float => {
                drop(values.f_normal_(0.0, std)?);
            }
            Init::Normal(std) => {
                let cpu = Tensor::f_empty(&spec.shape[..], (Kind::Float, Device::Cpu))?;
                values.f_copy_(&cpu.shallow_clone().f_normal_(0.0, std)?)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ParamSpec;

    fn unit() -> FlatUnit {
        let normal = ParamSpec::new("a", &[4, 8], Init::Normal(0.5));
        let specs = vec![normal, ParamSpec::new("b", &[3], Init::Ones)];
        FlatUnit::absent(specs, Device::Cpu).unwrap()
    }

    fn numbers(unit: &FlatUnit) -> Vec<f64> {
        Vec::try_from(unit.flat().unwrap().to_kind(Kind::Double)).unwrap()
    }

    #[test]
    fn values_depend_on_the_seed_and_the_unit_alone() {
        let (one, two, again) = (unit(), unit(), unit());
        let origin = Origin::Seed(7);
        origin.bring(&two, 2).unwrap();
        origin.bring(&one, 1).unwrap();
        origin.bring(&again, 1).unwrap();
        assert_eq!(numbers(&one), numbers(&again));
        assert_ne!(numbers(&one), numbers(&two));
        assert_eq!(numbers(&one)[32..], [vec![1.0; 3], vec![0.0; 13]].concat());
        let mean_square = numbers(&one)[..32].iter().map(|x| x * x).sum::<f64>() / 32.0;
        // Of 32 draws with variance 0.25, five standard errors: 5 * 0.25 * sqrt(2 / 32) = 0.31.
        assert!((mean_square - 0.25).abs() < 0.31, "{mean_square}");
    }

    #[test]
    fn what_is_here_stays_as_it_is() {
        let unit = unit();
        Origin::Seed(7).bring(&unit, 0).unwrap();
        let _ = unit.flat().unwrap().shallow_clone().fill_(3.0);
        Origin::Seed(8).bring(&unit, 0).unwrap();
        assert!(numbers(&unit).iter().all(|&x| x == 3.0));
    }
}
