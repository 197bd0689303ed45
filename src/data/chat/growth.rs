//! The size of the values of a chat template, and the operations that pay for it.
//!
//! Filters, tests and methods that look at all that a value holds, or make far more than they are given,
//! are paid for here, where minijinja counts them as one step.

use minijinja::{
    Environment, Error, ErrorKind, State, Value, filters,
    value::{DynObject, Kwargs, ObjectRepr, Tuple},
};

/// Bytes of a text, and of all texts in a value.
const MAX_TEXT: usize = 16 << 20;
/// Values in a value; a conversation with its tools has thousands.
const MAX_VALUES: usize = 1 << 18;
/// Values around a value. JSON has at most 128.
const MAX_DEPTH: usize = 160;

/// The value, if it keeps the limits; `with_functions` says whether it may be a namespace, a macro or another that is
/// no data.
pub(super) fn bounded(state: &State, value: Value, with_functions: bool) -> Result<Value, Error> {
    let mut size = Size::default();
    if value.as_object().is_some_and(|object| matches!(kind(object), Kind::Opaque)) {
        return match with_functions {
            true => Ok(value),
            false => Err(refused("a namespace holds data alone".to_owned())),
        };
    }
    let plain = size.add(&value, 0)?;
    state.consume_fuel((size.values / 8) as u64)?;
    Ok(plain.unwrap_or(value))
}

/// The size of a value with all that it holds.
#[derive(Default)]
struct Size {
    text: usize,
    values: usize,
}

impl Size {
    /// Counts a value and those in it; gives what stands for it where it is lazy.
    fn add(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        self.values += 1;
        self.text = self.text.saturating_add(value.as_str().map_or(0, str::len));
        if self.text > MAX_TEXT {
            return Err(refused(format!("it makes a text of more than {MAX_TEXT} bytes")));
        }
        if self.values > MAX_VALUES {
            return Err(refused(format!("it makes a value of more than {MAX_VALUES} values")));
        }
        let Some(object) = value.as_object() else { return Ok(None) };
        if depth == MAX_DEPTH {
            return Err(refused(format!("it makes a value that is {MAX_DEPTH} deep")));
        }
        match kind(object) {
            Kind::Opaque => {
                Err(refused("a list or a dictionary in it holds what is no data".to_owned()))
            }
            // It has names as well, which a list has not.
            Kind::Group => self.add_list(value, depth, true).map(|_| None),
            Kind::List { is_plain } => self.add_list(value, depth, is_plain),
            Kind::Map { is_plain } => self.add_map(object, depth, is_plain),
        }
    }

    fn add_list(
        &mut self,
        list: &Value,
        depth: usize,
        is_plain: bool,
    ) -> Result<Option<Value>, Error> {
        let (mut items, mut is_plain) = (Vec::new(), is_plain);
        for item in list.try_iter()?.checked() {
            let item = item?;
            match self.add(&item, depth + 1)? {
                Some(other) => {
                    is_plain = false;
                    items.push(other);
                }
                None => items.push(item),
            }
        }
        Ok(match is_plain {
            true => None,
            false if list.is_tuple() => Some(Tuple::from(items).into()),
            false => Some(items.into()),
        })
    }

    fn add_map(
        &mut self,
        object: &DynObject,
        depth: usize,
        is_plain: bool,
    ) -> Result<Option<Value>, Error> {
        let (mut pairs, mut is_plain) = (Vec::new(), is_plain);
        for (key, value) in object.try_iter_pairs().into_iter().flatten() {
            self.add(&key, depth + 1)?;
            match self.add(&value, depth + 1)? {
                Some(other) => {
                    is_plain = false;
                    pairs.push((key, other));
                }
                None => pairs.push((key, value)),
            }
        }
        Ok(if is_plain { None } else { Some(Value::from_pairs(pairs)) })
    }
}

enum Kind {
    /// Namespaces, macros, loops, functions.
    Opaque,
    /// A group that `groupby` makes.
    Group,
    List {
        is_plain: bool,
    },
    Map {
        is_plain: bool,
    },
}

/// The kind of an object; one that is not plain computes its items each time.
fn kind(object: &DynObject) -> Kind {
    let name = object.type_name();
    let is = |other: &str| name.ends_with(other);
    match object.repr() {
        ObjectRepr::Seq if is("::GroupTuple") => Kind::Group,
        ObjectRepr::Seq => {
            Kind::List { is_plain: object.is::<Vec<Value>>() || object.is::<Tuple>() }
        }
        ObjectRepr::Iterable => Kind::List { is_plain: false },
        ObjectRepr::Map if is("::Namespace") || is("::Loop") || is("::Macro") || is("::Module") => {
            Kind::Opaque
        }
        ObjectRepr::Map => {
            let plain = Value::from_pairs(std::iter::empty::<(Value, Value)>());
            let is_plain = plain.as_object().is_some_and(|plain| plain.type_name() == name);
            Kind::Map { is_plain }
        }
        _ => Kind::Opaque,
    }
}

pub(super) fn refused(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Comparisons look at all that two values hold, and pay for it here.
pub(super) fn limit_comparisons(environment: &mut Environment<'_>) {
    type Compare = fn(&Value, &Value) -> bool;
    let tests: [(&[&'static str], Compare); 6] = [
        (&["eq", "equalto", "=="], |a, b| a == b),
        (&["ne", "!="], |a, b| a != b),
        (&["lt", "lessthan", "<"], |a, b| a < b),
        (&["le", "<="], |a, b| a <= b),
        (&["gt", "greaterthan", ">"], |a, b| a > b),
        (&["ge", ">="], |a, b| a >= b),
    ];
    for (names, compare) in tests {
        for name in names {
            environment.add_test(*name, move |state: &State, a: Value, b: Value| {
                weigh(state, &a)?;
                weigh(state, &b).map(|()| compare(&a, &b))
            });
        }
    }
    environment.add_test("in", |state: &State, a: Value, b: Value| {
        weigh(state, &a)?;
        weigh(state, &b)?;
        is_in(&a, &b)
    });
    environment.add_filter("min", |state: &State, value: Value, options: Kwargs| {
        weigh(state, &value)?;
        filters::min(state, value, options)
    });
    environment.add_filter("max", |state: &State, value: Value, options: Kwargs| {
        weigh(state, &value)?;
        filters::max(state, value, options)
    });
    environment.add_filter("unique", |state: &State, value: Value, options: Kwargs| {
        weigh(state, &value)?;
        filters::unique(state, value, options)
    });
}

/// Whether a text, a list or a dictionary has a value.
fn is_in(value: &Value, container: &Value) -> Result<bool, Error> {
    if let Some(text) = container.as_str() {
        return Ok(match value.as_str() {
            Some(part) => text.contains(part),
            None => text.contains(&value.to_string()),
        });
    }
    match container.as_object() {
        Some(map) if map.repr() == ObjectRepr::Map => Ok(map.get_value(value).is_some()),
        Some(_) => Ok(container.try_iter()?.any(|item| item == *value)),
        None if container.is_undefined() => Ok(false),
        None => Err(refused("`in` of a value that holds none".to_owned())),
    }
}

/// Pays for a look at all that a value holds.
fn weigh(state: &State, value: &Value) -> Result<(), Error> {
    bounded(state, value.clone(), true).map(drop)
}

/// A method of Python's, paid for before it makes its value where minijinja does not.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    given: &[Value],
) -> Result<Value, Error> {
    let text = value.as_str().unwrap_or_default();
    let parts = match (name, given.first().and_then(Value::as_str)) {
        ("split", Some(separator)) => text.matches(separator).count(),
        ("split", None) => text.split_whitespace().count(),
        ("splitlines", _) => text.lines().count(),
        ("format", _) => return formatted(state, text, value, given),
        _ => 0,
    };
    if value.as_object().is_some() {
        weigh(state, value)?;
        given.iter().try_for_each(|given| weigh(state, given))?;
    }
    state.consume_fuel(parts as u64)?;
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, given)
}

/// `str.format`, for which widths and repeated values are paid first.
fn formatted(
    state: &mut State,
    text: &str,
    value: &Value,
    given: &[Value],
) -> Result<Value, Error> {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    // What is no number here is too large for one.
    let written = numbers.map(|digits| digits.parse().unwrap_or(usize::MAX));
    // A width can be a value as well.
    let width = written.chain(given.iter().filter_map(Value::as_usize)).max().unwrap_or(0);
    let mut size = Size::default();
    for given in given {
        size.add(given, 0)?;
    }
    let field = width.saturating_add(size.text + 32 * size.values);
    state.consume_fuel((text.matches('{').count().saturating_mul(field) / 64) as u64)?;
    minijinja_contrib::pycompat::unknown_method_callback(state, value, "format", given)
}
