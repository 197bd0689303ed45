//! The runs of a sweep: each value of each parameter with each of the others.

use std::ops::RangeInclusive;

use crate::{
    error::{Code, Error, Result},
    hash::sha256,
};

/// The most runs of a sweep: more are a slip of the keyboard.
const MOST_RUNS: usize = 1000;

/// The longest name of a run that is made of its values. A file's name has 255 bytes at most, and some
/// are added to it.
const LONGEST_NAME: usize = 120;

/// One run of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    /// The name of the run.
    pub(super) name: String,
    /// The values of the parameters that have several, in the order of the command line.
    pub(super) varied: Vec<(String, String)>,
    /// All values, as `-p` takes them.
    pub(super) assignments: Vec<String>,
}

/// The product of the values in `given`, the last parameter's the fastest. `kind` is the type of a
/// parameter by its name.
pub(super) fn points<'a>(
    sweep: &str,
    given: &[String],
    kind: impl Fn(&str) -> Option<&'a str>,
) -> Result<Vec<Point>> {
    let mut axes: Vec<(&str, Vec<String>)> = Vec::new();
    for text in given {
        let Some((name, values)) = text.split_once('=') else {
            return Err(Error::new(
                Code::Usage,
                format!("`-p {text}` is not of the form name=values"),
            )
            .hint("for example: -p lr=1e-4,3e-4"));
        };
        let name = name.trim();
        if axes.iter().any(|(other, _)| *other == name) {
            let message = format!("parameter `{name}` is given twice");
            return Err(Error::new(Code::Usage, message)
                .hint(format!("write all of its values in one: -p {name}=A,B")));
        }
        axes.push((name, values_of(name, values, kind(name))?));
    }
    let count = axes.iter().try_fold(1usize, |count, (_, values)| count.checked_mul(values.len()));
    if count.is_none_or(|count| count > MOST_RUNS) {
        let message = format!("the sweep would have more than {MOST_RUNS} runs");
        return Err(Error::new(Code::Usage, message).hint("give fewer values"));
    }
    let mut rows: Vec<Vec<(&str, String)>> = vec![Vec::new()];
    for (name, values) in &axes {
        let mut longer = Vec::new();
        for row in &rows {
            for value in values {
                longer.push(row.iter().cloned().chain([(*name, value.clone())]).collect());
            }
        }
        rows = longer;
    }
    let varies = |name: &str| axes.iter().any(|(other, all)| *other == name && all.len() > 1);
    let point = |row: Vec<(&str, String)>| {
        let varied: Vec<_> = row
            .iter()
            .filter(|(name, _)| varies(name))
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        let assignments = row.iter().map(|(name, value)| format!("{name}={value}")).collect();
        Point { name: run_name(sweep, &varied), varied, assignments }
    };
    Ok(rows.into_iter().map(point).collect())
}

/// The values in a text: between commas, of numbers also `1..3`, the whole ones with both ends. An array
/// is one value, several are `[1, 2],[3, 4]`.
fn values_of(name: &str, text: &str, kind: Option<&str>) -> Result<Vec<String>> {
    let is_list = kind != Some("array") || text.trim_start().starts_with('[');
    if !is_list || !text.contains(',') && !text.contains("..") {
        return Ok(vec![text.to_owned()]);
    }
    let is_number = matches!(kind, Some("int" | "float"));
    let mut values = Vec::new();
    for item in items(text) {
        match range(item).filter(|_| is_number) {
            Some(range) if range.is_empty() => {
                let message = format!("the range {item} of `{name}` is empty");
                return Err(Error::new(Code::Usage, message).hint("the smaller end comes first"));
            }
            Some(range) => values.extend(range.take(MOST_RUNS + 1).map(|n| n.to_string())),
            None if item.is_empty() => {
                return Err(Error::new(
                    Code::Usage,
                    format!("`-p {name}={text}` has an empty value"),
                )
                .hint("a value with a comma in it goes into a file: --params FILE.json"));
            }
            None => values.push(item.to_owned()),
        }
    }
    for (i, value) in values.iter().enumerate() {
        // Whole numbers have more digits than a float.
        let is_same = |other: &String| match (other.parse::<i64>(), value.parse::<i64>()) {
            (Ok(other), Ok(value)) if is_number => other == value,
            _ => match (other.parse::<f64>(), value.parse::<f64>()) {
                (Ok(other), Ok(value)) if is_number => other == value,
                _ => other == value,
            },
        };
        if values[..i].iter().any(is_same) {
            bail!(Code::Usage, "parameter `{name}` has the value {value} twice");
        }
    }
    Ok(values)
}

/// The parts between commas that stand in no bracket.
fn items(text: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = text.split(move |c: char| {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim).collect()
}

/// `1..3`, as a shell's braces: with both ends.
fn range(text: &str) -> Option<RangeInclusive<i64>> {
    let (first, last) = text.split_once("..")?;
    Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
}

/// `tiny-lr=1e-4-seed=1`: what cannot stand in a directory's name is told apart by a hash.
fn run_name(sweep: &str, varied: &[(String, String)]) -> String {
    let values: String = varied.iter().map(|(name, value)| format!("-{name}={value}")).collect();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-+_.=".contains(c);
    if values.chars().all(is_plain) && values.len() <= LONGEST_NAME {
        return format!("{sweep}{values}");
    }
    let plain: String = values.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let hash = &sha256(values.as_bytes())[..8];
    format!("{sweep}{}-{hash}", &plain[..plain.len().min(LONGEST_NAME)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swept(given: &[&str]) -> Result<Vec<Point>> {
        let given: Vec<_> = given.iter().map(|&text| text.to_owned()).collect();
        points("tiny", &given, |name| match name {
            "seed" => Some("int"),
            "lr" => Some("float"),
            "sizes" => Some("array"),
            "data" => Some("string"),
            _ => None,
        })
    }

    fn names(given: &[&str]) -> Vec<String> {
        swept(given).unwrap().into_iter().map(|point| point.name).collect()
    }

    #[test]
    fn each_value_meets_each_other() {
        let expected = [
            "tiny-lr=1e-4-seed=1",
            "tiny-lr=1e-4-seed=2",
            "tiny-lr=1e-4-seed=7",
            "tiny-lr=3e-4-seed=1",
            "tiny-lr=3e-4-seed=2",
            "tiny-lr=3e-4-seed=7",
        ];
        assert_eq!(names(&["lr=1e-4, 3e-4", "seed=1..2,7"]), expected);
        assert_eq!(names(&["lr=1..2"]), ["tiny-lr=1", "tiny-lr=2"]);
    }

    #[test]
    fn a_parameter_with_one_value_names_no_run() {
        let points = swept(&["lr=0.1", "seed=1..2"]).unwrap();
        assert_eq!(points[1].assignments, ["lr=0.1", "seed=2"]);
        assert_eq!(points[1].varied, [("seed".to_owned(), "2".to_owned())]);
        assert_eq!(points[1].name, "tiny-seed=2");
        assert_eq!(names(&[]), ["tiny"]);
    }

    #[test]
    fn an_array_is_one_value() {
        assert_eq!(swept(&["sizes=1,2"]).unwrap()[0].assignments, ["sizes=1,2"]);
        let points = swept(&["sizes=[1, 2],[3]"]).unwrap();
        assert_eq!(points[0].assignments, ["sizes=[1, 2]"]);
        assert_eq!(points[1].assignments, ["sizes=[3]"]);
        assert_ne!(points[0].name, points[1].name);
    }

    #[test]
    fn names_of_values_that_are_no_names_differ() {
        let names = names(&["data=a/b,a_b"]);
        assert!(names[0].starts_with("tiny-data=a_b-"), "{names:?}");
        assert_eq!(names[1], "tiny-data=a_b");
        let long = "x".repeat(300);
        assert!(swept(&[&format!("data={long},y")]).unwrap()[0].name.len() < 140);
    }

    #[test]
    fn slips_are_refused() {
        for (given, expected) in [
            (&["lr"][..], "`-p lr` is not of the form name=values"),
            (&["lr=1,,2"], "`-p lr=1,,2` has an empty value"),
            (&["lr=1", "lr=2"], "parameter `lr` is given twice"),
            (&["seed=1,1"], "parameter `seed` has the value 1 twice"),
            (
                &["seed=9007199254740992,9007199254740993,9007199254740993"],
                "parameter `seed` has the value 9007199254740993 twice",
            ),
            (&["lr=1e-3,0.001"], "parameter `lr` has the value 0.001 twice"),
            (&["seed=3..1"], "the range 3..1 of `seed` is empty"),
            (&["seed=1..2000"], "the sweep would have more than 1000 runs"),
        ] {
            assert_eq!(swept(given).unwrap_err().message(), expected);
        }
    }
}
