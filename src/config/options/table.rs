//! Tables of options: a struct whose fields are options.

use super::{
    field::Given,
    kind::Kind,
    reader::{OptionTable, OptionType, Options},
    types::OptionValue,
};

impl<T: OptionValue> OptionType for T {
    fn take(o: &mut Options<'_>, key: &'static str) -> Given<Self> {
        o.value(key)
    }

    fn kind() -> Kind {
        <T as OptionValue>::kind()
    }

    fn shown(&self) -> Option<String> {
        OptionValue::shown(self)
    }
}

impl<T: OptionType> OptionType for Option<T> {
    fn take(o: &mut Options<'_>, key: &'static str) -> Given<Self> {
        T::take(o, key).map(Some)
    }

    fn kind() -> Kind {
        T::kind()
    }

    fn shown(&self) -> Option<String> {
        self.as_ref()?.shown()
    }
}

/// A table, or true for its defaults; nothing for false.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch<T>(pub Option<T>);

impl<T> Default for Switch<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: OptionTable> OptionType for Switch<T> {
    fn take(o: &mut Options<'_>, key: &'static str) -> Given<Self> {
        if o.is_map(key) {
            return o
                .map(key, T::read)
                .map_or(Given::Faulty, |table| Given::Value(Self(Some(table))));
        }
        bool::take(o, key).map(|is_on| Self(is_on.then(T::default)))
    }

    fn kind() -> Kind {
        Kind::Or(Box::new(Kind::Bool), Box::new(Kind::Map(const { &[T::ROWS] })))
    }

    fn shown(&self) -> Option<String> {
        Some(self.0.is_some().to_string())
    }
}

/// A list of tables.
#[derive(Debug, Default)]
pub struct Tables<T>(pub Vec<T>);

impl<T: OptionTable> OptionType for Tables<T> {
    fn take(o: &mut Options<'_>, key: &'static str) -> Given<Self> {
        let is_there = o.has(key);
        let tables = o.maps(key, T::read);
        if is_there { Given::Value(Self(tables)) } else { Given::Absent }
    }

    fn kind() -> Kind {
        Kind::Maps(const { &[T::ROWS] })
    }
}

/// A struct whose fields are options: each has its help as the field's comment, and in
/// `#[option(...)]` whether it is `required`, `optional`, or has a `default`; then, in this order, the
/// `range` of a number, what else it `must` be, as a condition and its words, and the key of
/// `deepspeed`'s file that is this option as it is.
///
/// `#[check(path)]` names a function that refuses values that contradict each other; that of
/// `#[check_map(path)]` sees which options were given, too.
macro_rules! option_table {
    (
        $(#[doc = $doc:literal])*
        #[derive($($derive:ident),*)]
        $(#[check($check:path)])?
        $(#[check_map($check_map:path)])?
        $visible:vis struct $name:ident {
            $(
                $(#[doc = $help:literal])+
                #[option($($spec:tt)*)]
                pub $field:ident: $type:ty,
            )*
        }
    ) => {
        $(#[doc = $doc])*
        #[derive($($derive),*)]
        $visible struct $name {
            $(
                $(#[doc = $help])+
                pub $field: $type,
            )*
        }

        /// The options of an empty map.
        impl Default for $name {
            fn default() -> Self {
                $crate::config::options::read_empty()
            }
        }

        impl $crate::config::options::OptionTable for $name {
            const ROWS: &'static [$crate::config::options::Row] = &[
                $(
                    $crate::config::options::option_table!(
                        @row stringify!($field), [$($help),+], $type; $($spec)*
                    ),
                )*
            ];

            fn read(o: &mut $crate::config::options::Options<'_>) -> Self {
                let read = Self {
                    $(
                        $field: $crate::config::options::option_table!(
                            @read o, stringify!($field); $($spec)*
                        ),
                    )*
                };
                $(o.check($check(&read));)?
                $($check_map(&read, o);)?
                read
            }
        }

        impl $crate::config::options::OptionType for $name {
            fn take(
                o: &mut $crate::config::options::Options<'_>,
                key: &'static str,
            ) -> $crate::config::options::Given<Self> {
                o.table(key)
            }

            fn kind() -> $crate::config::options::Kind {
                $crate::config::options::Kind::Map(&[
                    <$name as $crate::config::options::OptionTable>::ROWS,
                ])
            }
        }
    };
    (@row $name:expr, $help:expr, $type:ty;
        $how:ident $(= $default:expr)? $(, range = $range:expr)?
        $(, must = $holds:expr => $must:expr)? $(, deepspeed = $key:literal)?
    ) => {
        $crate::config::options::Row {
            name: $name,
            help: &$help,
            kind: <$type as $crate::config::options::OptionType>::kind,
            default: $crate::config::options::option_table!(@shown $type $(, $default)?),
            limits: || $crate::config::options::option_table!(@limits $($range)?),
            is_required: $crate::config::options::option_table!(@is_required $how),
            deepspeed: $crate::config::options::option_table!(@key $($key)?),
        }
    };
    (@shown $type:ty) => { || None };
    (@shown $type:ty, $default:expr) => {
        || {
            let default: $type = $default;
            $crate::config::options::OptionType::shown(&default)
        }
    };
    (@is_required required) => { true };
    (@is_required $how:ident) => { false };
    (@limits) => { None };
    (@limits $range:expr) => { Some($crate::config::options::Limits::of(&$range)) };
    (@key) => { None };
    (@key $key:literal) => { Some($key) };
    (@read $o:ident, $name:expr;
        $how:ident $(= $default:expr)? $(, range = $range:expr)?
        $(, must = $holds:expr => $must:expr)? $(, deepspeed = $key:literal)?
    ) => {
        $crate::config::options::option_table!(@end
            $o.get_spelled($name, $crate::config::options::option_table!(@key $($key)?))
                $(.range($range))?$(.check($holds, $must))?,
            $how $(= $default)?)
    };
    (@end $field:expr, default = $default:expr) => { $field.or($default) };
    (@end $field:expr, $how:ident) => { $field.$how() };
}

/// An enum whose variants are the words of an option.
macro_rules! option_words {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $(
                $(#[$inner:meta])*
                $variant:ident = $word:literal,
            )+
        }
    ) => {
        $(#[$meta])*
        pub enum $name {
            $(
                $(#[$inner])*
                $variant,
            )+
        }

        impl $name {
            /// All of them by their names in options.
            pub const NAMES: &'static [(&'static str, Self)] = &[$(($word, Self::$variant)),+];

            /// The name in options.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        /// The first word.
        impl Default for $name {
            fn default() -> Self {
                Self::NAMES[0].1
            }
        }

        impl $crate::config::options::OptionValue for $name {
            fn read(
                value: &$crate::config::options::Value,
            ) -> Result<Self, $crate::config::options::Wrong> {
                $crate::config::options::read_word(value, Self::NAMES)
            }

            fn kind() -> $crate::config::options::Kind {
                let words = Self::NAMES.iter().map(|(word, _)| *word);
                $crate::config::options::Kind::Words(words.collect())
            }

            fn shown(&self) -> Option<String> {
                Some(format!("{:?}", self.name()))
            }
        }
    };
}

pub(crate) use {option_table, option_words};
