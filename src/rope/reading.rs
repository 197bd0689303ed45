//! A rope object of config.json, read with all that is wrong with it.

use std::f64::consts::TAU;

use serde_json::{Map, Value};

use super::{Longer, Rope, wavelengths};
use crate::foreign::brief;

/// A rope, or everything that is wrong with it as texts without the file's name.
type Reading = Result<Rope, Vec<String>>;

/// The keys that every rope type takes.
const COMMON: &str = "rope_type type rope_theta partial_rotary_factor";
/// The rope types, each with its further keys.
const KINDS: [&str; 6] = [
    "default",
    "linear factor",
    "dynamic factor",
    "llama3 factor low_freq_factor high_freq_factor original_max_position_embeddings",
    "yarn factor original_max_position_embeddings attention_factor beta_fast beta_slow mscale \
     mscale_all_dim truncate finetuned",
    "longrope factor original_max_position_embeddings attention_factor short_factor long_factor",
];
/// The most elements of a head that may turn: far more than any model has.
const MOST_ROTATED: i64 = 1 << 16;

/// The settings of the config beside the rope object.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeContext {
    /// Elements of a head.
    pub head_dim: i64,
    /// The base where the config gives none.
    pub default_theta: f64,
    /// `rope_theta` beside the object.
    pub theta: Option<f64>,
    /// `partial_rotary_factor` beside the object.
    pub partial_rotary_factor: Option<f64>,
    /// `max_position_embeddings`.
    pub max_positions: i64,
    /// `original_max_position_embeddings` beside the object.
    pub original_max_positions: Option<i64>,
}

impl Rope {
    /// Reads the rope object of a config, old or new. Both may be there as long as they agree.
    pub fn read_config(config: &Map<String, Value>, context: &RopeContext) -> Reading {
        let [old, new] = ["rope_scaling", "rope_parameters"].map(|key| {
            let value = config.get(key).filter(|value| !value.is_null());
            value.map(|_| Self::read(key, value, context))
        });
        match (old, new) {
            (Some(Err(a)), Some(Err(b))) => Err([a, b].concat()),
            (Some(Ok(a)), Some(Ok(b))) if a != b => {
                Err(vec!["rope_scaling and rope_parameters differ: remove one of them".to_owned()])
            }
            (_, Some(Err(faults))) => Err(faults),
            (old, new) => old.or(new).unwrap_or_else(|| Self::read("rope_scaling", None, context)),
        }
    }

    /// Reads a `rope_scaling` or `rope_parameters` value; `key` names it in messages. A missing or
    /// null value means the default type.
    pub fn read(key: &str, value: Option<&Value>, context: &RopeContext) -> Reading {
        let empty = Map::new();
        let map = match value {
            None | Some(Value::Null) => &empty,
            Some(Value::Object(map)) => map,
            Some(v) => return Err(vec![format!("{key} must be an object, got {}", brief(v))]),
        };
        let mut reader = RopeReader { key, map, context, kind: "", faults: Vec::new() };
        let rope = reader.rope();
        if reader.faults.is_empty() { Ok(rope) } else { Err(reader.faults) }
    }
}

/// The rule of a number: in words, and as a check.
type Rule = (&'static str, fn(f64) -> bool);
const POSITIVE: Rule = ("a number above 0", |n| n as f32 > 0.0);
const FACTOR: Rule = ("a number of 1 or more", |n| n >= 1.0);
const SCALE: Rule = ("a number of 0 or more", |n| n >= 0.0);
const THETA: Rule = ("a number above 1", |n| n as f32 > 1.0);
const PART: Rule = ("a number above 0 and at most 1", |n| n > 0.0 && n <= 1.0);
const CONTEXT: Rule = ("a whole number of 2 or more", |n| n >= 2.0 && n.fract() == 0.0);
/// In place of a default: the rope type needs the number.
const NEEDED: f64 = f64::NEG_INFINITY;

/// A rope object while it is read.
struct RopeReader<'a> {
    key: &'a str,
    map: &'a Map<String, Value>,
    context: &'a RopeContext,
    kind: &'static str,
    faults: Vec<String>,
}

impl<'a> RopeReader<'a> {
    /// Notes a fault of the object unless `holds`.
    fn check(&mut self, holds: bool, fault: &str) {
        self.faults.extend((!holds).then(|| format!("{}: {fault}", self.key)));
    }

    /// A value that is there and not null.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// A number, or its default; NaN after a fault.
    fn number(&mut self, name: &str, (rule, holds): Rule, default: f64) -> f64 {
        let Some(value) = self.get(name) else {
            self.check(default != NEEDED, &format!("the rope type {} needs {name}", self.kind));
            return if default == NEEDED { f64::NAN } else { default };
        };
        let number = value.as_f64().filter(|&n| (n as f32).is_finite() && holds(n));
        self.check(number.is_some(), &format!("{name} must be {rule}, got {}", brief(value)));
        number.unwrap_or(f64::NAN)
    }

    /// A number that may stand in the object, beside it, or in both.
    fn agreed(&mut self, name: &str, rule: Rule, beside: Option<f64>, default: f64) -> f64 {
        let outer = beside.unwrap_or(default);
        if !(outer as f32).is_finite() || !rule.1(outer) {
            self.faults.push(format!("{name} must be {}, got {outer}", rule.0));
            return f64::NAN;
        }
        let n = self.number(name, rule, outer);
        let agree = beside.is_none_or(|outer| n == outer || n.is_nan());
        self.check(agree, &format!("{name} is {n}, but beside {} it is {outer}", self.key));
        n
    }

    /// The context of the first training: `max_position_embeddings` where nothing else says it.
    fn original(&mut self) -> f64 {
        let beside = self.context.original_max_positions.map(|n| n as f64);
        let default = self.context.max_positions as f64;
        self.agreed("original_max_position_embeddings", CONTEXT, beside, default)
    }

    /// Elements of a head that turn; 0 after a fault.
    fn rotated(&mut self) -> i64 {
        let RopeContext { head_dim, partial_rotary_factor: beside, .. } = *self.context;
        let part = self.agreed("partial_rotary_factor", PART, beside, 1.0);
        let rotated = (head_dim as f64 * part) as i64;
        let can = rotated % 2 == 0 && (2..=MOST_ROTATED).contains(&rotated);
        let what = format!("{rotated} of the {head_dim} elements of a head would turn");
        let rule = format!("{what}: must be an even number from 2 to {MOST_ROTATED}");
        self.check(can || part.is_nan(), &rule);
        if can { rotated } else { 0 }
    }

    /// Reads the rope type and refuses keys that it does not take.
    fn kind(&mut self) {
        let [new, old] = ["rope_type", "type"].map(|name| self.get(name));
        if let Some((new, old)) = new.zip(old) {
            let fault = format!("rope_type is {}, but type is {}", brief(new), brief(old));
            self.check(new == old, &fault);
        }
        let given = new.or(old);
        let name = given.map_or(Some("default"), Value::as_str);
        // The first files of Phi-3 have this name.
        let name = name.map(|name| if name == "su" { "longrope" } else { name });
        let kinds = KINDS.map(|line| line.split_once(' ').unwrap_or((line, "")));
        let Some((kind, keys)) = kinds.into_iter().find(|(kind, _)| Some(*kind) == name) else {
            let given = given.map(brief).unwrap_or_default();
            let known = kinds.map(|(kind, _)| kind).join(", ");
            return self.check(false, &format!("rope type {given} is not supported: use {known}"));
        };
        self.kind = kind;
        let known = format!("{COMMON} {keys}").trim_end().replace(' ', ", ");
        for (key, value) in self.map {
            let takes = value.is_null() || known.split(", ").any(|known| known == key);
            let key = brief(&Value::from(key.as_str()));
            self.check(takes, &format!("unknown key {key}: the rope type {kind} takes {known}"));
        }
    }

    /// Reads everything.
    fn rope(&mut self) -> Rope {
        let RopeContext { default_theta, theta, max_positions: limit, .. } = *self.context;
        let theta = self.agreed("rope_theta", THETA, theta, default_theta);
        let rotated = self.rotated();
        self.check(limit > 0, &format!("max_position_embeddings must be above 0, got {limit}"));
        self.kind();
        let lengths: Vec<f32> = wavelengths(theta as f32, rotated).collect();
        let inverse = lengths.iter().map(|length| length.recip()).collect();
        let reach = Some(limit);
        let mut rope = Rope { rotated, inverse, attention: 1.0, longer: None, reach };
        match self.kind {
            "linear" => {
                let factor = self.number("factor", FACTOR, NEEDED);
                rope.inverse.iter_mut().for_each(|f| *f /= factor as f32);
                rope.reach = Some((limit as f64 * factor) as i64);
            }
            "dynamic" => {
                self.check(rotated != 2, "the rope type dynamic needs 4 elements that turn");
                let factor = self.number("factor", FACTOR, NEEDED);
                rope.longer = Some(Longer::Dynamic { limit, theta: theta as f32, factor });
                rope.reach = None;
            }
            "llama3" => self.llama3(&mut rope.inverse),
            "yarn" => self.yarn(theta, &lengths, &mut rope),
            "longrope" => self.longrope(&lengths, &mut rope),
            _ => {}
        }
        rope
    }

    /// Llama 3: long wavelengths are divided, short ones stay, and those between are smoothed.
    fn llama3(&mut self, inverse: &mut [f32]) {
        let original = self.original();
        let factor = self.number("factor", FACTOR, NEEDED) as f32;
        let low = self.number("low_freq_factor", POSITIVE, NEEDED);
        let high = self.number("high_freq_factor", POSITIVE, NEEDED);
        let fault = format!("high_freq_factor {high} must be above low_freq_factor {low}");
        self.check(high > low || (high - low).is_nan(), &fault);
        for f in inverse {
            let length = f.recip() * TAU as f32;
            if length > (original / low) as f32 {
                *f /= factor;
            } else if length >= (original / high) as f32 {
                let smooth = (length.recip() * original as f32 - low as f32) / (high - low) as f32;
                *f = (1.0 - smooth) * *f / factor + smooth * *f;
            }
        }
    }

    /// YaRN: a ramp over the pairs leads from frequencies that stay to divided ones.
    fn yarn(&mut self, theta: f64, lengths: &[f32], rope: &mut Rope) {
        let original = self.original();
        // A null factor is no missing one: it asks for the ratio of the two contexts.
        let ratio = self.context.max_positions as f64 / original;
        let null = self.map.get("factor").is_some_and(Value::is_null);
        let factor = self.number("factor", FACTOR, if null { ratio } else { NEEDED });
        rope.reach = rope.reach.map(|limit| limit.max((original * factor) as i64));
        let fast = self.number("beta_fast", POSITIVE, 32.0);
        let slow = self.number("beta_slow", POSITIVE, 1.0);
        let fault = format!("beta_fast {fast} must not be below beta_slow {slow}");
        self.check(fast >= slow || (fast - slow).is_nan(), &fault);
        let truncate = self.map.get("truncate").map_or(Some(true), Value::as_bool);
        self.check(truncate.is_some(), "truncate must be true or false");
        let scale = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
        let [a, b] = ["mscale", "mscale_all_dim"].map(|name| self.number(name, SCALE, 0.0));
        let inferred = if a > 0.0 && b > 0.0 { scale(a) / scale(b) } else { scale(1.0) };
        rope.attention = self.number("attention_factor", POSITIVE, inferred);
        let dim = rope.rotated as f64;
        let pair = |turns: f64| dim * (original / (turns * TAU)).ln() / (2.0 * theta.ln());
        let (low, high) = (pair(fast), pair(slow));
        let whole = truncate != Some(false);
        let (low, high) = if whole { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        // The ramp must not be without length: transformers adds as much.
        let span = if low == high { high + 0.001 - low } else { high - low };
        for (i, (f, length)) in rope.inverse.iter_mut().zip(lengths).enumerate() {
            let kept = 1.0 - ((i as f32 - low as f32) / span as f32).clamp(0.0, 1.0);
            *f = (factor as f32 * length).recip() * (1.0 - kept) + *f * kept;
        }
    }

    /// LongRoPE: each frequency has a divisor, another one in a pass beyond the original context.
    fn longrope(&mut self, lengths: &[f32], rope: &mut Rope) {
        let original = self.original();
        let ratio = self.context.max_positions as f64 / original;
        let factor = self.number("factor", FACTOR, ratio);
        let inferred = if factor > 1.0 { (1.0 + factor.ln() / original.ln()).sqrt() } else { 1.0 };
        rope.attention = self.number("attention_factor", POSITIVE, inferred);
        rope.inverse = self.divided("short_factor", lengths);
        let inverse = self.divided("long_factor", lengths);
        rope.longer = Some(Longer::Fixed { limit: original as i64, inverse });
    }

    /// The inverse frequencies that a list of divisors gives.
    fn divided(&mut self, name: &str, lengths: &[f32]) -> Vec<f32> {
        let value = self.get(name);
        let list = value.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let number = |v: &Value| v.as_f64().map(|n| n as f32).filter(|n| n.is_finite() && *n > 0.0);
        let divisors: Vec<f32> = list.iter().filter_map(number).collect();
        let (pairs, got) = (lengths.len(), value.map_or("nothing".to_owned(), brief));
        let holds = divisors.len() == list.len() && (pairs == 0 || list.len() == pairs);
        let fault = format!("{name} must be a list of {pairs} numbers above 0, got {got}");
        self.check(holds, &fault);
        divisors.iter().zip(lengths).map(|(by, length)| (by * length).recip()).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub(in crate::rope) fn context(head_dim: i64, max_positions: i64) -> RopeContext {
        RopeContext {
            head_dim,
            default_theta: 10_000.0,
            theta: None,
            partial_rotary_factor: None,
            max_positions,
            original_max_positions: None,
        }
    }

    fn faults(value: &Value) -> Vec<String> {
        Rope::read("rope_scaling", Some(value), &context(16, 128)).unwrap_err()
    }

    /// Each value has the one fault beside it.
    fn each_is_a_fault(cases: &[(Value, &str)]) {
        for (value, want) in cases {
            assert_eq!(faults(value), [*want], "{value}");
        }
    }

    #[test]
    fn faults_of_types_and_keys_are_named() {
        each_is_a_fault(&[
            (json!(3), "rope_scaling must be an object, got 3"),
            (
                json!({"rope_type": "proportional", "rope_theta": 1e4}),
                "rope_scaling: rope type \"proportional\" is not supported: use default, linear, \
                 dynamic, llama3, yarn, longrope",
            ),
            (
                json!({"rope_type": 1}),
                "rope_scaling: rope type 1 is not supported: use default, linear, dynamic, \
                 llama3, yarn, longrope",
            ),
            (json!({"type": "linear"}), "rope_scaling: the rope type linear needs factor"),
            (
                json!({"type": "linear", "factor": 0.5}),
                "rope_scaling: factor must be a number of 1 or more, got 0.5",
            ),
            (
                json!({"type": "linear", "factor": "2"}),
                "rope_scaling: factor must be a number of 1 or more, got \"2\"",
            ),
            (
                json!({"type": "linear", "rope_type": "dynamic", "factor": 2}),
                "rope_scaling: rope_type is \"dynamic\", but type is \"linear\"",
            ),
            (
                json!({"type": "linear", "factor": 2, "facto": 2}),
                "rope_scaling: unknown key \"facto\": the rope type linear takes rope_type, type, \
                 rope_theta, partial_rotary_factor, factor",
            ),
        ]);
    }

    #[test]
    fn faults_of_numbers_are_named() {
        each_is_a_fault(&[
            (json!({"type": "yarn"}), "rope_scaling: the rope type yarn needs factor"),
            (
                json!({"type": "yarn", "factor": 2, "truncate": null}),
                "rope_scaling: truncate must be true or false",
            ),
            (
                json!({"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2}),
                "rope_scaling: beta_fast 1 must not be below beta_slow 2",
            ),
            (
                json!({"type": "yarn", "factor": 2, "original_max_position_embeddings": 1.5}),
                "rope_scaling: original_max_position_embeddings must be a whole number of 2 or \
                 more, got 1.5",
            ),
            (
                json!({
                    "type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
                }),
                "rope_scaling: high_freq_factor 4 must be above low_freq_factor 4",
            ),
            (json!({"rope_theta": 1}), "rope_scaling: rope_theta must be a number above 1, got 1"),
            (
                json!({"partial_rotary_factor": 0.2}),
                "rope_scaling: 3 of the 16 elements of a head would turn: must be an even number \
                 from 2 to 65536",
            ),
            (
                json!({"type": "dynamic", "factor": 2, "partial_rotary_factor": 0.125}),
                "rope_scaling: the rope type dynamic needs 4 elements that turn",
            ),
        ]);
    }

    #[test]
    fn all_faults_are_collected() {
        let value = json!({
            "type": "longrope", "short_factor": [1, 2], "attention_factor": -1, "factor": [],
            "rope_theta": true, "x": 1,
        });
        let got = faults(&value);
        let starts = [
            "rope_scaling: rope_theta must be a number above 1, got true",
            "rope_scaling: unknown key \"x\"",
            "rope_scaling: factor must be a number of 1 or more, got []",
            "rope_scaling: attention_factor must be a number above 0, got -1",
            "rope_scaling: short_factor must be a list of 8 numbers above 0, got [1,2]",
            "rope_scaling: long_factor must be a list of 8 numbers above 0, got nothing",
        ];
        assert_eq!(got.len(), starts.len(), "{got:#?}");
        for (got, start) in got.iter().zip(starts) {
            assert!(got.starts_with(start), "{got}");
        }
        assert_eq!(faults(&json!({"type": "llama3"})).len(), 3);
    }

    #[test]
    fn keys_that_disagree_are_faults() {
        let beside = RopeContext {
            theta: Some(5e5),
            partial_rotary_factor: Some(0.5),
            original_max_positions: Some(64),
            ..context(16, 128)
        };
        let value = json!({
            "rope_type": "yarn", "factor": 2, "rope_theta": 1e4, "partial_rotary_factor": 1,
            "original_max_position_embeddings": 32,
        });
        assert_eq!(
            Rope::read("rope_parameters", Some(&value), &beside).unwrap_err(),
            [
                "rope_parameters: rope_theta is 10000, but beside rope_parameters it is 500000",
                "rope_parameters: partial_rotary_factor is 1, but beside rope_parameters it is 0.5",
                "rope_parameters: original_max_position_embeddings is 32, but beside \
                 rope_parameters it is 64",
            ]
        );
        let wrong = RopeContext { theta: Some(0.0), head_dim: i64::MAX, ..context(16, 128) };
        let got = Rope::read("rope_scaling", None, &wrong).unwrap_err();
        assert_eq!(got[0], "rope_theta must be a number above 1, got 0");
        assert_eq!(got.len(), 2, "{got:#?}");

        let read =
            |config: Value| Rope::read_config(config.as_object().unwrap(), &context(16, 128));
        let linear = json!({"type": "linear", "factor": 2});
        let same = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000});
        assert!(read(json!({"rope_scaling": linear, "rope_parameters": same})).is_ok());
        let other = json!({"rope_theta": 1e4});
        assert_eq!(
            read(json!({"rope_scaling": linear, "rope_parameters": other})).unwrap_err(),
            ["rope_scaling and rope_parameters differ: remove one of them"]
        );
        let both = read(json!({"rope_scaling": 1, "rope_parameters": 2})).unwrap_err();
        assert_eq!(both.len(), 2);
        assert!(read(json!({"rope_scaling": 1, "rope_parameters": same})).is_err());
        assert!(read(json!({"rope_scaling": linear, "rope_parameters": 2})).is_err());
    }
}
