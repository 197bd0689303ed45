//! dsr as a library: a recipe that calls a function of this program.
//!
//!     cargo run --release --example embed

#![allow(clippy::print_stdout, reason = "it is a program")]

use std::process::ExitCode;

use dsr::{
    cli::report,
    recipe::Recipe,
    script::{Host, Session, rhai::Module},
};

/// Trains on the paragraphs that this program chooses.
const RECIPE: &str = r#"
let loader = dataset("dsr:austen")
    .filter(|row| count_words(row.text) > 100)
    .tokenize(tokenizer("dsr:gpt2"), #{ append_eos: true })
    .pack(32)
    .loader(#{ micro_batch_size: 4 });
let model = new_model("gpt2", #{ n_layer: 1, n_head: 2, n_embd: 32, n_positions: 32 });
let engine = init_engine(model, #{ micro_batch_size: 4, optimizer: #{ type: "AdamW", lr: 1e-3 } });
for batch in loader {
    engine.backward(engine.forward(batch));
    engine.step();
    print(`step ${engine.global_step}: loss ${engine.loss}`);
    if engine.global_step == 3 { break; }
}
"#;

fn main() -> ExitCode {
    let mut functions = Module::new();
    functions.set_native_fn("count_words", |text: &str| {
        Ok(i64::try_from(text.split_whitespace().count()).unwrap_or(i64::MAX))
    });
    let recipe =
        Recipe { name: "embedded.rhai".to_owned(), text: RECIPE.to_owned(), base_dir: ".".into() };
    // Prints go where the program wants them; it grants nothing beyond the working directory.
    let mut session = Session::new(Host::new(&recipe.base_dir, |line| println!("{line}")));
    session.add_functions(functions);
    match session.run(&recipe) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report::show(&failure, false);
            ExitCode::from(failure.code().exit_status())
        }
    }
}
