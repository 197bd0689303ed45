//! The options of `init_engine` that trade time for memory.

use super::options::Options;
use crate::config::ActivationCheckpointing;

const ACTIVATION_CHECKPOINTING: &str = "activation_checkpointing";

/// `activation_checkpointing`: true or false, or a map with `every` and `cpu_checkpointing`.
pub(super) fn activation_checkpointing(o: &mut Options<'_>) -> Option<ActivationCheckpointing> {
    let default = ActivationCheckpointing::default();
    if !o.is_map(ACTIVATION_CHECKPOINTING) {
        return o.get(ACTIVATION_CHECKPOINTING).or(false).then_some(default);
    }
    o.map(ACTIVATION_CHECKPOINTING, |o| ActivationCheckpointing {
        every: o.get("every").range(1..).or(default.every),
        cpu_checkpointing: o.get("cpu_checkpointing").or(default.cpu_checkpointing),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::options;

    fn read(value: &str) -> crate::error::Result<Option<ActivationCheckpointing>> {
        let source = format!("#{{ activation_checkpointing: {value} }}");
        let map = rhai::Engine::new().eval(&source).unwrap();
        options::read("init_engine", &map, activation_checkpointing)
    }

    #[test]
    fn it_is_a_bool_or_a_map() {
        let some =
            |every, cpu_checkpointing| Some(ActivationCheckpointing { every, cpu_checkpointing });
        assert_eq!(read("false").unwrap(), None);
        assert_eq!(read("true").unwrap(), some(1, false));
        assert_eq!(read("#{}").unwrap(), some(1, false));
        assert_eq!(read("#{ every: 3, cpu_checkpointing: true }").unwrap(), some(3, true));
    }

    #[test]
    fn mistakes_have_their_place() {
        let path = |value| read(value).unwrap_err().option_path().map(ToOwned::to_owned);
        assert_eq!(path("1").as_deref(), Some("activation_checkpointing"));
        assert_eq!(path("#{ every: 0 }").as_deref(), Some("activation_checkpointing.every"));
        assert_eq!(path("#{ evry: 2 }").as_deref(), Some("activation_checkpointing.evry"));
    }
}
