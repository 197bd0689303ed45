//! The base of an adapter, as a checkpoint names it.

use std::io::Read;

use crate::{
    error::{Code, Error, IoContext, Result},
    fs::Place,
    hash::Sha256,
    model::{Model, Origin, OriginRecord},
};

impl Model {
    /// The base's path and hash, which are read from its files the first time.
    ///
    /// # Errors
    /// [`Code::Checkpoint`] for a base that is in no file.
    pub fn origin_record(&self) -> Result<OriginRecord> {
        if let Some(record) = self.origin_record.get() {
            return Ok(record.clone());
        }
        let mut hash = Sha256::new();
        let config = serde_json::Value::from(self.facts.config.clone()).to_string();
        hash.update(config.as_bytes());
        let path = match &self.origin {
            Origin::Seed(seed) => {
                hash.update(&seed.to_le_bytes());
                None
            }
            Origin::Files(dir) => {
                for name in Self::weight_files(dir)? {
                    hash_file(&dir.join(name), &mut hash)?;
                }
                Some(dir.path().to_owned())
            }
            Origin::Memory => {
                return Err(Error::new(
                    Code::Checkpoint,
                    "the base of the adapter is in no file that a checkpoint could name",
                )
                .hint("write it with `export_hf`, and load it with `load_model`"));
            }
        };
        let quantization = self.quantization();
        let record = OriginRecord { path, sha256: hash.finish(), quantization };
        Ok(self.origin_record.get_or_init(|| record).clone())
    }

    /// A short name of the base: of the hub, or its path.
    pub(super) fn origin_name(&self) -> Option<String> {
        let Origin::Files(dir) = &self.origin else { return None };
        let parts: Vec<_> = dir.path().iter().map(|part| part.to_string_lossy()).collect();
        let at = parts.iter().rposition(|part| part == "snapshots").filter(|&at| at > 0);
        let hub = at.and_then(|at| parts[at - 1].strip_prefix("models--"));
        Some(hub.map_or_else(|| dir.path().display().to_string(), |name| name.replace("--", "/")))
    }
}

fn hash_file(place: &Place, hash: &mut Sha256) -> Result<()> {
    let mut file = place.open()?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).at("read", place.path())?;
        if read == 0 {
            return Ok(());
        }
        hash.update(&buffer[..read]);
    }
}
