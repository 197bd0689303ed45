//! The `precision` option of `init_engine`: a word, or a map with DeepSpeed's settings.

use super::options::Options;
use crate::{
    config::{Dtype, DynamicLossScale, LossScale, PrecisionConfig},
    error::Code,
};

/// The settings that only fp16 has, and those of them that only a dynamic scale has.
const FP16: [&str; 6] = [
    "loss_scale",
    "initial_scale_power",
    "loss_scale_window",
    "hysteresis",
    "consecutive_hysteresis",
    "min_loss_scale",
];
const DYNAMIC: &[&str] = FP16.split_at(1).1;

/// Reads `precision`; fp32 where it is absent.
pub(super) fn read(o: &mut Options<'_>) -> PrecisionConfig {
    if o.is_map("precision") {
        let precision = o.map("precision", details);
        return precision.unwrap_or(PrecisionConfig::new(Dtype::Fp32));
    }
    PrecisionConfig::new(o.choice("precision", Dtype::NAMES).or(Dtype::Fp32))
}

fn details(o: &mut Options<'_>) -> PrecisionConfig {
    let Some(dtype) = o.choice("dtype", Dtype::NAMES).required_or_none() else {
        o.accept_rest();
        return PrecisionConfig::new(Dtype::Fp32);
    };
    let mut precision = PrecisionConfig {
        grad_accum_dtype: o.choice("grad_accum_dtype", Dtype::NAMES).or(Dtype::Fp32),
        communication_data_type: o.choice("communication_data_type", Dtype::NAMES).or(Dtype::Fp32),
        ..PrecisionConfig::new(dtype)
    };
    o.check(precision.check());
    let scale = loss_scale(o);
    if dtype == Dtype::Fp16 {
        precision.loss_scale = scale;
    } else {
        let why =
            format!("goes with fp16: {} has the range of fp32 and no loss scale", dtype.name());
        refuse(o, &FP16, &why);
    }
    precision
}

/// `loss_scale: 0` is a dynamic one, as in DeepSpeed.
fn loss_scale(o: &mut Options<'_>) -> LossScale {
    let default = DynamicLossScale::default();
    let fixed = o.get::<f64>("loss_scale").range(0.0..=f64::MAX).or(0.0);
    let dynamic = DynamicLossScale {
        initial_scale_power: o
            .get("initial_scale_power")
            .range(0..=100)
            .or(default.initial_scale_power),
        loss_scale_window: o.get("loss_scale_window").range(1..).or(default.loss_scale_window),
        hysteresis: o.get("hysteresis").range(1..).or(default.hysteresis),
        consecutive_hysteresis: o.get("consecutive_hysteresis").or(false),
        min_loss_scale: o
            .get("min_loss_scale")
            .check(|scale: &f64| *scale > 0.0 && scale.is_finite(), "above 0 and finite")
            .or(default.min_loss_scale),
    };
    if fixed > 0.0 {
        refuse(o, DYNAMIC, &format!("would not be used: loss_scale {fixed} is a static scale"));
        return LossScale::Static(fixed);
    }
    o.check(dynamic.check());
    LossScale::Dynamic(dynamic)
}

fn refuse(o: &mut Options<'_>, keys: &[&str], why: &str) {
    for key in keys {
        if o.has(key) {
            let message = format!("`{}` {why}", o.path(key));
            o.fault(key, Code::BadValue, message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::{Error, Result},
        script::options,
    };

    fn precision(source: &str) -> Result<PrecisionConfig> {
        let map = rhai::Engine::new().eval(&format!("#{{ precision: {source} }}")).unwrap();
        options::read("init_engine", &map, read)
    }

    fn messages(source: &str) -> Vec<String> {
        let e = precision(source).unwrap_err();
        let all = std::iter::once(&e).chain(e.others());
        all.map(Error::message).map(ToOwned::to_owned).collect()
    }

    #[test]
    fn a_word_is_enough() {
        assert_eq!(precision("\"bf16\"").unwrap(), PrecisionConfig::new(Dtype::Bf16));
        let LossScale::Dynamic(scale) = precision("\"fp16\"").unwrap().loss_scale else {
            panic!("fp16 has a dynamic scale")
        };
        assert_eq!(scale.initial_scale(), 65536.0);
    }

    #[test]
    fn a_map_has_deepspeeds_settings() {
        let found = precision(
            r#"#{ dtype: "fp16", loss_scale: 0, initial_scale_power: 32, loss_scale_window: 8,
                  hysteresis: 3, min_loss_scale: 0.5, grad_accum_dtype: "fp16" }"#,
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
        let fixed = precision(r#"#{ dtype: "fp16", loss_scale: 128 }"#).unwrap();
        assert_eq!(fixed.loss_scale, LossScale::Static(128.0));
    }

    #[test]
    fn a_setting_that_would_not_be_used_is_refused() {
        assert_eq!(
            messages(r#"#{ dtype: "bf16", loss_scale: 128, grad_accum_dtype: "fp16" }"#),
            [
                "`precision.grad_accum_dtype` must be \"fp32\" or \"bf16\" with bf16, found \"fp16\"",
                "`precision.loss_scale` goes with fp16: bf16 has the range of fp32 and no loss scale"
            ]
        );
        assert_eq!(
            messages(r#"#{ dtype: "fp16", loss_scale: 128, hysteresis: 2 }"#),
            ["`precision.hysteresis` would not be used: loss_scale 128 is a static scale"]
        );
        assert_eq!(messages("#{ loss_scale: 2 }"), ["`precision.dtype` is required and missing"]);
        assert_eq!(
            messages(r#"#{ dtype: "fp16", initial_scale_power: 2, min_loss_scale: 8 }"#),
            ["the scale would start at 2^2 = 4, below `min_loss_scale` 8"]
        );
    }
}
