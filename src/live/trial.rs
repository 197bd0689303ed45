//! Inputs that leave no trace: to look at a value, or to measure a time.

use std::time::{Duration, Instant};

use rhai::Dynamic;

use super::{
    session::{Live, Value},
    undo::Undo,
};
use crate::recipe::{Failure, diagnostics::diagnose, sources::LIVE};

impl Live {
    /// The value of a text. Variables, functions and parameters stay as they were.
    pub fn peek(&mut self, text: &str) -> Result<Value, Failure> {
        self.repeat(text, &|_| false).map(|(value, _)| value)
    }

    /// Runs a text again and again, while `goes_on` is true for the times so far; returns the last value
    /// and all times. Variables stay as they were; changes of an engine remain.
    pub fn repeat(
        &mut self,
        text: &str,
        goes_on: &dyn Fn(&[Duration]) -> bool,
    ) -> Result<(Value, Vec<Duration>), Failure> {
        let (read, whole) = self.prepare_typed("<repl>", text)?;
        let program = self.with_constants(&whole);
        let undo = Undo::of(&self.scope);
        let variables = self.scope.len();
        let mut times = Vec::new();
        self.host.program.run_on(&read.engine);
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
                Err(error) => {
                    break Err(diagnose(&read.engine, *error, LIVE, &self.host.workspace.sources));
                }
            }
        };
        undo.restore(&mut self.scope);
        outcome
    }
}
