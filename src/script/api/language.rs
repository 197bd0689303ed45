//! Functions of the language that could wait or grow without an end, in forms that do not.
//!
//! They stand before Rhai's own of the same names: `sleep` looks at the request to stop; `replace` and
//! `pad` count what they will make before they take the memory, and Rhai's `pad` with an empty text
//! never ends.

use std::time::{Duration, Instant};

use rhai::{ImmutableString, plugin::*};

use crate::{
    error::{Code, Error, Result},
    recipe::{error::ScriptResult, parser::STRING_BYTES, value::argument},
    script::host,
    units::Bytes,
};

/// How long a request to stop may go unnoticed.
const PATIENCE: Duration = Duration::from_millis(20);

/// Waiting, writing, replacing and padding.
#[export_module]
pub mod api {
    /// Waits for a number of seconds, or until the user wants the recipe to stop.
    ///
    /// ```rhai
    /// sleep(10);
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn sleep(ctx: NativeCallContext, seconds: i64) -> ScriptResult<()> {
        Ok(wait(&ctx, seconds as f64)?)
    }

    /// Waits for a number of seconds, or until the user wants the recipe to stop.
    #[rhai_fn(name = "sleep", return_raw, volatile)]
    pub fn sleep_float(ctx: NativeCallContext, seconds: f64) -> ScriptResult<()> {
        Ok(wait(&ctx, seconds)?)
    }

    /// Writes a number with so many digits behind its point.
    ///
    /// ```rhai
    /// print(3.14159.to_fixed(2));                     // 3.14
    /// ```
    #[rhai_fn(pure, return_raw)]
    pub fn to_fixed(number: &mut f64, digits: i64) -> ScriptResult<String> {
        let digits: u8 = argument("digits", &digits.into())?;
        Ok(format!("{number:.digits$}", digits = usize::from(digits)))
    }

    /// Replaces every occurrence of a text in the string.
    ///
    /// ```rhai
    /// let text = "one two";
    /// text.replace("one", "three");
    /// ```
    #[rhai_fn(return_raw)]
    pub fn replace(string: &mut ImmutableString, find: &str, substitute: &str) -> ScriptResult<()> {
        Ok(super::replace(string, find, substitute)?)
    }

    /// Replaces every occurrence of a text in the string.
    #[rhai_fn(name = "replace", return_raw)]
    pub fn replace_with_char(
        string: &mut ImmutableString,
        find: &str,
        substitute: char,
    ) -> ScriptResult<()> {
        Ok(super::replace(string, find, substitute.encode_utf8(&mut [0; 4]))?)
    }

    /// Replaces every occurrence of a text in the string.
    #[rhai_fn(name = "replace", return_raw)]
    pub fn replace_char(
        string: &mut ImmutableString,
        find: char,
        substitute: &str,
    ) -> ScriptResult<()> {
        Ok(super::replace(string, find.encode_utf8(&mut [0; 4]), substitute)?)
    }

    /// Replaces every occurrence of a text in the string.
    #[rhai_fn(name = "replace", return_raw)]
    pub fn replace_char_with_char(
        string: &mut ImmutableString,
        find: char,
        substitute: char,
    ) -> ScriptResult<()> {
        let (mut from, mut to) = ([0; 4], [0; 4]);
        Ok(super::replace(string, find.encode_utf8(&mut from), substitute.encode_utf8(&mut to))?)
    }

    /// Fills the string up to a number of characters, at its end.
    ///
    /// ```rhai
    /// let text = "7";
    /// text.pad(3, ' ');
    /// ```
    #[rhai_fn(name = "pad", return_raw)]
    pub fn pad_with_char(
        string: &mut ImmutableString,
        len: i64,
        character: char,
    ) -> ScriptResult<()> {
        Ok(super::pad(string, len, character.encode_utf8(&mut [0; 4]))?)
    }

    /// Fills the string up to a number of characters, at its end.
    #[rhai_fn(return_raw)]
    pub fn pad(string: &mut ImmutableString, len: i64, padding: &str) -> ScriptResult<()> {
        Ok(super::pad(string, len, padding)?)
    }
}

fn wait(ctx: &NativeCallContext, seconds: f64) -> Result<()> {
    if seconds.is_nan() {
        bail!(Code::BadValue, "`sleep` needs a number of seconds, found NaN");
    }
    let host = host::of(ctx)?;
    // A time longer than the clock can tell is as good as forever.
    let length = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
    let begin = Instant::now();
    while !host.interrupted() {
        let left = length.saturating_sub(begin.elapsed());
        if left.is_zero() {
            break;
        }
        std::thread::sleep(left.min(PATIENCE));
    }
    // An active run saves first, and ends at its next step.
    if host.must_stop() { Err(Error::interrupted()) } else { Ok(()) }
}

fn replace(string: &mut ImmutableString, find: &str, substitute: &str) -> Result<()> {
    if string.is_empty() {
        return Ok(());
    }
    let found = string.matches(find).count();
    let kept = string.len() - found * find.len();
    let bytes = found.saturating_mul(substitute.len()).saturating_add(kept);
    check_length("replace", bytes)?;
    if found > 0 {
        *string = string.replace(find, substitute).into();
    }
    Ok(())
}

fn pad(string: &mut ImmutableString, len: i64, padding: &str) -> Result<()> {
    let lacking = usize::try_from(len).unwrap_or(0).saturating_sub(string.chars().count());
    if lacking == 0 {
        return Ok(());
    }
    let each = padding.chars().count();
    if each == 0 {
        bail!(Code::BadValue, "`pad` needs a text to fill up with, found an empty one");
    }
    let (whole, rest) = (lacking / each, lacking % each);
    let rest: String = padding.chars().take(rest).collect();
    let added = whole.saturating_mul(padding.len()).saturating_add(rest.len());
    check_length("pad", added.saturating_add(string.len()))?;
    let text = string.make_mut();
    text.push_str(&padding.repeat(whole));
    text.push_str(&rest);
    Ok(())
}

/// Refuses a string that would be longer than one may be.
fn check_length(name: &str, bytes: usize) -> Result<()> {
    if bytes > STRING_BYTES {
        let (bytes, most) = (Bytes(bytes as u64), Bytes(STRING_BYTES as u64));
        bail!(Code::Recipe, "`{name}` would make a string of {bytes}; {most} is the most");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_that_would_be_too_long_is_refused_before_it_is_made() {
        let replaced = |text: &str, find: &str, substitute: &str| {
            let mut string = ImmutableString::from(text);
            replace(&mut string, find, substitute).map(|()| string.to_string())
        };
        assert_eq!(replaced("a-b-c", "-", "++").unwrap(), "a++b++c");
        assert_eq!(replaced("ab", "", "-").unwrap(), "-a-b-");
        assert_eq!(replaced("", "", "-").unwrap(), "");
        let long = "a".repeat(1_000_000);
        let e = replaced(&long, "a", &long).unwrap_err();
        assert_eq!(e.code(), Code::Recipe);
        assert!(e.message().contains("a string of 931.3 GiB"), "{e}");
    }

    #[test]
    fn a_string_is_filled_up_to_its_length() {
        let padded = |text: &str, len, padding: &str| {
            let mut string = ImmutableString::from(text);
            pad(&mut string, len, padding).map(|()| string.to_string())
        };
        assert_eq!(padded("a", 6, "xyz").unwrap(), "axyzxy");
        assert_eq!(padded("\u{e9}", 3, "\u{df}").unwrap(), "\u{e9}\u{df}\u{df}");
        for len in [-1, 0, 1, i64::MIN] {
            assert_eq!(padded("a", len, "").unwrap(), "a");
        }
        assert_eq!(padded("a", 2, "").unwrap_err().code(), Code::BadValue);
        assert_eq!(padded("a", i64::MAX, "\u{df}").unwrap_err().code(), Code::Recipe);
    }
}
