//! A model that a command runs without a recipe: of a directory, of a run, or of the hub.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::{
    Console,
    device::DeviceArgs,
    download::Downloads,
    served_files::{AdapterFiles, ModelFiles},
    signals,
};
use crate::{
    companions::has_tokenizer,
    config::{Dtype, DtypeChoice, QuantizationKind, QuantizeOptions},
    data::{DataSource, Tokenizer},
    error::Result,
    fs::Place,
    hub::{Hub, HubSettings, TOKENIZER_FILES},
    model::{Model, ModelConfig},
    run::Interrupt,
    tensor::{Device, LocalRank},
};

/// The model of a command.
#[derive(Debug, clap::Args)]
pub(super) struct ModelArgs {
    /// A directory with config.json and safetensors, a run or a checkpoint, or a model on the hub; an adapter
    /// where it names its base.
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
    #[arg(long, value_name = "KIND", value_parser = one_of(QuantizationKind::NAMES))]
    quantize: Option<QuantizationKind>,

    /// Quantize the embedding of tokens and the projection to the vocabulary as well.
    #[arg(long, requires = "quantize")]
    include_input_output_embeddings: bool,

    /// Compute in this format; auto is that of the files [default: auto on a GPU, fp32 on a CPU].
    #[arg(long, value_name = "DTYPE", value_parser = one_of(DtypeChoice::NAMES))]
    dtype: Option<DtypeChoice>,

    #[command(flatten)]
    device: DeviceArgs,
}

/// A parser of these words.
fn one_of<T: Copy + Default + Send + Sync>(
    names: &'static [(&'static str, T)],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(names.iter().map(|(name, _)| *name)).map(move |name| {
        let known = names.iter().find(|(known, _)| *known == name);
        known.map_or_else(T::default, |(_, value)| *value)
    })
}

/// A model with its tokenizer, and the signal that ends what it does.
pub(super) struct Served {
    pub(super) model: Rc<Model>,
    pub(super) tokenizer: Tokenizer,
    /// The directory of the model's files, or of its adapter's, where the tokenizer is there.
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
        let ModelFiles { base, adapter } =
            ModelFiles::find(&self.model, self.adapter.as_deref(), &files)?;
        let model = self.load(&base, adapter.as_ref())?;
        let directory = match adapter {
            Some(AdapterFiles { dir, .. }) if has_tokenizer(&Place::unguarded(&dir)) => dir,
            _ => base,
        };
        let tokenizer = match &self.tokenizer {
            Some(spec) => match DataSource::unguarded(spec) {
                DataSource::Hub { repo, .. } => {
                    Tokenizer::from_path(Place::unguarded(files(&repo, TOKENIZER_FILES)?))?
                }
                here => Tokenizer::open(here)?,
            },
            None => Tokenizer::from_path(Place::unguarded(&directory))
                .map_err(|e| e.hint("name one with --tokenizer, such as dsr:gpt2"))?,
        };
        Ok(Served { model, tokenizer, directory, interrupt })
    }

    /// The model of these files, with its adapter.
    fn load(&self, base: &Path, adapter: Option<&AdapterFiles>) -> Result<Rc<Model>> {
        let device = self.device.choice().resolve(LocalRank::ALONE)?;
        let base = Place::unguarded(base);
        let dtype = self.dtype.unwrap_or(match device {
            Device::Cpu => DtypeChoice::Given(Dtype::Fp32),
            _ => DtypeChoice::Auto,
        });
        let mut model = Model::load(&base, &ModelConfig::read(&base)?, device)?.in_dtype(dtype)?;
        if let Some(adapter) = adapter {
            adapter.check_base(&model.origin_record()?)?;
        }
        let options = QuantizeOptions {
            quantize: self.quantize,
            double_quant: false,
            include_input_output_embeddings: self.include_input_output_embeddings,
        };
        let of_adapter = || adapter.and_then(|adapter| adapter.quantization);
        let quantization = options.quantization().or_else(of_adapter);
        if let Some(quantization) = quantization {
            model = model.quantized(quantization)?;
        }
        let model = Rc::new(model);
        let Some(adapter) = adapter else { return Ok(model) };
        let model = model.load_adapter(Place::unguarded(&adapter.dir))?;
        match quantization {
            Some(_) => Ok(model),
            // Merged it costs nothing more.
            None => model.merged(false),
        }
    }
}

fn hub(console: &Console, interrupt: &Interrupt) -> Result<Hub> {
    let settings = HubSettings::from_env(|name| std::env::var(name).ok())?;
    let downloads = Downloads::new(console.clone());
    let flag = interrupt.flag();
    let hub = Hub::new(settings).on_progress(move |progress| downloads.show(progress));
    Ok(hub.stop_when(Arc::new(move || flag.load(Ordering::Relaxed))))
}
