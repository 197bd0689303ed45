//! Tokenizers, datasets, loaders and batches, as recipes use them.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use dsr::{error::Code, recipe::Failure, script::Session};
use parquet::arrow::ArrowWriter;

use crate::support::{
    hub_server::{HubRepo, HubServer},
    recipe::{Recipe, places},
};

/// `rows` numbered lines, `row 0`, `row 1` and so on.
fn numbered(rows: usize) -> String {
    (0..rows).map(|i| format!("row {i}\n")).collect()
}

/// The bytes of a Parquet file with one column, `text`.
fn parquet(rows: &[&str]) -> Vec<u8> {
    let column: ArrayRef = Arc::new(StringArray::from_iter_values(rows));
    let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

/// What a recipe prints that finds `rows.txt` with ten numbered lines.
fn prints(text: &str) -> Vec<String> {
    Recipe::new(text).file("rows.txt", &numbered(10)).prints()
}

fn fails(text: &str) -> Failure {
    Recipe::new(text).file("rows.txt", &numbered(10)).fails()
}

/// Code, place and message of a recipe's only fault.
fn fault(text: &str) -> (Code, String, String) {
    let failure = fails(text);
    assert_eq!(failure.faults.len(), 1, "{:?}", failure.faults);
    let (code, place) = places(&failure).remove(0);
    (code, place.replace("recipe.rhai:", ""), failure.faults[0].error.message().to_owned())
}

/// The script text of ten rows of two tokens each, row i made of token i.
const TOKEN_ROWS: &str = "let ds = dataset(\"rows.txt\").map(|row| {
    let n = parse_int(row.text.sub_string(4));
    #{ input_ids: [n, n] }
});\n";

#[test]
fn a_tokenizer_encodes_and_decodes() {
    let recipe = Recipe::new(
        r#"let tok = tokenizer("dsr:gpt2");
        let ids = tok.encode("Hello world!");
        print(ids);
        print(tok.decode(ids));
        print(tok.decode([15496.0, tok.eos_id]));
        print(tok.decode([15496, tok.eos_id], #{ skip_special_tokens: false }));
        print([tok.vocab_size, tok.eos_id, tok.pad_id, tok.token_id("Hello"), tok.token_id("no such")]);
        print(tok);"#,
    );
    assert_eq!(
        recipe.prints(),
        [
            "[15496, 995, 0]",
            "Hello world!",
            "Hello",
            "Hello<|endoftext|>",
            "[50257, 50256, 50256, 15496, ()]",
            "Tokenizer(50257 tokens)"
        ]
    );
}

#[test]
fn a_tokenizer_is_found_in_files() {
    let recipe = Recipe::new(
        r#"for tok in [tokenizer("tok"), tokenizer("tok/v.json", "tok/m.txt")] {
            print([tok.encode("abb"), tok.eos_id, tok.pad_id]);
        }"#,
    );
    let (vocab, merges) = (r#"{"a": 0, "b": 1, "ab": 2}"#, "#version: 0.2\na b\n");
    recipe.file("tok/vocab.json", vocab).file("tok/merges.txt", merges);
    recipe.file("tok/v.json", vocab).file("tok/m.txt", merges);
    assert_eq!(recipe.prints(), ["[[2, 1], (), ()]"; 2]);

    let message = |text: &str| fault(text).2;
    assert_eq!(message(r#"tokenizer("v.json", "m.txt")"#).split('/').next_back(), Some("v.json"));
    assert!(message(r#"tokenizer("tok")"#).ends_with("/tok: no such file or directory"));
    assert_eq!(
        fault("let tok = tokenizer(\"dsr:gpt2\");\ntok.decode([0, 50257]);"),
        (
            Code::TokenId,
            "2:5".into(),
            "ids[1] is 50257, and the vocabulary has 50257 tokens".into()
        )
    );
    assert_eq!(
        fault("tokenizer(\"dsr:gpt2\").decode([0, -1])"),
        (Code::BadValue, "1:23".into(), "`ids[1]` must be 0 or more, found -1".into())
    );
}

#[test]
fn the_embedded_sample_is_tokenized_and_packed() {
    let lines = prints(
        r#"let ds = dataset("dsr:austen", #{ split: "validation" })
            .tokenize(tokenizer("dsr:gpt2"), #{ append_eos: true })
            .pack(64);
        let n = 0;
        for (batch, i) in ds.take(6).loader(#{ micro_batch_size: 4 }) {
            print(batch);
            if i == 0 {
                let t = batch.input_ids;
                print([t.shape, t.dtype, t.device, batch.labels.shape, batch.attention_mask.shape]);
                print(batch.rows.len + " " + (batch.rows[0].input_ids.len));
            }
            n += 1;
        }
        print(n);
        print(ds);"#,
    );
    assert_eq!(
        lines,
        [
            "Batch([4, 64]; from row 0 of epoch 0)",
            "[[4, 64], \"int64\", \"cpu\", [4, 64], [4, 64]]",
            "4 64",
            "Batch([2, 64]; from row 4 of epoch 0)",
            "2",
            "Dataset(dsr:austen [validation] -> tokenize(text) -> pack(64); columns input_ids)"
        ]
    );
}

#[test]
fn files_of_every_kind_are_read_from_the_working_directory() {
    let recipe = Recipe::new(
        r#"print(dataset("a.jsonl")[0]);
        print(dataset("data/*.parquet").count());
        print(dataset("data")[-1].text);
        print(dataset("data", #{ split: "test[:50%]" }).count());"#,
    );
    recipe.file(
        "a.jsonl",
        "{\"text\": \"x\", \"n\": 1, \"p\": 0.5, \"tags\": [\"t\"], \"none\": null}\n",
    );
    std::fs::create_dir(recipe.directory().join("data")).unwrap();
    for (name, rows) in [("train-1", ["a", "b"]), ("train-2", ["c", "d"]), ("test", ["e", "f"])] {
        let path = recipe.directory().join(format!("data/{name}.parquet"));
        std::fs::write(path, parquet(&rows)).unwrap();
    }
    assert_eq!(
        recipe.prints(),
        [r#"#{"n": 1, "none": (), "p": 0.5, "tags": ["t"], "text": "x"}"#, "4", "d", "1"]
    );
}

#[test]
fn rows_are_looked_at_one_by_one_and_in_ranges() {
    let lines = prints(
        r#"let ds = dataset("rows.txt");
        print([ds.columns, ds.count(), ds[3].text, ds[-1].text]);
        print(ds[2..4]);
        print([ds[8..=9].len, ds[8..20].len, ds[4..2].len]);
        print([ds.take(2).count(), ds.skip(7.0).count(), ds.skip(2).take(2)[0].text]);
        let all = "";
        for (row, i) in ds { if i == 3 { break; } all += row.text + ";" }
        print(all);
        print(ds);
        const FIXED = ds.take(1);
        print(FIXED[0].text);"#,
    );
    assert_eq!(
        lines,
        [
            r#"[["text"], 10, "row 3", "row 9"]"#,
            r##"[#{"text": "row 2"}, #{"text": "row 3"}]"##,
            "[2, 2, 0]",
            r#"[2, 3, "row 2"]"#,
            "row 0;row 1;row 2;",
            "Dataset(rows.txt [train]; 10 rows, columns text)",
            "row 0",
        ]
    );
    let ds = "let ds = dataset(\"rows.txt\");\n";
    assert_eq!(
        fault(&format!("{ds}ds[10]")),
        (Code::Data, "2:3".into(), "no row 10: the dataset has 10 rows, counted from 0".into())
    );
    assert_eq!(fault(&format!("{ds}ds[-11]")).2, "no row -11: the dataset has 10 rows");
    assert_eq!(fault(&format!("{ds}ds[-1..2]")).0, Code::BadValue);
    assert_eq!(
        fault(&format!("{ds}ds.take(-1)")),
        (Code::BadValue, "2:4".into(), "`n` must be 0 or more, found -1".into())
    );
}

#[test]
fn functions_filter_and_replace_rows() {
    let lines = prints(
        r#"let least = 8;
        let ds = dataset("rows.txt")
            .map(|row| #{ n: parse_int(row.text.sub_string(4)), half: 0.5, list: [row.text] })
            .filter(|row| row.n >= least);
        print(ds.columns);
        for row in ds { print(row); }
        least = 9;
        print(ds.count());"#,
    );
    assert_eq!(
        lines,
        [
            r#"["half", "list", "n"]"#,
            r##"#{"half": 0.5, "list": ["row 8"], "n": 8}"##,
            r##"#{"half": 0.5, "list": ["row 9"], "n": 9}"##,
            "1",
        ]
    );
}

#[test]
fn a_function_uses_the_dataset_that_it_is_given_to() {
    let lines = prints(
        r#"let ds = dataset("rows.txt");
        let other = ds.map(|row| #{ text: row.text + "/" + ds.count() });
        print(other[0].text);
        ds = ds.filter(|row| row.text != ds[0].text);
        print(ds.count());
        ds = ds.take(5).filter(|row| row.text != ds[0].text);
        print([ds.count(), ds[0].text, ds.columns]);"#,
    );
    assert_eq!(lines, ["row 0/10", "9", r#"[4, "row 2", ["text"]]"#]);
}

#[test]
fn a_function_that_runs_itself_is_stopped() {
    let held = "let held = [];
        held.push(dataset(\"rows.txt\").filter(|row| { let ds = held[0]; ds.count() > 0 }));
        let ds = held[0];
        ds.count();";
    let failure = fails(held);
    assert_eq!(failure.code(), Code::Recipe);
    assert_eq!(failure.faults[0].error.message(), "a function runs itself without an end");
}

#[test]
fn a_function_that_fails_is_shown_with_its_line() {
    let bad_map = "let ds = dataset(\"rows.txt\");\nds.map(|row|\n    row.txet\n);";
    let failure = fails(bad_map);
    assert_eq!(places(&failure), [(Code::UnknownFunction, "recipe.rhai:3:9".to_owned())]);
    assert_eq!(failure.calls.last().unwrap().place.line, 2);

    let later = "let ds = dataset(\"rows.txt\").filter(|row|\n    row.text.len);\n\n\nfor row in ds { print(row) }";
    let failure = fails(later);
    let fault = &failure.faults[0];
    assert_eq!(
        fault.error.message(),
        "the function of `filter` must return true or false, found 5"
    );
    assert_eq!(places(&failure), [(Code::WrongType, "recipe.rhai:5:12".to_owned())]);

    let (code, place, message) = self::fault("dataset(\"rows.txt\").map(|row| row.text)");
    assert_eq!((code, place.as_str()), (Code::WrongType, "1:21"));
    assert_eq!(message, "the function of `map` must return a map, found string \"row 0\"");
}

#[test]
fn a_loop_over_a_loader_goes_on_where_it_was_left() {
    let lines = prints(&format!(
        "{TOKEN_ROWS}{}",
        r#"let loader = ds.cache().loader(#{ micro_batch_size: 4, epochs: 2, drop_last: true });
        let shown = |batch| batch.rows.map(|row| row.input_ids[0]);
        print([loader.epoch, loader.row, loader.batches_per_epoch]);
        for batch in loader { print(shown.call(batch)); break; }
        print([loader.epoch, loader.row]);
        for batch in loader { print(`${batch.epoch}:${batch.first_row} ${shown.call(batch)}`); }
        for batch in loader { print("not reached"); }
        print(loader.epoch);
        print(ds.loader(#{ micro_batch_size: 3 }));"#
    ));
    assert_eq!(
        lines,
        [
            "[0, 0, 2]",
            "[0, 1, 2, 3]",
            "[0, 4]",
            "0:4 [4, 5, 6, 7]",
            "1:0 [0, 1, 2, 3]",
            "1:4 [4, 5, 6, 7]",
            "2",
            "Loader(rows.txt [train] -> map; at row 0 of epoch 0)",
        ]
    );
}

#[test]
fn a_loader_without_an_end_and_a_shuffle_with_a_seed() {
    let lines = prints(&format!(
        "{TOKEN_ROWS}{}",
        r#"let order = |ds, epochs| {
            let seen = [];
            for batch in ds.loader(#{ micro_batch_size: 10, endless: true }) {
                if batch.epoch == epochs { break; }
                seen.push(batch.rows.map(|row| row.input_ids[0]));
            }
            seen
        };
        let a = order.call(ds.shuffle(#{ seed: 7 }), 3);
        print(a.len);
        print([a[0] == a[1], a == order.call(ds.shuffle(#{ seed: 7 }), 3)]);
        print(order.call(ds.shuffle(), 1) == order.call(ds.shuffle(#{ seed: 0 }), 1));
        a[2].sort();
        print(a[2]);
        print(ds.filter(|row| true).loader(#{ micro_batch_size: 1 }).batches_per_epoch);"#
    ));
    assert_eq!(lines, ["3", "[false, true]", "true", "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]", ""]);
}

#[test]
fn a_missing_column_is_shown_with_those_that_exist() {
    let text = "let ds = dataset(\"rows.txt\");\nlet tok = tokenizer(\"dsr:gpt2\");\nds.tokenize(tok, #{\n    field: \"txt\",\n});";
    let failure = fails(text);
    assert_eq!(places(&failure), [(Code::Data, "recipe.rhai:4:12".to_owned())]);
    let error = &failure.faults[0].error;
    assert_eq!(error.message(), "no column \"txt\": the columns are text");
    assert_eq!(error.hints(), ["did you mean \"text\"?"]);

    let failure = fails("let ds = dataset(\"rows.txt\");\nds.loader(#{ micro_batch_size: 2 });");
    assert_eq!(places(&failure), [(Code::Data, "recipe.rhai:2:4".to_owned())]);
    assert!(failure.faults[0].error.hints()[0].contains(".tokenize(tokenizer)"));
    assert_eq!(fault("dataset(\"rows.txt\").pack(8)").1, "1:21");
}

#[test]
fn options_that_do_not_exist_or_fit_are_refused_together() {
    let failure = fails(
        "let ds = dataset(\"rows.txt\");\nds.loader(#{\n    micro_batchsize: 4,\n    epochs: 0,\n    endless: true,\n});",
    );
    assert_eq!(
        places(&failure),
        [
            (Code::Missing, "recipe.rhai:2:4".to_owned()),
            (Code::BadValue, "recipe.rhai:4:13".to_owned()),
            (Code::BadValue, "recipe.rhai:5:14".to_owned()),
            (Code::UnknownOption, "recipe.rhai:3:5".to_owned()),
        ]
    );
    assert_eq!(failure.faults[1].error.message(), "`epochs` must be 1 or more, found 0");
    assert_eq!(
        failure.faults[2].error.message(),
        "`endless: true` and `epochs` exclude each other"
    );
    assert_eq!(failure.faults[3].error.hints()[0], "did you mean `micro_batch_size`?");

    let failure = fails(
        "let tok = tokenizer(\"dsr:gpt2\");\ndataset(\"rows.txt\").tokenize(tok, #{ padding: \"longst\", max_length: 0 });",
    );
    assert_eq!(places(&failure), [(Code::BadValue, "recipe.rhai:2:47".to_owned())]);
    assert_eq!(failure.faults[0].error.hints(), ["did you mean \"longest\"?"]);
    let (code, place, _) =
        fault("dataset(\"rows.txt\").tokenize(tokenizer(\"dsr:gpt2\"), #{ max_length: 9 })");
    assert_eq!((code, place.as_str()), (Code::BadValue, "1:68"));
    let (code, place, message) = fault("dataset(\"rows.txt\", #{ splt: \"train\" })");
    assert_eq!((code, place.as_str()), (Code::UnknownOption, "1:24"));
    assert_eq!(message, "`dataset` has no option `splt`");
    assert_eq!(fault("dataset(\"rows.txt\").shuffle(#{ sed: 1 })").1, "1:32");
}

#[test]
fn data_that_cannot_be_used_is_shown_where_it_is_named() {
    let (code, place, message) = fault("let a = 1;\nlet ds = dataset(\"row.txt\");");
    assert_eq!((code, place.as_str()), (Code::Data, "2:10"));
    assert!(message.ends_with("/row.txt"), "{message}");
    let (code, place, message) = fault("dataset(\"rows.txt\", #{ split: \"tain\" })");
    assert_eq!((code, place.as_str()), (Code::Data, "1:31"));
    assert_eq!(message, "no split \"tain\": the splits are train");

    let recipe = Recipe::new("dataset(\"empty.txt\")");
    let failure = recipe.file("empty.txt", "").fails();
    assert_eq!(places(&failure), [(Code::Data, "recipe.rhai:1:1".to_owned())]);
    let message = failure.faults[0].error.message();
    assert!(message.contains("empty.txt"), "{message}");

    let negative = "let ds = dataset(\"rows.txt\").map(|row| #{ input_ids: [-1] });\nlet l = ds.loader(#{ micro_batch_size: 2 });\nfor batch in l {\n    print(batch)\n}";
    assert_eq!(
        fault(negative),
        (Code::TokenId, "3:14".into(), "row 0: input_ids[0] is -1; a token id is 0 or more".into())
    );
    let none = "let ds = dataset(\"rows.txt\").map(|r| #{ input_ids: [1] }).take(0);\nfor batch in ds.loader(#{ micro_batch_size: 2 }) { print(batch) }";
    let (code, place, message) = fault(none);
    assert_eq!((code, place.starts_with("2:")), (Code::Data, true), "{place}");
    assert!(message.starts_with("the dataset has no rows"), "{message}");
}

#[test]
fn a_bad_record_stops_the_loop_and_can_be_caught() {
    let recipe = Recipe::new(
        "let ds = dataset(\"a.jsonl\");
        try {
            for row in ds { print(row.n); }
        } catch (e) { print(e.kind); }

        for row in ds { print(row.n); }",
    );
    let good: String = (0..1024).map(|i| format!("{{\"n\": {i}}}\n")).collect();
    recipe.file("a.jsonl", &format!("{good}{{\"n\": \n"));
    let (lines, result) = recipe.run(Session::new);
    assert_eq!(lines.len(), 1024 * 2 + 1);
    assert_eq!(lines[1024], "data");
    let failure = result.unwrap_err();
    assert_eq!(places(&failure), [(Code::Data, "recipe.rhai:6:20".to_owned())]);
    assert!(failure.faults[0].error.message().contains("line 1025"), "{:?}", failure.faults);
}

#[test]
fn the_hub_gives_datasets_and_tokenizers_and_their_downloads_are_shown() {
    let server = HubServer::start();
    let tokenizer = std::fs::read("recipes/data/gpt2/tokenizer.json").unwrap();
    server.put(
        "datasets/Owner/words",
        HubRepo::new([("data/test-00000-of-00001.parquet", parquet(&["t"]).as_slice())])
            .large("data/train-00000-of-00001.parquet", &parquet(&["a", "b", "c"])),
    );
    server.put("models/Owner/model", HubRepo::new([("tokenizer.json", tokenizer.as_slice())]));
    let recipe = Recipe::new(
        r#"print(dataset("Owner/words").count());
        print(dataset("Owner/words", #{ split: "test", revision: "main" })[0].text);
        print(tokenizer("Owner/model").encode("Hello"));
        print(tokenizer("Owner/model", #{ revision: "main" }).eos_id);
        print(dataset("rows.txt").count());
        dataset("Owner/other");"#,
    );
    recipe.file("rows.txt", &numbered(10));
    let shown = Rc::new(RefCell::new(Vec::new()));
    let sink = Rc::clone(&shown);
    let (lines, result) = recipe.run(|mut host| {
        let cache = host.workspace.rights.work_dir.join("cache").display().to_string();
        let endpoint = server.url.clone();
        host.workspace.rights.env = Box::new(move |name| match name {
            "HF_HOME" => Some(cache.clone()),
            "HF_ENDPOINT" => Some(endpoint.clone()),
            _ => None,
        });
        host.workspace.rights.grants.net = dsr::permission::Scope::All;
        host.output.show_download = Rc::new(move |p| {
            if p.done == p.total {
                sink.borrow_mut().push(format!("{} {}", p.repo, p.file));
            }
        });
        Session::new(host)
    });
    assert_eq!(lines, ["3", "t", "[15496]", "50256", "10"], "{result:?}");
    let failure = result.unwrap_err();
    assert_eq!(places(&failure), [(Code::Hub, "recipe.rhai:6:9".to_owned())]);
    let mut shown = shown.borrow().clone();
    shown.sort();
    shown.dedup();
    assert_eq!(
        shown,
        [
            "Owner/model tokenizer.json",
            "Owner/words data/test-00000-of-00001.parquet",
            "Owner/words data/train-00000-of-00001.parquet"
        ]
    );
}

#[test]
fn without_an_environment_only_the_hub_is_missing() {
    let (code, place, message) =
        fault("print(dataset(\"rows.txt\").count());\ndataset(\"Owner/words\");");
    assert_eq!((code, place.as_str()), (Code::Hub, "2:1"));
    assert_eq!(message, "no place for the cache of the hub");
    let (code, place, _) = fault("let tok =\n    tokenizer(\"Owner/words\");");
    assert_eq!((code, place.as_str()), (Code::Hub, "2:5"));
}

#[test]
fn a_launcher_that_says_too_little_is_an_error_of_the_loader() {
    let recipe = Recipe::new(&format!("{TOKEN_ROWS}ds.loader(#{{ micro_batch_size: 1 }});"));
    recipe.file("rows.txt", &numbered(10));
    let (_, result) = recipe.run(|mut host| {
        host.workspace.rights.env = Box::new(|name| (name == "RANK").then(|| "0".to_owned()));
        Session::new(host)
    });
    let failure = result.unwrap_err();
    assert_eq!(failure.code(), Code::Dist);
    assert!(places(&failure).iter().all(|(_, place)| place == "recipe.rhai:5:4"), "{failure:?}");
}
