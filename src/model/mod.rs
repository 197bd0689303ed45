//! Models as lists of layers over flat parameter units.
//!
//! A family (`families`) describes a model by its layers, which are made of modules (`modules`). A
//! [`Model`] holds the layers and the units of their parameters. Nothing here knows of optimizers,
//! schedules or how ranks reach each other; where parameters are while they are not used is a
//! [`ParameterStore`]'s business.

mod adapters;
mod architecture;
mod codes;
mod cut;
mod families;
mod files;
mod forward;
mod gather;
mod initializer;
mod layer;
mod loss;
mod measure;
mod measured;
mod modules;
mod origin;
mod param_id;
mod param_spec;
mod params;
mod part;
mod pipeline;
mod sparse;
mod store;
mod tiles;
mod trainable;
mod unit;
mod unit_gradient;

pub use adapters::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter, TRAINED_WEIGHTS, is_of_adapter};
use architecture::Architecture;
pub use architecture::{ModelInfo, ModelLayer, Prediction};
pub use cost::{AngleTable, HeldBytes, LayerCost, LayerSharing, SummedBytes, Workload};
pub use cut::own_layers_stay_whole;
#[cfg(test)]
pub(crate) use families::tiny_gpt2;
pub use families::{CustomLayer, LayerFunction, ModelConfig, custom};
pub use forward::{Inference, padding_of};
pub use gather::Gathered;
pub use layer::{AttentionFacts, Context, Flow, Layer};
pub use loss::{LossFunction, Objective, Targets};
pub use masks::Masks;
pub use origin::{Origin, OriginRecord};
pub use param_spec::{Init, ParamPlace, ParamSpec};
pub use params::{Params, Places};
pub use pipeline::Pipeline;
pub use profile::{ModuleProfile, Recorder, record};
pub use store::{Direction, ParameterStore};
pub use unit::FlatUnit;
pub use unit_gradient::{SharedGradients, Sink, UnitGradient, UnitGradients};

use std::{
    cell::{Cell, OnceCell, RefCell},
    fmt,
    rc::Rc,
};

use self::{files::StoredWeights, initializer::Initializer, measured::Measured, part::Stage};
pub use crate::companions::ExportedTokenizer;
use crate::{
    companions::Companions,
    config::{DtypeChoice, Quantization, TiledMlp},
    cost::{self, profile},
    error::{Code, Error, Result},
    fs::Place,
    masks,
    quantize::Quantizer,
    sparse::BlockSparse,
    tensor::{Device, Kind, Tensor, dtype_name},
};

/// A language model: layers in the order of the forward pass, and the units of their parameters.
pub struct Model {
    facts: ModelInfo,
    layers: Vec<ModelLayer>,
    units: Rc<[FlatUnit]>,
    /// The first so many units are trained; the rest is frozen.
    trainable: usize,
    /// The first layer that uses one of these.
    lowest_trainable: Option<usize>,
    /// Whether it has no weights.
    is_outline: bool,
    device: Device,
    companions: Companions,
    /// The source of the units' first values; `None` once all have them.
    initializer: RefCell<Option<Rc<Initializer>>>,
    /// What trains beside frozen parameters.
    adapter: Option<Adapter>,
    is_adapter_off: Cell<bool>,
    /// The call that put another model in this one's place.
    replaced_by: Cell<Option<&'static str>>,
    /// The way in which frozen matrices are kept as codes.
    quantizer: Option<Quantizer>,
    /// Where the values come from.
    origin: Origin,
    origin_record: OnceCell<OriginRecord>,
    /// The blocks that attention sees; `None` is all.
    sparse: RefCell<Option<Rc<BlockSparse>>>,
    /// How MLPs run over slices of tokens; `None` is over all at once.
    tiled_mlp: Cell<Option<TiledMlp>>,
    /// Where parameters are while they are not used; `None` where all of them are here.
    store: RefCell<Option<Rc<dyn ParameterStore>>>,
    /// The way to the other stages; `None` where all layers are here.
    pipeline: RefCell<Option<Rc<dyn Pipeline>>>,
    /// The layers of this rank, where other ranks have the others.
    stage: OnceCell<Stage>,
    /// The measured cost of layers whose shapes do not tell it.
    measured: OnceCell<Vec<Measured>>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Model {} ({})", self.facts.kind, self.facts.summary)
    }
}

impl Model {
    /// A model with random parameters, the same for the same seed on every device. It takes no memory
    /// before it is used.
    pub fn from_scratch(config: &ModelConfig, seed: u64, device: Device) -> Result<Self> {
        let model = Self::of(config.architecture()?, device, FlatUnit::absent)?;
        let origin = Origin::Seed(seed);
        Ok(Self { origin, ..model }.starting_from(Initializer::Seed(seed)))
    }

    /// The model in a directory as Hugging Face writes it: `config.json` and safetensors. It takes
    /// no memory before it is used; until then its files must stay as they are.
    pub fn load(dir: impl Into<Place>, config: &ModelConfig, device: Device) -> Result<Self> {
        let dir = &dir.into();
        let config = config.completed_by(dir)?;
        let mut model = Self::of(config.architecture()?, device, FlatUnit::absent)?;
        let weights =
            StoredWeights::open(dir, &model.units, (model.facts.names, config.repeated_rows()))?;
        model.companions = Companions::read(dir)?;
        model.origin = Origin::Files(dir.clone());
        let ends = model.companions.eos_token_ids();
        let new: Vec<_> =
            ends.into_iter().filter(|id| !model.facts.eos_token_ids.contains(id)).collect();
        model.facts.eos_token_ids.extend(new);
        Ok(model.starting_from(Initializer::Files(weights)))
    }

    /// The same model, which has no values yet, with its parameters in this format. `Auto` is that of its
    /// files, where all of their tensors have the same one of 16 bits, and else float32.
    pub fn in_dtype(self, dtype: DtypeChoice) -> Result<Self> {
        let kind = match (dtype, self.initializer.borrow().as_deref()) {
            (DtypeChoice::Given(dtype), _) => dtype.into(),
            (DtypeChoice::Auto, Some(Initializer::Files(weights))) => weights.kind()?,
            (DtypeChoice::Auto, _) => Kind::Float,
        };
        if kind == self.kind() {
            return Ok(self);
        }
        let absent =
            |unit: &FlatUnit| FlatUnit::absent_in(unit.specs().to_vec(), kind, self.device);
        let units = self.units.iter().map(absent).collect::<Result<_>>()?;
        Ok(Self { units, ..self })
    }

    /// The format of the parameters.
    pub(crate) fn kind(&self) -> Kind {
        self.units.first().map_or(Kind::Float, FlatUnit::kind)
    }

    /// A model without weights, to plan with: all of its parameters are one zero, and take no
    /// memory. It cannot be trained.
    pub fn outline(config: &ModelConfig, device: Device) -> Result<Self> {
        let model = Self::of(config.architecture()?, device, FlatUnit::outline)?;
        Ok(Self { is_outline: true, ..model })
    }

    /// A model whose units start from these values, on the CPU.
    fn from_values(
        architecture: Architecture,
        values: Vec<Vec<Tensor>>,
        device: Device,
    ) -> Result<Self> {
        let model = Self::of(architecture, device, FlatUnit::absent)?;
        let names = model.units.iter().flat_map(FlatUnit::names).map(str::to_owned);
        let values = names.zip(values.into_iter().flatten()).collect();
        Ok(model.starting_from(Initializer::Values(values)))
    }

    fn of(
        Architecture { layers, facts }: Architecture,
        device: Device,
        unit: fn(Vec<ParamSpec>, Device) -> Result<FlatUnit>,
    ) -> Result<Self> {
        let (layers, units) = Architecture::placed(layers)?;
        let units =
            units.into_iter().map(|specs| unit(specs, device)).collect::<Result<Vec<_>>>()?;
        Ok(Self::with(facts, layers, units, device))
    }

    fn with(
        facts: ModelInfo,
        layers: Vec<ModelLayer>,
        units: Vec<FlatUnit>,
        device: Device,
    ) -> Self {
        let trainable = units.iter().filter(|unit| unit.is_trainable()).count();
        let is_trained = |layer: &ModelLayer| layer.units.iter().any(|&i| i < trainable);
        let lowest_trainable = layers.iter().position(is_trained);
        Self {
            facts,
            layers,
            trainable,
            lowest_trainable,
            is_outline: false,
            units: units.into(),
            device,
            companions: Companions::default(),
            initializer: RefCell::default(),
            adapter: None,
            is_adapter_off: Cell::new(false),
            replaced_by: Cell::new(None),
            quantizer: None,
            origin: Origin::Memory,
            origin_record: OnceCell::new(),
            sparse: RefCell::default(),
            tiled_mlp: Cell::new(None),
            store: RefCell::default(),
            pipeline: RefCell::default(),
            stage: OnceCell::new(),
            measured: OnceCell::new(),
        }
    }

    fn starting_from(self, initializer: Initializer) -> Self {
        Self { initializer: RefCell::new(Some(Rc::new(initializer))), ..self }
    }

    /// The properties of the model.
    pub fn facts(&self) -> &ModelInfo {
        &self.facts
    }

    /// The parameter units, in the order of the layers that own them, those that are trained first: of
    /// this rank's stage.
    pub fn units(&self) -> &Rc<[FlatUnit]> {
        self.stage.get().map_or(&self.units, |stage| &stage.units)
    }

    /// The units that are trained: the first ones.
    pub fn trainable_units(&self) -> &[FlatUnit] {
        let units = self.units();
        &units[..units.partition_point(FlatUnit::is_trainable)]
    }

    /// How many units of the whole model are trained: the first ones.
    pub fn trainable_count(&self) -> usize {
        self.trainable
    }

    /// The layers in the order of the forward pass: those of this rank's stage.
    pub fn layers(&self) -> &[ModelLayer] {
        self.stage.get().map_or(&self.layers, |stage| &stage.layers)
    }

    /// The number of equal layers, which activation checkpointing counts.
    pub fn blocks(&self) -> usize {
        self.layers.iter().filter(|layer| layer.block.is_some()).count()
    }

    /// The quantization of its frozen matrices, if they are.
    pub fn quantization(&self) -> Option<Quantization> {
        self.quantizer.as_ref().map(Quantizer::quantization)
    }

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Number of parameters, a tied one counted once.
    pub fn num_params(&self) -> u64 {
        self.units.iter().map(|u| u.numel() as u64).sum()
    }

    /// Number of parameters that are trained.
    pub fn num_trainable_params(&self) -> u64 {
        self.trainable_units().iter().map(|u| u.numel() as u64).sum()
    }

    /// Whether the directory that the model was loaded from has a tokenizer that is read.
    pub fn has_tokenizer(&self) -> bool {
        self.companions.has_tokenizer()
    }

    fn companions(&self) -> &Companions {
        &self.companions
    }

    /// Every parameter with its Hugging Face name, empty where its unit is not on this rank now.
    pub fn named_params(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.units()
            .iter()
            .flat_map(|u| u.specs().iter().zip(u.params()))
            .map(|(spec, param)| (spec.name.as_str(), param))
    }

    /// Refuses token ids and lengths that the model has no embedding for.
    ///
    /// # Errors
    /// [`Code::Shape`] for a length over `n_positions` or a tensor that is not `[B, T]`,
    /// [`Code::TokenId`] for an id outside the vocabulary.
    pub fn check_input_ids(&self, input_ids: &Tensor) -> Result<()> {
        let size = input_ids.size();
        let &[rows, tokens] = size.as_slice() else {
            bail!(Code::Shape, "input_ids must have the shape [batch, tokens], not {size:?}");
        };
        if input_ids.kind() != Kind::Int64 {
            bail!(Code::Shape, "input_ids must be int64, not {}", dtype_name(input_ids.kind()));
        }
        if rows == 0 || tokens == 0 {
            bail!(Code::Shape, "input_ids of the shape {size:?} hold no token");
        }
        self.check_length(tokens)?;
        self.check_ids(input_ids.f_min()?.int64_value(&[]), input_ids.f_max()?.int64_value(&[]))
    }

    /// Refuses rows of so many `tokens`, where the model has no position for the last ones.
    pub fn check_length(&self, tokens: i64) -> Result<()> {
        let Some(positions) = self.facts.max_positions.filter(|&positions| tokens > positions)
        else {
            return Ok(());
        };
        let message = format!("{tokens} tokens are more than the model's {positions} positions");
        Err(Error::new(Code::Shape, message)
            .hint(format!("pack or truncate the rows to at most {positions} tokens")))
    }

    /// Refuses token ids, of which these are the lowest and the highest, that are outside the
    /// vocabulary.
    pub fn check_ids(&self, low: i64, high: i64) -> Result<()> {
        let vocab = self.facts.vocab_size;
        if low >= 0 && high < vocab {
            return Ok(());
        }
        let id = if low < 0 { low } else { high };
        Err(self.outside("token id", id))
    }

    /// Refuses labels, of which this is the highest, that are outside the vocabulary.
    pub fn check_labels(&self, high: i64) -> Result<()> {
        match high < self.facts.vocab_size {
            true => Ok(()),
            false => Err(self.outside("label", high)),
        }
    }

    fn outside(&self, what: &str, id: i64) -> Error {
        let vocab = self.facts.vocab_size;
        Error::new(
            Code::TokenId,
            format!(
                "{what} {id} is outside the model's vocabulary ({vocab} rows: ids 0..={})",
                vocab - 1
            ),
        )
        .hint("load the tokenizer that belongs to the model, or make the model with its vocab_size")
    }
}
