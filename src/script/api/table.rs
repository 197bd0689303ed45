//! `Dataset` in scripts: its columns, and rows that are put together, in order and apart.
//!
//! A thin layer over [`crate::data::Dataset`].

use rhai::{Array, Dynamic, Map, plugin::*};

use crate::{
    config::options::option_table,
    data,
    error::{Code, Error, Result},
    recipe::{error::ScriptResult, options, value::describe},
    script::api::dataset::DEFAULT_SEED,
};

/// Tables.
#[export_module]
pub mod api {
    use crate::script::api::dataset::api::Dataset;

    /// Keeps the columns of these names, in this order.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").select(["text"]);
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn select(dataset: &mut Dataset, columns: Array) -> ScriptResult<Dataset> {
        Ok(dataset.select(&super::names(&columns)?)?)
    }

    /// Leaves the columns of these names out.
    ///
    /// ```rhai
    /// let ds = dataset("rows.jsonl").remove(["id", "url"]);
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn remove(dataset: &mut Dataset, columns: Array) -> ScriptResult<Dataset> {
        Ok(dataset.remove(&super::names(&columns)?)?)
    }

    /// Leaves a column out.
    ///
    /// ```rhai
    /// let ds = dataset("rows.jsonl").remove("id");
    /// ```
    #[rhai_fn(name = "remove", return_raw, pure)]
    pub fn remove_one(dataset: &mut Dataset, column: &str) -> ScriptResult<Dataset> {
        Ok(dataset.remove(&[column.to_owned()])?)
    }

    /// Gives columns other names: a map of the old names to the new ones.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").rename(#{ text: "content" });
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn rename(dataset: &mut Dataset, names: Map) -> ScriptResult<Dataset> {
        let pairs = names.iter().map(|(old, new)| Ok((old.to_string(), super::name(new)?)));
        Ok(dataset.rename(&pairs.collect::<Result<Vec<_>>>()?)?)
    }

    /// Makes columns of the fields of nested columns: `answers.text` of `#{ answers: #{ text: ... } }`.
    ///
    /// ```rhai
    /// let ds = dataset("rows.jsonl").flatten();
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn flatten(dataset: &mut Dataset) -> ScriptResult<Dataset> {
        Ok(dataset.flatten()?)
    }

    /// Puts the rows of another dataset with the same columns behind these.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").concat(dataset("dsr:austen", #{ split: "test" }));
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn concat(dataset: &mut Dataset, other: Dataset) -> ScriptResult<Dataset> {
        Ok(dataset.concat(&other)?)
    }

    /// Puts the rows of the second dataset behind those of the first.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen") + dataset("dsr:austen", #{ split: "test" });
    /// ```
    #[rhai_fn(name = "+", return_raw, pure)]
    pub fn add(dataset: &mut Dataset, other: Dataset) -> ScriptResult<Dataset> {
        Ok(dataset.concat(&other)?)
    }

    /// Mixes the rows of datasets with the same columns: each gives its next row in turn.
    ///
    /// ```rhai
    /// let ds = mix([dataset("dsr:austen"), dataset("dsr:austen", #{ split: "test" })]);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn mix(datasets: Array) -> ScriptResult<Dataset> {
        mix_with_options(datasets, Map::new())
    }

    /// Mixes the rows of datasets with the same columns, each as often as its weight says.
    ///
    /// ```rhai
    /// let novels = dataset("dsr:austen");
    /// let notes = dataset("dsr:austen", #{ split: "test" });
    /// let ds = mix([novels, notes], #{ weights: [0.75, 0.25], seed: 1, stop: "all" });
    /// ```
    #[rhai_fn(name = "mix", return_raw)]
    pub fn mix_with_options(datasets: Array, options: Map) -> ScriptResult<Dataset> {
        let options = options::read_table("mix", &options)?;
        Ok(data::Dataset::mix(&super::datasets(&datasets)?, options)?)
    }

    /// Puts the rows in the order of a column's values; equal ones keep their order.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").sort("text");
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn sort(dataset: &mut Dataset, column: &str) -> ScriptResult<Dataset> {
        Ok(dataset.sort(column, false)?)
    }

    /// Puts the rows in the order of a column's values, the highest first with `reverse`.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").sort("text", #{ reverse: true });
    /// ```
    #[rhai_fn(name = "sort", return_raw, pure)]
    pub fn sort_with_options(
        dataset: &mut Dataset,
        column: &str,
        options: Map,
    ) -> ScriptResult<Dataset> {
        let super::SortOptions { reverse } = options::read_table("sort", &options)?;
        Ok(dataset.sort(column, reverse)?)
    }

    /// Keeps the first row of each value of a column.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").unique("text");
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn unique(dataset: &mut Dataset, column: &str) -> ScriptResult<Dataset> {
        Ok(dataset.unique(column)?)
    }

    /// Cuts the rows into two datasets, `train` and `test`, in a random order that stays.
    ///
    /// ```rhai
    /// let parts = dataset("dsr:austen").train_test_split(#{ test_size: 0.1, seed: 42 });
    /// print(parts.test.count());
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn train_test_split(dataset: &mut Dataset, options: Map) -> ScriptResult<Map> {
        Ok(super::train_test_split(dataset, &options)?)
    }
}

option_table! {
    /// The option of `sort`.
    #[derive(Debug)]
    pub(crate) struct SortOptions {
        /// whether the highest value comes first
        #[option(default = false)]
        pub reverse: bool,
    }
}

option_table! {
    /// The options of `train_test_split`.
    #[derive(Debug)]
    pub(crate) struct SplitOptions {
        /// the rows of `test`: a share below 1, or a number of rows
        #[option(default = 0.25, range = 0.0..)]
        pub test_size: f64,
        /// whether the rows are put in a random order before
        #[option(default = true)]
        pub shuffle: bool,
        /// the seed of the order
        #[option(default = DEFAULT_SEED)]
        pub seed: u64,
    }
}

fn train_test_split(dataset: &data::Dataset, options: &Map) -> Result<Map> {
    let SplitOptions { test_size, shuffle, seed } =
        options::read_table("train_test_split", options)?;
    let rows = match test_size < 1.0 {
        true => (dataset.count()? as f64 * test_size).ceil() as u64,
        false if test_size.fract() == 0.0 => test_size as u64,
        false => {
            let message = "test_size is a share below 1, or a whole number of rows";
            return Err(Error::new(Code::BadValue, message).option("test_size"));
        }
    };
    let (train, test) = dataset.split_at_end(rows, shuffle.then_some(seed))?;
    let part = |name: &str, rows: data::Dataset| (name.into(), Dynamic::from(rows));
    Ok([part("train", train), part("test", test)].into())
}

/// The name of a column.
fn name(value: &Dynamic) -> Result<String> {
    value.clone().into_string().map_err(|_| {
        let found = describe(value);
        Error::new(Code::WrongType, format!("the name of a column is text, found {found}"))
    })
}

fn datasets(values: &Array) -> Result<Vec<data::Dataset>> {
    let one = |value: &Dynamic| {
        value.clone().try_cast::<data::Dataset>().ok_or_else(|| {
            let message = format!("mix takes an array of datasets, found {}", describe(value));
            Error::new(Code::WrongType, message)
        })
    };
    values.iter().map(one).collect()
}

fn names(values: &Array) -> Result<Vec<String>> {
    values.iter().map(name).collect()
}
