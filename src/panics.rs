//! Panics of libraries as values: libtorch's bindings and readers of files panic where they should fail.
//!
//! [`catch`] stands where a library is called with what it may not bear. Its panic is not shown, and
//! becomes words, of which the caller makes an error that names the file or the operation. A panic in
//! a thread of rayon arrives in the thread that waits for it, and so here. This needs
//! `panic = "unwind"`.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, turning a panic inside it into its words.
///
/// What `work` was changing may be half changed: the caller drops it, or marks it as unusable.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    silence_guarded_panics();
    let outer = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    outcome.map_err(|panic| words(panic.as_ref()).to_owned())
}

/// An iterator whose panic is its last item, made by `failed` of the number of items before it and the
/// words.
pub fn catch_each<T, E>(
    items: impl Iterator<Item = Result<T, E>>,
    failed: impl Fn(usize, &str) -> E,
) -> impl Iterator<Item = Result<T, E>> {
    let mut items = Some(items);
    let mut done = 0;
    std::iter::from_fn(move || {
        let item = catch(|| items.as_mut()?.next());
        done += 1;
        item.unwrap_or_else(|words| {
            // It may be half changed.
            items = None;
            Some(Err(failed(done - 1, &words)))
        })
    })
}

/// Installs, once, a panic hook that stays silent inside [`catch`] and is the old one elsewhere.
fn silence_guarded_panics() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                usual(info);
            }
        }));
    });
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_its_words() {
        assert_eq!(catch(|| 7), Ok(7));
        assert_eq!(catch(|| panic!("no entry {}", 3)), Err::<(), _>("no entry 3".to_owned()));
    }

    #[test]
    fn a_panic_ends_an_iterator_with_an_error() {
        let items = (0..9).map(|i| if i == 2 { panic!("two") } else { Ok::<_, String>(i) });
        let all: Vec<_> = catch_each(items, |n, words| format!("{n}: {words}")).collect();
        assert_eq!(all, [Ok(0), Ok(1), Err("2: two".to_owned())]);
    }
}
