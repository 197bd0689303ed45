//! `fp16`, `bf16` and `data_types`: the number formats, which are one option of dsr.

use serde_json::json;

use super::{
    draft::{Draft, Given},
    found::Found,
    key::{Key, Kind, NO, NOT_NEGATIVE, alias, block, goes_with, makes, no_meaning, only},
};
use crate::error::Code;

pub(super) const KEYS: &[Key] = &[
    block("fp16", FP16),
    block("bf16", BF16),
    alias("bfloat16", "bf16"),
    block("data_types", DATA_TYPES),
    block("torch_autocast", TORCH_AUTOCAST),
];

const FP16: &[Key] = &[
    makes("enabled", Kind::Bool, "precision.dtype"),
    no_meaning("auto_cast", Kind::Bool, "the inputs of a model are token ids"),
    makes("loss_scale", NOT_NEGATIVE, "precision.loss_scale"),
    makes("initial_scale_power", Kind::Between(0, 100), "precision.initial_scale_power"),
    makes("loss_scale_window", Kind::Whole(1), "precision.loss_scale_window"),
    makes("hysteresis", Kind::Whole(1), "precision.hysteresis"),
    makes("consecutive_hysteresis", Kind::Bool, "precision.consecutive_hysteresis"),
    makes("min_loss_scale", Kind::Whole(1), "precision.min_loss_scale"),
    only(
        "fp16_master_weights_and_grads",
        Kind::Bool,
        NO,
        "give dsr's precision master_weights: \"bf16\" in the recipe, which rounds stochastically",
    ),
];

const BF16: &[Key] = &[
    makes("enabled", Kind::Bool, "precision.dtype"),
    no_meaning("immediate_grad_update", Kind::Bool, "gradients are always added up at once"),
    no_meaning(
        "check_grad_overflow",
        Kind::Bool,
        "a step whose gradient is not finite is never applied",
    ),
    only(
        "bf16_master_weights_and_grads",
        Kind::Bool,
        NO,
        "give dsr's precision master_weights: \"bf16\" in the recipe, which rounds stochastically",
    ),
    only(
        "bf16_optimizer_states",
        Kind::Bool,
        NO,
        "in DeepSpeed it needs bf16 master weights; give dsr's optimizer state_dtype: \"bf16\" in the recipe",
    ),
];

/// PyTorch's names of the formats, which `data_types` takes too.
const DTYPES: &[&str] = &[
    "fp32",
    "fp16",
    "bf16",
    "float32",
    "float16",
    "bfloat16",
    "float",
    "half",
    "torch.float32",
    "torch.float16",
    "torch.bfloat16",
];

const DATA_TYPES: &[Key] = &[
    makes("grad_accum_dtype", Kind::OrNull(&Kind::Word(DTYPES)), "precision.grad_accum_dtype"),
    makes("param_dtype", Kind::OrNull(&Kind::Word(DTYPES)), "precision.dtype"),
    no_meaning(
        "buffer_dtype",
        Kind::OrNull(&Kind::Word(DTYPES)),
        "the models have no buffers of numbers",
    ),
    no_meaning(
        "keep_in_fp32_modules",
        Kind::Either(&Kind::Text, &Kind::Texts),
        "the models have no buffers of numbers",
    ),
];

const TORCH_AUTOCAST: &[Key] = &[
    only(
        "enabled",
        Kind::Bool,
        NO,
        "autocast is not supported; write bf16 or fp16: { \"enabled\": true }",
    ),
    goes_with("dtype", Kind::OrNull(&Kind::Word(DTYPES)), "enabled"),
    goes_with("lower_precision_safe_modules", Kind::OrNull(&Kind::Texts), "enabled"),
];

/// The settings of fp16 that only a dynamic scale has.
const DYNAMIC: [&str; 5] = [
    "initial_scale_power",
    "loss_scale_window",
    "hysteresis",
    "consecutive_hysteresis",
    "min_loss_scale",
];

/// Brings the blocks together as `precision`. Whether an `"auto"` format is on is for the recipe to
/// say, and the settings of fp16 go with it.
pub(super) fn translate(found: &Found, given: &Given, draft: &mut Draft) {
    let dtype = dtype(found, given, draft);
    if dtype == Some("fp16") {
        loss_scale(found, draft);
        defects(found, draft);
    }
    let open = ["fp16.enabled", "bf16.enabled"].iter().any(|key| found.is_auto(key));
    sums(found, draft, dtype, open && dtype.is_none());
    param_dtype(found, draft, dtype, open);
}

/// The 16-bit format that is on, if one is: by the file, or by the recipe where the file says
/// nothing else.
fn dtype(found: &Found, given: &Given, draft: &mut Draft) -> Option<&'static str> {
    let on = |key: &str| found.flag(key) == Some(true);
    match (on("fp16.enabled"), on("bf16.enabled")) {
        (true, true) => {
            draft.fault(found.at("bf16.enabled"), "fp16 and bf16 cannot both be enabled");
            None
        }
        (true, false) => {
            draft.set(found, "fp16.enabled", "precision.dtype", json!("fp16"));
            Some("fp16")
        }
        (false, true) => {
            draft.set(found, "bf16.enabled", "precision.dtype", json!("bf16"));
            Some("bf16")
        }
        (false, false) => wanted_dtype(found, given, draft),
    }
}

/// The 16-bit format that the recipe wants and the file does not rule out.
fn wanted_dtype(found: &Found, given: &Given, draft: &mut Draft) -> Option<&'static str> {
    let wanted = given.text("precision.dtype").unwrap_or_default();
    for name in ["fp16", "bf16"] {
        let key = format!("{name}.enabled");
        if !wanted.eq_ignore_ascii_case(name) {
            draft.leave_open(found, &key, "precision.dtype");
        } else if found.flag(&key) == Some(false) {
            draft.contradiction(found, &key, "precision.dtype", &json!(name));
        } else {
            return Some(name);
        }
    }
    None
}

fn loss_scale(found: &Found, draft: &mut Draft) {
    draft.copy(found, "fp16.loss_scale", "precision.loss_scale");
    let fixed = found.number("fp16.loss_scale").filter(|scale| *scale > 0.0);
    for name in DYNAMIC {
        let key = format!("fp16.{name}");
        match fixed {
            None => draft.copy(found, &key, &format!("precision.{name}")),
            Some(scale) if found.mentions(&key) => draft.note(
                found.at(&key),
                format!("`{key}` is not used: loss_scale {scale} is a static scale"),
            ),
            Some(_) => {}
        }
    }
}

/// Says where DeepSpeed 0.19.8 does not do what these settings promise.
fn defects(found: &Found, draft: &mut Draft) {
    let at = found.at("fp16.enabled");
    let stage = found.number("zero_optimization.stage").unwrap_or(0.0);
    if stage == 0.0 && found.flag("zero_optimization") != Some(true) {
        draft.note(
            at,
            "at stage 0 DeepSpeed 0.19.8 divides gradients by a loss scale that it never multiplied the loss with, and knows no hysteresis; here both are as at the other stages",
        );
    } else if found.number("fp16.loss_scale").unwrap_or(0.0) == 0.0 {
        draft.note(
            at,
            "when its loss scale grows DeepSpeed 0.19.8 halves the gradients of that step; here they are divided by the scale that they were computed with",
        );
    }
}

/// The formats in which gradients are added up and sent, and that dsr's default differs.
fn sums(found: &Found, draft: &mut Draft, dtype: Option<&str>, open: bool) {
    let mut is_said = false;
    for (key, option) in [
        ("data_types.grad_accum_dtype", "precision.grad_accum_dtype"),
        ("communication_data_type", "precision.communication_data_type"),
    ] {
        is_said |= found.mentions(key);
        draft.leave_open(found, key, option);
        let Some(name) = found.text(key).map(short) else { continue };
        // fp32 is what dsr does without a word.
        if name == "fp32" && dtype.is_none() {
            continue;
        }
        draft.set(found, key, option, json!(name));
        if dtype.is_none() && !open {
            draft.imply("precision.dtype", json!("fp32"));
        }
    }
    if let Some(dtype) = dtype
        && !is_said
    {
        draft.note(
            found.at(&format!("{dtype}.enabled")),
            format!(
                "gradients are added up and sent in fp32 here, in {dtype} in DeepSpeed; data_types.grad_accum_dtype and communication_data_type say otherwise"
            ),
        );
    }
}

/// DeepSpeed only checks `param_dtype` against the format that is on.
fn param_dtype(found: &Found, draft: &mut Draft, dtype: Option<&str>, open: bool) {
    let Some(name) = found.text("data_types.param_dtype").map(short) else { return };
    let expected = dtype.unwrap_or("fp32");
    if name == expected || (open && dtype.is_none()) {
        return;
    }
    let at = found.at("data_types.param_dtype");
    let message = format!("`data_types.param_dtype` is \"{name}\", and the model is in {expected}");
    let hint = match name {
        "fp32" => "leave it out, or switch fp16 and bf16 off".to_owned(),
        _ => format!("leave it out, or write {name}: {{ \"enabled\": true }}"),
    };
    draft.fault_with(at, Code::BadValue, message, Some(hint));
}

/// dsr's name of a format.
fn short(name: &str) -> &'static str {
    match name.to_ascii_lowercase().trim_start_matches("torch.") {
        "fp16" | "float16" | "half" => "fp16",
        "bf16" | "bfloat16" => "bf16",
        _ => "fp32",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::deepspeed::tests::{faults, notes, options};

    #[test]
    fn fp16_brings_its_loss_scale() {
        let static_scale = "{ \"fp16\": { \"enabled\": true, \"loss_scale\": 128,\n\"hysteresis\": 3 },\n\
                            \"zero_optimization\": true }";
        let expected = json!({ "dtype": "fp16", "loss_scale": 128 });
        assert_eq!(options(static_scale)["precision"], expected);
        assert_eq!(options(static_scale)["zero"], json!({ "stage": 1 }));
        assert_eq!(
            notes(static_scale)[1..],
            ["2 `fp16.hysteresis` is not used: loss_scale 128 is a static scale"]
        );
        assert_eq!(options("{ \"fp16\": { \"enabled\": false, \"hysteresis\": 3 } }"), json!({}));
        assert_eq!(
            faults("{ \"fp16\": { \"enabled\": true },\n\"bf16\": { \"enabled\": true } }"),
            ["2:22 fp16 and bf16 cannot both be enabled"]
        );
    }

    #[test]
    fn deepspeeds_own_defects_are_told() {
        let at_0 = notes("{ \"fp16\": { \"enabled\": true } }");
        assert!(at_0.iter().any(|note| note.contains("at stage 0 DeepSpeed")), "{at_0:?}");
        let at_2 = r#"{ "fp16": { "enabled": true }, "zero_optimization": { "stage": 2 } }"#;
        let at_2 = notes(at_2);
        assert!(at_2.iter().any(|note| note.contains("halves the gradients")), "{at_2:?}");
    }

    #[test]
    fn gradients_are_summed_in_what_the_file_says() {
        let text = r#"{ "bfloat16": { "enabled": true }, "communication_data_type": "FP32",
                        "data_types": { "grad_accum_dtype": "torch.bfloat16", "param_dtype": "bf16" } }"#;
        let expected = json!({
            "dtype": "bf16",
            "communication_data_type": "fp32",
            "grad_accum_dtype": "bf16",
        });
        assert_eq!(options(text), json!({ "precision": expected }));
        let silent = notes("{ \"bf16\": {\n\"enabled\": true } }");
        assert_eq!(silent.len(), 1);
        assert!(silent[0].starts_with("2 gradients are added up and sent in fp32 here, in bf16"));
        assert_eq!(
            options("{ \"communication_data_type\": \"bf16\" }")["precision"],
            json!({ "dtype": "fp32", "communication_data_type": "bf16" })
        );
        assert_eq!(options("{ \"communication_data_type\": \"fp32\" }"), json!({}));
        assert_eq!(options("{ \"communication_data_type\": null }"), json!({}));
        assert_eq!(
            faults("{ \"data_types\": { \"param_dtype\": \"half\" } }"),
            ["1:34 `data_types.param_dtype` is \"fp16\", and the model is in fp32"]
        );
    }

    #[test]
    fn both_names_of_a_block_are_too_many() {
        assert_eq!(
            faults("{ \"bf16\": {}, \"bfloat16\": {} }"),
            ["1:15 `bfloat16` is another name of `bf16`: give one"]
        );
        let text = r#"{ "zero_optimization": { "cpu_offload": true, "offload_optimizer": {} } }"#;
        assert_eq!(faults(text).len(), 1);
        let old = r#"{ "zero_optimization": { "stage": 2, "cpu_offload": true,
                       "prefetch_bucket_size": 7 } }"#;
        assert_eq!(
            options(old)["zero"],
            json!({ "stage": 2, "stage3_prefetch_bucket_size": 7, "offload_optimizer": "cpu" })
        );
    }
}
