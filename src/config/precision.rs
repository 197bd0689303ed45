//! Number formats: of the model, of the gradients, and the loss scale that fp16 needs.
//!
//! bf16 and fp16 are mixed precision (Micikevicius et al. 2018): the model computes in 16 bits, the
//! optimizer updates float32 master weights, unless they are to be bf16 themselves. Names and
//! defaults are DeepSpeed's, with one difference: gradients are accumulated and reduced in float32
//! unless told otherwise, where DeepSpeed uses the model's format.

use super::options::{
    AUTO, Given, Kind, OptionTable, OptionType, OptionValue, Options, Row, Value, Wrong, is_finite,
    option_table, option_words, read_word,
};
use crate::error::{Code, Error, Result};

option_words! {
    /// A floating-point format.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Dtype {
        /// float32.
        Fp32 = "fp32",
        /// bfloat16: the range of float32 with 8 bits of precision.
        Bf16 = "bf16",
        /// float16: 11 bits of precision up to 65504.
        Fp16 = "fp16",
    }
}

impl Dtype {
    /// Bytes of an element.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Fp32 => 4,
            Self::Bf16 | Self::Fp16 => 2,
        }
    }
}

/// A format, or the one that fits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DtypeChoice {
    /// The one that fits: of a training the device, of a model its files.
    #[default]
    Auto,
    /// This one.
    Given(Dtype),
}

impl DtypeChoice {
    /// All of them by their names in options.
    pub const NAMES: &'static [(&'static str, Self)] = &[
        (Dtype::Fp32.name(), Self::Given(Dtype::Fp32)),
        (Dtype::Bf16.name(), Self::Given(Dtype::Bf16)),
        (Dtype::Fp16.name(), Self::Given(Dtype::Fp16)),
        (AUTO, Self::Auto),
    ];
}

impl OptionValue for DtypeChoice {
    fn read(value: &Value) -> std::result::Result<Self, Wrong> {
        read_word(value, Self::NAMES)
    }

    fn kind() -> Kind {
        Kind::Words(Self::NAMES.iter().map(|(word, _)| *word).collect())
    }

    fn shown(&self) -> Option<String> {
        let known = Self::NAMES.iter().find(|(_, choice)| choice == self);
        known.map(|(word, _)| format!("{word:?}"))
    }
}

/// What an engine computes in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrecisionConfig {
    /// The format of parameters and activations. With 16 bits there are float32 master weights, unless
    /// `master_weights` says otherwise.
    pub dtype: Dtype,
    /// Whether `dtype` is the one that fits the [device](Self::on).
    pub is_auto: bool,
    /// The format of the weights that the optimizer updates: float32, or that of the model, which is then
    /// updated itself.
    pub master_weights: Dtype,
    /// The format in which the gradients of micro batches are added up.
    pub grad_accum_dtype: Dtype,
    /// The format in which gradients travel between ranks.
    pub communication_data_type: Dtype,
    /// What the loss is multiplied by before the backward pass.
    pub loss_scale: LossScale,
}

/// A model in bfloat16 that is updated itself.
const BF16: (Dtype, Dtype) = (Dtype::Bf16, Dtype::Bf16);

impl Default for PrecisionConfig {
    fn default() -> Self {
        Self::new(Dtype::Fp32)
    }
}

impl PrecisionConfig {
    /// This format with everything else by default.
    pub fn new(dtype: Dtype) -> Self {
        let loss_scale = match dtype {
            Dtype::Fp16 => LossScale::Dynamic(DynamicLossScale::default()),
            Dtype::Fp32 | Dtype::Bf16 => LossScale::None,
        };
        Self {
            dtype,
            is_auto: false,
            master_weights: Dtype::Fp32,
            grad_accum_dtype: Dtype::Fp32,
            communication_data_type: Dtype::Fp32,
            loss_scale,
        }
    }

    /// `"auto"`, before the device is known.
    fn auto() -> Self {
        Self { is_auto: true, ..Self::new(Dtype::Fp32) }
    }

    /// This on a device: where the format is to fit it, bfloat16 if its units compute in that, else
    /// float32. Neither overflows where the other does not, as fp16 would.
    #[must_use]
    pub fn on(self, has_bf16: bool) -> Self {
        match self.is_auto {
            true if has_bf16 => Self { dtype: Dtype::Bf16, ..self },
            true => Self { dtype: Dtype::Fp32, ..self },
            false => self,
        }
    }

    /// The format as a recipe writes it.
    fn written(&self) -> &'static str {
        if self.is_auto { AUTO } else { self.dtype.name() }
    }

    /// Whether the optimizer updates float32 copies of the parameters.
    pub fn has_master_weights(&self) -> bool {
        self.dtype != self.master_weights
    }

    /// Refuses a sum of gradients in a format that is neither float32 nor the model's, and master
    /// weights in 16 bits but for a model in bf16.
    pub fn check(&self) -> Result<()> {
        let checks = [self.check_master_weights(), self.check_gradients()];
        Error::all(checks.into_iter().filter_map(Result::err).collect()).map_or(Ok(()), Err)
    }

    fn check_master_weights(&self) -> Result<()> {
        if self.master_weights == Dtype::Fp32 || (self.dtype, self.master_weights) == BF16 {
            return Ok(());
        }
        let name = self.master_weights.name();
        let message = match self.master_weights {
            Dtype::Bf16 => {
                format!("`precision.master_weights` \"{name}\" goes with dtype \"bf16\"")
            }
            _ => {
                format!("`precision.master_weights` must be \"fp32\" or \"bf16\", found \"{name}\"")
            }
        };
        Err(Error::new(Code::BadValue, message).option("master_weights"))
    }

    fn check_gradients(&self) -> Result<()> {
        let Self { dtype, grad_accum_dtype, .. } = *self;
        if grad_accum_dtype == Dtype::Fp32 || grad_accum_dtype == dtype {
            return Ok(());
        }
        let allowed = match dtype {
            Dtype::Fp32 => "\"fp32\"".to_owned(),
            _ => format!("\"fp32\" or \"{}\"", dtype.name()),
        };
        let message = format!(
            "`precision.grad_accum_dtype` must be {allowed} with {}, found \"{}\"",
            self.written(),
            grad_accum_dtype.name()
        );
        Err(Error::new(Code::BadValue, message).option("grad_accum_dtype"))
    }
}

/// How the loss is scaled, so that small gradients do not vanish in fp16.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LossScale {
    /// Not at all.
    None,
    /// Always by this.
    Static(f64),
    /// By as much as the gradients allow.
    Dynamic(DynamicLossScale),
}

option_table! {
    /// DeepSpeed's `DynamicLossScaler`: the scale halves when gradients overflow, and doubles after
    /// `loss_scale_window` steps without.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct DynamicLossScale {
        /// the first scale, as a power of 2
        #[option(default = 16, range = 0..=100)]
        pub initial_scale_power: u32,
        /// steps without an overflow after which the scale doubles
        #[option(default = 1000, range = 1..)]
        pub loss_scale_window: u64,
        /// overflows before the scale halves
        #[option(default = 2, range = 1..)]
        pub hysteresis: u32,
        /// whether a step without an overflow restores `hysteresis`
        #[option(default = false)]
        pub consecutive_hysteresis: bool,
        /// the lowest scale
        #[option(default = 1.0, must = |scale: &f64| *scale > 0.0 && scale.is_finite() => "above 0 and finite")]
        pub min_loss_scale: f64,
    }
}

impl DynamicLossScale {
    /// The scale of the first step.
    pub fn initial_scale(&self) -> f64 {
        2f64.powi(self.initial_scale_power as i32)
    }

    /// Refuses a start below the minimum.
    pub fn check(&self) -> Result<()> {
        if self.initial_scale() >= self.min_loss_scale {
            return Ok(());
        }
        let message = format!(
            "the scale would start at 2^{} = {}, below `min_loss_scale` {}",
            self.initial_scale_power,
            self.initial_scale(),
            self.min_loss_scale
        );
        Err(Error::new(Code::BadValue, message).option("initial_scale_power"))
    }
}

option_table! {
    /// The settings of `precision` where it is a map.
    #[derive(Debug)]
    struct PrecisionOptions {
        /// the format of the model's parameters and activations; with bf16 and fp16 the optimizer updates
        /// float32 master weights unless `master_weights` says otherwise, and a gradient that is not
        /// finite skips its step. "auto" is bf16 on GPUs that have units for it (Ampere and later), and
        /// fp32 elsewhere
        #[option(required)]
        pub dtype: Option<DtypeChoice>,
        /// the format of the weights that the optimizer updates: "bf16" updates those of a bf16 model
        /// themselves, without float32 copies, and rounds them stochastically
        #[option(default = Dtype::Fp32)]
        pub master_weights: Dtype,
        /// the format in which gradients are summed
        #[option(default = Dtype::Fp32)]
        pub grad_accum_dtype: Dtype,
        /// the format in which gradients travel between ranks
        #[option(default = Dtype::Fp32)]
        pub communication_data_type: Dtype,
        /// fp16 alone: a static scale of the loss; 0 is a dynamic one, for which the other options are
        #[option(default = 0.0, range = 0.0.., must = is_finite => "finite")]
        pub loss_scale: f64,
    }
}

const TABLES: &[&[Row]] = &[PrecisionOptions::ROWS, DynamicLossScale::ROWS];

/// A word, or a map.
impl OptionType for PrecisionConfig {
    fn take(o: &mut Options<'_>, key: &'static str) -> Given<Self> {
        if o.is_map(key) {
            return o.map(key, Self::read).map_or(Given::Faulty, Given::Value);
        }
        DtypeChoice::take(o, key).map(Self::of)
    }

    fn kind() -> Kind {
        Kind::Or(Box::new(<DtypeChoice as OptionType>::kind()), Box::new(Kind::Map(TABLES)))
    }

    fn shown(&self) -> Option<String> {
        OptionType::shown(&self.dtype)
    }
}

impl PrecisionConfig {
    fn of(choice: DtypeChoice) -> Self {
        match choice {
            DtypeChoice::Auto => Self::auto(),
            DtypeChoice::Given(dtype) => Self::new(dtype),
        }
    }

    /// Reads the map. Settings that only fp16 has are refused with other formats, and those of a dynamic
    /// scale beside a static one.
    fn read(o: &mut Options<'_>) -> Self {
        let given = PrecisionOptions::read(o);
        let dynamic = DynamicLossScale::read(o);
        let Some(choice) = given.dtype else { return Self::new(Dtype::Fp32) };
        let precision = Self {
            master_weights: given.master_weights,
            grad_accum_dtype: given.grad_accum_dtype,
            communication_data_type: given.communication_data_type,
            ..Self::of(choice)
        };
        o.check(precision.check());
        let dynamic_options = DynamicLossScale::ROWS.iter().map(|row| row.name);
        if precision.dtype != Dtype::Fp16 {
            let dtype = precision.written();
            let why = format!("goes with fp16: {dtype} has the range of fp32 and no loss scale");
            o.refuse(std::iter::once("loss_scale").chain(dynamic_options), &why);
            return precision;
        }
        let loss_scale = given.loss_scale;
        if loss_scale > 0.0 {
            let why = format!("would not be used: loss_scale {loss_scale} is a static scale");
            o.refuse(dynamic_options, &why);
            return Self { loss_scale: LossScale::Static(loss_scale), ..precision };
        }
        o.check(dynamic.check());
        Self { loss_scale: LossScale::Dynamic(dynamic), ..precision }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::options;

    fn precision(json: serde_json::Value) -> Result<PrecisionConfig> {
        let map = [("precision".to_owned(), json.into())].into();
        let read = |o: &mut Options<'_>| o.get("precision").required();
        options::read("init_engine", &map, read)
    }

    fn messages(json: serde_json::Value) -> Vec<String> {
        let e = precision(json).unwrap_err();
        let all = std::iter::once(&e).chain(e.others());
        all.map(Error::message).map(ToOwned::to_owned).collect()
    }

    #[test]
    fn a_word_is_enough() {
        assert_eq!(precision(json!("bf16")).unwrap(), PrecisionConfig::new(Dtype::Bf16));
        let LossScale::Dynamic(scale) = precision(json!("fp16")).unwrap().loss_scale else {
            panic!("fp16 has a dynamic scale")
        };
        assert_eq!(scale.initial_scale(), 65536.0);
    }

    #[test]
    fn auto_is_bf16_where_a_device_has_it() {
        for auto in [json!("auto"), json!({ "dtype": "auto" })] {
            let precision = precision(auto).unwrap();
            assert_eq!(precision.on(true).dtype, Dtype::Bf16);
            assert_eq!(precision.on(true).on(false).dtype, Dtype::Fp32);
        }
        assert_eq!(precision(json!("fp16")).unwrap().on(true).dtype, Dtype::Fp16);
        assert_eq!(
            messages(json!({ "dtype": "auto", "grad_accum_dtype": "bf16", "loss_scale": 8 })),
            [
                "`precision.grad_accum_dtype` must be \"fp32\" with auto, found \"bf16\"",
                "`precision.loss_scale` goes with fp16: auto has the range of fp32 and no loss scale"
            ]
        );
    }

    #[test]
    fn a_map_has_deepspeeds_settings() {
        let found = precision(
            json!({ "dtype": "fp16", "loss_scale": 0, "initial_scale_power": 32, "loss_scale_window": 8,
                  "hysteresis": 3, "min_loss_scale": 0.5, "grad_accum_dtype": "fp16" }),
        )
        .unwrap();
        let scale = DynamicLossScale {
            initial_scale_power: 32,
            loss_scale_window: 8,
            hysteresis: 3,
            consecutive_hysteresis: false,
            min_loss_scale: 0.5,
        };
        assert_eq!(found.loss_scale, LossScale::Dynamic(scale));
        assert_eq!(found.grad_accum_dtype, Dtype::Fp16);
        let fixed = precision(json!({ "dtype": "fp16", "loss_scale": 128 })).unwrap();
        assert_eq!(fixed.loss_scale, LossScale::Static(128.0));
    }

    #[test]
    fn a_setting_that_would_not_be_used_is_refused() {
        assert_eq!(
            messages(json!({ "dtype": "bf16", "loss_scale": 128, "grad_accum_dtype": "fp16" })),
            [
                "`precision.grad_accum_dtype` must be \"fp32\" or \"bf16\" with bf16, found \"fp16\"",
                "`precision.loss_scale` goes with fp16: bf16 has the range of fp32 and no loss scale"
            ]
        );
        assert_eq!(
            messages(json!({ "dtype": "fp16", "loss_scale": 128, "hysteresis": 2 })),
            ["`precision.hysteresis` would not be used: loss_scale 128 is a static scale"]
        );
        assert_eq!(
            messages(json!({ "loss_scale": 2 })),
            ["`precision.dtype` is required and missing"]
        );
        assert_eq!(
            messages(json!({ "dtype": "fp16", "initial_scale_power": 2, "min_loss_scale": 8 })),
            ["the scale would start at 2^2 = 4, below `min_loss_scale` 8"]
        );
    }

    #[test]
    fn gradients_add_up_in_float32_or_in_the_models_format() {
        let precision = |dtype, grad_accum_dtype| PrecisionConfig {
            grad_accum_dtype,
            ..PrecisionConfig::new(dtype)
        };
        precision(Dtype::Bf16, Dtype::Bf16).check().unwrap();
        precision(Dtype::Fp16, Dtype::Fp32).check().unwrap();
        let e = precision(Dtype::Bf16, Dtype::Fp16).check().unwrap_err();
        assert_eq!(
            e.message(),
            "`precision.grad_accum_dtype` must be \"fp32\" or \"bf16\" with bf16, found \"fp16\""
        );
        assert!(precision(Dtype::Fp32, Dtype::Bf16).check().is_err());
    }

    #[test]
    fn a_scale_cannot_start_below_its_minimum() {
        let low =
            DynamicLossScale { initial_scale_power: 3, min_loss_scale: 16.0, ..Default::default() };
        assert!(low.check().unwrap_err().message().contains("2^3 = 8"));
        DynamicLossScale::default().check().unwrap();
    }
}
