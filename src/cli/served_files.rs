//! The files of a model that a command runs: of a base, and of its adapter.

use std::path::{Path, PathBuf};

use crate::{
    checkpoint::{BEST, LATEST, Store},
    config::Quantization,
    data::DataSource,
    engine::adapter_base,
    error::{Code, Error, Result},
    fs::{Place, read_to_string},
    hub::MODEL_FILES,
    model::{ADAPTER_CONFIG, OriginRecord},
};

const CONFIG: &str = "config.json";

/// Fetches these files of a name on the hub; the result is their directory.
pub(super) type Fetch<'a> = &'a dyn Fn(&str, &[&str]) -> Result<PathBuf>;

/// Where the files of a model are.
#[derive(Debug)]
pub(super) struct ModelFiles {
    /// The directory of the model, which is an adapter's base where there is one.
    pub(super) base: PathBuf,
    pub(super) adapter: Option<AdapterFiles>,
}

/// Where the files of an adapter are.
#[derive(Debug)]
pub(super) struct AdapterFiles {
    pub(super) dir: PathBuf,
    /// The base that its checkpoint names, where it is in one.
    record: Option<OriginRecord>,
    /// How the base was quantized, where the adapter alone says which base it is.
    pub(super) quantization: Option<Quantization>,
}

impl ModelFiles {
    /// Finds the files of `model`: a directory, a checkpoint, a run's latest one, or a name on the hub. An
    /// adapter is found with the base that it names. `adapter` is one that was named beside the model.
    pub(super) fn find(model: &str, adapter: Option<&Path>, fetch: Fetch<'_>) -> Result<Self> {
        let dir = match DataSource::unguarded(model) {
            DataSource::Hub { repo, config: None } => fetch(&repo, MODEL_FILES)
                .map_err(|e| e.hint(format!("there is no directory {model} here either")))?,
            // The marks of a run's checkpoints are files.
            DataSource::Path(place, _)
                if place.is_dir() || matches!(place.name(), Some(BEST | LATEST)) =>
            {
                inner(place.path(), CONFIG)?
            }
            _ => return Err(no_model(model)),
        };
        if dir.join(CONFIG).is_file() {
            let adapter = adapter.map(|path| AdapterFiles::open(inner(path, ADAPTER_CONFIG)?));
            return Ok(Self { base: dir, adapter: adapter.transpose()? });
        }
        if !dir.join(ADAPTER_CONFIG).is_file() {
            let message = format!("{} has no {CONFIG}", dir.display());
            return Err(Error::new(Code::ModelConfig, message)
                .hint("expected a directory as `export_hf` writes it, or a checkpoint"));
        }
        if adapter.is_some() {
            let message =
                format!("{} is an adapter already, and --adapter names another", dir.display());
            return Err(Error::new(Code::Usage, message).hint("give the base as MODEL"));
        }
        let mut adapter = AdapterFiles::open(dir)?;
        adapter.quantization = adapter.record.as_ref().and_then(|record| record.quantization);
        Ok(Self { base: adapter.base(fetch)?, adapter: Some(adapter) })
    }
}

impl AdapterFiles {
    fn open(dir: PathBuf) -> Result<Self> {
        let record = adapter_base(Place::unguarded(&dir))?;
        Ok(Self { dir, record, quantization: None })
    }

    /// Refuses a base that is not the one of the adapter's checkpoint.
    pub(super) fn check_base(&self, base: &OriginRecord) -> Result<()> {
        let Some(record) = &self.record else { return Ok(()) };
        record.check_same(base).map_err(|why| {
            let message = format!("checkpoint {} {why}", self.dir.display());
            Error::new(Code::Checkpoint, message)
        })
    }

    /// The directory of the base that the adapter names.
    fn base(&self, fetch: Fetch<'_>) -> Result<PathBuf> {
        let name = match &self.record {
            Some(record) => record.path.as_ref().map(|path| path.display().to_string()),
            None => self.base_name()?,
        };
        let Some(name) = name else {
            let message = format!(
                "{} is an adapter, whose base is in no file that it could name",
                self.dir.display()
            );
            return Err(Error::new(Code::Weights, message)
                .hint("give the base as MODEL and this as --adapter"));
        };
        let of_adapter = |e: Error| {
            e.hint(format!("it is the base that the adapter {} names: give another as MODEL and the adapter as --adapter", self.dir.display()))
        };
        match DataSource::unguarded(&name) {
            DataSource::Hub { repo, config: None } => fetch(&repo, MODEL_FILES),
            DataSource::Path(place, _) if place.is_dir() => inner(place.path(), CONFIG),
            _ => Err(no_model(&name)),
        }
        .map_err(of_adapter)
    }

    /// The base by the name that peft writes down.
    fn base_name(&self) -> Result<Option<String>> {
        let file = self.dir.join(ADAPTER_CONFIG);
        let config: serde_json::Value =
            serde_json::from_str(&read_to_string(Place::unguarded(&file))?).map_err(|e| {
                Error::new(Code::Weights, format!("{} is not valid JSON", file.display()))
                    .caused_by(e)
            })?;
        Ok(config["base_model_name_or_path"].as_str().map(str::to_owned))
    }
}

/// The directory that a path means: itself where it has one of these, or the latest checkpoint of a run.
fn inner(path: &Path, file: &str) -> Result<PathBuf> {
    if [file, ADAPTER_CONFIG].iter().any(|name| path.join(name).is_file()) {
        return Ok(path.to_owned());
    }
    let hint = format!("expected {file} in it, or a run's checkpoints");
    let checkpoint = Store::resolve(Place::unguarded(path)).map_err(|e| e.hint(hint))?;
    Ok(checkpoint.path().to_owned())
}

fn no_model(spec: &str) -> Error {
    let message = format!("there is no directory {spec}, and it is no name of a model on the hub");
    Error::new(Code::Missing, message).hint("a name on the hub is OWNER/NAME")
}
