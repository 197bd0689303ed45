//! `ranks` of `run.json`: what each rank of a run computes on, and the most memory that it took.

use serde::{Deserialize, Serialize};

use crate::{
    engine::{Engine, EngineFacts, MemoryUse},
    error::{Code, Error, Result},
};

/// A rank of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankRecord {
    /// The name of its machine.
    pub host: String,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// The maker's name of it, where the system tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_name: Option<String>,
    /// Its stage of the pipeline.
    pub pp: usize,
    /// Its replica.
    pub dp: usize,
    /// Its part of the layers.
    pub tp: usize,
    /// Its memory by kind at the peak so far.
    pub memory: MemoryUse,
}

/// The records of all ranks, in their order. Every rank must call it.
pub(super) fn gathered(engine: &Engine) -> Result<Vec<RankRecord>> {
    let EngineFacts { device, device_name, .. } = engine.facts();
    let place = engine.mesh().place();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let (pp, dp, tp, memory) = (place.pp, place.dp, place.tp, engine.memory());
    let own = RankRecord { host, device, device_name, pp, dp, tp, memory };
    let failed = |e| Error::new(Code::Internal, "a rank's record is no JSON").caused_by(e);
    let all = engine.group().gathered(&serde_json::to_string(&own).map_err(failed)?)?;
    all.iter().map(|text| serde_json::from_str(text).map_err(failed)).collect()
}
