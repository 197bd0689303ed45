//! Rotary positions: the inverse frequencies of `rope_scaling` and `rope_parameters`.
//!
//! A rotary position (RoFormer) turns pairs of a head's elements by position times an inverse
//! frequency. Long contexts divide the frequencies: all (linear), those of long wavelength (Llama
//! 3), those along a ramp (YaRN), each by its own number (LongRoPE), or more as the pass grows
//! (dynamic). The arithmetic is that of transformers 5.23, in 32 bits where torch's is.

mod reading;

pub use self::reading::RopeContext;

/// How rotary positions turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Elements of a head that turn.
    rotated: i64,
    /// The inverse frequencies of a short pass.
    inverse: Vec<f32>,
    /// The factor of cosine and sine.
    attention: f64,
    /// The change in a longer pass.
    longer: Option<Longer>,
    /// The positions that the frequencies are for; `None` has no end.
    reach: Option<i64>,
}

/// The frequencies of a pass of more than `limit` tokens.
#[derive(Debug, Clone, PartialEq)]
enum Longer {
    /// The base grows with the pass.
    Dynamic { limit: i64, theta: f32, factor: f64 },
    /// The frequencies are others.
    Fixed { limit: i64, inverse: Vec<f32> },
}

impl Rope {
    /// Elements of a head that turn (even).
    pub fn rotated(&self) -> i64 {
        self.rotated
    }

    /// The positions that the frequencies are for; `None` has no end.
    pub fn reach(&self) -> Option<i64> {
        self.reach
    }

    /// The tokens from which on a pass has other frequencies than a shorter one.
    pub fn switches_behind(&self) -> Option<i64> {
        match self.longer {
            Some(Longer::Fixed { limit, .. }) => Some(limit),
            _ => None,
        }
    }

    /// Whether frequencies depend on the number of tokens.
    pub fn depends_on_length(&self) -> bool {
        self.longer.is_some()
    }

    /// Inverse frequencies [rotated / 2] for a pass of `tokens` positions (the largest position
    /// plus one), and the factor of cosine and sine.
    pub fn frequencies(&self, tokens: i64) -> (Vec<f32>, f64) {
        let inverse = match &self.longer {
            Some(Longer::Dynamic { limit, theta, factor }) if tokens > *limit => {
                let ratio = *factor as f32 * tokens as f32 / *limit as f32;
                let dim = self.rotated as f64;
                let growth = power(ratio - (factor - 1.0) as f32, dim / (dim - 2.0));
                wavelengths(theta * growth, self.rotated).map(f32::recip).collect()
            }
            Some(Longer::Fixed { limit, inverse }) if tokens > *limit => inverse.clone(),
            _ => self.inverse.clone(),
        };
        (inverse, self.attention)
    }
}

/// A power in 32 bits, rounded once, and so the same on every machine.
fn power(base: f32, exponent: f64) -> f32 {
    f64::from(base).powf(exponent) as f32
}

/// The wavelengths of a base, each divided by two pi.
fn wavelengths(theta: f32, rotated: i64) -> impl Iterator<Item = f32> {
    (0..rotated / 2).map(move |i| power(theta, f64::from((2 * i) as f32 / rotated as f32)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{reading::tests::context, *};

    fn floats(value: &Value) -> Vec<f64> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }

    fn near(got: &[f32], want: &[f64], what: &str) {
        assert_eq!(got.len(), want.len(), "{what}");
        for (got, want) in got.iter().zip(want) {
            assert!((f64::from(*got) - want).abs() <= 1e-6 * want.abs(), "{what}: {got}, {want}");
        }
    }

    #[test]
    fn frequencies_and_angles_are_those_of_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/rope.json");
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 14);
        for case in cases {
            let name = case["name"].as_str().unwrap();
            let config = case["config"].as_object().unwrap();
            let integer = |key: &str| config.get(key).and_then(Value::as_i64);
            let number = |key: &str| config.get(key).and_then(Value::as_f64);
            let heads = integer("num_attention_heads").unwrap();
            let head_dim = integer("head_dim").unwrap_or(integer("hidden_size").unwrap() / heads);
            let context = RopeContext {
                theta: number("rope_theta"),
                partial_rotary_factor: number("partial_rotary_factor"),
                original_max_positions: integer("original_max_position_embeddings"),
                ..context(head_dim, integer("max_position_embeddings").unwrap())
            };
            let rope = Rope::read_config(config, &context).unwrap();

            let (initial, scaling) = rope.frequencies(1);
            near(&initial, &floats(&case["inv_freq"]), name);
            assert!((scaling - case["attention_scaling"].as_f64().unwrap()).abs() < 1e-6, "{name}");
            assert_eq!(rope.rotated(), 2 * initial.len() as i64, "{name}");

            let positions = floats(&case["positions"]);
            let tokens = positions.iter().fold(0.0, |a: f64, b| a.max(*b)) as i64 + 1;
            let (used, scaling) = rope.frequencies(tokens);
            let changed = !case["inv_freq_used"].is_null();
            let key = if changed { "inv_freq_used" } else { "inv_freq" };
            near(&used, &floats(&case[key]), name);
            assert!(!changed || rope.depends_on_length(), "{name}");
            for (i, position) in positions.iter().enumerate() {
                let [cos, sin] = ["cos", "sin"].map(|key| floats(&case[key][i]));
                for (j, (cos, sin)) in cos.iter().zip(&sin).enumerate() {
                    let angle = *position as f32 * used[j % used.len()];
                    let [c, s] = [angle.cos(), angle.sin()].map(|x| x * scaling as f32);
                    assert!((f64::from(c) - cos).abs() < 2e-6, "{name}: {position}, {j}");
                    assert!((f64::from(s) - sin).abs() < 2e-6, "{name}: {position}, {j}");
                }
            }
        }
    }

    /// Values that transformers 5.23.0 gave for a base of 10000: the second to the fourth
    /// frequency of a pass of 151 tokens, and the factor.
    #[test]
    fn further_settings_are_read_as_transformers_reads_them() {
        let short = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7];
        let long = [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0];
        let yarn = json!({"type": "yarn", "factor": 4, "original_max_position_embeddings": 32});
        let longrope = json!({
            "rope_type": "longrope", "short_factor": short, "long_factor": long,
            "original_max_position_embeddings": 32,
        });
        let with = |base: &Value, more: Value| {
            let mut map = base.as_object().unwrap().clone();
            map.extend(more.as_object().unwrap().clone());
            Value::Object(map)
        };
        let usual = [0.197_642_36, 0.025, 0.007_905_694_7];
        let divided = [0.210_818_5, 0.05, 0.010_540_925];
        for (value, frequencies, attention) in [
            (with(&yarn, json!({"mscale": 0.707, "mscale_all_dim": 1})), usual, 0.964_326_915),
            (with(&yarn, json!({"mscale": 0.707, "mscale_all_dim": 0})), usual, 1.138_629_436),
            (with(&yarn, json!({"factor": null, "mscale": null})), usual, 1.138_629_436),
            (
                with(&yarn, json!({"truncate": false})),
                [0.148_490_25, 0.025, 0.007_905_694_7],
                1.138_629_436,
            ),
            (
                json!({"rope_type": "yarn", "factor": 4.0}),
                [0.237_170_82, 0.049_999_997, 0.007_905_694_7],
                1.138_629_436,
            ),
            (
                with(&yarn, json!({"original_max_position_embeddings": 2})),
                [0.079_056_941, 0.025, 0.007_905_694_7],
                1.138_629_436,
            ),
            (
                json!({
                    "rope_type": "llama3", "factor": 8, "low_freq_factor": 1,
                    "high_freq_factor": 4,
                }),
                [0.316_227_76, 0.042_751_178, 0.003_952_847_3],
                1.0,
            ),
            (with(&longrope, json!({"factor": 8})), divided, 1.264_911_064),
            (with(&longrope, json!({"factor": 2, "attention_factor": 1.5})), divided, 1.5),
        ] {
            let rope = Rope::read("rope_scaling", Some(&value), &context(16, 128)).unwrap();
            let (got, scaling) = rope.frequencies(151);
            near(&got[1..4], &frequencies, &value.to_string());
            assert!((scaling - attention).abs() < 1e-6, "{value}: {scaling}");
        }
    }

    #[test]
    fn part_of_a_head_turns() {
        let part = json!({"rope_type": "default", "partial_rotary_factor": 0.4});
        let rope = Rope::read("rope_parameters", Some(&part), &context(80, 128)).unwrap();
        assert_eq!((rope.rotated(), rope.frequencies(9).0.len()), (32, 16));
        let rope = Rope::read("rope_parameters", Some(&part), &context(32, 128)).unwrap();
        assert_eq!(rope.rotated(), 12);
    }

    #[test]
    fn a_missing_value_means_the_default_type() {
        let context = context(16, 128);
        let want = Rope::read("rope_scaling", None, &context).unwrap();
        for value in [json!(null), json!({}), json!({"type": "default"}), json!({"type": null})] {
            assert_eq!(Rope::read("rope_scaling", Some(&value), &context).unwrap(), want);
        }
        assert!(!want.depends_on_length());
    }
}
