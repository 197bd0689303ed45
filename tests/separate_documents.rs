//! Rows of several texts that see nothing of each other.

use std::{path::Path, rc::Rc};

use dsr::{
    config::EngineConfig,
    data::{DataSource, Dataset, LoaderOptions, OpenOptions},
    engine::Engine,
    model::Model,
    tensor::Device,
};

use crate::support::{
    alone,
    numbers::assert_relative,
    tiny::{config, family, gpt2, init_engine, train},
};

/// Texts of 3 to 29 tokens below 100, as rows of token ids.
fn texts(dir: &Path, count: u64) -> Dataset {
    let row = |i: u64| {
        let ids: Vec<u64> =
            (0..3 + i * 7 % 27).map(|t| (i * 31 + t * (5 + i % 3)) % 97 + 1).collect();
        serde_json::json!({ "input_ids": ids, "labels": ids }).to_string()
    };
    let path = dir.join("texts.jsonl");
    std::fs::write(&path, (0..count).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    Dataset::open(DataSource::unguarded(path.to_str().unwrap()), &OpenOptions::default()).unwrap()
}

/// Losses and gradient norms of three steps over all rows.
fn trained(model: Rc<Model>, rows: &Dataset) -> Vec<(f64, f64)> {
    let count = rows.count().unwrap() as usize;
    let options =
        LoaderOptions { micro_batch_size: count, epochs: None, ..LoaderOptions::default() };
    let mut engine = init_engine(model, config(count, 1));
    train(&mut engine, &mut rows.loader(options).unwrap(), 3)
}

/// Losses and gradient norms are those of the texts one by one: sums in another order, 1e-6 of the losses
/// and 1e-5 of the norms.
#[test]
fn packed_rows_train_as_the_texts_one_by_one() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let rows = texts(dir.path(), 12);
    for name in [
        "bloom-h4",
        "gemma3",
        "gpt2-wide",
        "llama-gqa",
        "llama-tied-llama3",
        "mistral",
        "opt-post",
        "opt-pre",
        "phi3",
        "qwen3",
    ] {
        let packed = rows.pack_documents(48).unwrap();
        assert!(packed.count().unwrap() < 7);
        let (one_by_one, together) = (trained(family(name), &rows), trained(family(name), &packed));
        for (i, (expected, found)) in one_by_one.iter().zip(&together).enumerate() {
            assert_relative(&format!("{name}, loss {i}"), found.0, expected.0, 1e-6);
            assert_relative(&format!("{name}, norm {i}"), found.1, expected.1, 2e-5);
        }
    }
}

/// Texts of eight random tokens in pairs, the second a copy of the first: joined rows learn to copy, in
/// separate ones nothing can be known.
#[test]
fn an_answer_in_the_neighbour_text_is_not_learned() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.jsonl");
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % 30
    };
    let pairs = (0..400).flat_map(|_| {
        let ids: Vec<u64> = (0..8).map(|_| next()).collect();
        let row = serde_json::json!({ "input_ids": ids }).to_string();
        [row.clone(), row]
    });
    std::fs::write(&path, pairs.collect::<Vec<_>>().join("\n")).unwrap();
    let rows =
        Dataset::open(DataSource::unguarded(path.to_str().unwrap()), &OpenOptions::default())
            .unwrap();
    let last_loss = |rows: Dataset| {
        let sizes = [("n_embd", 64), ("n_layer", 2), ("n_head", 4), ("vocab_size", 30)];
        let dropouts = ["resid_pdrop", "embd_pdrop", "attn_pdrop"].map(|key| (key, 0.0.into()));
        let settings = sizes.map(|(key, size)| (key, size.into())).into_iter().chain(dropouts);
        let model = Rc::new(Model::from_scratch(&gpt2(settings), 1, Device::Cpu).unwrap());
        let mut with = config(16, 1);
        with.optimizer.lr = 3e-3;
        let mut engine = init_engine(model, with);
        let options =
            LoaderOptions { micro_batch_size: 16, epochs: None, ..LoaderOptions::default() };
        let curve = train(&mut engine, &mut rows.loader(options).unwrap(), 220);
        curve[210..].iter().map(|(loss, _)| loss).sum::<f64>() / 10.0
    };
    let (joined, separate) =
        (last_loss(rows.pack(16).unwrap()), last_loss(rows.pack_documents(16).unwrap()));
    let unknown = 30f64.ln();
    // Half of the joined row can be copied.
    assert!(joined < 0.75 * unknown, "{joined}");
    assert!(separate > 0.9 * unknown, "{separate}");
}

#[test]
fn a_row_has_whole_texts_and_a_long_text_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("texts.jsonl");
    let texts: [&[i64]; 4] = [&[1, 2], &[3], &[1, 2, 3, 4, 5, 6, 7, 8, 9], &[3, 3]];
    let lines = texts.map(|ids| serde_json::json!({ "input_ids": ids }).to_string());
    std::fs::write(&path, lines.join("\n")).unwrap();
    let rows =
        Dataset::open(DataSource::unguarded(path.to_str().unwrap()), &OpenOptions::default())
            .unwrap();
    let packed = rows.pack_documents(4).unwrap();
    let rows: Vec<_> = packed.rows().unwrap().map(|row| row.unwrap()).collect();
    let column =
        |name: &str| -> Vec<String> { rows.iter().map(|row| row[name].to_string()).collect() };
    assert_eq!(column("position_ids"), ["[0,1,0]", "[0,1,2,3]", "[0,1,2,3]", "[0,0,1]"]);
    let labels = column("labels");
    assert!(labels.iter().all(|row| row.starts_with("[-100,")), "{labels:?}");
}

#[test]
fn a_model_with_an_encoder_refuses_them() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let rows = texts(dir.path(), 4).pack_documents(48).unwrap();
    let with = EngineConfig { ..config(1, 1) };
    let mut engine: Engine = init_engine(family("t5-v10"), with);
    let mut loader =
        rows.loader(LoaderOptions { micro_batch_size: 1, ..LoaderOptions::default() }).unwrap();
    let e = engine.forward(&loader.next_batch().unwrap().unwrap()).unwrap_err();
    assert!(
        e.to_string().contains("separate documents are not for a model with an encoder"),
        "{e}"
    );
}
