//! A model that a command runs without a recipe: of a directory, of a run, or of the hub.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    rc::Rc,
    sync::atomic::Ordering,
};

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::{Console, device::DeviceArgs, download::Downloads, signals};
use crate::{
    checkpoint::Store,
    config::{QuantizationKind, QuantizeOptions},
    data::{DataSource, Tokenizer},
    error::{Code, Error, Result},
    hub::{Hub, HubSettings, MODEL_FILES, TOKENIZER_FILES},
    model::{ADAPTER_CONFIG, Model, ModelConfig},
    run::Interrupt,
    tensor::LocalRank,
};

/// The model of a command.
#[derive(Debug, clap::Args)]
pub(super) struct ModelArgs {
    /// A directory with config.json and safetensors, a run or a checkpoint, or a model on the hub.
    pub(super) model: String,

    /// Use this tokenizer: a directory, a tokenizer.json, dsr:gpt2 or a model on the hub [default:
    /// the model's].
    #[arg(long, value_name = "TOKENIZER")]
    tokenizer: Option<String>,

    /// The branch, tag or commit of a model on the hub.
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,

    /// Use the model with this adapter: a directory as peft writes it, or a run or a checkpoint of one.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,

    /// Keep the matrices of the model's blocks in fewer bits, as load_model's `quantize` does.
    #[arg(long, value_name = "KIND", value_parser = quantization_kinds())]
    quantize: Option<QuantizationKind>,

    /// Quantize the embedding of tokens and the projection to the vocabulary as well.
    #[arg(long, requires = "quantize")]
    include_input_output_embeddings: bool,

    #[command(flatten)]
    device: DeviceArgs,
}

fn quantization_kinds() -> impl TypedValueParser<Value = QuantizationKind> {
    let names = QuantizationKind::NAMES;
    PossibleValuesParser::new(names.iter().map(|(name, _)| *name)).map(|name| {
        let known = names.iter().find(|(known, _)| *known == name);
        known.map_or_else(Default::default, |(_, kind)| *kind)
    })
}

/// A model with its tokenizer, and the signal that ends what it does.
pub(super) struct Served {
    pub(super) model: Rc<Model>,
    pub(super) tokenizer: Tokenizer,
    /// The directory of the model's files.
    pub(super) directory: PathBuf,
    pub(super) interrupt: Interrupt,
}

impl ModelArgs {
    /// Opens the model, which is fetched from the hub where it is none here.
    pub(super) fn open(&self, console: &Console) -> Result<Served> {
        let interrupt = Interrupt::default();
        signals::install(&interrupt)?;
        let hub = RefCell::new(None);
        let files = |spec: &str, files: &[&str]| -> Result<PathBuf> {
            let mut hub = hub.borrow_mut();
            let hub = match &mut *hub {
                Some(hub) => hub,
                none => none.insert(self::hub(console, &interrupt)?),
            };
            hub.model_files(spec, self.revision.as_deref(), files)
        };
        let directory = match DataSource::from(&self.model) {
            DataSource::Hub { repo, config: None } => files(&repo, MODEL_FILES)?,
            DataSource::Path(place, _) => here(place.path())?,
            _ => return Err(no_model(&self.model)),
        };
        let device = self.device.choice().resolve(LocalRank::ALONE)?;
        let mut model = Model::load(&directory, &ModelConfig::read(&directory)?, device)?;
        let quantize = QuantizeOptions {
            quantize: self.quantize,
            double_quant: false,
            include_input_output_embeddings: self.include_input_output_embeddings,
        };
        if let Some(quantization) = quantize.quantization() {
            model = model.quantized(quantization)?;
        }
        let mut model = Rc::new(model);
        if let Some(adapter) = &self.adapter {
            model = model.load_adapter(adapter_dir(adapter)?)?;
            if self.quantize.is_none() {
                // Merged it costs nothing more.
                model = model.merged(false)?;
            }
        }
        let tokenizer = match &self.tokenizer {
            Some(spec) => match DataSource::from(spec) {
                DataSource::Hub { repo, .. } => {
                    Tokenizer::from_path(&files(&repo, TOKENIZER_FILES)?)?
                }
                here => Tokenizer::open(here)?,
            },
            None => Tokenizer::from_path(&directory)
                .map_err(|e| e.hint("name one with --tokenizer, such as dsr:gpt2"))?,
        };
        Ok(Served { model, tokenizer, directory, interrupt })
    }
}

/// The directory that a path means: itself, or the latest checkpoint of a run.
fn here(path: &Path) -> Result<PathBuf> {
    if path.join("config.json").is_file() {
        return Ok(path.to_owned());
    }
    if !path.is_dir() {
        return Err(no_model(&path.display().to_string()));
    }
    let hint = "expected config.json in it, or a run's checkpoints";
    let checkpoint = Store::resolve(path).map_err(|e| e.hint(hint))?;
    Ok(checkpoint.path().to_owned())
}

/// The directory of an adapter: itself, or the latest checkpoint of a run.
fn adapter_dir(path: &Path) -> Result<PathBuf> {
    if path.join(ADAPTER_CONFIG).is_file() {
        return Ok(path.to_owned());
    }
    let hint = format!("expected {ADAPTER_CONFIG} in it, or a run's checkpoints");
    let checkpoint = Store::resolve(path).map_err(|e| e.hint(hint))?;
    Ok(checkpoint.path().to_owned())
}

fn no_model(spec: &str) -> Error {
    let message = format!("there is no directory {spec}, and it is no name of a model on the hub");
    Error::new(Code::Missing, message).hint("a name on the hub is OWNER/NAME")
}

fn hub(console: &Console, interrupt: &Interrupt) -> Result<Hub> {
    let settings = HubSettings::from_env(|name| std::env::var(name).ok())?;
    let downloads = Downloads::new(console.clone());
    let flag = interrupt.flag();
    let hub = Hub::new(settings).on_progress(move |progress| downloads.show(progress));
    Ok(hub.stop_when(Rc::new(move || flag.load(Ordering::Relaxed))))
}
