//! Option maps: a function's name, and the map that a recipe would call it with.

use dsr::{
    config::options,
    error::{Code, Error, Result},
    recipe::{literal, value},
    script::{check_options, engine_options},
};
use rhai::{Dynamic, Engine, Map};
use serde_json::Value;

/// Steps at which a schedule is asked for its learning rate.
const STEPS: [u64; 5] = [0, 1, 100, 1 << 32, u64::MAX];

/// Reads the input as `init_engine #{ micro_batch_size: 1 }`.
pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some((function, map)) = text.find('#').map(|at| text.split_at(at)) else { return };
    let Some(map) = evaluated(map) else { return };
    read_back(&map);
    match function.trim() {
        "init_engine" => init_engine(&map),
        "read_options" => read_options(&map),
        function => {
            if let Err(error) = check_options(function, &map) {
                check(&error);
            }
        }
    }
}

/// The map that the text stands for, where it is plain data.
fn evaluated(text: &str) -> Option<Map> {
    let mut engine = Engine::new_raw();
    engine
        .disable_symbol("Fn")
        .set_allow_anonymous_fn(false)
        .set_max_expr_depths(64, 64)
        .set_max_operations(10_000)
        .set_max_string_size(1 << 16)
        .set_max_array_size(1 << 12)
        .set_max_map_size(1 << 12);
    let ast = engine.compile_expression(text).ok()?;
    engine.eval_ast(&ast).ok()
}

/// What is printed of a map is that map, as far as JSON can hold it.
fn read_back(map: &Map) {
    let plain = |map: &Map| value::to_json(&Dynamic::from_map(map.clone())).ok();
    let Some(Value::Object(data)) = plain(map) else { return };
    let printed = literal::options(&data);
    let again = evaluated(&printed).unwrap_or_else(|| panic!("no map: {printed}"));
    assert_eq!(plain(&again), Some(Value::Object(data)), "{printed}");
}

fn init_engine(map: &Map) {
    let no_function = |_| Err(Error::new(Code::Internal, "plain data holds no function"));
    for world_size in [1, 3] {
        let config = match engine_options::read(map, world_size, no_function) {
            Ok(options) => options.config,
            Err(error) => {
                check(&error);
                continue;
            }
        };
        assert!(config.micro_batch_size > 0 && config.gradient_accumulation_steps > 0);
        for step in STEPS {
            // Either may become what is no rate, which is an error.
            let _ = config.scheduler.lr(config.optimizer.lr, step);
            let _ = config.scheduler.betas((0.9, 0.999), step);
        }
    }
}

/// The options of a recipe's own function, as its standard library reads them.
fn read_options(map: &Map) {
    let part = |name: &str| map.get(name).and_then(|part| part.clone().try_cast::<Map>());
    let (given, like) = (part("given").unwrap_or_default(), part("defaults").unwrap_or_default());
    let required = part("required").unwrap_or_default();
    let read: Result<options::Map> = options::read("f", &value::option_map(&given), |o| {
        let (like, required) = (value::option_map(&like), value::option_map(&required));
        let all = like.into_iter().map(|entry| (entry, false));
        let all = all.chain(required.into_iter().map(|entry| (entry, true)));
        all.map(|((key, like), needed)| (key.clone(), o.like(&key, &like, needed))).collect()
    });
    match read {
        Ok(found) => {
            assert!(like.keys().chain(required.keys()).all(|key| found.contains_key(key.as_str())))
        }
        Err(error) => check(&error),
    }
}

/// Every mistake says where it is and what is wrong.
fn check(error: &Error) {
    for fault in std::iter::once(error).chain(error.others()) {
        assert!(fault.code() != Code::Internal, "{fault:?}");
        assert!(!fault.message().is_empty());
        let is_function = fault.code() == Code::UnknownFunction;
        assert!(fault.option_path().is_some() || is_function, "{fault:?}");
    }
}
