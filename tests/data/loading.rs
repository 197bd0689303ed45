//! The loader: batches, padding, and going on where it stopped.

use super::*;

#[test]
fn batches_hold_the_rows_in_order() {
    let dir = dir(&[]);
    let dataset = token_rows(&dir, 10, 4);
    let mut loader = dataset.loader(micro(4)).unwrap();
    assert_eq!(loader.batches_per_epoch().unwrap(), Some(3));
    let batch = loader.next_batch().unwrap().unwrap();
    assert_eq!(batch.input_ids().size(), [4, 4]);
    assert_eq!(ids(&batch), labels(&batch));
    assert_eq!(mask(&batch), [[1; 4]; 4]);
    assert_eq!(batch.first_row, 0);
    assert_eq!(batch.rows().unwrap()[3]["input_ids"], json!([3, 3, 3, 3]));
    assert_eq!(all(loader), [vec![4, 5, 6, 7], vec![8, 9]]);
    let drop_last = LoaderOptions { drop_last: true, ..micro(4) };
    assert_eq!(all(dataset.loader(drop_last).unwrap()).len(), 2);
}

#[test]
fn ranks_share_each_block_and_yield_equally_many_batches() {
    let dir = dir(&[]);
    let dataset = token_rows(&dir, 9, 4);
    let rank = |rank, world_size| {
        let options = LoaderOptions { rank, world_size, ..micro(2) };
        dataset.loader(options).unwrap()
    };
    assert_eq!(rank(0, 2).batches_per_epoch().unwrap(), Some(3));
    assert_eq!(all(rank(0, 2))[..2], [[0, 1], [4, 5]]);
    assert_eq!(all(rank(1, 2))[..2], [[2, 3], [6, 7]]);
    // The last block holds row 8 alone: what fills it up has no target.
    let last = |r| rank(r, 2).nth(2).unwrap().unwrap();
    assert_eq!(labels(&last(0)), [vec![8; 4], vec![-100; 4]]);
    assert_eq!(labels(&last(1)), [[-100; 4]; 2]);
    assert_eq!(last(1).input_ids().size(), [2, 4]);
    assert_eq!(last(1).rows().unwrap().len(), 0);
}

#[test]
fn going_on_gives_the_rest_exactly() {
    let dir = dir(&[]);
    let data = token_rows(&dir, 23, 4);
    let plans = [
        data.clone(),
        data.shuffle(5).unwrap(),
        data.shuffle(5).unwrap().pack(6).unwrap(),
        data.filter(Rc::new(|row| Ok(row["input_ids"][0] != json!(3)))).unwrap(),
        data.shuffle(5).unwrap().skip(2).unwrap().take(20).unwrap(),
    ];
    for plan in plans {
        let options = LoaderOptions { epochs: Some(2), ..micro(3) };
        let whole: Vec<_> =
            plan.loader(options.clone()).unwrap().map(|b| ids(&b.unwrap())).collect();
        for stop in 0..=whole.len() {
            let mut first = plan.loader(options.clone()).unwrap();
            let mut seen: Vec<_> = first.by_ref().take(stop).map(|b| ids(&b.unwrap())).collect();
            let state = serde_json::to_string(&first.state()).unwrap();
            let mut second = plan.loader(options.clone()).unwrap();
            second.restore(serde_json::from_str(&state).unwrap()).unwrap();
            seen.extend(second.map(|b| ids(&b.unwrap())));
            assert!(seen == whole, "{} after {stop} batches", plan.describe());
        }
    }
}

#[test]
fn a_shuffled_epoch_differs_from_the_one_before() {
    let dir = dir(&[]);
    let shuffled = token_rows(&dir, 50, 1).shuffle(0).unwrap();
    let options = LoaderOptions { epochs: Some(2), ..micro(50) };
    let epochs = all(shuffled.loader(options).unwrap());
    assert_ne!(epochs[0], epochs[1]);
    let sorted = |mut rows: Vec<i64>| {
        rows.sort_unstable();
        rows
    };
    assert_eq!(sorted(epochs[0].clone()), sorted(epochs[1].clone()));
}

#[test]
fn the_same_rows_whatever_the_number_of_ranks() {
    let dir = dir(&[]);
    let shuffled = token_rows(&dir, 24, 1).shuffle(3).unwrap();
    let global = |world_size: usize, micro_batch_size: usize| {
        let rank = |rank| {
            let options =
                LoaderOptions { rank, world_size, micro_batch_size, ..LoaderOptions::default() };
            all(shuffled.loader(options).unwrap())
        };
        let ranks: Vec<_> = (0..world_size).map(rank).collect();
        (0..ranks[0].len()).flat_map(|b| ranks.iter().flat_map(move |r| r[b].clone())).collect()
    };
    let one: Vec<i64> = global(1, 8);
    assert_eq!(one, global(2, 4));
    assert_eq!(one, global(4, 2));
}

#[test]
fn rows_of_different_length_need_padding() {
    let dir = dir(&[("a.txt", "Hello world!\nHello\n")]);
    let text = open(&dir, "a.txt").unwrap();
    let ragged = text.tokenize(gpt2(), TokenizeOptions::default()).unwrap();
    let e = ragged.loader(micro(2)).unwrap().next_batch().unwrap_err();
    assert!(e.message().starts_with("row 1 has 1 tokens, and another of its batch has 3"), "{e}");
    assert!(e.hints()[0].contains("padding: \"longest\""));

    let options = TokenizeOptions { padding: Padding::Longest, ..TokenizeOptions::default() };
    // The choice survives what happens between tokenizing and loading.
    let padded = text.tokenize(gpt2(), options).unwrap();
    let padded = padded.map(Rc::new(Ok)).unwrap().cache().unwrap();
    let batch = padded.loader(micro(2)).unwrap().next_batch().unwrap().unwrap();
    assert_eq!(ids(&batch), [[15496, 995, 0], [15496, 50256, 50256]]);
    assert_eq!(labels(&batch), [[15496, 995, 0], [15496, -100, -100]]);
    assert_eq!(mask(&batch), [[1, 1, 1], [1, 0, 0]]);
}

#[test]
fn labels_of_the_dataset_are_used() {
    let dir = dir(&[("a.jsonl", "{\"input_ids\": [1, 2], \"labels\": [-100, 2]}\n")]);
    let batch = open(&dir, "a.jsonl").unwrap().loader(micro(1)).unwrap().next().unwrap().unwrap();
    assert_eq!((ids(&batch), labels(&batch)), (vec![vec![1, 2]], vec![vec![-100, 2]]));
}

#[test]
fn rows_that_make_no_batch_are_named() {
    let row = |text: &str| {
        let dir = dir(&[("a.jsonl", text)]);
        let mut loader = open(&dir, "a.jsonl").unwrap().loader(micro(1)).unwrap();
        loader.find_map(Result::err).unwrap()
    };
    let good = "{\"input_ids\": [1, 2]}\n";
    let e = row(&format!("{good}{}", "{\"input_ids\": [1, -5]}\n"));
    assert_eq!(e.message(), "row 1: input_ids[1] is -5; a token id is 0 or more");
    assert_eq!(e.code(), Code::TokenId);
    let e = row(&format!("{good}{}", "{\"input_ids\": []}\n"));
    assert_eq!(e.message(), "row 1 has no tokens");
}

#[test]
fn text_must_be_tokenized_first() {
    let dir = dir(&[("a.txt", "Hello\n"), ("b.jsonl", "{\"words\": [1.5]}\n")]);
    let e = open(&dir, "a.txt").unwrap().loader(micro(1)).unwrap_err();
    assert_eq!(e.message(), "no column \"input_ids\": the columns are text");
    assert_eq!(e.hints(), ["call .tokenize(tokenizer) before .loader(...)"]);
    let e = open(&dir, "b.jsonl").unwrap().pack(4).unwrap_err();
    assert_eq!(e.message(), "no column \"input_ids\": the columns are words");
}

#[test]
fn an_error_leaves_the_place_and_too_few_rows_are_one() {
    let dir = dir(&[]);
    let dataset = token_rows(&dir, 3, 2);
    let mut loader = dataset.loader(LoaderOptions { drop_last: true, ..micro(4) }).unwrap();
    let e = loader.next_batch().unwrap_err();
    assert!(e.message().starts_with("the dataset has 3 rows, too few for one batch of 4"), "{e}");
    assert_eq!((loader.state().epoch, loader.state().row), (0, 0));
    let state = dsr::data::LoaderState { epoch: 0, row: 4 };
    assert!(loader.restore(state).unwrap_err().message().contains("has 3 rows"));
    let empty = dataset.filter(Rc::new(|_| Ok(false))).unwrap();
    let e = empty.loader(micro(1)).unwrap().next_batch().unwrap_err();
    assert!(e.message().starts_with("the dataset has no rows"), "{e}");
}

#[test]
fn without_end_the_data_starts_again() {
    let dir = dir(&[]);
    let endless = LoaderOptions { epochs: None, ..micro(2) };
    let mut loader = token_rows(&dir, 4, 1).loader(endless).unwrap();
    let batches: Vec<_> = loader.by_ref().take(5).map(|b| which(&b.unwrap())).collect();
    assert_eq!(batches, [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1]]);
    assert_eq!(loader.state(), dsr::data::LoaderState { epoch: 2, row: 2 });
}

#[test]
fn token_ids_of_any_integer_type_load() {
    let dir = dir(&[]);
    for data_type in [DataType::Int64, DataType::UInt16, DataType::UInt32] {
        let items = arrow::compute::cast(&Int32Array::from(vec![1, 2, 3, 4]), &data_type).unwrap();
        let field = Arc::new(Field::new_list_field(data_type.clone(), true));
        let column = arrow::array::FixedSizeListArray::new(field.clone(), 2, items, None);
        let schema =
            Schema::new(vec![Field::new("input_ids", DataType::FixedSizeList(field, 2), true)]);
        let batch = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(column)]).unwrap();
        write_parquet(&dir.path().join("x.parquet"), &batch, 10);
        let mut loader = open(&dir, "x.parquet").unwrap().loader(micro(2)).unwrap();
        let batch = loader.next_batch().unwrap().unwrap();
        assert_eq!(ids(&batch), [[1, 2], [3, 4]], "{data_type}");
    }
}

/// Whatever is read ahead, batches, places and what is resumed are the same.
#[test]
fn batches_that_are_kept_ready_are_those_that_are_made_when_asked_for() {
    let dir = dir(&[]);
    let data = token_rows(&dir, 23, 4);
    for plan in [data.clone(), data.shuffle(5).unwrap().pack(6).unwrap()] {
        let loader = |prefetch_factor| {
            let options = LoaderOptions { prefetch_factor, epochs: Some(2), ..micro(3) };
            plan.loader(options).unwrap()
        };
        let rest = |mut loader: Loader| {
            let mut seen = Vec::new();
            while let Some(batch) = loader.next_batch().unwrap() {
                seen.push((ids(&batch), batch.epoch, batch.first_row, loader.state()));
            }
            assert!(loader.next_batch().unwrap().is_none());
            seen
        };
        let whole = rest(loader(0));
        for ready in [1, 2, 7] {
            assert_eq!(rest(loader(ready)), whole);
            let mut resumed = loader(ready);
            resumed.nth(1).unwrap().unwrap();
            resumed.restore(whole[4].3).unwrap();
            assert_eq!(resumed.state(), whole[4].3);
            assert_eq!(rest(resumed), whole[5..]);
        }
    }
}

#[test]
fn an_error_arrives_where_its_batch_would() {
    let good = "{\"input_ids\": [1, 2]}\n";
    let dir = dir(&[("a.jsonl", &format!("{good}{good}{}{good}", "{\"input_ids\": [1, -5]}\n"))]);
    for prefetch_factor in [0, 1, 2, 7] {
        let options = LoaderOptions { prefetch_factor, epochs: None, ..micro(1) };
        let mut loader = open(&dir, "a.jsonl").unwrap().loader(options).unwrap();
        for _ in 0..2 {
            loader.next_batch().unwrap().unwrap();
        }
        for _ in 0..2 {
            let e = loader.next_batch().unwrap_err();
            assert_eq!(e.message(), "row 2: input_ids[1] is -5; a token id is 0 or more");
            assert_eq!(loader.state(), dsr::data::LoaderState { epoch: 0, row: 2 });
        }
    }
}

#[test]
fn a_loader_without_end_leaves_no_thread() {
    let dir = dir(&[]);
    token_rows(&dir, 4, 1);
    let held = Arc::new(());
    let by_the_plan = Arc::clone(&held);
    let stop = move || Arc::strong_count(&by_the_plan) == 0;
    let options = OpenOptions { stop: Some(Arc::new(stop)), ..options(None) };
    let dataset = Dataset::open(source(&dir, "tokens.parquet"), &options).unwrap();
    let mut loader = dataset.loader(LoaderOptions { epochs: None, ..micro(2) }).unwrap();
    drop((dataset, options));
    loader.next_batch().unwrap().unwrap();
    assert_eq!(Arc::strong_count(&held), 2);
    // Nobody has the plan any more.
    drop(loader);
    assert_eq!(Arc::strong_count(&held), 1);
}

#[test]
fn functions_run_in_the_thread_that_made_them() {
    let dir = dir(&[]);
    let here = std::thread::current().id();
    let everything = token_rows(&dir, 6, 2).filter(Rc::new(move |_| {
        assert_eq!(std::thread::current().id(), here);
        Ok(true)
    }));
    let packed = everything.unwrap().shuffle(1).unwrap().pack(2).unwrap().take(5).unwrap();
    assert_eq!(all(packed.loader(micro(2)).unwrap()).len(), 3);
}

/// One copy, whose parts are what the CPU's are.
#[test]
fn a_batch_on_a_gpu_is_that_of_the_cpu() {
    if !dsr::tensor::cuda_is_available() {
        return println!("skipped: libtorch sees no CUDA device here");
    }
    let dir = dir(&[]);
    let dataset = token_rows(&dir, 10, 4);
    let on = |device| dataset.loader(LoaderOptions { device, ..micro(3) }).unwrap();
    let (cpu, gpu) = (on(dsr::tensor::Device::Cpu), on(dsr::tensor::Device::Cuda(0)));
    for (cpu, gpu) in cpu.zip(gpu) {
        let (cpu, gpu) = (cpu.unwrap(), gpu.unwrap());
        assert_eq!((ids(&cpu), labels(&cpu), mask(&cpu)), (ids(&gpu), labels(&gpu), mask(&gpu)));
        assert_eq!(cpu.stats().unwrap(), gpu.stats().unwrap());
    }
}
