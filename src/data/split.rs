//! Hugging Face's slicing syntax: `train`, `train[:1%]`, `train[100:200]+test[-5%:]`.
//!
//! The grammar and the rounding are those of `datasets.ReadInstruction`: percent boundaries are
//! rounded to the closest row, halves to even (Python's `round`), unless the slice ends in
//! `(pct1_dropremainder)`; boundaries beyond the end are cut to it; negative ones count from the
//! end; one `%` makes both boundaries percent; `all` stands for every split in turn.

use crate::{
    config::suggest,
    error::{Code, Error, Result},
};

/// One term of a split expression: a split and the rows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitSlice {
    /// The name of the split.
    pub split: String,
    from: Option<i64>,
    to: Option<i64>,
    unit: Unit,
    rounding: Rounding,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Rows,
    Percent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rounding {
    Closest,
    Pct1DropRemainder,
}

/// Reads a split expression and checks it against the splits that exist.
pub fn parse_split(spec: &str, splits: &[&str]) -> Result<Vec<SplitSlice>> {
    let mut slices = Vec::new();
    let mut start = 0;
    for term in spec.split('+') {
        let slice = Term { spec, text: term, start }.parse()?;
        if slice.split == "all" && !splits.contains(&"all") {
            slices.extend(
                splits.iter().map(|&s| SplitSlice { split: s.to_owned(), ..slice.clone() }),
            );
        } else if splits.contains(&slice.split.as_str()) {
            slices.push(slice);
        } else {
            return Err(no_split(spec, &slice.split, splits));
        }
        start += term.len() + 1;
    }
    Ok(slices)
}

impl SplitSlice {
    /// All rows of a split.
    pub fn whole(split: &str) -> Self {
        let (unit, rounding) = (Unit::Rows, Rounding::Closest);
        Self { split: split.to_owned(), from: None, to: None, unit, rounding }
    }

    /// The row range `from..to` that this slice means in a split of `num_rows` rows; `to` is `None`
    /// where it is the end. The number is asked for only where the range depends on it.
    pub fn range(&self, num_rows: impl Fn() -> Result<u64>) -> Result<(u64, Option<u64>)> {
        if let (Unit::Rows, 0.., Some(0..) | None) = (self.unit, self.from.unwrap_or(0), self.to) {
            // Nothing here depends on the number of rows; reading simply stops at the end.
            return Ok((self.from.unwrap_or(0) as u64, self.to.map(|to| to as u64)));
        }
        if self.from.is_none() && self.to.is_none() {
            return Ok((0, None));
        }
        let rows = num_rows()?;
        let from = self.boundary(self.from.unwrap_or(0), rows)?;
        let to = self.to.map_or(Ok(rows), |to| self.boundary(to, rows))?;
        Ok((from, Some(to)))
    }

    fn boundary(&self, at: i64, rows: u64) -> Result<u64> {
        let from_end = at < 0;
        let at = match (self.unit, self.rounding) {
            (Unit::Rows, _) => i128::from(at),
            (Unit::Percent, Rounding::Closest) => round_half_even(i128::from(at) * rows as i128),
            (Unit::Percent, Rounding::Pct1DropRemainder) if rows < 100 => bail!(
                Code::Data,
                "split {}: pct1_dropremainder needs 100 rows or more, and there are {rows}",
                self.split
            ),
            (Unit::Percent, Rounding::Pct1DropRemainder) => i128::from(at) * (rows / 100) as i128,
        };
        // A few percent from the end that are no row stay at the end.
        let from_start = if from_end { at + rows as i128 } else { at };
        Ok(from_start.clamp(0, rows as i128) as u64)
    }
}

/// `hundredths / 100`, rounded to the closest integer, halves to even.
fn round_half_even(hundredths: i128) -> i128 {
    let (floor, rest) = (hundredths.div_euclid(100), hundredths.rem_euclid(100));
    match rest {
        0..50 => floor,
        50 => floor + (floor & 1),
        _ => floor + 1,
    }
}

/// One term between plus signs, with its place in the whole for messages.
struct Term<'a> {
    spec: &'a str,
    text: &'a str,
    start: usize,
}

impl Term<'_> {
    fn parse(&self) -> Result<SplitSlice> {
        let text = self.text.trim_end();
        let (text, rounding) = self.rounding(text)?;
        let (name, from, to, unit) = match text.find('[') {
            None => (text, None, None, Unit::Rows),
            Some(open) => {
                let Some(inner) = text[open + 1..].strip_suffix(']') else {
                    return Err(self.error(text.len(), "expected \"]\" at the end of the slice"));
                };
                let (from, to, unit) = self.boundaries(inner, open + 1)?;
                (&text[..open], from, to, unit)
            }
        };
        let indent = name.len() - name.trim_start().len();
        let name = name.trim();
        if name.is_empty() {
            return Err(self.error(0, "expected the name of a split"));
        }
        if let Some(bad) = name.find([']', '(', ')', ':', '%', ' ']) {
            return Err(self.error(indent + bad, "expected the name of a split"));
        }
        Ok(SplitSlice { split: name.to_owned(), from, to, unit, rounding })
    }

    fn rounding<'t>(&self, text: &'t str) -> Result<(&'t str, Rounding)> {
        let Some(open) = text.find('(') else { return Ok((text, Rounding::Closest)) };
        match &text[open..] {
            "(closest)" => Ok((&text[..open], Rounding::Closest)),
            "(pct1_dropremainder)" => Ok((&text[..open], Rounding::Pct1DropRemainder)),
            _ => Err(self.error(open, "expected (closest) or (pct1_dropremainder)")),
        }
    }

    /// `10%:20%` and its kin; `at` is where it starts in the term.
    fn boundaries(&self, inner: &str, at: usize) -> Result<(Option<i64>, Option<i64>, Unit)> {
        let Some(colon) = inner.find(':') else {
            return Err(self.error(at + inner.len(), "expected \":\", as in [100:200] or [:10%]"));
        };
        let (from, from_percent) = self.boundary(&inner[..colon], at)?;
        let (to, to_percent) = self.boundary(&inner[colon + 1..], at + colon + 1)?;
        let unit = if from_percent || to_percent { Unit::Percent } else { Unit::Rows };
        let beyond = |b: Option<i64>| b.is_some_and(|b| b.unsigned_abs() > 100);
        if unit == Unit::Percent && (beyond(from) || beyond(to)) {
            return Err(self.error(at, "percentages go from -100 to 100"));
        }
        Ok((from, to, unit))
    }

    fn boundary(&self, text: &str, at: usize) -> Result<(Option<i64>, bool)> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Ok((None, false));
        }
        let (number, percent) = match trimmed.strip_suffix('%') {
            Some(number) => (number, true),
            None => (trimmed, false),
        };
        // Python's int() takes underscores between digits, and so does the original.
        match number.replace('_', "").parse() {
            Ok(value) if !number.starts_with('+') => Ok((Some(value), percent)),
            _ => Err(self.error(
                at,
                &format!("expected a whole number of rows or a percentage, found \"{trimmed}\""),
            )),
        }
    }

    fn error(&self, at: usize, what: &str) -> Error {
        let place = self.spec[..self.start + at].chars().count() + 1;
        Error::new(Code::Data, format!("split \"{}\", character {place}: {what}", self.spec))
            .hint("a split is written like train, train[:1%], train[100:200] or train+test[-5%:]")
    }
}

fn no_split(spec: &str, name: &str, splits: &[&str]) -> Error {
    let place = if spec == name { String::new() } else { format!(" (in \"{spec}\")") };
    let message = format!("no split \"{name}\"{place}: the splits are {}", splits.join(", "));
    let near = suggest::nearest(name, splits.iter().copied());
    Error::new(Code::Data, message).hint_if(near.map(|near| format!("did you mean \"{near}\"?")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPLITS: [&str; 3] = ["train", "validation", "test"];

    /// The ranges of `spec` where every split has `rows` rows, the open end made explicit.
    fn ranges(spec: &str, rows: u64) -> Vec<(String, u64, u64)> {
        let slices = parse_split(spec, &SPLITS).unwrap();
        let range = |s: SplitSlice| {
            let (from, to) = s.range(|| Ok(rows)).unwrap();
            (s.split, from.min(rows), to.unwrap_or(rows).min(rows))
        };
        slices.into_iter().map(range).collect()
    }

    #[test]
    fn slices_mean_what_hugging_face_says() {
        // (expression, rows of the split, expected range)
        let table = [
            ("train", 1000, (0, 1000)),
            ("train[:]", 1000, (0, 1000)),
            ("train[:1%]", 1000, (0, 10)),
            ("train[10%:20%]", 1000, (100, 200)),
            ("train[100:200]", 1000, (100, 200)),
            ("train[1_00:2_00]", 1000, (100, 200)),
            ("train[100:]", 1000, (100, 1000)),
            ("train[-5%:]", 1000, (950, 1000)),
            ("train[-100:-50]", 1000, (900, 950)),
            ("train[:2000]", 1000, (0, 1000)),
            ("train[-2000:]", 1000, (0, 1000)),
            // "closest", halves to even: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2.
            ("train[:1%]", 50, (0, 0)),
            ("train[:3%]", 50, (0, 2)),
            ("train[:5%]", 50, (0, 2)),
            ("train[-1%:]", 30, (30, 30)),
            ("train[:-1%]", 30, (0, 30)),
            ("train[:50%](closest)", 999, (0, 500)),
            ("train[:50%](pct1_dropremainder)", 999, (0, 450)),
            // One percent sign makes both percent.
            ("train[10:20%]", 1000, (100, 200)),
        ];
        for (spec, rows, (from, to)) in table {
            assert_eq!(ranges(spec, rows), [("train".to_owned(), from, to)], "{spec} of {rows}");
        }
    }

    #[test]
    fn sums_keep_their_order() {
        let expected = [("train".to_owned(), 0, 100), ("test".to_owned(), 5, 1000)];
        assert_eq!(ranges("train[:100]+test[5:]", 1000), expected);
        assert_eq!(ranges("train[:100] + test[5:]", 1000), expected);
        assert_eq!(ranges("all", 7).len(), 3);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let table = [
            ("trian", "no split \"trian\": the splits are train, validation, test"),
            ("train[:10", "split \"train[:10\", character 10: expected \"]\""),
            ("train[10]", "split \"train[10]\", character 9: expected \":\""),
            ("train+", "split \"train+\", character 7: expected the name of a split"),
            ("train[a:]", "split \"train[a:]\", character 7: expected a whole number"),
            ("test+train[:1.5%]", "character 13: expected a whole number"),
            ("train[:200%]", "percentages go from -100 to 100"),
            ("train[:5%](up)", "character 11: expected (closest)"),
            (" \u{e9}%", "character 3: expected the name of a split"),
            ("", "character 1: expected the name of a split"),
        ];
        for (spec, expected) in table {
            let e = parse_split(spec, &SPLITS).unwrap_err();
            assert!(e.message().contains(expected), "{spec}: {e}");
        }
        let e = parse_split("trian", &SPLITS).unwrap_err();
        assert_eq!(e.hints(), ["did you mean \"train\"?"]);
    }

    #[test]
    fn plain_row_ranges_do_not_count_the_rows() {
        let slices = parse_split("train[5:10]", &SPLITS).unwrap();
        let range = slices[0].range(|| panic!("counted")).unwrap();
        assert_eq!(range, (5, Some(10)));
    }

    proptest! {
        #[test]
        fn percent_slices_that_touch_cut_a_split_without_gap(rows in 0u64..5000, at in 0i64..=100) {
            let left = ranges(&format!("train[:{at}%]"), rows);
            let right = ranges(&format!("train[{at}%:]"), rows);
            prop_assert_eq!(left[0].1, 0);
            prop_assert_eq!(left[0].2, right[0].1);
            prop_assert_eq!(right[0].2, rows);
        }

        #[test]
        fn row_slices_are_those_of_a_python_list(
            rows in 0i64..100, from in -150i64..150, to in -150i64..150,
        ) {
            let python = |i: i64| if i < 0 { (i + rows).max(0) } else { i.min(rows) };
            let got = ranges(&format!("train[{from}:{to}]"), rows as u64);
            prop_assert_eq!((got[0].1 as i64, got[0].2 as i64), (python(from), python(to)));
        }

        #[test]
        fn no_text_makes_the_reader_panic(spec in "\\PC*") {
            let _ = parse_split(&spec, &SPLITS);
        }

        #[test]
        fn nor_does_anything_close_to_a_slice(spec in "(train|test|\u{e9})?[\\[\\]:%+()0-9 -]*") {
            let _ = parse_split(&spec, &SPLITS);
        }
    }
}
