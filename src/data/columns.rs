//! `select`, `rename`, `remove`, `flatten`: the same rows with other columns. Values stay as they are
//! stored, and what was read lazily is.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, RecordBatch},
    datatypes::{DataType, Field, Schema, SchemaRef},
};

use super::stage::{Batches, Stage, identity_of, no_column};
use crate::error::{Code, Error, Result};

/// Where a column comes from: a column of the input, and the fields within it.
#[derive(Debug, Clone)]
struct Column {
    name: String,
    path: Vec<String>,
}

/// Columns of the input under names of their own.
pub(super) struct Columns {
    input: Arc<dyn Stage>,
    columns: Arc<[Column]>,
    schema: SchemaRef,
    /// What was done, for the description.
    done: String,
}

impl Columns {
    /// The columns `names`, in this order.
    pub(super) fn select(input: Arc<dyn Stage>, names: &[String]) -> Result<Self> {
        let schema = input.schema();
        check_names(names, &schema)?;
        let columns = names.iter().map(|name| plain(name, name)).collect();
        Self::new(input, columns, format!("select({})", names.join(", ")))
    }

    /// All columns but `names`.
    pub(super) fn remove(input: Arc<dyn Stage>, names: &[String]) -> Result<Self> {
        let schema = input.schema();
        check_names(names, &schema)?;
        let kept = schema.fields().iter().map(|field| field.name());
        let kept = kept.filter(|name| !names.contains(name));
        let columns = kept.map(|name| plain(name, name)).collect();
        Self::new(input, columns, format!("remove({})", names.join(", ")))
    }

    /// All columns, some with another name: pairs of the old one and the new one.
    pub(super) fn rename(input: Arc<dyn Stage>, names: &[(String, String)]) -> Result<Self> {
        let schema = input.schema();
        let old: Vec<String> = names.iter().map(|(old, _)| old.clone()).collect();
        check_names(&old, &schema)?;
        let new = |name: &String| names.iter().find(|(old, _)| old == name).map(|(_, new)| new);
        let columns = schema.fields().iter().map(|f| f.name());
        let columns = columns.map(|name| plain(new(name).unwrap_or(name), name)).collect();
        let pairs: Vec<String> = names.iter().map(|(a, b)| format!("{a}: {b}")).collect();
        Self::new(input, columns, format!("rename({})", pairs.join(", ")))
    }

    /// The fields of nested columns as columns of their own, `outer.inner`.
    pub(super) fn flatten(input: Arc<dyn Stage>) -> Result<Self> {
        let mut columns = Vec::new();
        for field in input.schema().fields() {
            push_leaves(field, Vec::new(), &mut columns);
        }
        Self::new(input, columns, "flatten()".to_owned())
    }

    fn new(input: Arc<dyn Stage>, columns: Vec<Column>, done: String) -> Result<Self> {
        if columns.is_empty() {
            bail!(Code::Data, "{done} leaves no column");
        }
        let schema = input.schema();
        let mut fields: Vec<Field> = Vec::new();
        for column in &columns {
            if fields.iter().any(|field| *field.name() == column.name) {
                bail!(Code::Data, "{done}: there would be two columns \"{}\"", column.name);
            }
            let mut field = schema.field_with_name(&column.path[0]).cloned().map_err(internal)?;
            for name in &column.path[1..] {
                field = match field.data_type() {
                    DataType::Struct(inner) => inner.find(name).map(|(_, f)| f.as_ref().clone()),
                    _ => None,
                }
                .ok_or_else(|| internal(format!("no field {name}")))?
                .with_nullable(true);
            }
            fields.push(field.with_name(&column.name));
        }
        let schema = Arc::new(Schema::new(fields));
        Ok(Self { input, columns: columns.into(), schema, done })
    }
}

fn plain(name: &str, from: &str) -> Column {
    Column { name: name.to_owned(), path: vec![from.to_owned()] }
}

fn push_leaves(field: &Field, mut path: Vec<String>, columns: &mut Vec<Column>) {
    path.push(field.name().clone());
    match field.data_type() {
        DataType::Struct(fields) => {
            fields.iter().for_each(|field| push_leaves(field, path.clone(), columns));
        }
        _ => columns.push(Column { name: path.join("."), path }),
    }
}

fn check_names(names: &[String], schema: &SchemaRef) -> Result<()> {
    match names.iter().find(|name| schema.field_with_name(name).is_err()) {
        Some(name) => Err(no_column(name, schema)),
        None => Ok(()),
    }
}

fn internal(e: impl std::fmt::Display) -> Error {
    Error::new(Code::Internal, format!("columns: {e}"))
}

/// The values of a column; those within a struct that is null are null.
fn values(batch: &RecordBatch, column: &Column) -> Result<ArrayRef> {
    let (first, inner) = column.path.split_first().ok_or_else(|| internal("no path"))?;
    let mut values = batch.column_by_name(first).cloned().ok_or_else(|| internal(first))?;
    for name in inner {
        let outer = values.as_struct().clone();
        let (at, _) = outer.fields().find(name).ok_or_else(|| internal(name))?;
        let mask = arrow::compute::is_null(&outer).map_err(internal)?;
        values = arrow::compute::nullif(outer.column(at), &mask).map_err(internal)?;
    }
    Ok(values)
}

impl Stage for Columns {
    fn one_to_one(&self) -> Option<&dyn Stage> {
        Some(&*self.input)
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn read(&self, epoch: u64, from: u64) -> Result<Batches> {
        let (columns, schema) = (self.columns.clone(), self.schema.clone());
        Ok(Box::new(self.input.read(epoch, from)?.map(move |batch| {
            let batch = batch?;
            let values = columns.iter().map(|c| values(&batch, c)).collect::<Result<Vec<_>>>()?;
            RecordBatch::try_new(schema.clone(), values).map_err(internal)
        })))
    }

    fn identity(&self) -> Result<Option<String>> {
        identity_of(&self.inputs(), &format!("{:?}", self.columns))
    }

    fn describe(&self) -> String {
        format!("{} -> {}", self.input.describe(), self.done)
    }
}
