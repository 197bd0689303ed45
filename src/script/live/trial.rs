//! Inputs that leave no trace: to look at a value, or to measure how long it takes.

use std::time::{Duration, Instant};

use rhai::Dynamic;

use super::{LIVE, Live, Undo, Value};
use crate::script::{Failure, diagnostics::diagnose};

impl Live {
    /// The value of a text. Variables, functions and parameters stay as they were.
    pub fn peek(&mut self, text: &str) -> Result<Value, Failure> {
        self.repeat(text, &|_| false).map(|(value, _)| value)
    }

    /// Runs a text again and again, as long as `goes_on` says so of the times so far; the last value,
    /// and how long each took. Variables stay as they were; what is done to an engine is done.
    pub fn repeat(
        &mut self,
        text: &str,
        goes_on: &dyn Fn(&[Duration]) -> bool,
    ) -> Result<(Value, Vec<Duration>), Failure> {
        let values = self.host.sources.insert_input("<repl>", text);
        let read = self.read(&values, &[])?;
        let mut whole = self.functions.clone();
        whole.combine(read.ast.clone());
        whole.set_source(LIVE);
        self.check(&read, &whole)?;
        self.host.interrupt.clear();
        let program = self.with_constants(&whole);
        let undo = Undo::of(&self.scope);
        let variables = self.scope.len();
        let mut times = Vec::new();
        self.host.engine.replace(std::rc::Rc::downgrade(&read.engine));
        let outcome = loop {
            let began = Instant::now();
            match read.engine.eval_ast_with_scope::<Dynamic>(&mut self.scope, &program) {
                Ok(value) => {
                    times.push(began.elapsed());
                    if !goes_on(&times) {
                        break Ok((Value(value), times));
                    }
                    self.scope.rewind(variables);
                }
                Err(error) => break Err(diagnose(&read.engine, *error, LIVE, &self.host.sources)),
            }
        };
        undo.restore(&mut self.scope);
        outcome
    }
}
