//! The activation of an MLP, by its name in `config.json`.

/// The activation of an MLP, named as in transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// GELU in its tanh approximation, written out.
    GeluNew,
    /// GELU through the error function.
    Gelu,
    /// The function of [`Activation::GeluNew`] under the name of PyTorch's kernel.
    GeluPytorchTanh,
    /// The larger of 0 and x.
    Relu,
    /// x times its logistic function, `swish` too.
    Silu,
}

impl Activation {
    /// The names in `config.json`. Several names have one function, which differs at most in how
    /// transformers writes it down.
    pub(crate) const NAMES: [(&str, Self); 10] = [
        ("gelu_new", Self::GeluNew),
        ("gelu", Self::Gelu),
        ("gelu_pytorch_tanh", Self::GeluPytorchTanh),
        ("relu", Self::Relu),
        ("silu", Self::Silu),
        ("swish", Self::Silu),
        ("gelu_fast", Self::GeluNew),
        ("gelu_accurate", Self::GeluNew),
        ("gelu_python", Self::Gelu),
        ("gelu_python_tanh", Self::GeluPytorchTanh),
    ];

    /// The activation of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|&(_, activation)| activation)
    }

    /// The name in `config.json`: the first of [`Activation::NAMES`].
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::GeluNew => "gelu_new",
            Self::Gelu => "gelu",
            Self::GeluPytorchTanh => "gelu_pytorch_tanh",
            Self::Relu => "relu",
            Self::Silu => "silu",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_its_activation() {
        for (name, activation) in Activation::NAMES {
            assert_eq!(Activation::named(name), Some(activation));
            let first = Activation::NAMES.iter().find(|(_, of)| *of == activation).unwrap();
            assert_eq!(activation.name(), first.0);
        }
        assert_eq!(Activation::named("quick_gelu"), None);
    }
}
