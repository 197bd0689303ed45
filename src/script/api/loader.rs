//! `Loader` in scripts: micro batches of this rank, and the place in the data.
//!
//! A thin layer over [`crate::data::Loader`]. Going over a loader moves its place, so that a loop
//! that was left with `break` can be taken up again.

use std::{
    ops::{Deref, DerefMut},
    rc::Rc,
};

use rhai::{Dynamic, Map, Module, plugin::*};

use crate::{
    config::options::option_table,
    data::{self, Batch, LoaderOptions},
    dist::ProcessGroup,
    error::{Code, Result},
    recipe::{
        error::ScriptResult,
        options::{self, Options, ScriptType},
    },
    script::{feed::UnderWay, host, iterate::set_iterator, ranks::Replica, shared::Shared},
};

/// More rows than this in a micro batch are a mistake in the recipe.
const MOST_ROWS: usize = 1 << 24;

/// Padding to a larger multiple is a mistake in the recipe.
const MOST_MULTIPLE: usize = 1 << 16;

/// More batches than these are not kept ready: there is room for all of them from the start.
const MOST_READY: usize = 1024;

/// A loader, with its batches under way in a live session.
pub struct Loader {
    loader: data::Loader,
    under_way: Option<UnderWay>,
    replica: Replica,
}

impl Loader {
    /// Reads the rows of this rank's replica, if an engine with a mesh of ranks is there.
    pub(super) fn join_mesh(&mut self) {
        if let Some((rank, replicas)) = self.replica.get() {
            self.loader.read_as(rank, replicas);
        }
    }

    pub(super) fn next_batch(&mut self) -> Result<Option<Rc<Batch>>> {
        self.join_mesh();
        if let Some(under_way) = &mut self.under_way {
            under_way.pass();
        }
        let place = self.loader.state();
        let batch = self.loader.next_batch()?.map(Rc::new);
        if let (Some(under_way), Some(batch)) = (&mut self.under_way, &batch) {
            under_way.add(place, batch);
        }
        Ok(batch)
    }

    /// Goes back to the first batch that was not used, if the user stopped the loop.
    fn take_back(&mut self) -> Result<()> {
        let place = self.under_way.as_mut().and_then(UnderWay::take_back);
        place.map_or(Ok(()), |place| self.loader.restore(place))
    }
}

impl Deref for Loader {
    type Target = data::Loader;

    fn deref(&self) -> &Self::Target {
        &self.loader
    }
}

impl DerefMut for Loader {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.loader
    }
}

/// The functions of loaders, and `for` over the batches.
pub(super) fn build() -> Module {
    let mut module = rhai::exported_module!(api);
    set_iterator(&mut module, |loader: api::Loader| Ok(Batches(loader)));
    module
}

/// Loaders.
#[export_module]
pub mod api {
    use crate::script::api::dataset::api::Dataset;

    /// Micro batches in order, and the place of the next one. Made by `dataset.loader(options)`.
    pub type Loader = Shared<super::Loader>;

    /// Cuts the rows into micro batches, of which each process takes its own. `for` goes over them.
    ///
    /// Functions of the recipe run in the recipe's own thread: behind `filter` and `map` each batch is
    /// made when it is asked for.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").tokenize(tokenizer("dsr:gpt2")).pack(1024);
    /// for batch in ds.loader(#{ micro_batch_size: 4, epochs: 1 }) {
    ///     print(batch.input_ids.shape);               // [4, 1024]
    /// }
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn loader(
        ctx: NativeCallContext,
        dataset: &mut Dataset,
        options: Map,
    ) -> ScriptResult<Loader> {
        let options = super::read_options(&options)?;
        let host = host::of(&ctx)?;
        let loader = dataset.loader(super::for_rank(&*host.group()?, options))?;
        let under_way = host.feed.clone().map(UnderWay::new);
        let replica = Rc::clone(host.ranks.replica());
        Ok(super::Loader { loader, under_way, replica }.into())
    }

    /// Returns the epoch of the next batch, from 0.
    ///
    /// ```rhai
    /// if loader.epoch > 0 { print("the data has been gone through once"); }
    /// ```
    #[rhai_fn(get = "epoch", return_raw, pure)]
    pub fn epoch(loader: &mut Loader) -> ScriptResult<i64> {
        Ok(loader.read()?.state().epoch as i64)
    }

    /// Returns the row of the epoch at which the next batch begins, over all processes.
    ///
    /// ```rhai
    /// print(`${loader.row} rows of epoch ${loader.epoch} are done`);
    /// ```
    #[rhai_fn(get = "row", return_raw, pure)]
    pub fn row(loader: &mut Loader) -> ScriptResult<i64> {
        Ok(loader.read()?.state().row as i64)
    }

    /// Returns the number of batches in an epoch, or `()` where the rows would have to be read to
    /// know it; `cache()` and `shuffle()` make it known.
    ///
    /// ```rhai
    /// print(loader.batches_per_epoch);
    /// ```
    #[rhai_fn(get = "batches_per_epoch", return_raw, pure)]
    pub fn batches_per_epoch(loader: &mut Loader) -> ScriptResult<Dynamic> {
        loader.write()?.join_mesh();
        let batches = loader.read()?.batches_per_epoch()?;
        Ok(batches.map_or(Dynamic::UNIT, |batches| (batches as i64).into()))
    }

    /// Describes the loader: its dataset and its place.
    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn describe(loader: &mut Loader) -> String {
        super::description(loader)
    }
}

/// The options for this rank of `group`, whose ranks read different rows.
pub(super) fn for_rank(group: &ProcessGroup, options: LoaderOptions) -> LoaderOptions {
    let (rank, world_size, device) = (group.rank(), group.world_size(), group.device());
    LoaderOptions { rank, world_size, device, ..options }
}

option_table! {
    /// The options of `loader`.
    #[derive(Debug)]
    #[check_map(LoaderTable::check)]
    pub(crate) struct LoaderTable {
        /// rows in a batch of one process
        #[option(required, range = 1..=MOST_ROWS)]
        pub micro_batch_size: usize,
        /// how often the data is gone through; 1 by default
        #[option(optional, range = 1..)]
        pub epochs: Option<u64>,
        /// whether the data is gone through without end
        #[option(default = false)]
        pub endless: bool,
        /// whether a last batch that is not full is left out
        #[option(default = false)]
        pub drop_last: bool,
        /// padded rows have a multiple of so many tokens
        #[option(default = 1, range = 1..=MOST_MULTIPLE)]
        pub pad_to_multiple_of: usize,
        /// how many batches a thread keeps ready; 0 is none, and no thread
        #[option(default = 2, range = 0..=MOST_READY)]
        pub prefetch_factor: usize,
    }
}

impl LoaderTable {
    fn check(&self, o: &mut Options<'_>) {
        if self.endless && o.has("epochs") {
            let message = "`endless: true` and `epochs` exclude each other";
            o.fault("endless", Code::BadValue, message);
        }
    }
}

impl ScriptType for api::Loader {
    const EXPECTED: &'static str = "a loader";
}

/// The options of a loader, for a process that is alone.
fn read_options(map: &Map) -> Result<LoaderOptions> {
    let table: LoaderTable = options::read_table("loader", map)?;
    Ok(LoaderOptions {
        micro_batch_size: table.micro_batch_size,
        epochs: if table.endless { None } else { table.epochs.or(Some(1)) },
        drop_last: table.drop_last,
        pad_to_multiple_of: table.pad_to_multiple_of,
        prefetch_factor: table.prefetch_factor,
        ..LoaderOptions::default()
    })
}

/// The batches of a loop.
struct Batches(api::Loader);

impl Iterator for Batches {
    type Item = Result<Dynamic>;

    fn next(&mut self) -> Option<Self::Item> {
        next_batch(&self.0).transpose()
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        loop_left(&self.0);
    }
}

/// The next batch as a script sees it.
pub(super) fn next_batch(loader: &api::Loader) -> Result<Option<Dynamic>> {
    Ok(loader.write()?.next_batch()?.map(Dynamic::from))
}

/// Ends a loop over `loader`, which the user perhaps stopped.
pub(super) fn loop_left(loader: &api::Loader) {
    if let Err(e) = loader.write().and_then(|mut loader| loader.take_back()) {
        tracing::warn!("the loader stays where it is: {e}");
    }
}

fn description(loader: &api::Loader) -> String {
    let Ok(loader) = loader.read() else { return "Loader(in use)".to_owned() };
    let data::LoaderState { epoch, row } = loader.state();
    format!("Loader({}; at row {row} of epoch {epoch})", loader.describe())
}
