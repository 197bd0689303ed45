//! The command line of this process, to be written down and shown.

/// The words of this process's command line. Those that are no text are shown as far as they are.
pub(super) fn own_words() -> Vec<String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect()
}
