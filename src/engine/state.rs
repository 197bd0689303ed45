//! The engine's part of a checkpoint: parameters and optimizer state by name, and one JSON.
//!
//! ```text
//! config.json               the model's, as Hugging Face writes it
//! model.safetensors         parameters, float32, under Hugging Face's names
//! optimizer.safetensors     the optimizer's state for each parameter: exp_avg.NAME, exp_avg_sq.NAME,
//!                           momentum_buffer.NAME or sum.NAME in float32; state in 8 bits as codes,
//!                           with their scales exp_avg_absmax.NAME and so on
//! ema.safetensors           the averages of the trained parameters, float32, where there are any
//! adapter_model.safetensors in place of config.json and model.safetensors: the adapter, where the
//!                           model has one, with adapter_config.json, as peft writes them; the base
//!                           is named by its path and hash
//! trained.safetensors       parameters of the base that are trained beside an adapter
//! tokenizer.json and others the files that the model came with, or those of the rows' tokenizer
//! state.json                TrainState: the step, the place in the data, the recipe
//! ```
//!
//! Nothing in it depends on ranks or on how state is laid out and kept in memory. There is no
//! generator state: dropout is seeded from the step. A checkpoint directory also loads as a model,
//! where it has a `config.json`.

use std::collections::BTreeMap;

use super::{
    Engine,
    accumulation::Accumulation,
    averages::Weights,
    exact::Exact,
    state_file::UnitState,
    state_tensors::{
        ParamPlace, Parameters, check_names, damaged, fetch, float_entry, named, read_part,
    },
    train_state::{RecipeRecord, TrainState},
};
use crate::{
    config::{Dtype, schedule::Schedule},
    data::SavedPlace,
    dist::ShardSpec,
    error::{Code, Error, Result},
    fs::{Place, read_to_string, write_json},
    model::{ADAPTER_WEIGHTS, FlatUnit, Pipeline, TRAINED_WEIGHTS, is_of_adapter},
    optim::{StateForm, StateName},
    tensor::{
        Kind, Tensor, no_grad,
        safetensors::{self, SafetensorsFile, TensorEntry},
    },
};

pub(super) const STATE: &str = "state.json";
const MODEL: &str = "model.safetensors";
const EMA: &str = "ema.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
/// The version of `state.json`.
const FORMAT: u32 = 1;

impl Engine {
    /// Writes the state into the directory `dir`, which a
    /// [`Store`](crate::checkpoint::Store) publishes when it is whole. Every rank must call it: one
    /// of them with a directory, the others give their slices.
    ///
    /// # Errors
    /// [`Code::CallOrder`] amid an accumulation, whose gradients a checkpoint does not hold;
    /// [`Code::DiskFull`] or [`Code::Io`]; another rank fails.
    pub fn write_state(
        &self,
        dir: Option<&Place>,
        loader: Option<SavedPlace>,
        recipe: Option<RecipeRecord>,
    ) -> Result<()> {
        self.check_whole()?;
        if self.accumulation.micro_steps() > 0 {
            return Err(Error::new(
                Code::CallOrder,
                format!(
                    "a checkpoint is of whole steps, and {} of {} micro batches of the next are done",
                    self.accumulation.micro_steps(), self.config.gradient_accumulation_steps
                ),
            )
            .hint("save where engine.step() returned true"));
        }
        let has_adapter = self.model.adapter().is_some();
        let base = match dir {
            Some(_) if has_adapter => Some(self.model.origin_record()?),
            _ => None,
        };
        match dir {
            Some(dir) if has_adapter => self.model.write_adapter_config(dir)?,
            Some(dir) => write_json(dir.join("config.json"), &self.model.facts().config)?,
            None => {}
        }
        for (name, params) in self.parameter_files() {
            let place = dir.map(|dir| dir.join(name));
            self.write_params(place.as_ref(), (&params, Weights::Trained))?;
        }
        if self.config.ema.is_some() {
            let place = dir.map(|dir| dir.join(EMA));
            self.write_params(place.as_ref(), (&self.averaged_params(), Weights::Averaged))?;
        }
        self.write_optimizer(dir)?;
        let Some(dir) = dir else { return Ok(()) };
        self.model.write_companions(dir)?;
        let state = TrainState {
            format: FORMAT,
            global_step: self.global_step,
            applied_steps: self.optimizer.applied_steps(),
            skipped_steps: self.overflow_check.skipped_steps,
            loss_scaler: self.overflow_check.scaler.state(),
            outliers: self.outliers.state(),
            ema_updates: self.averages.updates(),
            global_samples: Some(self.global_samples),
            micro_batch_size: Some(self.config.micro_batch_size),
            lr: self.own_lr.map(Exact),
            optimizer: self.config.optimizer.name().to_owned(),
            base,
            sparse_attention: self.sparse_record(),
            loader,
            recipe,
        };
        write_json(dir.join(STATE), &state)
    }

    /// The files of parameters with what is in them.
    fn parameter_files(&self) -> Vec<(&'static str, Vec<ParamPlace<'_>>)> {
        let params = self.params();
        if self.model.adapter().is_none() {
            return vec![(MODEL, params)];
        }
        let (adapter, base): (Vec<_>, Vec<_>) =
            params.into_iter().partition(|param| is_of_adapter(param.name));
        let trained = self.model.trainable_units().len();
        let base: Vec<_> = base.into_iter().filter(|param| param.unit < trained).collect();
        let files = [(ADAPTER_WEIGHTS, adapter), (TRAINED_WEIGHTS, base)];
        files.into_iter().filter(|(_, params)| !params.is_empty()).collect()
    }

    fn write_params(
        &self,
        place: Option<&Place>,
        (params, weights): (&[ParamPlace<'_>], Weights),
    ) -> Result<()> {
        let entries = params.iter().map(|param| float_entry(param.name, param.shape));
        let mut whole = None;
        safetensors::write(place, entries, |i| {
            let ParamPlace { unit, index, shape, .. } = params[i];
            let own = self.own_unit(unit).map(|i| -> Result<Tensor> {
                let flat = fetch(&mut whole, i, || {
                    if !self.model.units()[i].is_trainable() {
                        return self.master_weights.frozen(i);
                    }
                    self.states.look(i, |kept| self.whole_weights(i, kept, weights))
                })?;
                self.joined((unit, index), flat)
            });
            self.of_stage(unit, own.transpose()?, (shape, Kind::Float))
        })
    }

    fn write_optimizer(&self, dir: Option<&Place>) -> Result<()> {
        let names = &self.state_names;
        let entries = names.iter().map(|state| TensorEntry {
            kind: if state.form == StateForm::Codes { Kind::Uint8 } else { Kind::Float },
            ..float_entry(&state.name, &state.shape)
        });
        let mut whole = None;
        safetensors::write(dir.map(|dir| dir.join(OPTIMIZER)).as_ref(), entries, |i| {
            let state = &names[i];
            let StateName { place: (unit, slot), ref shape, form, .. } = *state;
            let kind = match form {
                StateForm::Plain => self.optimizer.state_kind(),
                StateForm::Codes => Kind::Uint8,
                StateForm::Scales => Kind::Float,
            };
            let own = self.own_unit(unit).map(|i| -> Result<Tensor> {
                let flat = fetch(&mut whole, (i, slot, form), || {
                    let (dp, place) = (self.mesh.dp(), (i, slot, form));
                    self.states.look(i, |kept| self.optimizer.whole(dp, place, &kept.state))
                })?;
                match form {
                    StateForm::Scales => Ok(flat.f_narrow(0, state.first_scale(), shape[0])?),
                    _ => self.joined((unit, self.index_of(state)?), flat),
                }
            });
            self.of_stage(unit, own.transpose()?, (shape, kind))
        })
    }

    /// The parameter, by its number in its unit, that a state tensor is of.
    fn index_of(&self, state: &StateName) -> Result<usize> {
        let offsets = self.model.all_units()[state.place.0].offsets();
        let index = offsets.iter().position(|&offset| offset == state.offset);
        index
            .ok_or_else(|| Error::new(Code::Internal, format!("{} is of no parameter", state.name)))
    }

    /// Parameter `index` of unit `unit` of the whole model, flat, from `flat`, which is laid out as
    /// this rank's part of the unit.
    fn joined(&self, (unit, index): (usize, usize), flat: &Tensor) -> Result<Tensor> {
        let layout = &self.model.all_units()[unit];
        let (spec, offset) = (&layout.specs()[index], layout.offsets()[index]);
        let part = flat.f_narrow(0, offset, spec.numel())?.f_view(&spec.shape[..])?;
        Ok(self.model.joined(unit, index, &part)?.f_reshape([-1i64])?)
    }

    /// The number here of a unit of the whole model, if this stage speaks for it.
    fn own_unit(&self, number: usize) -> Option<usize> {
        self.model.local_unit(number).filter(|_| self.pipe.owns(number))
    }

    /// A part of a unit of the whole model, which the stage that speaks for it gives, on all stages.
    fn of_stage(
        &self,
        unit: usize,
        own: Option<Tensor>,
        (shape, kind): (&[i64], Kind),
    ) -> Result<Tensor> {
        let numel = shape.iter().product::<i64>();
        match (self.mesh.shape().pp, own) {
            (1, Some(own)) => Ok(own),
            (_, own) => self.pipe.bring(unit, own.as_ref(), (&[numel], kind)),
        }
    }

    /// The parameters of which there are averages.
    fn averaged_params(&self) -> Vec<ParamPlace<'_>> {
        let trained = self.model.trainable_count();
        self.params().into_iter().filter(|param| param.unit < trained).collect()
    }

    /// Every parameter of the whole model.
    fn params(&self) -> Vec<ParamPlace<'_>> {
        let units = self.model.whole_units().iter().enumerate();
        let of_unit = |(unit, flat)| {
            let specs = FlatUnit::specs(flat).iter().enumerate();
            specs.map(move |(index, spec)| ParamPlace {
                name: &spec.name,
                shape: &spec.shape,
                unit,
                index,
            })
        };
        units.flat_map(of_unit).collect()
    }

    /// Bytes that [`Engine::write_state`] will write, about.
    pub fn state_bytes(&self) -> u64 {
        const JSON_BYTES: u64 = 4 << 20;
        let files = self.parameter_files();
        let params = files.iter().flat_map(|(_, params)| params).map(|param| param.shape);
        let averaged = self.config.ema.map_or_else(Vec::new, |_| self.averaged_params());
        let params = params.chain(averaged.iter().map(|param| param.shape));
        let numel = |shape: &[i64]| shape.iter().product::<i64>() as u64;
        let params = params.map(|shape| Dtype::Fp32.bytes() * numel(shape)).sum::<u64>();
        let state = self.state_names.iter().map(|state| {
            let bytes = if state.form == StateForm::Codes { 1 } else { Dtype::Fp32.bytes() };
            bytes * numel(&state.shape)
        });
        params + state.sum::<u64>() + JSON_BYTES
    }

    /// Goes on from the checkpoint in `dir`, which was verified. Everything is checked before
    /// anything is changed.
    ///
    /// # Errors
    /// [`Code::Checkpoint`] for one of another model, optimizer or layout, listing what does not
    /// fit.
    pub fn read_state(&mut self, dir: impl Into<Place>) -> Result<TrainState> {
        let dir = &dir.into();
        self.check_trained("load_checkpoint")?;
        let state = train_state(dir)?;
        self.check_optimizer(dir, &state)?;
        let open = |name: &str| SafetensorsFile::open(dir.join(name)).map_err(|e| damaged(dir, e));
        self.check_base(dir, &state)?;
        let optimizer = open(OPTIMIZER)?;
        let mut params = Parameters(Vec::new());
        for (name, expected) in self.parameter_files() {
            let file = open(name)?;
            check_names(dir, &file, &named(&expected))?;
            params.0.push(file);
        }
        let averages = match state.ema_updates.filter(|_| self.config.ema.is_some()) {
            Some(_) => Some(open(EMA)?),
            None => None,
        };
        if let Some(averages) = &averages {
            check_names(dir, averages, &named(&self.averaged_params()))?;
        }
        let named_state: Vec<_> = self
            .state_names
            .iter()
            .map(|state| (state.name.clone(), state.shape.clone()))
            .collect();
        check_names(dir, &optimizer, &named_state)?;
        self.is_inconsistent = true;
        let shard = self.master_weights.shard().unwrap_or(ShardSpec::WHOLE);
        let (model, master_weights) = (&self.model, &self.master_weights);
        let rules = &self.optimizer;
        let place = |state: &'_ StateName| {
            let index = self.index_of(state)?;
            Ok((state.name.clone(), (state.place.0, index)))
        };
        let places: BTreeMap<String, _> =
            self.state_names.iter().map(place).collect::<Result<_>>()?;
        self.states.change(|_, units| {
            for (i, UnitState { master, average, state }) in units {
                let unit = &model.units()[*i];
                let number = model.unit_number(*i);
                for (index, (spec, &offset)) in unit.specs().iter().zip(unit.offsets()).enumerate()
                {
                    let end = offset + spec.numel();
                    if let Some((from, to, at)) = shard.overlap(unit.padded_numel(), offset, end) {
                        let into = master.f_narrow(0, at, to - from)?;
                        let runs = model.runs(number, index);
                        params.read_part(&spec.name, &runs, (from - offset, &into))?;
                        if let (Some(average), Some(file)) = (average, &averages) {
                            let into = average.f_narrow(0, at, to - from)?;
                            read_part(file, &spec.name, &runs, (from - offset, &into))?;
                        }
                    }
                }
                if let (Some(average), None) = (average, &averages) {
                    no_grad(|| average.shallow_clone().f_copy_(master))?;
                }
                for piece in rules.pieces(*i, state) {
                    if piece.form == StateForm::Scales {
                        optimizer.copy_part(&piece.name, piece.start, &piece.tensor)?;
                        continue;
                    }
                    let (unit, index) = places[&piece.name[..]];
                    let runs = model.runs(unit, index);
                    read_part(&optimizer, &piece.name, &runs, (piece.start, &piece.tensor))?;
                }
            }
            master_weights.publish(units)
        })?;
        for i in model.trainable_units().len()..model.units().len() {
            if model.units()[i].names().all(|name| params.has(name)) {
                master_weights.restore_frozen(i, &params)?;
            }
        }
        master_weights.finish()?;
        self.overflow_check.forget();
        self.overflow_check.skipped_steps = state.skipped_steps;
        self.overflow_check.scaler.restore(state.loss_scaler);
        self.averages.restore(state.ema_updates);
        self.outliers.restore(state.outliers.clone());
        self.optimizer.set_applied_steps(state.applied_steps);
        // A scheduler that the recipe has got since gives the rate.
        let is_constant = matches!(self.config.scheduler, Schedule::Constant);
        self.own_lr = state.lr.filter(|_| is_constant).map(|Exact(lr)| lr);
        self.global_step = state.global_step;
        let samples = state.global_step * self.train_batch_size() as u64;
        self.global_samples = state.global_samples.unwrap_or(samples);
        self.accumulation = Accumulation::default();
        self.timers.reset();
        (self.phase_times, self.flops_profile) = (None, None);
        self.gradients.clear();
        (self.pending, self.last_step) = (None, None);
        self.is_inconsistent = false;
        Ok(state)
    }

    /// Refuses a checkpoint whose state is that of another optimizer.
    fn check_optimizer(&self, dir: &Place, state: &TrainState) -> Result<()> {
        let (found, expected) = (&state.optimizer, self.config.optimizer.name());
        if found == expected {
            return Ok(());
        }
        let message = format!(
            "checkpoint {} has the state of {found}, and the engine's optimizer is {expected}",
            dir.display()
        );
        Err(Error::new(Code::Checkpoint, message).hint(
            "train with the same optimizer, or begin a new run with load_model of the checkpoint",
        ))
    }
}

/// The state of a checkpoint, which is not verified.
pub(super) fn train_state(dir: &Place) -> Result<TrainState> {
    let text = read_to_string(dir.join(STATE)).map_err(|e| damaged(dir, e))?;
    let state: TrainState = serde_json::from_str(&text).map_err(|e| {
        let message = format!("checkpoint {}: {STATE} cannot be understood", dir.display());
        Error::new(Code::Checkpoint, message).caused_by(e)
    })?;
    if state.format != FORMAT {
        bail!(
            Code::Checkpoint,
            "checkpoint {}: {STATE} has format {}; this dsr reads format {FORMAT}",
            dir.display(),
            state.format
        );
    }
    Ok(state)
}
