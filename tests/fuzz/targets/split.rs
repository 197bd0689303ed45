//! Split expressions, `train[:1%]+test`.

use dsr::data::parse_split;

const SPLITS: [&str; 3] = ["train", "validation", "test"];

/// Numbers of rows at which rounding and its limits show.
const ROWS: [u64; 6] = [0, 1, 99, 1000, i64::MAX as u64, u64::MAX];

/// Reads the input as a split expression.
pub(crate) fn run(data: &[u8]) {
    let Ok(spec) = std::str::from_utf8(data) else { return };
    let slices = match parse_split(spec, &SPLITS) {
        Ok(slices) => slices,
        Err(error) => return check_place(spec, error.message()),
    };
    let parts: Vec<_> =
        spec.split('+').flat_map(|term| parse_split(term, &SPLITS).expect("a part")).collect();
    assert_eq!(slices, parts, "a sum is its parts");
    for slice in &slices {
        assert!(SPLITS.contains(&slice.split.as_str()));
        for rows in ROWS {
            let counted = std::cell::Cell::new(false);
            let count = || {
                counted.set(true);
                Ok(rows)
            };
            if let Ok((from, to)) = slice.range(count)
                && counted.get()
            {
                let to = to.expect("an end, where rows were counted");
                assert!(from <= rows && to <= rows, "{from}..{to} of {rows}");
            }
        }
    }
}

/// A mistake's place is a character of the text, or behind the last one.
fn check_place(spec: &str, message: &str) {
    let Some(rest) = message.strip_prefix(&format!("split \"{spec}\", character ")) else { return };
    let place: usize = rest.split(':').next().and_then(|n| n.parse().ok()).expect("a number");
    assert!((1..=spec.chars().count() + 1).contains(&place), "{message}");
}
