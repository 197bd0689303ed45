//! Learning-rate schedules as recipes write them.

use dsr::error::Code;

use crate::support::recipe::{Recipe, places};

/// A recipe that trains a tiny model for three steps with this scheduler, after `setup`, and
/// prints the learning rate of each step.
fn recipe(setup: &str, scheduler: &str) -> Recipe {
    let rows = "{\"input_ids\": [1, 2, 3]}\n".repeat(3);
    let text = format!(
        r#"let model = new_model("gpt2", #{{ vocab_size: 8, n_positions: 4, n_embd: 4, n_layer: 1, n_head: 1 }});
{setup}
let engine = init_engine(model, #{{
    micro_batch_size: 1,
    scheduler: {scheduler},
}});
for batch in dataset("rows.jsonl").loader(#{{ micro_batch_size: 1 }}) {{
    print(engine.lr);
    engine.backward(engine.forward(batch));
    engine.step();
}}
"#
    );
    let recipe = Recipe::new(&text);
    recipe.file("rows.jsonl", &rows);
    recipe
}

#[test]
fn any_function_of_the_step_is_a_schedule() {
    assert_eq!(recipe("", "|step| 0.5 * (step + 1)").prints(), ["0.5", "1.0", "1.5"]);
    let setup = "let peak = 2;\nfn rate(step) { if step < 2 { step } else { 0.25 } }";
    assert_eq!(recipe(setup, "|step| peak").prints(), ["2.0", "2.0", "2.0"]);
    assert_eq!(recipe(setup, "Fn(\"rate\")").prints(), ["0.0", "1.0", "0.25"]);
}

#[test]
fn a_named_schedule_goes_by_the_applied_steps() {
    let map = "#{ type: \"WarmupLR\", warmup_num_steps: 2, warmup_type: \"linear\" }";
    assert_eq!(recipe("", map).prints(), ["0.0", "0.0", "0.0005"]);
}

#[test]
fn a_result_that_is_no_rate_is_shown_at_the_function() {
    let returns = "the function of `scheduler` must return a finite number, 0 or more; for step";
    for (function, code, found) in [
        ("|step| 1.0 - step * 2.0", Code::BadValue, "1 it returned -1.0"),
        ("|step| 1.0 / (step - 0.0)", Code::BadValue, "0 it returned inf"),
        ("|step| \"slow\"", Code::WrongType, "0 it returned string \"slow\""),
    ] {
        let failure = recipe("", function).fails();
        assert_eq!(places(&failure), [(code, "recipe.rhai:5:5".to_owned())], "{function}");
        assert_eq!(failure.faults[0].error.message(), format!("{returns} {found}"));
    }
}

#[test]
fn an_error_inside_a_function_has_its_place_there() {
    let failure = recipe("", "|step| {\n        parse_json(\"no\")\n    }").fails();
    assert_eq!(places(&failure), [(Code::BadValue, "recipe.rhai:6:9".to_owned())]);
}

#[test]
fn a_function_with_an_lr_beside_it_is_refused() {
    let failure = recipe("", "|step| 1e-3,\n    optimizer: #{ lr: 1e-3 }").fails();
    assert_eq!(places(&failure), [(Code::BadValue, "recipe.rhai:6:23".to_owned())]);
}

#[test]
fn mistakes_of_a_schedule_have_the_places_of_its_options() {
    let map =
        "#{ type: \"OneCycle\", cycle_min_lr: 1,\n        cycle_max_lr: 0.5, decay_lr_rte: 1 }";
    assert_eq!(
        places(&recipe("", map).fails()),
        [
            (Code::BadValue, "recipe.rhai:5:51".to_owned()),
            (Code::UnknownOption, "recipe.rhai:6:28".to_owned()),
        ]
    );
}
