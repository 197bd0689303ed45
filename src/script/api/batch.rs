//! `Batch` in scripts: the tensors of one micro batch, and the rows that they were made of.
//!
//! A thin layer over [`crate::data::Batch`].

use std::rc::Rc;

use rhai::{Array, plugin::*};

use super::dataset_rows::row_to_map;
use crate::{data, recipe::error::ScriptResult};

/// Batches.
#[export_module]
pub mod api {
    use crate::script::api::tensor::{Handle, api::Tensor};

    /// One micro batch of this process. Made by going over a loader.
    pub type Batch = Rc<data::Batch>;

    /// Returns the token ids, rows by tokens.
    ///
    /// ```rhai
    /// for batch in loader { print(batch.input_ids.shape); }
    /// ```
    #[rhai_fn(get = "input_ids", pure)]
    pub fn input_ids(batch: &mut Batch) -> Tensor {
        Handle::new(batch.input_ids().shallow_clone())
    }

    /// Returns the targets, not shifted, -100 where there is none; rows by tokens.
    ///
    /// ```rhai
    /// for batch in loader { print(batch.labels.shape); }
    /// ```
    #[rhai_fn(get = "labels", pure)]
    pub fn labels(batch: &mut Batch) -> Tensor {
        Handle::new(batch.labels().shallow_clone())
    }

    /// Returns 1 for each real token and 0 for each padding token, rows by tokens.
    ///
    /// ```rhai
    /// for batch in loader { print(batch.attention_mask.shape); }
    /// ```
    #[rhai_fn(get = "attention_mask", pure)]
    pub fn attention_mask(batch: &mut Batch) -> Tensor {
        Handle::new(batch.attention_mask().shallow_clone())
    }

    /// Returns the epoch that the rows belong to, from 0.
    ///
    /// ```rhai
    /// for batch in loader { print(`epoch ${batch.epoch}, row ${batch.first_row}`); }
    /// ```
    #[rhai_fn(get = "epoch", pure)]
    pub fn epoch(batch: &mut Batch) -> i64 {
        batch.epoch as i64
    }

    /// Returns the place of the first row among all rows of the epoch, over all processes.
    ///
    /// ```rhai
    /// for batch in loader { print(batch.first_row); }
    /// ```
    #[rhai_fn(get = "first_row", pure)]
    pub fn first_row(batch: &mut Batch) -> i64 {
        batch.first_row as i64
    }

    /// Returns the rows that the batch was made of, as an array of maps.
    ///
    /// ```rhai
    /// for batch in loader { print(batch.rows[0].input_ids); }
    /// ```
    #[rhai_fn(get = "rows", return_raw, pure)]
    pub fn rows(batch: &mut Batch) -> ScriptResult<Array> {
        Ok(batch.rows()?.into_iter().map(row_to_map).collect())
    }

    /// Describes the batch: its size and its place.
    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn describe(batch: &mut Batch) -> String {
        super::description(batch)
    }
}

fn description(batch: &data::Batch) -> String {
    let data::Batch { epoch, first_row, .. } = batch;
    format!("Batch({:?}; from row {first_row} of epoch {epoch})", batch.input_ids().size())
}
