//! A flat parameter unit: all parameters of one layer in one storage.
//!
//! The engine gathers, reduces, shards and updates whole units, so that one collective or one fused
//! kernel serves a layer (DeepSpeed's contiguous buffers, FSDP's FlatParameter). The layers see the
//! parameters as ordinary tensors that share the unit's storage.

use std::{cell::Cell, rc::Rc};

use super::{codes::Codes, param_spec::ParamSpec};
use crate::{
    bridge::memory::{self, count_as},
    config::Quantization,
    error::{Code, Result},
    quantize::passing_bytes,
    tensor::{ALIGNMENT, Device, FlatStorage, Kind, Tensor, alignment, no_grad},
};

/// Where each parameter begins, and where the last one ends with its padding.
fn layout(specs: &[ParamSpec]) -> (Vec<i64>, i64) {
    let up = |n: i64, multiple: i64| (n + multiple - 1) / multiple * multiple;
    let mut end = 0;
    let offsets = specs.iter().map(|spec| {
        let offset = up(end, alignment(spec.numel()));
        end = up(offset + spec.numel(), ALIGNMENT);
        offset
    });
    (offsets.collect(), end)
}

/// Elements of a unit of these parameters, padding included.
fn padded_size(specs: &[ParamSpec]) -> i64 {
    layout(specs).1
}

/// A unit with its storage.
///
/// Where it is quantized, codes are kept in the place of its parameters, which are there while they
/// are used (`begin_use`).
#[derive(Debug)]
pub struct FlatUnit {
    specs: Vec<ParamSpec>,
    offsets: Vec<i64>,
    values: FlatStorage,
    params: Vec<Tensor>,
    is_trainable: bool,
    codes: Option<Rc<Codes>>,
    users: Rc<Cell<usize>>,
}

impl FlatUnit {
    /// A unit for these parameters that has no memory yet, as after [`FlatUnit::release`]; float32
    /// until they are [cast](Self::cast_and_pad).
    pub fn absent(specs: Vec<ParamSpec>, device: Device) -> Result<Self> {
        Self::absent_in(specs, Kind::Float, device)
    }

    /// The same in this format.
    pub(super) fn absent_in(specs: Vec<ParamSpec>, kind: Kind, device: Device) -> Result<Self> {
        let values = FlatStorage::empty(padded_size(&specs), kind, device)?;
        let unit = Self::over(specs, values);
        unit.values.release()?;
        Ok(unit)
    }

    /// A unit of zeros.
    #[cfg(test)]
    pub(crate) fn zeros(specs: Vec<ParamSpec>, device: Device) -> Result<Self> {
        let unit = Self::absent(specs, device)?;
        let _ = no_grad(|| unit.allocate().map(|mut flat| flat.zero_()))?;
        Ok(unit)
    }

    /// A unit without a storage: shapes and names of its parameters, all of one zero that cannot be
    /// written to.
    pub(super) fn outline(specs: Vec<ParamSpec>, device: Device) -> Result<Self> {
        let values = FlatStorage::outline(padded_size(&specs), Kind::Float, device)?;
        Ok(Self::over(specs, values))
    }

    /// The same, frozen, with codes in the place of its parameters, which are not here.
    pub(super) fn quantized(self, codes: Codes) -> Self {
        Self { codes: Some(Rc::new(codes)), ..self.trained(false) }
    }

    /// A unit over this storage, as large as it has to be.
    fn over(specs: Vec<ParamSpec>, values: FlatStorage) -> Self {
        let (offsets, _) = layout(&specs);
        let (params, users) = (Vec::new(), Rc::default());
        let is_trainable = true;
        let mut unit = Self { specs, offsets, values, params, is_trainable, codes: None, users };
        unit.params = unit
            .views(unit.values.tensor())
            .into_iter()
            .map(|view| view.detach().set_requires_grad(true))
            .collect();
        unit
    }

    /// The same unit: its parameters come and go with those of this one.
    pub(super) fn shallow_clone(&self) -> Self {
        Self {
            specs: self.specs.clone(),
            offsets: self.offsets.clone(),
            values: self.values.shallow_clone(),
            params: self.params.iter().map(Tensor::shallow_clone).collect(),
            is_trainable: self.is_trainable,
            codes: self.codes.clone(),
            users: Rc::clone(&self.users),
        }
    }

    /// The same, whose parameters are trained, or frozen: without gradients and state.
    pub(super) fn trained(mut self, is_trainable: bool) -> Self {
        self.is_trainable = is_trainable;
        for param in &self.params {
            let _ = param.shallow_clone().set_requires_grad(is_trainable);
        }
        self
    }

    /// Another unit over the same storage, which is here.
    pub(super) fn sharing(&self) -> Result<Self> {
        let specs = self.specs.clone();
        let Some(codes) = &self.codes else {
            return Ok(Self::over(specs, self.values.sharing()).trained(self.is_trainable));
        };
        let unit = Self::absent_in(specs, self.kind(), self.device())?.trained(false);
        Ok(Self { codes: Some(Rc::clone(codes)), ..unit })
    }

    /// A unit of the same parameters, kept in the same way, that has no memory yet.
    pub(super) fn absent_twin(&self) -> Result<Self> {
        let twin = Self::absent_in(self.specs.clone(), self.kind(), self.device())?;
        Ok(match &self.codes {
            Some(codes) => twin.quantized(Codes::absent(codes.quantizer(), &self.specs)?),
            None => twin,
        })
    }

    /// The quantization of its parameters, if they are.
    pub fn quantization(&self) -> Option<Quantization> {
        self.codes.as_ref().map(|codes| codes.quantization())
    }

    /// The storage that is kept between uses: of the codes, where it is quantized, else of the
    /// parameters.
    pub fn stored(&self) -> &FlatStorage {
        self.codes.as_ref().map_or(&self.values, |codes| codes.storage())
    }

    /// Gives the codes of a quantized unit, whose memory is here, the values that `value` has of each
    /// parameter.
    pub(super) fn quantize(&self, value: impl Fn(&ParamSpec) -> Result<Tensor>) -> Result<()> {
        let Some(codes) = &self.codes else { return Ok(()) };
        let mut specs = self.specs.iter().enumerate();
        specs.try_for_each(|(i, spec)| codes.quantize(i, spec, &value(spec)?))
    }

    /// Bytes that dequantizing a matrix takes on a device for a moment, beside what it writes.
    pub fn dequantizing_bytes(&self, device: Device) -> u64 {
        let bytes = |spec: &ParamSpec| {
            self.quantization().map_or(0, |kind| passing_bytes(kind.format, spec.numel(), device))
        };
        self.specs.iter().map(bytes).max().unwrap_or(0)
    }

    /// The codes of the parameters, where their values are not here.
    pub(super) fn codes_alone(&self) -> Option<&Rc<Codes>> {
        self.codes.as_ref().filter(|_| !self.values.is_here())
    }

    /// Whether rows can be multiplied with the codes as they are.
    pub(super) fn multiplies_codes(&self) -> bool {
        self.kind() == Kind::Float
            && self.codes.as_ref().is_some_and(|codes| codes.multiplies(&self.specs))
    }

    /// Makes the parameters be there for one user more; those of a quantized unit come of its codes,
    /// which are here.
    pub(super) fn begin_use(&self) -> Result<()> {
        let Some(codes) = &self.codes else { return Ok(()) };
        self.users.set(self.users.get() + 1);
        if self.users.get() > 1 {
            return Ok(());
        }
        let _counting = count_as(memory::Kind::Parameters)?;
        let flat = self.values.allocate()?;
        let views = self.views(&flat);
        let mut params = self.specs.iter().zip(&views).enumerate();
        params.try_for_each(|(i, (spec, param))| codes.dequantize(i, spec, param))
    }

    /// Ends one use; after the last one the parameters of a quantized unit go.
    pub(super) fn end_use(&self) {
        if self.codes.is_none() {
            return;
        }
        self.users.set(self.users.get().saturating_sub(1));
        if self.users.get() == 0
            && let Err(e) = self.values.release()
        {
            // It only holds more memory than it should.
            tracing::error!("dequantized parameters were not released: {e}");
        }
    }

    /// The values of a parameter, which is here: itself, or what its codes mean.
    pub(super) fn value(&self, index: usize) -> Result<Tensor> {
        let Some(codes) = &self.codes else { return Ok(self.params[index].f_detach()?) };
        let spec = &self.specs[index];
        let options = (self.kind(), self.device());
        let value = Tensor::f_empty(&spec.shape[..], options)?;
        codes.dequantize(index, spec, &value)?;
        Ok(value)
    }

    /// Whether its parameters are trained.
    pub fn is_trainable(&self) -> bool {
        self.is_trainable
    }

    /// Whether its parameters are here, or their codes.
    pub fn is_here(&self) -> bool {
        self.stored().is_here()
    }

    /// The parameters' descriptions, in the order of the storage.
    pub fn specs(&self) -> &[ParamSpec] {
        &self.specs
    }

    /// The parameters' names, in the order of the storage.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.specs.iter().map(|spec| spec.name.as_str())
    }

    /// Where each parameter starts in the storage.
    pub fn offsets(&self) -> &[i64] {
        &self.offsets
    }

    /// The whole storage: `[padded_numel]`, padding included, without gradient.
    ///
    /// # Errors
    /// [`Code::Internal`] while the unit is [released](Self::release).
    pub fn flat(&self) -> Result<&Tensor> {
        if !self.values.is_here() {
            let name = self.names().next().unwrap_or("a unit");
            bail!(Code::Internal, "{name} and its neighbours are not on this rank now");
        }
        self.values.flat()
    }

    /// Elements of the storage, padding included.
    pub fn padded_numel(&self) -> i64 {
        self.values.numel()
    }

    /// Bytes of what is kept between uses: the parameters, or their codes.
    pub fn bytes(&self) -> u64 {
        self.stored().bytes()
    }

    fn device(&self) -> Device {
        self.values.tensor().device()
    }

    /// The format of the parameters.
    pub fn kind(&self) -> Kind {
        self.values.kind()
    }

    /// The parameters as leaves of autograd, sharing the storage. While the unit is
    /// [released](Self::release) they have their shapes, and each read or write of theirs is refused.
    pub fn params(&self) -> &[Tensor] {
        &self.params
    }

    /// The parts of `flat`, a tensor laid out as this unit, that belong to each parameter.
    pub fn views(&self, flat: &Tensor) -> Vec<Tensor> {
        let parts = self.parts(flat).into_iter().step_by(2);
        let shaped = |(spec, part): (&ParamSpec, Tensor)| match spec.shape.len() {
            1 => part,
            _ => part.view(&spec.shape[..]),
        };
        self.specs.iter().zip(parts).map(shaped).collect()
    }

    /// The parts of `flat` in order: a parameter, what lies between it and the next, and so on.
    fn parts(&self, flat: &Tensor) -> Vec<Tensor> {
        let ends = self.offsets.iter().copied().skip(1).chain([flat.numel() as i64]);
        let starts = self.specs.iter().zip(&self.offsets);
        let sizes = starts.zip(ends).flat_map(|((spec, offset), end)| {
            let numel = spec.numel();
            [numel, end - offset - numel]
        });
        flat.split_with_sizes(&sizes.collect::<Vec<_>>()[..], 0)
    }

    /// The parts of `flat`, a tensor laid out as this unit, that belong to no parameter.
    pub fn padding(&self, flat: &Tensor) -> Vec<Tensor> {
        let gaps = self.parts(flat).into_iter().skip(1).step_by(2);
        gaps.filter(|gap| gap.numel() > 0).collect()
    }

    /// A tensor laid out as this unit, in the format `kind`, with any content.
    pub fn empty_of(&self, kind: Kind) -> Result<Tensor> {
        Ok(Tensor::f_empty([self.padded_numel()], (kind, self.device()))?)
    }

    /// Gives the parameters the format `kind`, as `model.to(dtype)` does in PyTorch, in a storage
    /// that `slices` ranks can divide evenly: whoever holds one of them sees it change. Returns the
    /// storage in its old format.
    ///
    /// # Errors
    /// There is not enough memory; nothing is then changed.
    pub fn cast_and_pad(&self, kind: Kind, slices: usize) -> Result<Tensor> {
        if let Some(codes) = &self.codes {
            let _ = self.values.allocate()?;
            let _ = self.lay(self.values.cast_and_pad(kind, 1)?)?;
            self.values.release()?;
            return Ok(codes.storage().cast_and_pad(Kind::Uint8, slices)?.0);
        }
        if self.kind() == kind && self.numel_for(slices) == self.padded_numel() {
            return Ok(self.flat()?.f_detach()?);
        }
        self.lay(self.values.cast_and_pad(kind, slices)?)
    }

    /// Makes the parameters parts of `after`, which is laid out as they are `before`.
    fn lay(&self, (before, after): (Tensor, Tensor)) -> Result<Tensor> {
        no_grad(|| {
            for (param, view) in self.params.iter().zip(self.views(&after)) {
                param.shallow_clone().f_set_data(&view)?;
            }
            Ok(before)
        })
    }

    /// Gives the memory of the parameters back, and of their codes. Whoever kept a part of one gets an
    /// error instead of its values, until they are there again; so does what autograd saved.
    pub fn release(&self) -> Result<()> {
        if let Some(codes) = &self.codes {
            codes.storage().release()?;
        }
        self.values.release()
    }

    /// Takes memory for what is kept between uses, with any content, and returns it to be filled.
    /// Autograd does not notice that it is written to.
    pub fn allocate(&self) -> Result<Tensor> {
        self.stored().allocate()
    }

    /// Elements of a storage that `slices` ranks can divide evenly, padding included.
    pub fn numel_for(&self, slices: usize) -> i64 {
        self.values.numel_for(slices)
    }

    /// Number of parameters without padding.
    pub fn numel(&self) -> i64 {
        self.specs.iter().map(ParamSpec::numel).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Init;

    #[test]
    fn parameters_share_the_units_storage_and_start_aligned() {
        let specs =
            vec![ParamSpec::new("a", &[2, 3], Init::Zeros), ParamSpec::new("b", &[5], Init::Zeros)];
        let unit = FlatUnit::zeros(specs, Device::Cpu).unwrap();
        assert_eq!((unit.padded_numel(), unit.numel()), (32, 11));
        let _ = unit.flat().unwrap().narrow(0, 16, 5).fill_(2.0);
        assert_eq!(unit.params()[1].sum(Kind::Double).double_value(&[]), 10.0);
        assert_eq!(unit.params()[0].sum(Kind::Double).double_value(&[]), 0.0);
    }

    #[test]
    fn ranks_divide_a_unit_evenly() {
        let unit =
            FlatUnit::zeros(vec![ParamSpec::new("a", &[40], Init::Zeros)], Device::Cpu).unwrap();
        let _ = unit.params()[0].shallow_clone().detach().fill_(1.0);
        for _ in 0..2 {
            let _ = unit.cast_and_pad(Kind::Float, 3).unwrap();
            assert_eq!((unit.padded_numel(), unit.numel()), (48, 40));
        }
        let _ = unit.flat().unwrap().shallow_clone().fill_(2.0);
        assert_eq!(unit.params()[0].double_value(&[39]), 2.0);
    }

    #[test]
    fn a_cast_reaches_all_who_hold_a_parameter() {
        let unit =
            FlatUnit::zeros(vec![ParamSpec::new("a", &[3], Init::Zeros)], Device::Cpu).unwrap();
        let _ = unit.flat().unwrap().shallow_clone().fill_(1.0 + 2f64.powi(-10));
        let held = unit.params()[0].shallow_clone();
        let before = unit.cast_and_pad(Kind::BFloat16, 1).unwrap();
        assert_eq!((held.kind(), before.kind()), (Kind::BFloat16, Kind::Float));
        assert_eq!(
            (held.double_value(&[0]), before.double_value(&[0])),
            (1.0, 1.0 + 2f64.powi(-10))
        );
        let _ = unit.flat().unwrap().shallow_clone().fill_(2.0);
        assert_eq!(held.double_value(&[2]), 2.0);
        assert!(held.requires_grad());
    }
}
