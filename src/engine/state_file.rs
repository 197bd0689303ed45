//! Master weights and optimizer state on disk, of which a step has three units in memory: one that
//! is read, one that is updated, one that is written (ZeRO-Infinity, Rajbhandari et al. 2021,
//! section 5.2).

use std::collections::BTreeMap;

use crate::{
    bridge::memory::{self, count_as},
    error::{Code, Error, Result},
    fs::Place,
    optim::Optimizer,
    swap::{SwapFile, Transfer, view},
    tensor::{Kind, Tensor, bytes_of, no_grad},
};

/// The state of one unit.
pub(super) struct UnitState {
    /// The weights that are updated, float32 flat; the model's own where it is float32.
    pub(super) master: Tensor,
    /// The average of the weights, laid out as these, where there is one.
    pub(super) average: Option<Tensor>,
    /// As [`Optimizer::state_layout`].
    pub(super) state: Vec<Tensor>,
}

/// One region of a file for each of some units.
pub(super) struct StateFile {
    file: SwapFile,
    /// The units by their numbers, in order.
    units: Vec<(usize, Layout)>,
    /// The masters that are the model's own parameters, which stay in memory.
    shared_masters: BTreeMap<usize, Tensor>,
}

/// The tensors of a region, one behind the other.
struct Layout {
    /// Elements of the master weights, where they are in the file.
    master: Option<i64>,
    /// Elements of their average, where there is one.
    average: Option<i64>,
    state: Vec<(Kind, i64)>,
}

impl Layout {
    /// Where each tensor begins in bytes, its format and its elements.
    fn places(&self) -> impl Iterator<Item = (u64, Kind, i64)> {
        let weights = self.master.into_iter().chain(self.average);
        let weights = weights.map(|numel| (Kind::Float, numel));
        let state = self.state.iter().copied();
        let mut end = 0;
        weights.chain(state).map(move |(kind, numel)| {
            let start = end;
            end = (start + bytes_of(kind, numel)).next_multiple_of(ALIGNMENT_BYTES);
            (start, kind, numel)
        })
    }

    fn bytes(&self) -> u64 {
        self.places().last().map_or(0, |(start, kind, numel)| start + bytes_of(kind, numel))
    }

    /// The tensors in `buffer`.
    fn views(&self, buffer: &Tensor) -> Result<Vec<Tensor>> {
        self.places().map(|(start, kind, numel)| view(buffer, start, kind, numel)).collect()
    }
}

/// For aligned vector loads of each tensor.
const ALIGNMENT_BYTES: u64 = 64;

impl StateFile {
    /// A file in `dir` with room for these units of `optimizer`, in order: for the master weights of a unit
    /// unless it shares them, and for averages of them.
    pub(super) fn create(
        dir: &Place,
        optimizer: &Optimizer,
        (units, averages): (&[(usize, bool)], bool),
    ) -> Result<Self> {
        let layout = |&(i, shares_master): &(usize, bool)| {
            let numel = optimizer.unit_numel(i);
            let layout = Layout {
                master: (!shares_master).then_some(numel),
                average: averages.then_some(numel),
                state: optimizer.state_layout(i),
            };
            (i, layout)
        };
        let units: Vec<_> = units.iter().map(layout).collect();
        let regions: Vec<_> = units.iter().map(|(_, layout)| layout.bytes()).collect();
        let file = SwapFile::create(dir, &regions)?;
        Ok(Self { file, units, shared_masters: BTreeMap::new() })
    }

    /// The region of unit `i`.
    fn region(&self, i: usize) -> Result<usize> {
        let found = self.units.binary_search_by_key(&i, |(unit, _)| *unit);
        found.map_err(|_| Error::new(Code::Internal, "a unit without a region"))
    }

    /// Writes unit `i` with a state of zeros.
    pub(super) fn add(&mut self, i: usize, master: Tensor) -> Result<()> {
        let region = self.region(i)?;
        let buffer = self.file.buffer(region)?;
        let _ = buffer.shallow_clone().f_zero_()?;
        let shares = self.units[region].1.master.is_none();
        if shares {
            self.shared_masters.insert(i, master.shallow_clone());
        }
        let unit = self.unit(region, &buffer)?;
        let own = (!shares).then_some(unit.master);
        for copy in own.into_iter().chain(unit.average) {
            no_grad(|| copy.shallow_clone().f_copy_(&master))?;
        }
        self.file.write(region, buffer)?.wait().map(drop)
    }

    /// The unit of a region, which is in `buffer`.
    fn unit(&self, region: usize, buffer: &Tensor) -> Result<UnitState> {
        let missing = || Error::new(Code::Internal, "no master weights");
        let (i, layout) = &self.units[region];
        let mut views = layout.views(buffer)?.into_iter();
        let master = match layout.master {
            Some(_) => views.next(),
            None => self.shared_masters.get(i).map(Tensor::shallow_clone),
        };
        let average = match layout.average {
            Some(_) => Some(views.next().ok_or_else(missing)?),
            None => None,
        };
        Ok(UnitState { master: master.ok_or_else(missing)?, average, state: views.collect() })
    }

    /// The state of unit `i`.
    pub(super) fn get(&self, i: usize) -> Result<UnitState> {
        let _counting = count_as(memory::Kind::OptimizerState)?;
        let region = self.region(i)?;
        let buffer = self.file.read(region, self.file.buffer(region)?)?.wait()?;
        self.unit(region, &buffer)
    }

    /// Changes each unit in turn.
    pub(super) fn change(
        &mut self,
        mut change: impl FnMut(usize, &UnitState) -> Result<()>,
    ) -> Result<()> {
        let regions = self.units.len();
        let mut spare = Vec::new();
        let mut read = Some(self.start_read(0, &mut spare)?);
        let mut written: Option<Transfer> = None;
        for region in 0..regions {
            let buffer = read.take().ok_or_else(not_read)?.wait()?;
            if region + 1 < regions {
                read = Some(self.start_read(region + 1, &mut spare)?);
            }
            change(self.units[region].0, &self.unit(region, &buffer)?)?;
            if let Some(before) = written.take() {
                spare.push(before.wait()?);
            }
            written = Some(self.file.write(region, buffer)?);
        }
        written.map_or(Ok(()), |last| last.wait().map(drop))
    }

    /// Starts to read a region into a buffer of the same size that is spare, or a new one.
    fn start_read(&self, region: usize, spare: &mut Vec<Tensor>) -> Result<Transfer> {
        let bytes = self.file.region_bytes(region) as usize;
        let buffer = match spare.iter().position(|buffer| buffer.numel() == bytes) {
            Some(at) => spare.swap_remove(at),
            None => {
                // One of another size would only be kept for nothing.
                spare.clear();
                let _counting = count_as(memory::Kind::OptimizerState)?;
                self.file.buffer(region)?
            }
        };
        self.file.read(region, buffer)
    }
}

fn not_read() -> Error {
    Error::new(Code::Internal, "a unit was not read")
}
