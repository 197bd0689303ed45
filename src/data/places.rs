//! The places for values that rows take as columns: an object of a list has one for each key that any
//! object there has, so that a few bytes can take any number of them.

use std::collections::HashMap;

use arrow::datatypes::{DataType, Schema};
use serde_json::{Map, Value};

/// The most places of a batch.
pub(super) const MOST: u64 = 1 << 27;

/// The places of a value of one type.
struct Places<'a> {
    /// Places of a null.
    of_null: u64,
    /// Places of each field of an object.
    fields: HashMap<&'a str, Self>,
    /// Places of an item of a list.
    item: Option<Box<Self>>,
}

/// The places of all rows.
pub(super) fn taken(schema: &Schema, rows: &[Map<String, Value>]) -> u64 {
    let columns: HashMap<&str, Places<'_>> =
        schema.fields().iter().map(|f| (f.name().as_str(), Places::of(f.data_type()))).collect();
    let values = rows.iter().flatten();
    let places =
        values.map(|(name, value)| columns.get(name.as_str()).map_or(0, |p| p.taken(value)));
    places.fold(0, u64::saturating_add)
}

impl<'a> Places<'a> {
    fn of(data_type: &'a DataType) -> Self {
        match data_type {
            DataType::Struct(fields) => {
                let fields: HashMap<_, _> =
                    fields.iter().map(|f| (f.name().as_str(), Self::of(f.data_type()))).collect();
                let of_null = 1 + fields.values().map(|field| field.of_null).sum::<u64>();
                Self { of_null, fields, item: None }
            }
            DataType::List(item) | DataType::LargeList(item) => {
                let item = Some(Box::new(Self::of(item.data_type())));
                Self { of_null: 1, fields: HashMap::new(), item }
            }
            _ => Self { of_null: 1, fields: HashMap::new(), item: None },
        }
    }

    fn taken(&self, value: &Value) -> u64 {
        match (value, &self.item) {
            (Value::Array(items), Some(item)) => {
                items.iter().map(|value| item.taken(value)).fold(1, u64::saturating_add)
            }
            (Value::Object(object), _) => {
                let more = |(name, value): (&String, &Value)| {
                    let field = self.fields.get(name.as_str())?;
                    Some(field.taken(value).saturating_sub(field.of_null))
                };
                object.iter().filter_map(more).fold(self.of_null, u64::saturating_add)
            }
            _ => self.of_null,
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::json::reader::infer_json_schema_from_iterator;
    use serde_json::json;

    use super::*;

    #[test]
    fn each_object_of_a_list_has_all_keys() {
        let rows = [
            json!({ "a": [{ "b": 1, "c": [1, 2], "d": { "e": 1 } }], "n": 1 }),
            json!({ "a": [{}, {}, {}] }),
            json!({ "a": null, "n": 2 }),
        ];
        let schema = infer_json_schema_from_iterator(rows.iter().map(Ok)).unwrap();
        let rows = rows.map(|row| row.as_object().unwrap().clone());
        // An object has itself, `b`, `c`, `d` and `e`; a list has itself and its values.
        let (first, second, third) = (1 + 5 + 2 + 1, 1 + 3 * 5, 1 + 1);
        assert_eq!(taken(&schema, &rows), first + second + third);
    }
}
