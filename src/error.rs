//! The one error type of dsr: a code, a message in the user's words, hints, and the cause.
//!
//! Every layer returns [`Result`]; nothing below `cli` prints. The layer that knows the remedy adds
//! the hint; the script layer adds the place in the recipe; `cli::report` is the only renderer.
//! Several faults found together (all mistakes of a configuration) travel as one error, see
//! [`Error::all`].

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A result whose error is dsr's own.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says, in every thread, whether the user wants no more; the work then ends with [`Code::Interrupted`].
pub type StopWhen = Arc<dyn Fn() -> bool + Send + Sync>;

/// The table of the errors' kinds: each with its number and the process's exit status.
macro_rules! codes {
    ($($(#[$doc:meta])+ $name:ident = ($number:literal, $status:literal),)+) => {
        /// The kind of an error, as a stable number for users and tests.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])+ $name,)+
        }

        impl Code {
            /// The number shown as `error[E101]`.
            pub fn number(self) -> &'static str {
                match self {
                    $(Self::$name => $number,)+
                }
            }

            /// The process's exit status: 2 usage and recipe mistakes, 3 permission, 4 data and
            /// files, 5 memory or disk, 6 divergence, 7 processes, 130 interrupted, 1 anything else.
            pub fn exit_status(self) -> u8 {
                match self {
                    $(Self::$name => $status,)+
                }
            }
        }
    };
}

codes! {
    /// The recipe is not valid Rhai, or a DeepSpeed config not valid JSON.
    Syntax = ("E100", 2),
    /// An option or key that does not exist.
    UnknownOption = ("E101", 2),
    /// A value of the wrong type.
    WrongType = ("E102", 2),
    /// A value of the right type that cannot be used.
    BadValue = ("E103", 2),
    /// A required option, argument or parameter is missing.
    Missing = ("E104", 2),
    /// A command line that cannot be understood.
    Usage = ("E105", 2),
    /// A function, method or property that does not exist.
    UnknownFunction = ("E110", 2),
    /// An exception or a failed operation of the recipe itself.
    Recipe = ("E111", 1),
    /// Calls in an order that has no meaning.
    CallOrder = ("E112", 2),
    /// Tensor shapes that do not fit together.
    Shape = ("E201", 2),
    /// A token id outside the model's vocabulary.
    TokenId = ("E202", 2),
    /// Device or host memory is exhausted.
    Memory = ("E301", 5),
    /// The disk is full.
    DiskFull = ("E302", 5),
    /// A loss or gradient that is not finite.
    Diverged = ("E401", 6),
    /// A power that the recipe was not given.
    Permission = ("E501", 3),
    /// A dataset: files, columns, splits, rows.
    Data = ("E601", 4),
    /// A tokenizer that cannot be loaded or used.
    Tokenizer = ("E602", 4),
    /// The Hugging Face hub.
    Hub = ("E603", 4),
    /// A file at an address of the web.
    Address = ("E604", 4),
    /// A model's `config.json`.
    ModelConfig = ("E701", 4),
    /// A model's weight files.
    Weights = ("E702", 4),
    /// A checkpoint that is missing or damaged.
    Checkpoint = ("E801", 4),
    /// Reading or writing a file.
    Io = ("E802", 4),
    /// A hash, a lock or a bundle that does not match.
    Pin = ("E803", 4),
    /// Processes that train together.
    Dist = ("E901", 7),
    /// libtorch refused an operation.
    Torch = ("E902", 1),
    /// The user asked to stop.
    Interrupted = ("E130", 130),
    /// A mistake in dsr itself.
    Internal = ("E001", 1),
}

/// An error: what went wrong, what to do about it, and what it came from.
pub struct Error(Box<Inner>);

struct Inner {
    code: Code,
    message: String,
    option: Option<String>,
    hints: Vec<String>,
    others: Vec<Error>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with its message: a sentence without a full stop, in the user's vocabulary.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            message: message.into(),
            option: None,
            hints: Vec::new(),
            others: Vec::new(),
            source: None,
        }))
    }

    /// The error of work that ends because the user asked to stop.
    pub fn interrupted() -> Self {
        Self::new(Code::Interrupted, "interrupted")
    }

    /// Several faults as one error, in the order found; `None` when there are none.
    pub fn all(faults: Vec<Self>) -> Option<Self> {
        let mut faults = faults.into_iter();
        let mut first = faults.next()?;
        first.0.others.extend(faults);
        Some(first)
    }

    /// Adds what the user can do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hints.push(hint.into());
        self
    }

    /// Adds a hint, if there is one.
    #[must_use]
    pub fn hint_if(mut self, hint: Option<impl Into<String>>) -> Self {
        self.0.hints.extend(hint.map(Into::into));
        self
    }

    /// Says in which file, or in which part of one, this fault is, and the others found with it.
    #[must_use]
    pub fn within(mut self, place: &str) -> Self {
        self.0.message.insert_str(0, &format!("{place}: "));
        self.0.others = self.0.others.into_iter().map(|other| other.within(place)).collect();
        self
    }

    /// Names the option that is at fault, as a dotted path such as `optimizer.lr`.
    #[must_use]
    pub fn option(mut self, path: impl Into<String>) -> Self {
        self.0.option = Some(path.into());
        self
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The kind of this error.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The sentence that says what went wrong.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The message without the lines that libtorch adds to its own.
    pub fn first_line(&self) -> &str {
        self.message().lines().next().unwrap_or_default()
    }

    /// The dotted path of the option at fault, if one is.
    pub fn option_path(&self) -> Option<&str> {
        self.0.option.as_deref()
    }

    /// The user's next steps.
    pub fn hints(&self) -> &[String] {
        &self.0.hints
    }

    /// Further faults found together with this one.
    pub fn others(&self) -> &[Self] {
        &self.0.others
    }

    /// Each fault as an error of its own.
    pub fn split(mut self) -> Vec<Self> {
        let others = std::mem::take(&mut self.0.others);
        std::iter::once(self).chain(others.into_iter().flat_map(Self::split)).collect()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        for other in &self.0.others {
            write!(f, "\n{other}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {self}", self.0.code.number())?;
        for hint in &self.0.hints {
            write!(f, "\n  = {hint}")?;
        }
        if let Some(source) = &self.0.source {
            write!(f, "\n  caused by: {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|s| s as &(dyn std::error::Error + 'static))
    }
}

/// Turns the outcome of a file operation into dsr's error, naming the operation and the path.
pub trait IoContext<T> {
    /// `doing` is the verb of the sentence "cannot {doing} {path}".
    fn at(self, doing: &str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, doing: &str, path: &Path) -> Result<T> {
        self.map_err(|e| io_error(&e, doing, path))
    }
}

/// The error of a file operation: "cannot {doing} {path}", and the reason.
pub fn io_error(e: &io::Error, doing: &str, path: &Path) -> Error {
    let shown = named(path);
    let place = shown.display();
    // The operating system's own words, without Rust's "(os error 2)".
    let mut reason = e.to_string();
    if let Some(at) = reason.find(" (os error") {
        reason.truncate(at);
    }
    let message = format!("cannot {doing} {place}: {reason}");
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::new(Code::DiskFull, message)
                .hint("free some space, or choose another place; nothing that existed was changed")
        }
        io::ErrorKind::FileTooLarge => Error::new(Code::DiskFull, message).hint(
            "`ulimit -f` limits the size of files in this shell; nothing that existed was changed",
        ),
        _ => Error::new(Code::Io, message),
    }
}

/// The path by its names, if it begins with the handle of an open directory.
fn named(path: &Path) -> PathBuf {
    let below = |path: &Path| {
        let rest = path.strip_prefix("/proc/self/fd").ok()?;
        let mut parts = rest.components();
        let handle = Path::new("/proc/self/fd").join(parts.next()?);
        Some(handle.read_link().ok()?.join(parts.as_path()))
    };
    below(path).unwrap_or_else(|| path.to_owned())
}

/// Returns early with an [`Error`]: `bail!(Code::Data, "no column {name}")`.
#[macro_export]
macro_rules! bail {
    ($code:expr, $($arg:tt)+) => {
        return Err($crate::error::Error::new($code, format!($($arg)+)))
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_faults_are_one_error() {
        let e = Error::all(vec![
            Error::new(Code::UnknownOption, "no option a"),
            Error::new(Code::WrongType, "b must be a number"),
        ])
        .expect("two faults");
        assert_eq!(e.to_string(), "no option a\nb must be a number");
        assert!(Error::all(Vec::new()).is_none());
    }

    #[test]
    fn a_full_disk_has_its_own_code() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let e = Err::<(), _>(full).at("write", Path::new("/x")).unwrap_err();
        assert_eq!(e.code(), Code::DiskFull);
        assert!(!e.hints().is_empty());
    }
}
