//! Writing a model as a Hugging Face directory that transformers loads.
//!
//! `config.json`, `generation_config.json`, `model.safetensors` (or shards with their index) and,
//! with a tokenizer, `tokenizer.json` and `tokenizer_config.json`. The directory appears whole or
//! not at all. An existing directory is replaced only if it holds an export and nothing
//! else.

use std::ops::Range;

use serde_json::{Map, Value, json};

use super::{
    weight_files::{self, INDEX, SINGLE},
    weights::StoredWeights,
};
use crate::{
    companions::{COMPANIONS, Companions, ExportedTokenizer, companions, text_of},
    error::{Code, Error, Result},
    fs::{NewDir, Place, write_atomic},
    model::{FlatUnit, Gathered, Model, ModelInfo, ParamPlace, ParamSpec, is_of_adapter},
    tensor::{
        Kind, Tensor, dtype_name,
        safetensors::{self, TensorEntry},
    },
};

const CONFIG: &str = "config.json";
/// The largest shard, as in transformers 5.
const MOST_SHARD_BYTES: usize = 50_000_000_000;

/// Brings a parameter by its number.
type Fetch<'a> = &'a mut dyn FnMut(usize) -> Result<Tensor>;

impl Model {
    /// Writes the model as a directory that transformers loads, in its own format (that of the
    /// `precision` it was trained with last), with `tokenizer` or else the files of the one that the
    /// model was loaded with.
    ///
    /// # Errors
    /// [`Code::DiskFull`], [`Code::Io`]; nothing is then changed. A directory that holds anything
    /// but an earlier export is not overwritten. [`Code::BadValue`] for a model that transformers
    /// does not have.
    pub fn export_hf(
        &self,
        dir: impl Into<Place>,
        tokenizer: Option<&ExportedTokenizer>,
    ) -> Result<()> {
        let facts = self.exported_facts()?;
        let (entries, mut fetch) = self.entries();
        let companions = companions(facts.for_companions(), self.companions(), tokenizer)?;
        export(&dir.into(), facts, &entries, &mut fetch, &companions)
    }

    /// Writes the files that the model came with beside config and weights into `dir`.
    pub fn write_companions(&self, dir: &Place) -> Result<()> {
        let Companions(files) = self.companions();
        files.iter().try_for_each(|(name, bytes)| write_atomic(dir.join(name), bytes))
    }

    /// Writes the files beside config and weights into `dir`, those of `tokenizer` in the place of those that
    /// the model came with.
    pub fn write_companions_with(&self, dir: &Place, tokenizer: &ExportedTokenizer) -> Result<()> {
        let files = companions(self.facts().for_companions(), self.companions(), Some(tokenizer))?;
        self.companions().replace(dir, &files)
    }

    /// The names of the files in `dir` that have the weights.
    pub(in crate::model) fn weight_files(dir: &Place) -> Result<Vec<String>> {
        weight_files::file_names(dir)
    }

    /// Takes part in the [`Model::export_hf`] of another rank. Where the parameters are
    /// [sharded](Model::is_sharded), every other rank must call it.
    pub fn attend_export(&self) -> Result<()> {
        self.exported_facts()?;
        let (entries, mut fetch) = self.entries();
        attend(&entries, &mut fetch)
    }

    fn exported_facts(&self) -> Result<&ModelInfo> {
        if self.facts().names.is_some() {
            return Ok(self.facts());
        }
        Err(Error::new(Code::BadValue, "transformers has no model with layers of your own")
            .hint("a checkpoint of the engine holds the weights as safetensors, under the names of the parameters"))
    }

    /// Every parameter as it is exported, with what an adapter makes of it, and what brings it by its number; unit after unit.
    fn entries(&self) -> (Vec<TensorEntry<'_>>, impl FnMut(usize) -> Result<Tensor>) {
        self.brought(|name| !is_of_adapter(name))
    }

    /// The parameters whose names are `chosen`, unit after unit, and what brings them by their number from
    /// the stage that has them: those of the base with what an adapter makes of them.
    pub(in crate::model) fn brought(
        &self,
        chosen: fn(&str) -> bool,
    ) -> (Vec<TensorEntry<'_>>, impl FnMut(usize) -> Result<Tensor>) {
        let (mut entries, mut places) = (Vec::new(), Vec::new());
        // Units of other stages have not changed their format here.
        let kind = self.units().first().map_or(Kind::Float, FlatUnit::kind);
        for (i, unit) in self.whole_units().iter().enumerate() {
            let specs = unit.specs().iter().enumerate();
            for (j, ParamSpec { name, shape, .. }) in specs.filter(|(_, spec)| chosen(&spec.name)) {
                entries.push(TensorEntry { name, kind, shape });
                places.push((i, j, &shape[..]));
            }
        }
        let pipeline = self.pipeline();
        let mut gathered: Option<(usize, Gathered<'_>)> = None;
        let fetch = move |param: usize| {
            let (number, j, shape) = places[param];
            let local = self.local_unit(number);
            let owned = pipeline.as_ref().is_none_or(|pipeline| pipeline.owns(number));
            let Some(i) = local.filter(|_| owned) else {
                let none = || Error::new(Code::Internal, "a unit without a stage");
                return pipeline.as_ref().ok_or_else(none)?.bring(number, None, (shape, kind));
            };
            if gathered.as_ref().is_none_or(|&(unit, _)| unit != i) {
                // The old one goes before the new one comes.
                gathered = None;
                gathered = Some((i, self.gather_unit(i)?));
            }
            let value = self.merged_param(ParamPlace { unit: i, index: j })?;
            let Some(pipeline) = &pipeline else { return Ok(value) };
            let param = self.joined(number, j, &value.detach())?;
            pipeline.bring(number, Some(&param), (shape, kind))
        };
        (entries, fetch)
    }
}

/// Writes parameters, all in one format and under their names in transformers, to `target`;
/// `fetch` brings them one at a time.
fn export(
    target: &Place,
    facts: &ModelInfo,
    params: &[TensorEntry<'_>],
    fetch: Fetch<'_>,
    companions: &[(&str, Vec<u8>)],
) -> Result<()> {
    let dtype = dtype(params)?;
    refuse_other_files(target)?;
    let new = NewDir::create(target)?;
    let dir = new.place();
    let mut json = facts.config.clone();
    json.insert("dtype".to_owned(), dtype.into());
    write_json(&dir.join(CONFIG), json)?;
    for (name, bytes) in companions {
        write_atomic(dir.join(name), bytes)?;
    }
    write_weights(Some(dir), params, fetch, MOST_SHARD_BYTES)?;
    new.publish()
}

/// Brings the parameters as [`export`] does on another rank, and writes nothing.
fn attend(params: &[TensorEntry<'_>], fetch: Fetch<'_>) -> Result<()> {
    write_weights(None, params, fetch, MOST_SHARD_BYTES)
}

/// The name that transformers has for the format of all tensors.
fn dtype(params: &[TensorEntry<'_>]) -> Result<String> {
    let kind = params.first().map_or(Kind::Float, |param| param.kind);
    if let Some(other) = params.iter().find(|param| param.kind != kind) {
        bail!(
            Code::Internal,
            "{} is {}, and others are {}",
            other.name,
            dtype_name(other.kind),
            dtype_name(kind)
        );
    }
    match kind {
        Kind::Float | Kind::BFloat16 | Kind::Half => Ok(dtype_name(kind)),
        other => bail!(Code::Internal, "weights are not exported as {}", dtype_name(other)),
    }
}

/// Refuses to replace anything but a directory that holds an export and nothing else: files of its names,
/// a config that says which model it is, and weights that are whole.
fn refuse_other_files(target: &Place) -> Result<()> {
    if !target.is_taken()? {
        return Ok(());
    }
    let refused = |why: &str| {
        let message = format!("{} is not replaced by an export: {why}", target.display());
        let hint = "export to a directory that does not exist yet";
        Err(Error::new(Code::BadValue, message).hint(hint))
    };
    if !target.is_dir() || target.is_link()? {
        return refused("it is no directory");
    }
    let mut others = Vec::new();
    let names = target.list()?;
    for name in &names {
        let (place, name) = (target.join(name), name.to_string_lossy());
        if !is_of_an_export(&name) || place.is_link()? || !place.is_file() {
            others.push(name);
        }
    }
    if let Some(first) = others.first() {
        let more = match others.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        return refused(&format!("it holds {first}{more}, which is not of an export"));
    }
    if names.is_empty() {
        return Ok(());
    }
    let config = target.join(CONFIG);
    let config = config.is_file().then(|| config.read()).transpose()?.unwrap_or_default();
    let config: Value = serde_json::from_slice(&config).unwrap_or_default();
    if config.get("model_type").is_none() || StoredWeights::names(target).is_err() {
        return refused("its config.json and weights are not those of an export");
    }
    Ok(())
}

fn is_of_an_export(name: &str) -> bool {
    let files = [CONFIG, SINGLE, INDEX];
    let is_shard = || {
        let numbers = name.strip_prefix("model-")?.strip_suffix(".safetensors")?;
        let (number, count) = numbers.split_once("-of-")?;
        Some([number, count].iter().all(|n| n.len() == 5 && n.bytes().all(|b| b.is_ascii_digit())))
    };
    files.contains(&name) || COMPANIONS.contains(&name) || is_shard() == Some(true)
}

/// One file, or shards of at most `most_bytes` (or one tensor) with their index.
fn write_weights(
    dir: Option<&Place>,
    params: &[TensorEntry<'_>],
    fetch: Fetch<'_>,
    most_bytes: usize,
) -> Result<()> {
    let mut write = |file: &str, shard: Range<usize>| {
        let place = dir.map(|dir| dir.join(file));
        let first = shard.start;
        let entries = params[shard].iter().copied();
        safetensors::write(place.as_ref(), entries, |i| fetch(first + i))
    };
    let shards = shards(params, most_bytes);
    if let [all] = &shards[..] {
        return write(SINGLE, all.clone());
    }
    let mut weight_map = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write(&file, shard.clone())?;
        let names = params[shard.clone()].iter().map(|param| param.name);
        weight_map.extend(names.map(|name| (name.to_owned(), json!(file))));
    }
    let Some(dir) = dir else { return Ok(()) };
    weight_map.sort_keys();
    let mut index = Map::new();
    let metadata = json!({
        "total_parameters": params.iter().map(numel).sum::<usize>(),
        "total_size": params.iter().map(bytes_of).sum::<usize>(),
    });
    index.insert("metadata".to_owned(), metadata);
    index.insert("weight_map".to_owned(), weight_map.into());
    write_json(&dir.join(INDEX), index)
}

/// Fills shard after shard in the order of the parameters; at least one, even if it is empty.
fn shards(params: &[TensorEntry<'_>], most_bytes: usize) -> Vec<Range<usize>> {
    let (mut shards, mut first, mut filled) = (Vec::new(), 0, 0);
    for (i, param) in params.iter().enumerate() {
        let bytes = bytes_of(param);
        if i > first && filled + bytes > most_bytes {
            shards.push(first..i);
            (first, filled) = (i, 0);
        }
        filled += bytes;
    }
    shards.push(first..params.len());
    shards
}

fn numel(param: &TensorEntry<'_>) -> usize {
    param.shape.iter().product::<i64>() as usize
}

fn bytes_of(param: &TensorEntry<'_>) -> usize {
    numel(param) * param.kind.elt_size_in_bytes()
}

fn write_json(place: &Place, map: Map<String, Value>) -> Result<()> {
    write_atomic(place, &text_of(map))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{create_dir, read, read_dir, write},
        path::Path,
    };

    use super::*;
    use crate::{
        companions::{GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG},
        model::{FlatUnit, Init, ModelConfig, files::StoredWeights},
        tensor::Device,
    };

    /// Three parameters of 48, 24 and 48 bytes.
    fn units() -> Vec<FlatUnit> {
        let specs = [
            ParamSpec::new("transformer.wte.weight", &[4, 3], Init::Zeros),
            ParamSpec::new("transformer.h.0.ln_1.bias", &[6], Init::Zeros),
            ParamSpec::new("lm_head.weight", &[4, 3], Init::Zeros),
        ];
        specs.into_iter().map(|spec| FlatUnit::zeros(vec![spec], Device::Cpu).unwrap()).collect()
    }

    fn named(units: &[FlatUnit]) -> impl Iterator<Item = (&str, &Tensor)> {
        units
            .iter()
            .flat_map(|unit| unit.specs().iter().zip(unit.params()))
            .map(|(spec, param)| (spec.name.as_str(), param))
    }

    fn random_units() -> Vec<FlatUnit> {
        let units = units();
        for unit in &units {
            let _ = unit.flat().unwrap().shallow_clone().uniform_(-1.0, 1.0);
        }
        units
    }

    fn entries(units: &[FlatUnit]) -> Vec<TensorEntry<'_>> {
        let specs = units.iter().flat_map(FlatUnit::specs);
        specs
            .map(|ParamSpec { name, shape, .. }| TensorEntry { name, kind: Kind::Float, shape })
            .collect()
    }

    fn fetch(units: &[FlatUnit]) -> impl FnMut(usize) -> Result<Tensor> {
        |i| Ok(units[i].params()[0].shallow_clone())
    }

    fn export(
        dir: &Path,
        facts: &ModelInfo,
        units: &[FlatUnit],
        tokenizer_json: Option<&[u8]>,
    ) -> Result<()> {
        let given = tokenizer_json
            .map(|json| ExportedTokenizer { json: json.to_vec(), ..ExportedTokenizer::default() });
        let companions =
            companions(facts.for_companions(), &Companions::default(), given.as_ref())?;
        super::export(&dir.into(), facts, &entries(units), &mut fetch(units), &companions)
    }

    fn assert_loads(dir: &Path, expected: &[FlatUnit]) {
        let loaded = units();
        let weights = StoredWeights::open(dir, &loaded, (None, None)).unwrap();
        loaded.iter().try_for_each(|unit| weights.fill(unit)).unwrap();
        for ((name, a), (_, b)) in named(&loaded).zip(named(expected)) {
            assert!(a.equal(b), "{name}");
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn json_of(path: &Path) -> Value {
        serde_json::from_slice(&read(path).unwrap()).unwrap()
    }

    fn facts() -> ModelInfo {
        let untied = [("tie_word_embeddings", false.into()), ("bos_token_id", Value::Null)];
        let config = ModelConfig::named("gpt2").unwrap().with(untied, "test").unwrap();
        config.architecture().unwrap().facts
    }

    #[test]
    fn an_export_loads_bit_by_bit() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("hf");
        let units = random_units();
        export(&dir, &facts(), &units, None).unwrap();
        assert_eq!(names(&dir), ["config.json", "generation_config.json", "model.safetensors"]);
        assert_loads(&dir, &units);
        let read = ModelConfig::read(&dir).unwrap().architecture().unwrap().facts;
        assert_eq!(read.config, facts().config);
        let generation = json_of(&dir.join(GENERATION_CONFIG));
        assert_eq!(generation, json!({"_from_model_config": true, "eos_token_id": 50256}));
    }

    #[test]
    fn a_large_model_is_sharded_with_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let units = random_units();
        write_weights(Some(&dir.path().into()), &entries(&units), &mut fetch(&units), 72).unwrap();
        let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
        assert_eq!(names(dir.path()), [one, two, INDEX]);
        assert_eq!(
            json_of(&dir.path().join(INDEX)),
            json!({
                "metadata": {"total_parameters": 30, "total_size": 120},
                "weight_map": {
                    "lm_head.weight": two,
                    "transformer.h.0.ln_1.bias": one,
                    "transformer.wte.weight": one,
                },
            })
        );
        assert!(names(dir.path()).iter().all(|name| is_of_an_export(name)));
        assert_loads(dir.path(), &units);
        let each = tempfile::tempdir().unwrap();
        write_weights(Some(&each.path().into()), &entries(&units), &mut fetch(&units), 1).unwrap();
        assert_eq!(names(each.path()).len(), 4);
        assert_loads(each.path(), &units);
    }

    #[test]
    fn a_tokenizer_comes_along_with_its_special_tokens() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("hf");
        let tokenizer = json!({"added_tokens": [
            {"id": 50256, "content": "<|endoftext|>", "special": true},
            {"id": 0, "content": "<s>", "special": false},
        ]});
        let bytes = tokenizer.to_string().into_bytes();
        let facts = ModelInfo { bos_token_id: Some(0), ..facts() };
        export(&dir, &facts, &units(), Some(&bytes)).unwrap();
        assert_eq!(read(dir.join(TOKENIZER)).unwrap(), bytes);
        assert_eq!(
            json_of(&dir.join(TOKENIZER_CONFIG)),
            json!({
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": 1024,
                "clean_up_tokenization_spaces": false,
                "eos_token": "<|endoftext|>",
            })
        );
        let e = export(&dir, &facts, &units(), Some(b"{")).unwrap_err();
        assert_eq!(e.code(), Code::Tokenizer);
        assert!(dir.join(TOKENIZER).exists(), "a failed export leaves the old one");
        assert_eq!(names(root.path()), ["hf"]);
    }

    #[test]
    fn the_files_that_a_model_came_with_go_on_as_they_are() {
        let files = [
            (TOKENIZER, "{}"),
            (TOKENIZER_CONFIG, "mine"),
            ("vocab.json", "{}"),
            (GENERATION_CONFIG, "its own"),
        ];
        let own = Companions(files.map(|(name, text)| (name, text.as_bytes().to_vec())).to_vec());
        let text = |files: &[(&str, Vec<u8>)], wanted: &str| {
            let file = files.iter().find(|(name, _)| *name == wanted).unwrap();
            String::from_utf8(file.1.clone()).unwrap()
        };
        let kept = companions(facts().for_companions(), &own, None).unwrap();
        assert_eq!((kept.len(), text(&kept, TOKENIZER_CONFIG)), (4, "mine".to_owned()));
        let json = br#"{"added_tokens": []}"#.to_vec();
        let eos_token = Some("<|end|>".to_owned());
        let given = ExportedTokenizer { json, eos_token, ..ExportedTokenizer::default() };
        let other = companions(facts().for_companions(), &own, Some(&given)).unwrap();
        assert_eq!(text(&other, GENERATION_CONFIG), "its own");
        assert!(text(&other, TOKENIZER_CONFIG).contains("\"eos_token\": \"<|end|>\""));
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in &own.0 {
            write(dir.path().join(name), bytes).unwrap();
        }
        own.replace(&dir.path().into(), &other).unwrap();
        assert_eq!(names(dir.path()), [GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG]);
    }

    #[test]
    fn every_form_of_a_tokenizer_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let forms =
            ["added_tokens.json", "merges.txt", "spiece.model", "tokenizer.model", "vocab.json"];
        for name in forms {
            write(dir.path().join(name), name).unwrap();
            assert!(is_of_an_export(name));
        }
        let own = Companions::read(&dir.path().into()).unwrap();
        let handed_on = companions(facts().for_companions(), &own, None).unwrap();
        for name in forms {
            let file = handed_on.iter().find(|(handed_on, _)| *handed_on == name);
            assert_eq!(file.unwrap().1, name.as_bytes());
        }
    }

    /// Its own settings and its template, but transformers takes the rules as they are.
    #[test]
    fn a_tokenizer_keeps_what_it_came_with() {
        let config = serde_json::json!({
            "tokenizer_class": "LlamaTokenizer", "bos_token": null, "model_max_length": 9,
            "chat_template": "old",
        });
        let given = ExportedTokenizer {
            json: br#"{"added_tokens": [{ "id": 0, "content": "<s>", "special": true }]}"#.to_vec(),
            config: config.as_object().unwrap().clone(),
            chat_template: Some("{{ messages }}".to_owned()),
            ..ExportedTokenizer::default()
        };
        let files =
            companions(facts().for_companions(), &Companions::default(), Some(&given)).unwrap();
        let file = |wanted: &str| &files.iter().find(|(name, _)| *name == wanted).unwrap().1[..];
        assert_eq!(file("chat_template.jinja"), b"{{ messages }}");
        let written: serde_json::Value = serde_json::from_slice(file(TOKENIZER_CONFIG)).unwrap();
        let expected = serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": null, "model_max_length": 9,
            "clean_up_tokenization_spaces": false,
        });
        assert_eq!(written, expected);
    }

    #[test]
    fn only_an_export_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("hf");
        create_dir(&dir).unwrap();
        export(&dir, &facts(), &units(), Some(b"{}")).unwrap();
        let units = random_units();
        export(&dir, &facts(), &units, None).unwrap();
        assert!(!dir.join(TOKENIZER).exists());
        write(dir.join("notes.txt"), "mine").unwrap();
        write(dir.join("model-1-of-2.safetensors"), "mine").unwrap();
        let e = export(&dir, &facts(), &units, None).unwrap_err();
        assert_eq!(e.code(), Code::BadValue);
        assert!(e.message().contains("it holds model-1-of-2.safetensors and 1 more"), "{e}");
        assert_eq!(read(dir.join("notes.txt")).unwrap(), b"mine");
        assert_loads(&dir, &units);
    }
}
