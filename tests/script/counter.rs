//! A small binding written the way all bindings are: a counter, for the recipes of `host`.

use dsr::{
    error::{Code, Error},
    script::Session,
};
use rhai::exported_module;

/// Adds the counter to what a recipe can call.
pub(super) fn add(session: &mut Session) {
    session.add_functions(exported_module!(api));
}

/// What lies below the script layer: it knows nothing of Rhai.
struct Counter {
    settings: Settings,
    value: i64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Wrap,
    Stop,
}

#[derive(Debug)]
struct Settings {
    step: i64,
    limit: i64,
    mode: Mode,
    noise: f64,
}

impl Counter {
    fn advance(&mut self) -> Result<i64, Error> {
        self.value += self.settings.step;
        if self.value > self.settings.limit {
            match self.settings.mode {
                Mode::Wrap => self.value = 0,
                Mode::Stop => return Err(Error::new(Code::CallOrder, "the counter is full")),
            }
        }
        Ok(self.value)
    }
}

/// The binding: options to a plain struct, a handle, thin functions, a callback.
#[allow(unreachable_pub, reason = "the macro needs public functions")]
#[rhai::export_module]
mod api {
    use dsr::{
        recipe::{ScriptResult, options},
        script::{Callback, Shared, host},
    };
    use rhai::{FnPtr, Map, NativeCallContext};

    pub type Counter = Shared<super::Counter>;

    #[rhai_fn(return_raw)]
    pub fn counter(options: Map) -> ScriptResult<Counter> {
        let settings = options::read("counter", &options, |o| super::Settings {
            step: o.get("step").range(1..).or(1),
            limit: o.get("limit").required(),
            mode: o
                .choice("mode", &[("wrap", super::Mode::Wrap), ("stop", super::Mode::Stop)])
                .or(super::Mode::Stop),
            noise: o.map_or_empty("noise", |o| o.get("scale").range(0.0..=1.0).or(0.0)),
        })?;
        Ok(Shared::new(super::Counter { settings, value: 0 }))
    }

    #[rhai_fn(return_raw, pure)]
    pub fn advance(counter: &mut Counter) -> ScriptResult<i64> {
        Ok(counter.write()?.advance()?)
    }

    #[rhai_fn(get = "noise", return_raw, pure)]
    pub fn noise(counter: &mut Counter) -> ScriptResult<f64> {
        Ok(counter.read()?.settings.noise)
    }

    /// Calls the function with every value until it returns false.
    #[rhai_fn(return_raw)]
    pub fn each(ctx: NativeCallContext, counter: Counter, f: FnPtr) -> ScriptResult<()> {
        let callback = Callback::new(&ctx, f)?;
        loop {
            let value = counter.write()?.advance()?;
            if !callback.call_predicate("the function of `each`", (value,))? {
                return Ok(());
            }
        }
    }

    /// Holds the counter while the function runs.
    #[rhai_fn(return_raw, pure)]
    pub fn hold(ctx: NativeCallContext, counter: &mut Counter, f: FnPtr) -> ScriptResult<()> {
        let _held = counter.write()?;
        let _result = Callback::new(&ctx, f)?.call((counter.clone(),))?;
        Ok(())
    }

    #[rhai_fn(return_raw)]
    pub fn interrupt(ctx: NativeCallContext) -> ScriptResult<()> {
        let host = host::of(&ctx)?;
        host.interrupt.request();
        Ok(())
    }
}
