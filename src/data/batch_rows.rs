//! The rows that a batch was made of, kept to be looked at when training goes wrong.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, UInt64Array},
    datatypes::{DataType, Field, Schema},
    error::ArrowError,
    ipc::writer::FileWriter,
};

use crate::{
    error::{Code, Error, Result},
    fs::{Place, write_atomic},
};

/// The rows of a batch as they came from the dataset, and their place in it.
#[derive(Debug, Clone)]
pub struct BatchRows {
    pub(super) epoch: u64,
    pub(super) first_row: u64,
    pub(super) rows: RecordBatch,
}

impl BatchRows {
    /// Where they stand: `rows 8..16 of epoch 0`.
    pub fn place(&self) -> String {
        let end = self.first_row + self.rows.num_rows() as u64;
        format!("rows {}..{end} of epoch {}", self.first_row, self.epoch)
    }

    /// The rows with two columns more, `epoch` and `row`, which replace columns of these names.
    fn with_place(&self) -> Result<RecordBatch, ArrowError> {
        let count = self.rows.num_rows() as u64;
        let places: [(&str, ArrayRef); 2] = [
            ("epoch", Arc::new(UInt64Array::from_iter_values((0..count).map(|_| self.epoch)))),
            (
                "row",
                Arc::new(UInt64Array::from_iter_values((0..count).map(|i| self.first_row + i))),
            ),
        ];
        let schema = self.rows.schema();
        let kept = schema.fields().iter().zip(self.rows.columns());
        let kept = kept.filter(|(field, _)| places.iter().all(|(name, _)| name != field.name()));
        let (mut fields, mut columns): (Vec<_>, Vec<_>) =
            kept.map(|(field, column)| (field.clone(), column.clone())).unzip();
        for (name, column) in places {
            fields.push(Arc::new(Field::new(name, DataType::UInt64, false)));
            columns.push(column);
        }
        let schema = Schema::new_with_metadata(fields, schema.metadata().clone());
        RecordBatch::try_new(Arc::new(schema), columns)
    }
}

/// Writes rows of one dataset as an Arrow file, which [`Dataset::open`](super::Dataset::open) reads.
pub fn write_rows(place: impl Into<Place>, batches: &[BatchRows]) -> Result<()> {
    let place = place.into();
    let encode = || {
        let batches: Vec<_> =
            batches.iter().map(BatchRows::with_place).collect::<Result<_, _>>()?;
        let schema = batches.first().map_or_else(|| Arc::new(Schema::empty()), RecordBatch::schema);
        let mut writer = FileWriter::try_new(Vec::new(), &schema)?;
        for batch in &batches {
            if batch.schema() != schema {
                return Err(ArrowError::SchemaError("the rows differ in their columns".to_owned()));
            }
            writer.write(batch)?;
        }
        writer.into_inner()
    };
    let bytes = encode().map_err(|e: ArrowError| {
        Error::new(Code::Data, format!("cannot write {}: {e}", place.display()))
    })?;
    write_atomic(place, &bytes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::{DataSource, Dataset, LoaderOptions, OpenOptions};

    #[test]
    fn written_rows_are_a_dataset_that_knows_where_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("rows.jsonl");
        let rows: String = (0..6).map(|i| format!("{{\"input_ids\": [{i}, 7]}}\n")).collect();
        std::fs::write(&source, rows).unwrap();
        let open = |path: &Path| {
            let source = DataSource::unguarded(path.to_str().unwrap());
            Dataset::open(source, &OpenOptions::default()).unwrap()
        };
        let options = LoaderOptions { micro_batch_size: 2, ..LoaderOptions::default() };
        let batches = open(&source).loader(options).unwrap().map(|batch| batch.unwrap().source());
        let batches: Vec<_> = batches.skip(1).collect();
        assert_eq!(batches[0].place(), "rows 2..4 of epoch 0");
        let path = dir.path().join("bad.arrow");
        write_rows(&path, &batches).unwrap();
        let back = open(&path)
            .loader(LoaderOptions { micro_batch_size: 4, ..LoaderOptions::default() })
            .unwrap();
        let rows = back.into_iter().next().unwrap().unwrap().rows().unwrap();
        let row = |i: usize| serde_json::Value::from(rows[i].clone());
        assert_eq!(row(0), serde_json::json!({ "input_ids": [2, 7], "epoch": 0, "row": 2 }));
        assert_eq!(row(3), serde_json::json!({ "input_ids": [5, 7], "epoch": 0, "row": 5 }));
    }
}
