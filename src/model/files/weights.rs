//! A model's weights in a Hugging Face directory: all of them, or none.
//!
//! `model.safetensors`, or the shards that `model.safetensors.index.json` names. Tensors may bear the
//! names of the model with its head (`transformer.h.0...`) or without (`h.0...`). Everything is
//! compared with the model first; only when every parameter has its tensor can anything be copied.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use super::{
    RepeatedRows,
    weight_files::{INDEX, SINGLE, list, no_weights, read_index},
};
use crate::{
    error::{Code, Error, Result},
    fs::Place,
    model::{architecture::WeightNames, param_spec::ParamSpec, unit::FlatUnit},
    tensor::{Device, Kind, SafetensorsFile, Tensor, dtype_name, is_floating},
    tensor_parallel::Run,
};

/// The projection to the vocabulary, in most families.
const HEAD: &str = "lm_head.weight";

/// Ends a hint on `tie_word_embeddings`, from which a T5 takes another setting where that is not there.
const SCALED: &str = "; a T5 then needs scale_decoder_outputs too: true where its embedding was \
                      tied, false where it was not";

/// The open files of a model, with the places of its tensors by their full names.
#[derive(Debug)]
pub(in crate::model) struct StoredWeights {
    dir: PathBuf,
    files: Vec<SafetensorsFile>,
    tensors: BTreeMap<String, StoredTensor>,
    /// The parameter that has more rows than its tensor.
    repeated: Option<RepeatedRows>,
}

#[derive(Debug)]
struct StoredTensor {
    /// Which of the files.
    file: usize,
    /// The name in the file.
    name: String,
}

impl StoredWeights {
    /// The weights in `dir`, which must be those of `units`, under the names of a family, but for rows that are
    /// `repeated`.
    pub(in crate::model) fn open(
        dir: impl Into<Place>,
        units: &[FlatUnit],
        (names, repeated): (Option<WeightNames>, Option<RepeatedRows>),
    ) -> Result<Self> {
        let specs = units.iter().flat_map(FlatUnit::specs);
        let params: BTreeMap<_, _> = specs.map(|spec| (spec.name.as_str(), spec)).collect();
        let names = names.unwrap_or(WeightNames { prefix: "", aliases: &[], buffers: &[] });
        let mut stored = Self::find(&dir.into(), &|name| full_name(name, names, &params))?;
        stored.repeated = repeated;
        let mut faults = stored.drop_aliases(names, &params)?;
        faults.extend(stored.faults(&params)?);
        Error::all(faults).map_or(Ok(stored), Err)
    }

    /// The format of the tensors, where all of them have the same one of 16 bits, and else float32.
    pub(in crate::model) fn kind(&self) -> Result<Kind> {
        let mut kinds = self.tensors.values().map(|at| self.files[at.file].kind(&at.name));
        let first = kinds.next().unwrap_or(Ok(Kind::Float))?;
        let is_narrow = matches!(first, Kind::Half | Kind::BFloat16);
        for kind in kinds {
            if kind? != first || !is_narrow {
                return Ok(Kind::Float);
            }
        }
        Ok(if is_narrow { first } else { Kind::Float })
    }

    /// The names of the tensors in `dir`.
    pub(in crate::model) fn names(dir: &Place) -> Result<BTreeSet<String>> {
        Ok(Self::find(dir, &|name| Some(name.to_owned()))?.tensors.into_keys().collect())
    }

    /// Fills the parameters of one of the units.
    pub(in crate::model) fn fill(&self, unit: &FlatUnit) -> Result<()> {
        for (spec, param) in unit.specs().iter().zip(unit.params()) {
            let StoredTensor { file, name } = &self.tensors[&spec.name];
            let file = &self.files[*file];
            match self.repeated.filter(|repeated| repeated.param == spec.name) {
                Some(repeated) => {
                    let shape = repeated.stored_shape(&spec.shape);
                    let stored = Tensor::f_empty(&shape[..], (param.kind(), param.device()))?;
                    file.copy_into(name, &stored)?;
                    repeated.fill(&param.f_data()?, &stored)?;
                }
                None => file.copy_into(name, param)?,
            }
        }
        Ok(())
    }

    /// Fills a part of a parameter, whose elements lie in `runs` of it; false where it is not stored as it is.
    pub(in crate::model) fn fill_runs(
        &self,
        name: &str,
        runs: &[Run],
        part: &Tensor,
    ) -> Result<bool> {
        if self.repeated.is_some_and(|repeated| repeated.param == name) {
            return Ok(false);
        }
        let StoredTensor { file, name } = &self.tensors[name];
        // Runs may be short: on the host, and one copy from there.
        let here = part.f_data()?.f_to_device(Device::Cpu)?;
        let flat = here.f_view([-1i64])?;
        for &Run { part, whole, len } in runs {
            self.files[*file].copy_part(name, whole, &flat.f_narrow(0, part, len)?)?;
        }
        if part.device() != Device::Cpu {
            part.f_data()?.f_copy_(&here)?;
        }
        Ok(true)
    }

    /// The tensors in the files of `dir`.
    fn find(dir: &Place, full_name: &FullName<'_>) -> Result<Self> {
        let (files, tensors, dir_path) = (Vec::new(), BTreeMap::new(), dir.path().to_owned());
        let mut stored = Self { dir: dir_path, files, tensors, repeated: None };
        if dir.join(SINGLE).exists() {
            stored.add_file(SafetensorsFile::open(dir.join(SINGLE))?, None, full_name)?;
        } else if dir.join(INDEX).exists() {
            for (shard, names) in read_index(dir)? {
                let file = SafetensorsFile::open(dir.join(shard))?;
                stored.add_file(file, Some(&names), full_name)?;
            }
        } else {
            return Err(no_weights(dir));
        }
        Ok(stored)
    }

    /// Adds the tensors of a file, which must be those that the index names, if there is one.
    fn add_file(
        &mut self,
        file: SafetensorsFile,
        indexed: Option<&BTreeSet<String>>,
        full_name: &FullName<'_>,
    ) -> Result<()> {
        let path = file.path().display();
        let names = file.names();
        if let Some(indexed) = indexed {
            let found: BTreeSet<_> = names.iter().cloned().collect();
            let lacking: Vec<_> = indexed.difference(&found).map(String::as_str).collect();
            let surplus: Vec<_> = found.difference(indexed).map(String::as_str).collect();
            if !lacking.is_empty() {
                bail!(Code::Weights, "{path} lacks {}, which {INDEX} promises", list(&lacking));
            }
            if !surplus.is_empty() {
                bail!(Code::Weights, "{path} has {}, which {INDEX} does not name", list(&surplus));
            }
        }
        for name in names {
            let Some(full) = full_name(&name) else { continue };
            let twice = format!("{}: {full} is there twice", self.dir.display());
            if self.tensors.insert(full, StoredTensor { file: self.files.len(), name }).is_some() {
                bail!(Code::Weights, "{twice}");
            }
        }
        self.files.push(file);
        Ok(())
    }

    /// Takes out tensors beside the parameters that they stand for: faults unless they are equal.
    fn drop_aliases(
        &mut self,
        names: WeightNames,
        params: &BTreeMap<&str, &ParamSpec>,
    ) -> Result<Vec<Error>> {
        let mut faults = Vec::new();
        for &(alias, name) in names.aliases {
            if params.contains_key(alias) {
                continue;
            }
            let Some(found) = self.tensors.remove(alias) else { continue };
            match self.tensors.get(name) {
                Some(stored_tensor) => {
                    faults.extend(self.difference((alias, &found), (name, stored_tensor))?)
                }
                // It is the one that the file has.
                None => drop(self.tensors.insert(name.to_owned(), found)),
            }
        }
        Ok(faults)
    }

    fn difference(
        &self,
        (alias, found): (&str, &StoredTensor),
        (name, stored_tensor): (&str, &StoredTensor),
    ) -> Result<Option<Error>> {
        let file = |stored: &StoredTensor| &self.files[stored.file];
        let (here, there) = (file(found), file(stored_tensor));
        if here.has_same(&found.name, there, &stored_tensor.name)? {
            return Ok(None);
        }
        let shown = |stored: &StoredTensor| -> Result<String> {
            let name = &stored.name;
            Ok(format!("{} {:?}", dtype_name(file(stored).kind(name)?), file(stored).shape(name)?))
        };
        let text = format!(
            "{}: {alias}, {}, differs from {name}, {}, and config.json ties the two",
            self.dir.display(),
            shown(found)?,
            shown(stored_tensor)?
        );
        let e = Error::new(Code::Weights, text);
        Ok(Some(match alias {
            HEAD => e.hint(format!(
                "with tie_word_embeddings: false in config.json, both are loaded{SCALED}"
            )),
            _ => e,
        }))
    }

    /// Everything in which the files differ from the parameters.
    fn faults(&self, params: &BTreeMap<&str, &ParamSpec>) -> Result<Vec<Error>> {
        let dir = self.dir.display();
        let missing: Vec<_> =
            params.keys().copied().filter(|name| !self.tensors.contains_key(*name)).collect();
        let surplus: Vec<_> = self
            .tensors
            .iter()
            .filter(|(full, _)| !params.contains_key(full.as_str()))
            .map(|(_, stored_tensor)| stored_tensor.name.as_str())
            .collect();
        let (shapes, dtypes) = self.mismatches(params)?;
        let mut faults = Vec::new();
        if !missing.is_empty() {
            let e = Error::new(Code::Weights, format!("{dir} lacks {}", list(&missing)));
            faults.push(match missing.contains(&HEAD) {
                true => e.hint(format!(
                    "a model without a head of its own has tie_word_embeddings: true{SCALED}"
                )),
                false => e,
            });
        }
        if !surplus.is_empty() {
            let text = format!("{dir} has tensors that the model has not: {}", list(&surplus));
            faults.push(Error::new(Code::Weights, text));
        }
        if !shapes.is_empty() {
            let text = format!("{dir} has tensors of another shape: {}", list(&shapes));
            faults.push(Error::new(Code::Weights, text).hint(
                "config.json does not belong to these weights: see vocab_size and the widths",
            ));
        }
        if !dtypes.is_empty() {
            let text =
                format!("{dir} has tensors that are not F32, F16, BF16 or F64: {}", list(&dtypes));
            faults.push(Error::new(Code::Weights, text));
        }
        Ok(faults)
    }

    /// The tensors whose shape is another than the parameter's, and those that hold no
    /// floating-point numbers.
    fn mismatches(
        &self,
        params: &BTreeMap<&str, &ParamSpec>,
    ) -> Result<(Vec<String>, Vec<String>)> {
        let (mut shapes, mut dtypes) = (Vec::new(), Vec::new());
        for (&name, param) in params {
            let Some(stored_tensor) = self.tensors.get(name) else { continue };
            let file = &self.files[stored_tensor.file];
            let found = file.shape(&stored_tensor.name)?;
            let expected = match self.repeated.filter(|repeated| repeated.param == name) {
                Some(repeated) => repeated.stored_shape(&param.shape),
                None => param.shape.clone(),
            };
            if found != expected {
                shapes.push(format!("{name} is {found:?}, expected {expected:?}"));
            }
            match file.kind(&stored_tensor.name) {
                Ok(kind) if is_floating(kind) => {}
                _ => dtypes.push(name.to_owned()),
            }
        }
        Ok((shapes, dtypes))
    }
}

/// The parameter that a tensor's name stands for; `None` for a tensor that is no parameter.
type FullName<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// The name in the model with its head of a tensor in a file, which may be of the model without.
fn full_name(
    name: &str,
    names: WeightNames,
    params: &BTreeMap<&str, &ParamSpec>,
) -> Option<String> {
    let prefixed = format!("{}{name}", names.prefix);
    let is_known = |name: &str| {
        params.contains_key(name) || names.aliases.iter().any(|(alias, _)| *alias == name)
    };
    let full = if is_known(name) || !is_known(&prefixed) { name.to_owned() } else { prefixed };
    let is_buffer = names.buffers.iter().any(|end| full.ends_with(end));
    (is_known(&full) || !is_buffer).then_some(full)
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir, remove_file, write as write_file};

    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;
    use crate::{model::Init, tensor::safetensors};

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
    const BIAS: &str = "transformer.h.0.attn.c_attn.bias";
    const TOKEN_EMBEDDING: &str = "transformer.wte.weight";
    const NAMES: WeightNames = WeightNames {
        prefix: "transformer.",
        aliases: &[(HEAD, TOKEN_EMBEDDING)],
        buffers: &[".attn.bias", ".attn.masked_bias"],
    };

    /// An embedding, a block of one parameter and, if not tied, a head.
    fn units(tied: bool) -> Vec<FlatUnit> {
        let spec = |name, shape: &[i64]| ParamSpec::new(name, shape, Init::Zeros);
        let mut specs = vec![spec(TOKEN_EMBEDDING, &[4, 3]), spec(BIAS, &[6])];
        if !tied {
            specs.push(spec(HEAD, &[4, 3]));
        }
        specs.into_iter().map(|spec| FlatUnit::zeros(vec![spec], Device::Cpu).unwrap()).collect()
    }

    fn embedding() -> Tensor {
        Tensor::arange(12, CPU).view([4, 3])
    }

    fn bias() -> Tensor {
        Tensor::arange(6, CPU) - 7.5
    }

    fn directory(tensors: &[(&str, &Tensor)]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        safetensors::write_tensors(dir.path().join(SINGLE), tensors.iter().copied()).unwrap();
        dir
    }

    /// The faults of the weights, without the directory.
    fn refusal(dir: &TempDir, tied: bool) -> Vec<String> {
        let e = StoredWeights::open(dir.path(), &units(tied), (Some(NAMES), None)).unwrap_err();
        assert_eq!(e.code(), Code::Weights);
        let stored_tensor = dir.path().display().to_string();
        let text =
            e.to_string().replace(&format!("{stored_tensor}/"), "").replace(&stored_tensor, "DIR");
        text.lines().map(str::to_owned).collect()
    }

    fn assert_loaded(dir: &TempDir, tied: bool) {
        let units = units(tied);
        let weights = StoredWeights::open(dir.path(), &units, (Some(NAMES), None)).unwrap();
        units.iter().try_for_each(|unit| weights.fill(unit)).unwrap();
        assert!(units[0].params()[0].equal(&embedding()));
        assert!(units[1].params()[0].equal(&bias()));
        assert!(tied || units[2].params()[0].equal(&(embedding() * 2)));
    }

    /// Two shards and their index.
    fn sharded(index: &Value) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |name, tensors: [(&str, &Tensor); 1]| {
            safetensors::write_tensors(dir.path().join(name), tensors).unwrap();
        };
        write("one.safetensors", [("wte.weight", &embedding())]);
        write("two.safetensors", [(BIAS, &bias())]);
        write_file(dir.path().join(INDEX), index.to_string()).unwrap();
        dir
    }

    fn index(bias_shard: &str) -> Value {
        json!({"weight_map": {"wte.weight": "one.safetensors", BIAS: bias_shard}})
    }

    #[test]
    fn names_of_both_models_any_float_and_old_masks_are_fine() {
        let half = embedding().to_kind(Kind::Half);
        let bfloat = bias().to_kind(Kind::BFloat16);
        let mask = Tensor::ones([1, 1, 2, 2], (Kind::Uint8, Device::Cpu));
        assert_loaded(&directory(&[(TOKEN_EMBEDDING, &half), (BIAS, &bfloat)]), true);
        assert_loaded(
            &directory(&[
                ("wte.weight", &embedding()),
                ("h.0.attn.c_attn.bias", &bias()),
                ("h.0.attn.bias", &mask),
                ("transformer.h.0.attn.masked_bias", &mask),
            ]),
            true,
        );
    }

    #[test]
    fn a_head_is_loaded_equal_or_refused() {
        let (embedding, bias) = (embedding(), bias());
        let rest = [(TOKEN_EMBEDDING, &embedding), (BIAS, &bias)];
        let other = &embedding * 2;
        let with_head = |head| directory(&[rest[0], rest[1], (HEAD, head)]);
        assert_loaded(&with_head(&other), false);
        assert_loaded(&with_head(&embedding), true);
        assert_eq!(
            refusal(&with_head(&other), true),
            ["DIR: lm_head.weight, float32 [4, 3], differs from transformer.wte.weight, \
              float32 [4, 3], and config.json ties the two"]
        );
        assert_eq!(refusal(&directory(&rest), false), ["DIR lacks lm_head.weight"]);
    }

    #[test]
    fn all_that_does_not_fit_is_told_at_once() {
        let ids = Tensor::zeros([6], (Kind::Int64, Device::Cpu));
        let wide = Tensor::zeros([5, 3], CPU);
        let dir = directory(&[("wte.weight", &wide), (BIAS, &ids), ("score.weight", &wide)]);
        assert_eq!(
            refusal(&dir, false),
            [
                "DIR lacks lm_head.weight",
                "DIR has tensors that the model has not: score.weight",
                "DIR has tensors of another shape: transformer.wte.weight is [5, 3], \
                 expected [4, 3]",
                "DIR has tensors that are not F32, F16, BF16 or F64: \
                 transformer.h.0.attn.c_attn.bias",
            ]
        );
        let many: Vec<_> = (10..32).map(|i| format!("x{i}")).collect();
        let bias = bias();
        let tensors: Vec<_> = many.iter().map(|name| (name.as_str(), &bias)).collect();
        let faults = refusal(&directory(&tensors), true);
        assert!(faults[1].ends_with("x28, x29 and 2 more"), "{faults:?}");
        let twice = directory(&[(BIAS, &bias), ("h.0.attn.c_attn.bias", &bias)]);
        assert_eq!(refusal(&twice, true), [format!("DIR: {BIAS} is there twice")]);
    }

    #[test]
    fn shards_are_loaded_through_their_index() {
        let dir = sharded(&index("two.safetensors"));
        assert_loaded(&dir, true);
        remove_file(dir.path().join("two.safetensors")).unwrap();
        assert_eq!(
            refusal(&dir, true),
            [format!("DIR lacks shards that {INDEX} names: two.safetensors")]
        );
    }

    #[test]
    fn an_index_stays_in_its_directory() {
        let outside = directory(&[(BIAS, &bias())]);
        let absolute = outside.path().join(SINGLE);
        for shard in ["../x", "a/b", "/x", "..", ".", "", "x/", absolute.to_str().unwrap()] {
            let faults = refusal(&sharded(&index(shard)), true);
            assert!(
                faults[0].contains("must be the name of a file beside the index"),
                "{faults:?}"
            );
        }
    }

    #[test]
    fn an_index_says_what_its_shards_hold() {
        let message = |index: &Value| refusal(&sharded(index), true).remove(0);
        assert_eq!(
            message(&index("one.safetensors")),
            format!("one.safetensors lacks {BIAS}, which {INDEX} promises")
        );
        let mut moved = index("two.safetensors");
        moved["weight_map"]["ghost"] = json!("two.safetensors");
        assert!(message(&moved).starts_with("two.safetensors lacks ghost"));
        let only_one = json!({"weight_map": {BIAS: "two.safetensors", "x": "one.safetensors"}});
        assert!(message(&only_one).starts_with("one.safetensors lacks x"));
        assert!(message(&json!({"weight_map": []})).ends_with("an object of shards by tensor"));
        assert!(message(&json!({"weight_map": {BIAS: 1}})).contains("got 1"));
    }

    #[test]
    fn a_directory_without_safe_weights_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            refusal(&dir, true),
            [format!("no weights in DIR: looked for {SINGLE} and {INDEX}")]
        );
        write_file(dir.path().join("pytorch_model.bin"), "").unwrap();
        let e = StoredWeights::open(dir.path(), &units(true), (Some(NAMES), None)).unwrap_err();
        assert!(e.message().contains("pytorch_model.bin only, a pickle"), "{e}");
        assert!(e.hints()[0].contains("save_pretrained"), "{e:?}");
        write_file(dir.path().join(SINGLE), "short").unwrap();
        assert!(refusal(&dir, true)[0].starts_with("model.safetensors is truncated"));
        remove_file(dir.path().join(SINGLE)).unwrap();
        create_dir(dir.path().join(SINGLE)).unwrap();
        let e = StoredWeights::open(dir.path(), &units(true), (Some(NAMES), None)).unwrap_err();
        assert_eq!(e.code(), Code::Io);
    }
}
