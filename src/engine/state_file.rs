//! Master weights and optimizer state on disk, of which a step has three units in memory: one that
//! is read, one that is updated, one that is written (ZeRO-Infinity, Rajbhandari et al. 2021,
//! section 5.2).

use std::path::Path;

use crate::{
    bridge::memory::{self, count_as},
    error::{Code, Error, Result},
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

/// One region of a file for each unit.
pub(super) struct StateFile {
    file: SwapFile,
    layouts: Vec<Layout>,
    /// The masters that are the model's own parameters, which stay in memory.
    shared_masters: Option<Vec<Tensor>>,
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
    /// A file in `dir` with room for all units of `optimizer`: for the master weights unless they are
    /// shared, and for averages of them.
    pub(super) fn create(
        dir: &Path,
        optimizer: &Optimizer,
        (shares_masters, averages): (bool, bool),
    ) -> Result<Self> {
        let layout = |i| Layout {
            master: (!shares_masters).then(|| optimizer.unit_numel(i)),
            average: averages.then(|| optimizer.unit_numel(i)),
            state: optimizer.state_layout(i),
        };
        let layouts: Vec<_> = (0..optimizer.units()).map(layout).collect();
        let regions: Vec<_> = layouts.iter().map(Layout::bytes).collect();
        let file = SwapFile::create(dir, &regions)?;
        Ok(Self { file, layouts, shared_masters: shares_masters.then(Vec::new) })
    }

    /// Writes unit `i`, the next one, with a state of zeros.
    pub(super) fn add(&mut self, i: usize, master: Tensor) -> Result<()> {
        let buffer = self.file.buffer(i)?;
        let _ = buffer.shallow_clone().f_zero_()?;
        if let Some(masters) = &mut self.shared_masters {
            masters.push(master.shallow_clone());
        }
        let unit = self.unit(i, &buffer)?;
        let own = self.shared_masters.is_none().then_some(unit.master);
        for copy in own.into_iter().chain(unit.average) {
            no_grad(|| copy.shallow_clone().f_copy_(&master))?;
        }
        self.file.write(i, buffer)?.wait().map(drop)
    }

    /// Unit `i` in `buffer`, which has its region.
    fn unit(&self, i: usize, buffer: &Tensor) -> Result<UnitState> {
        let missing = || Error::new(Code::Internal, "no master weights");
        let mut views = self.layouts[i].views(buffer)?.into_iter();
        let master = match &self.shared_masters {
            Some(masters) => masters.get(i).map(Tensor::shallow_clone),
            None => views.next(),
        };
        let average = match self.layouts[i].average {
            Some(_) => Some(views.next().ok_or_else(missing)?),
            None => None,
        };
        Ok(UnitState { master: master.ok_or_else(missing)?, average, state: views.collect() })
    }

    /// The state of unit `i`.
    pub(super) fn get(&self, i: usize) -> Result<UnitState> {
        let _counting = count_as(memory::Kind::OptimizerState)?;
        let buffer = self.file.read(i, self.file.buffer(i)?)?.wait()?;
        self.unit(i, &buffer)
    }

    /// Changes each unit in turn.
    pub(super) fn change(
        &mut self,
        mut change: impl FnMut(usize, &UnitState) -> Result<()>,
    ) -> Result<()> {
        let units = self.layouts.len();
        let mut spare = Vec::new();
        let mut read = Some(self.start_read(0, &mut spare)?);
        let mut written: Option<Transfer> = None;
        for i in 0..units {
            let buffer = read.take().ok_or_else(not_read)?.wait()?;
            if i + 1 < units {
                read = Some(self.start_read(i + 1, &mut spare)?);
            }
            change(i, &self.unit(i, &buffer)?)?;
            if let Some(before) = written.take() {
                spare.push(before.wait()?);
            }
            written = Some(self.file.write(i, buffer)?);
        }
        written.map_or(Ok(()), |last| last.wait().map(drop))
    }

    /// Starts to read unit `i` into a buffer of the same size that is spare, or a new one.
    fn start_read(&self, i: usize, spare: &mut Vec<Tensor>) -> Result<Transfer> {
        let bytes = self.file.region_bytes(i) as usize;
        let buffer = match spare.iter().position(|buffer| buffer.numel() == bytes) {
            Some(at) => spare.swap_remove(at),
            None => {
                // One of another size would only be kept for nothing.
                spare.clear();
                let _counting = count_as(memory::Kind::OptimizerState)?;
                self.file.buffer(i)?
            }
        };
        self.file.read(i, buffer)
    }
}

fn not_read() -> Error {
    Error::new(Code::Internal, "a unit was not read")
}
