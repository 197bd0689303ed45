//! `optimizer`: a type and its parameters, under DeepSpeed's names and with its defaults.

use serde_json::json;

use super::{
    draft::{Draft, Given},
    found::Found,
    key::{
        Key, Kind, Literal, NO, NOT_NEGATIVE, Typed, YES, becomes, makes, no_meaning, only,
        refused, typed,
    },
    options::with_options,
};
use crate::config::optimizer::optimizer_tables;

const MUP: &str = "its muP needs base shapes that dsr's models do not have";
const ONE_BIT: &str = "DeepSpeed has removed the 1-bit optimizers";

pub(super) fn key() -> Key {
    let of = |own, name| with_options(own, &optimizer_tables(name), "optimizer");
    let adam = of(ADAM, "Adam");
    let optimizer = Typed {
        types: vec![
            ("AdamW", adam),
            ("Adam", adam),
            ("Lamb", of(LAMB, "Lamb")),
            ("Lion", LION),
            ("SGD", of(SGD, "SGD")),
            ("Adagrad", of(ADAGRAD, "Adagrad")),
            ("Muon", of(MUON, "Muon")),
        ],
        refused: &[
            ("MuAdam", MUP),
            ("MuAdamW", MUP),
            ("MuSGD", MUP),
            ("OneBitAdam", ONE_BIT),
            ("ZeroOneAdam", ONE_BIT),
            ("OneBitLamb", ONE_BIT),
        ],
        others: "the other optimizers of torch.optim are not supported",
        beside: const { &[no_meaning("legacy_fusion", Kind::Bool, WHY_ONE)] },
        becomes: "optimizer.type",
    };
    typed("optimizer", optimizer)
}

const WHY_ONE: &str = "there is one implementation of each optimizer";
const WHY_GRAD: &str = "gradients are always released after a step";
const WHY_PYTORCH: &str = "it chooses an implementation of PyTorch";

const LR: Key = becomes("lr", NOT_NEGATIVE, "optimizer.lr");
const BETAS: Key = becomes("betas", Kind::Numbers(2), "optimizer.betas");
const WEIGHT_DECAY: Key = becomes("weight_decay", NOT_NEGATIVE, "optimizer.weight_decay");
const BIAS_CORRECTION: Key = makes("bias_correction", Kind::Bool, "optimizer.bias_correction");
const AMSGRAD: Key =
    only("amsgrad", Kind::Bool, NO, "AMSGrad is not supported, in DeepSpeed neither");
const MAX_GRAD_NORM: Key =
    refused("max_grad_norm", "write gradient_clipping at the top level, as DeepSpeed demands");
const FP32_OPTIMIZER_STATES: Key = no_meaning(
    "fp32_optimizer_states",
    Kind::Bool,
    "DeepSpeed's CPU optimizers have it; here it is state_dtype, fp32 by default",
);
const SET_GRAD_NONE: Key = no_meaning("set_grad_none", Kind::Bool, WHY_GRAD);
const FOREACH: Key = no_meaning("foreach", Kind::OrNull(&Kind::Bool), WHY_PYTORCH);
const FUSED: Key = no_meaning("fused", Kind::OrNull(&Kind::Bool), WHY_PYTORCH);
const CAPTURABLE: Key = no_meaning("capturable", Kind::Bool, WHY_PYTORCH);
const MAXIMIZE: Key = only("maximize", Kind::Bool, NO, "training minimizes the loss");
const DIFFERENTIABLE: Key =
    only("differentiable", Kind::Bool, NO, "a step cannot be differentiated");

const ADAM: &[Key] = &[
    LR,
    BETAS,
    WEIGHT_DECAY,
    BIAS_CORRECTION,
    makes("adam_w_mode", Kind::Bool, "optimizer.type"),
    makes("torch_adam", Kind::Bool, "optimizer.weight_decay"),
    FP32_OPTIMIZER_STATES,
    AMSGRAD,
    MAX_GRAD_NORM,
    SET_GRAD_NONE,
    FOREACH,
    FUSED,
    CAPTURABLE,
    MAXIMIZE,
    DIFFERENTIABLE,
];

const LAMB: &[Key] = &[LR, BETAS, WEIGHT_DECAY, BIAS_CORRECTION, AMSGRAD, MAX_GRAD_NORM];

const LION: &[Key] =
    &[LR, BETAS, WEIGHT_DECAY, FP32_OPTIMIZER_STATES, MAX_GRAD_NORM, SET_GRAD_NONE];

const SGD: &[Key] = &[LR, WEIGHT_DECAY, MAX_GRAD_NORM, FOREACH, FUSED, MAXIMIZE, DIFFERENTIABLE];

const ADAGRAD: &[Key] = &[
    LR,
    WEIGHT_DECAY,
    only("lr_decay", NOT_NEGATIVE, &[Literal::Number(0.0)], "give a scheduler instead"),
    only(
        "initial_accumulator_value",
        NOT_NEGATIVE,
        &[Literal::Number(0.0)],
        "the sums of squares start at 0",
    ),
    FP32_OPTIMIZER_STATES,
    AMSGRAD,
    MAX_GRAD_NORM,
    FOREACH,
    FUSED,
    MAXIMIZE,
    DIFFERENTIABLE,
];

const MUON: &[Key] = &[
    LR,
    becomes("muon_lr", NOT_NEGATIVE, "optimizer.muon_lr"),
    becomes("adam_lr", NOT_NEGATIVE, "optimizer.adam_lr"),
    BETAS,
    WEIGHT_DECAY,
    only("adam_w_mode", Kind::Bool, YES, "the part that AdamW updates is AdamW's"),
    only("per_head_muon", Kind::Bool, NO, "a matrix is orthogonalized as a whole"),
    no_meaning("torch_adam", Kind::Bool, WHY_ONE),
    FP32_OPTIMIZER_STATES,
    MAX_GRAD_NORM,
];

/// Writes out what DeepSpeed does where the file is silent and dsr would do something else.
pub(super) fn translate(found: &Found, given: &Given, draft: &mut Draft) {
    let param = |name: &str| format!("optimizer.params.{name}");
    if found.flag(&param("bias_correction")) == Some(false) {
        draft.copy(found, &param("bias_correction"), "optimizer.bias_correction");
    }
    let Some(name) = found.text("optimizer.type") else { return };
    if !matches!(name, "Adam" | "AdamW") {
        draft.set(found, "optimizer.type", "optimizer.type", json!(name));
        return;
    }
    // AdamW is AdamW whatever adam_w_mode says.
    let is_adamw = name == "AdamW" || found.flag(&param("adam_w_mode")) != Some(false);
    if is_adamw {
        if name == "Adam" {
            draft.note(
                found.at("optimizer.type"),
                "Adam is AdamW unless adam_w_mode is false, as in DeepSpeed",
            );
        }
        draft.set(found, "optimizer.type", "optimizer.type", json!("AdamW"));
    } else {
        draft.set(found, "optimizer.type", "optimizer.type", json!("Adam"));
        draft.copy(found, &param("adam_w_mode"), "optimizer.adam_w_mode");
    }
    if !found.mentions(&param("weight_decay")) && !given.has("optimizer.weight_decay") && is_adamw {
        // DeepSpeed's own AdamW decays nothing by default, PyTorch's does.
        let is_torch = found.flag(&param("torch_adam")) == Some(true);
        draft.imply("optimizer.weight_decay", json!(if is_torch { 0.01 } else { 0.0 }));
    }
}
