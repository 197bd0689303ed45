//! How the ranks of a training are put on a mesh: stages of a pipeline, replicas of the data, and
//! parts of a layer, under DeepSpeed's names.

use std::fmt;

use super::options::{option_table, option_words};
use crate::error::{Code, Error, Result};

option_table! {
    /// Pipeline parallelism: consecutive layers are a stage, which a rank runs.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct PipelineOptions {
        /// how many stages there are; 1 is no pipeline. The other ranks are replicas of these
        #[option(default = 1, range = 1..=MOST_RANKS)]
        pub stages: usize,
        /// how the layers are cut into stages: by the number of their parameters, or of the layers
        #[option(default = PartitionMethod::Parameters)]
        pub partition_method: PartitionMethod,
    }
}

option_table! {
    /// Tensor parallelism: ranks share each layer, attention by heads, MLP by inner activations, embedding
    /// and head by rows of the vocabulary.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    #[check(TensorParallelOptions::check)]
    pub struct TensorParallelOptions {
        /// how many ranks share a layer; 1 is none. They must divide the heads, the heads of keys and
        /// values, and the inner activations
        #[option(default = 1, range = 1..=MOST_RANKS)]
        pub autotp_size: usize,
        /// whether a rank has a part of the tokens of each row between attention and MLP while it trains,
        /// which divides the memory of norms, dropout and sums (Megatron-LM's sequence parallelism). Rows
        /// must be a multiple of `autotp_size` long
        #[option(default = false)]
        pub sequence_parallel: bool,
    }
}

impl TensorParallelOptions {
    /// Refuses parts of the tokens where nobody else would have the others.
    ///
    /// # Errors
    /// [`Code::BadValue`].
    pub fn check(&self) -> Result<()> {
        if !self.sequence_parallel || self.autotp_size > 1 {
            return Ok(());
        }
        let message = "`sequence_parallel` divides the tokens among ranks that share layers, and \
                       `autotp_size` is 1";
        Err(Error::new(Code::BadValue, message)
            .option("sequence_parallel")
            .hint("set autotp_size to the number of ranks that share a layer"))
    }
}

option_words! {
    /// What consecutive stages have about equally much of.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum PartitionMethod {
        /// Parameters.
        Parameters = "parameters",
        /// Layers.
        Uniform = "uniform",
    }
}

/// No mesh has more on an axis.
const MOST_RANKS: usize = 1 << 16;

/// The number of ranks on each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeshShape {
    /// Stages of the pipeline.
    pub pp: usize,
    /// Replicas, which read different rows.
    pub dp: usize,
    /// Ranks that share each layer.
    pub tp: usize,
}

/// A place on each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeshPlace {
    /// The stage.
    pub pp: usize,
    /// The replica.
    pub dp: usize,
    /// The part of each layer.
    pub tp: usize,
}

option_table! {
    /// The mesh as it was asked for.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct MeshConfig {
        /// pipeline parallelism: the layers are cut into stages, and each rank runs one. A step is then
        /// made with `engine.train_batch`
        #[option(default = PipelineOptions::default())]
        pub pipeline: PipelineOptions,
        /// tensor parallelism: ranks share each layer, the embedding of tokens and the head; norms are whole
        /// on all of them
        #[option(default = TensorParallelOptions::default())]
        pub tensor_parallel: TensorParallelOptions,
    }
}

impl MeshConfig {
    /// The mesh of so many ranks: those that are neither stages nor share layers are replicas.
    ///
    /// # Errors
    /// [`Code::BadValue`] where these do not divide the ranks, with the numbers.
    pub fn shape(self, ranks: usize) -> Result<MeshShape> {
        let (pp, tp) = (self.pipeline.stages, self.tensor_parallel.autotp_size);
        let each = self.ranks_of_a_replica();
        if ranks.is_multiple_of(each) && ranks > 0 {
            return Ok(MeshShape { pp, dp: ranks / each, tp });
        }
        let stages = format!("`pipeline.stages` {pp}");
        let sharers = format!("`tensor_parallel.autotp_size` {tp}");
        let (option, what) = match (pp, tp) {
            (_, 1) => ("pipeline.stages", stages),
            (1, _) => ("tensor_parallel.autotp_size", sharers),
            _ => ("pipeline.stages", format!("{stages} x {sharers} = {each}")),
        };
        let message = format!("the number of ranks, {ranks}, is not a multiple of {what}");
        let hint =
            format!("start a multiple of {each} processes: dsr launch --nproc-per-node {each}");
        Err(Error::new(Code::BadValue, message).option(option).hint(hint))
    }

    /// Refuses ranks that share a layer on two machines, of which `machine` has so many ranks.
    ///
    /// # Errors
    /// [`Code::BadValue`] with the numbers.
    pub fn check_machine(self, machine: &str, ranks: usize) -> Result<()> {
        let sharers = self.tensor_parallel.autotp_size;
        if ranks.is_multiple_of(sharers) {
            return Ok(());
        }
        let message = format!(
            "the number of ranks on {machine}, {ranks}, is not a multiple of \
             `tensor_parallel.autotp_size` {sharers}: ranks that share a layer would be on two machines"
        );
        Err(Error::new(Code::BadValue, message).option("tensor_parallel.autotp_size").hint(format!(
            "start a multiple of {sharers} processes on each machine: dsr launch --nproc-per-node {sharers}"
        )))
    }

    /// The replicas among so many ranks, at least one.
    pub(super) fn replicas(self, ranks: usize) -> usize {
        (ranks / self.ranks_of_a_replica()).max(1)
    }

    /// The ranks that a replica consists of: stages, and the ranks that share each.
    pub(crate) fn ranks_of_a_replica(self) -> usize {
        self.pipeline.stages * self.tensor_parallel.autotp_size
    }
}

impl MeshShape {
    /// The number of ranks.
    pub fn ranks(self) -> usize {
        self.pp * self.dp * self.tp
    }

    /// The place of a rank: `rank = (pp * dp_size + dp) * tp_size + tp`, so that the ranks that share
    /// a layer are neighbours on one machine, and stages are apart.
    pub fn place(self, rank: usize) -> MeshPlace {
        let (tp, rest) = (rank % self.tp, rank / self.tp);
        MeshPlace { pp: rest / self.dp, dp: rest % self.dp, tp }
    }

    /// The rank at a place.
    pub fn rank(self, MeshPlace { pp, dp, tp }: MeshPlace) -> usize {
        (pp * self.dp + dp) * self.tp + tp
    }

    /// Whether all ranks are replicas.
    pub fn is_data_parallel(self) -> bool {
        self.pp == 1 && self.tp == 1
    }
}

impl fmt::Display for MeshShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pp {} x dp {} x tp {}", self.pp, self.dp, self.tp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_a_layer_are_neighbours_and_stages_are_apart() {
        let shape = MeshShape { pp: 2, dp: 3, tp: 2 };
        assert_eq!(shape.ranks(), 12);
        assert_eq!(shape.place(0), MeshPlace { pp: 0, dp: 0, tp: 0 });
        assert_eq!(shape.place(3), MeshPlace { pp: 0, dp: 1, tp: 1 });
        assert_eq!(shape.place(11), MeshPlace { pp: 1, dp: 2, tp: 1 });
        assert!((0..12).all(|rank| shape.rank(shape.place(rank)) == rank));
    }

    #[test]
    fn ranks_that_share_a_layer_are_on_one_machine() {
        let tensor_parallel = TensorParallelOptions { autotp_size: 2, sequence_parallel: false };
        let mesh = MeshConfig { tensor_parallel, ..MeshConfig::default() };
        assert!(mesh.check_machine("here", 4).is_ok());
        assert_eq!(
            mesh.check_machine("node-1", 3).unwrap_err().message(),
            "the number of ranks on node-1, 3, is not a multiple of `tensor_parallel.autotp_size` 2: \
             ranks that share a layer would be on two machines"
        );
    }

    #[test]
    fn what_is_no_stage_and_shares_no_layer_is_a_replica() {
        let mesh = |stages, autotp_size| MeshConfig {
            pipeline: PipelineOptions { stages, ..PipelineOptions::default() },
            tensor_parallel: TensorParallelOptions {
                autotp_size,
                ..TensorParallelOptions::default()
            },
        };
        assert_eq!(mesh(2, 1).shape(6).unwrap(), MeshShape { pp: 2, dp: 3, tp: 1 });
        assert_eq!(mesh(2, 2).shape(8).unwrap(), MeshShape { pp: 2, dp: 2, tp: 2 });
        let message =
            |stages, sharers| mesh(stages, sharers).shape(6).unwrap_err().message().to_owned();
        assert_eq!(
            message(4, 1),
            "the number of ranks, 6, is not a multiple of `pipeline.stages` 4"
        );
        assert_eq!(
            message(2, 2),
            "the number of ranks, 6, is not a multiple of `pipeline.stages` 2 x \
             `tensor_parallel.autotp_size` 2 = 4"
        );
    }
}
