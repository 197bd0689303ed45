//! The script host, with a small binding written the way all bindings are.

use dsr::{
    error::{Code, Error},
    recipe::{Failure, params},
    script::Session,
};
use rhai::exported_module;

use crate::support::recipe::{self, places};

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

/// A recipe that sees the binding above.
struct Recipe(recipe::Recipe);

impl Recipe {
    fn new(text: &str) -> Self {
        Self(recipe::Recipe::new(text))
    }

    fn file(&self, name: &str, text: &str) -> &Self {
        self.0.file(name, text);
        self
    }

    fn run_with(&self, params: &[&str]) -> (Vec<String>, Result<(), Failure>) {
        self.0.run(|mut host| {
            host.workspace.rights.params =
                params.iter().map(|p| params::parse_assignment(p).unwrap()).collect();
            let mut session = Session::new(host);
            session.add_functions(exported_module!(api));
            session
        })
    }

    fn prints(&self) -> Vec<String> {
        let (lines, result) = self.run_with(&[]);
        result.unwrap_or_else(|f| panic!("{:?}", f.faults));
        lines
    }

    fn fails(&self) -> Failure {
        self.run_with(&[]).1.expect_err("the recipe should fail")
    }
}

#[test]
fn a_handle_with_options_works() {
    let recipe = Recipe::new(
        "let c = counter(#{ limit: 1e1, step: 4.0, mode: \"Wrap\", noise: #{ scale: 1 } });
         let same = c;
         print([c.advance(), same.advance(), c.advance(), c.noise]);",
    );
    assert_eq!(recipe.prints(), ["[4, 8, 0, 1.0]"]);
}

#[test]
fn every_option_fault_has_the_place_of_its_key_or_value() {
    let failure = Recipe::new(
        "let c = counter(#{\n    step: 0,\n    mode: \"stpo\",\n    noise: #{ scal: 0.5, scale: \"1\" },\n});",
    )
    .fails();
    assert_eq!(
        places(&failure),
        [
            (Code::BadValue, "recipe.rhai:2:11".to_owned()),
            (Code::Missing, "recipe.rhai:1:9".to_owned()),
            (Code::BadValue, "recipe.rhai:3:11".to_owned()),
            (Code::WrongType, "recipe.rhai:4:33".to_owned()),
            (Code::UnknownOption, "recipe.rhai:4:15".to_owned()),
        ]
    );
    assert_eq!(failure.faults[2].error.hints(), ["did you mean \"stop\"?"]);
    assert_eq!(failure.faults[4].error.hints()[0], "did you mean `scale`?");
}

#[test]
fn an_option_in_a_variable_is_found_there() {
    let failure = Recipe::new(
        "let options = #{ limit: 3, stepp: 2 };\nfn make(o) { counter(o) }\nmake(options);",
    )
    .fails();
    assert_eq!(places(&failure), [(Code::UnknownOption, "recipe.rhai:1:28".to_owned())]);
    assert_eq!(failure.calls[0].callee, "make");
    assert_eq!(failure.calls[0].place.line, 3);
}

#[test]
fn an_option_that_an_import_passes_on_is_found_in_the_recipe() {
    let recipe = Recipe::new("import \"make\" as m;\nlet c = m::make(#{ limit: 3, stepp: 2 });\n");
    recipe.file("make.rhai", "fn make(options) {\n    counter(options)\n}");
    let failure = recipe.fails();
    assert_eq!(places(&failure), [(Code::UnknownOption, "recipe.rhai:2:30".to_owned())]);
}

#[test]
fn errors_can_be_caught_by_kind_and_thrown_on() {
    let recipe = Recipe::new(
        "let c = counter(#{ limit: 1 });
         c.advance();
         try { c.advance(); } catch (e) { print([e.kind, e.code, e.message, e.hints, e.option]); }
         try { c.advance(); } catch { print(\"again\"); }
         try { c.advance(); } catch (e) { throw e; }",
    );
    let (lines, result) = recipe.run_with(&[]);
    assert_eq!(lines, [r#"["call_order", "E112", "the counter is full", [], ()]"#, "again"]);
    assert_eq!(result.unwrap_err().code(), Code::CallOrder);
}

#[test]
fn an_error_in_a_callback_keeps_its_own_place() {
    let failure = Recipe::new(
        "let c = counter(#{ limit: 9 });\nc.each(|i| {\n    if i == 2 { parse_json(\"no\"); }\n    true\n});",
    )
    .fails();
    assert_eq!(places(&failure), [(Code::BadValue, "recipe.rhai:3:17".to_owned())]);
    let lines: Vec<_> = failure.calls.iter().map(|c| c.place.line).collect();
    assert_eq!(lines.last(), Some(&2), "the call of `each`");
}

#[test]
fn a_callback_must_return_what_is_asked_for() {
    let failure = Recipe::new("counter(#{ limit: 9 }).each(|i| i);").fails();
    assert_eq!(failure.code(), Code::WrongType);
    assert_eq!(
        failure.faults[0].error.message(),
        "the function of `each` must return true or false, found 1"
    );
}

#[test]
fn a_handle_in_use_is_an_error() {
    let failure = Recipe::new("counter(#{ limit: 9 }).hold(|c| c.advance());").fails();
    assert_eq!(failure.code(), Code::CallOrder);
    assert_eq!(
        failure.faults[0].error.message(),
        "this Counter is in use by a call that has not returned yet"
    );
}

#[test]
fn a_closure_uses_the_handle_whose_method_runs_it() {
    let recipe = Recipe::new(
        "let c = counter(#{ limit: 9 });
         let seen = 0;
         c.each(|i| { seen += i; c.advance() < 8 });
         print(seen);
         c = counter(#{ limit: 1 });
         print(c.advance());",
    );
    assert_eq!(recipe.prints(), ["16", "1"]);
}

#[test]
fn an_interruption_cannot_be_caught() {
    let recipe = Recipe::new("try { interrupt(); while true {} } catch { print(\"caught\"); }");
    let (lines, result) = recipe.run_with(&[]);
    assert_eq!(lines, Vec::<String>::new());
    assert_eq!(result.unwrap_err().code(), Code::Interrupted);
}

#[test]
fn an_interruption_in_a_callback_cannot_be_caught() {
    let recipe = Recipe::new(
        "let c = counter(#{ limit: 9 });
         try { c.each(|i| { interrupt(); true }); } catch { print(\"caught\"); }",
    );
    let (lines, result) = recipe.run_with(&[]);
    assert_eq!(lines, Vec::<String>::new());
    assert_eq!(result.unwrap_err().code(), Code::Interrupted);
}

#[test]
fn parameters_are_seen_everywhere_and_cannot_be_assigned() {
    let recipe = Recipe::new(
        "param(\"lr\", 0.5, \"rate\");\nfn half() { P::lr / 2 }\nprint(half());\nlet f = || P::lr;\nprint(f.call());",
    );
    let (lines, result) = recipe.run_with(&["lr=1"]);
    assert!(result.is_ok());
    assert_eq!(lines, ["0.5", "1.0"]);

    let failure = Recipe::new("param(\"lr\", 0.5);\nP::lr = 1.0;").fails();
    assert_eq!(places(&failure)[0].1, "recipe.rhai:2:4");
}

#[test]
fn imports_stay_in_the_recipes_directory() {
    let recipe = Recipe::new(
        "import \"parts/model\" as model;\nimport \"parts/model.rhai\" as again;\nprint(model::size() + again::size());",
    );
    recipe.file("parts/model.rhai", "import \"deep/consts\" as c;\nexport const X = 1;\nfn size() { import \"deep/consts\" as c; c::N + 1 }");
    recipe.file("parts/deep/consts.rhai", "print(\"once\");\nexport const N = 20;");
    assert_eq!(recipe.prints(), ["once", "42"]);

    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("evil.rhai"), "print(\"evil\");").unwrap();
    let evil = outside.path().join("evil");
    std::os::unix::fs::symlink(
        outside.path().join("evil.rhai"),
        recipe.0.directory().join("link.rhai"),
    )
    .unwrap();
    std::os::unix::fs::symlink(outside.path(), recipe.0.directory().join("folder")).unwrap();
    for path in ["../evil", "parts/../../evil", evil.to_str().unwrap(), "link", "folder/evil"] {
        recipe.file("recipe.rhai", &format!("import \"{path}\" as evil;"));
        let (lines, result) = recipe.run_with(&[]);
        assert_eq!(result.expect_err(path).code(), Code::Permission, "{path}");
        assert_eq!(lines, Vec::<String>::new());
    }
}

#[test]
fn mistakes_in_an_import_are_shown_in_its_own_text() {
    let recipe = Recipe::new("import \"part\" as part;\npart::run();");
    recipe.file("part.rhai", "fn run() {\n    pritn(1)\n}");
    assert_eq!(places(&recipe.fails()), [(Code::UnknownFunction, "part.rhai:2:5".to_owned())]);
    recipe.file("part.rhai", "fn run() {\n    let x = \n}");
    assert_eq!(places(&recipe.fails()), [(Code::Syntax, "part.rhai:3:1".to_owned())]);
    recipe.file("part.rhai", "fn run() {\n    throw \"no\";\n}");
    let failure = recipe.fails();
    assert_eq!(places(&failure), [(Code::Recipe, "part.rhai:2:5".to_owned())]);
    assert_eq!(failure.calls[0].place.line, 2);
}

#[test]
fn imports_that_go_round_are_refused() {
    let recipe = Recipe::new("import \"a\" as a;");
    recipe.file("a.rhai", "import \"b\" as b;").file("b.rhai", "import \"a\" as a;");
    let failure = recipe.fails();
    let message = failure.faults[0].error.message();
    assert_eq!(message, "imports go round in a circle: a.rhai -> b.rhai -> a.rhai");
}

#[test]
fn an_empty_loop_is_refused() {
    let failure = Recipe::new("print(1);\nfor row in dataset(\"rows.txt\") {}").fails();
    assert_eq!(places(&failure), [(Code::Recipe, "recipe.rhai:2:1".to_owned())]);
}

#[test]
fn json_keeps_every_digit() {
    let recipe = Recipe::new(
        "print(#{ loss: 6.2687934637, text: \"tab\\tquote\\\"\", n: 1e3, x: [1, (), true] }.to_json());
         print(parse_json(`{\"a\": [1, 2.5]}`).a);",
    );
    assert_eq!(
        recipe.prints(),
        [r#"{"loss":6.2687934637,"n":1000.0,"text":"tab\tquote\"","x":[1,null,true]}"#, "[1, 2.5]"]
    );
}
