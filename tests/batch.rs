//! Batches that a recipe changes on their way from the loader to the engine.

use dsr::error::Code;

use crate::support::{
    alone,
    numbers::assert_relative,
    tiny::{config, init_engine, loader, model},
};

/// What was counted when the batch was made is counted again; float32 sums of other shapes.
#[test]
fn a_batch_that_was_changed_in_place_is_used_as_it_is_now() {
    let _alone = alone();
    let mut engine = init_engine(model(0.0), config(2, 1));
    let batch = loader(2).next_batch().unwrap().unwrap();
    let second = loader(1).nth(1).unwrap().unwrap();
    let expected = engine.forward(&second).unwrap().double_value(&[]);
    let _ = batch.labels().get(0).fill_(-100);
    let loss = engine.forward(&batch).unwrap().double_value(&[]);
    assert_relative("loss", loss, expected, 1e-5);
    let targets = second.stats().unwrap().targets as u64;
    let evaluation = engine.evaluate([Ok(batch)], &|| false).unwrap().unwrap();
    assert_relative("evaluation", evaluation.loss, expected, 1e-5);
    assert_eq!(evaluation.targets, targets);
    let _ = second.input_ids().get(0).get(1).fill_(512);
    assert_eq!(engine.forward(&second).unwrap_err().code(), Code::TokenId);
}
