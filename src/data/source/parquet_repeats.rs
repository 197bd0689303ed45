//! The parts of a batch that are larger than the bytes of their Parquet pages: the values of lists, and
//! texts that are written out once and come again.
//!
//! A batch has a fixed number of rows, and begins at any row. So a page is measured by the most that
//! as many of its rows have, and the pages of a column count together as long as a batch can touch them.
//! Repetitions are measured run by run, so that a long run takes no longer than a short one.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use super::{parquet_check::Checked, parquet_encodings::Runs};
use crate::{data::stage::ROWS_PER_BATCH, units::Bytes};

/// Values that the lists of a batch have in all: for each of its rows as many as a long context has.
const MOST_IN_LISTS: u64 = 1 << 27;
/// Bytes that a batch has again in all: for each of its rows a text of a megabyte.
const MOST_REPEATED: u64 = 1 << 30;
const ROWS: u64 = ROWS_PER_BATCH as u64;

/// The amount of a page that a batch can have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Amount {
    /// Rows that begin in the page.
    pub(super) rows: u64,
    /// Values in lists of a batch's rows.
    pub(super) in_lists: u64,
    /// Bytes of a batch's rows that the page or its dictionary has once.
    pub(super) repeated: u64,
}

/// The amount of the pages read last that a batch can have.
#[derive(Clone)]
pub(super) struct Made {
    columns: Arc<Mutex<Columns>>,
    /// The most bytes that it has again.
    pub(super) most_repeated: u64,
}

/// The columns, and the sum of their sums.
#[derive(Default)]
struct Columns {
    recent: BTreeMap<usize, Recent>,
    sum: Amount,
}

/// The pages of a column of which one batch can have rows.
#[derive(Default)]
struct Recent {
    pages: VecDeque<Amount>,
    sum: Amount,
}

impl Default for Made {
    fn default() -> Self {
        Self::with_at_most(MOST_REPEATED)
    }
}

impl Made {
    pub(super) fn with_at_most(most_repeated: u64) -> Self {
        Self { columns: Arc::default(), most_repeated }
    }

    /// Adds a page to those of its column; returns the bytes that a batch can have again.
    pub(super) fn add(&self, column: usize, page: Amount) -> Checked<u64> {
        let mut columns = self.columns.lock().unwrap_or_else(PoisonError::into_inner);
        let Columns { recent, sum } = &mut *columns;
        let column = recent.entry(column).or_default();
        *sum = sum.without(column.sum);
        column.add(page);
        *sum = sum.with(column.sum);
        let Amount { in_lists, repeated, .. } = *sum;
        if in_lists > MOST_IN_LISTS {
            return Err(format!("makes lists of more than {MOST_IN_LISTS} values in a batch"));
        }
        if repeated > self.most_repeated {
            return Err(format!(
                "repeats what it has once: {ROWS} rows have {} of it, and at most {} are read",
                Bytes(repeated),
                Bytes(self.most_repeated)
            ));
        }
        Ok(repeated)
    }
}

impl Recent {
    fn add(&mut self, page: Amount) {
        // Rows between the first page and the new one.
        let between = |recent: &Self| recent.sum.rows - recent.pages.front().map_or(0, |p| p.rows);
        while between(self) >= ROWS
            && let Some(first) = self.pages.pop_front()
        {
            self.sum = self.sum.without(first);
        }
        self.sum = self.sum.with(page);
        match self.pages.back_mut() {
            // A row that goes on for any number of pages.
            Some(last) if page.rows == 0 => *last = last.with(page),
            _ => self.pages.push_back(page),
        }
    }
}

impl Amount {
    fn with(self, other: Self) -> Self {
        Self {
            rows: self.rows.saturating_add(other.rows),
            in_lists: self.in_lists.saturating_add(other.in_lists),
            repeated: self.repeated.saturating_add(other.repeated),
        }
    }

    fn without(self, other: Self) -> Self {
        Self {
            rows: self.rows.saturating_sub(other.rows),
            in_lists: self.in_lists.saturating_sub(other.in_lists),
            repeated: self.repeated.saturating_sub(other.repeated),
        }
    }

    fn most(self, other: Self) -> Self {
        Self {
            rows: self.rows.max(other.rows),
            in_lists: self.in_lists.max(other.in_lists),
            repeated: self.repeated.max(other.repeated),
        }
    }
}

/// The values of a dictionary.
#[derive(Default)]
pub(super) struct Dictionary {
    /// The bytes of each, and whether it was made before.
    values: Vec<(u32, bool)>,
    longest: u64,
}

impl Dictionary {
    /// Texts that stand behind their lengths.
    pub(super) fn of_texts(mut body: &[u8]) -> Self {
        let mut values = Vec::new();
        while let Some((len, rest)) = body.split_first_chunk() {
            let len = u32::from_le_bytes(*len);
            values.push((len, false));
            // What is behind the end is the reader's matter.
            body = rest.get(len as usize..).unwrap_or_default();
        }
        let longest = values.iter().map(|(len, _)| *len).max().unwrap_or(0);
        Self { values, longest: longest.into() }
    }

    /// Values of `len` bytes each, which are `body` together.
    pub(super) fn of_equal(len: u32, body: &[u8]) -> Self {
        let count = body.len().checked_div(len as usize).unwrap_or(0);
        Self { values: vec![(len, false); count], longest: len.into() }
    }
}

/// The values of a page, as far as they repeat something.
pub(super) enum Values<'a> {
    /// Each is in the page.
    Alone,
    /// Each is in the dictionary.
    Places(Runs<'a>, &'a mut Dictionary),
    /// Each begins with so many bytes of the one before.
    Shared(std::vec::IntoIter<u64>),
}

impl Values<'_> {
    /// The most bytes that one of them repeats.
    fn longest(&self) -> u64 {
        match self {
            Self::Alone => 0,
            Self::Places(_, dictionary) => dictionary.longest,
            Self::Shared(lens) => lens.as_slice().iter().copied().max().unwrap_or(0),
        }
    }

    /// The bytes that the next value repeats, and the number of values that repeat as many, at most
    /// `most`.
    fn take(&mut self, most: u64) -> (u64, u64) {
        match self {
            Self::Alone => (0, most),
            Self::Shared(lens) => lens.next().map_or((0, most), |len| (len, 1)),
            Self::Places(places, dictionary) => {
                // What is missing is the reader's matter.
                let Some((place, left)) = places.run() else { return (0, most) };
                let value = usize::try_from(place).ok().and_then(|i| dictionary.values.get_mut(i));
                let (repeated, count) = match value {
                    Some((_, was_made)) if !*was_made => {
                        *was_made = true;
                        (0, 1)
                    }
                    Some((len, _)) => (u64::from(*len), left.min(most)),
                    None => (0, left.min(most)),
                };
                places.pass(count);
                (repeated, count)
            }
        }
    }
}

/// The places for values of a page, with their levels.
pub(super) struct Slots<'a> {
    pub(super) count: u64,
    /// 0 where a row begins.
    pub(super) starts: Runs<'a>,
    /// `value_level` where there is a value.
    pub(super) defined: Runs<'a>,
    pub(super) value_level: u64,
    pub(super) in_lists: bool,
    /// Bytes of a place without a value.
    pub(super) fixed: u32,
}

impl Slots<'_> {
    /// What a batch can have of the page. It is not looked at closely where `few` bytes are repeated at
    /// most.
    pub(super) fn amount(mut self, mut values: Values<'_>, few: u64) -> Amount {
        let of_batch = if self.in_lists { self.count } else { self.count.min(ROWS) };
        let at_most = values.longest().max(self.fixed.into()).saturating_mul(of_batch);
        if at_most > few {
            return self.measured(&mut values);
        }
        let all = Amount { rows: self.count, in_lists: 0, repeated: at_most };
        match self.in_lists {
            true => Amount { repeated: at_most, ..self.measured(&mut Values::Alone) },
            false => all,
        }
    }

    fn measured(&mut self, values: &mut Values<'_>) -> Amount {
        let mut window = Window::default();
        let mut left = self.count;
        while left > 0 {
            // Where levels end too early, the reader ends.
            let Some((start, starts)) = self.starts.run() else { break };
            let Some((level, levels)) = self.defined.run() else { break };
            let most = left.min(starts).min(levels);
            let (repeated, count) = match level == self.value_level {
                true => values.take(most),
                false => (self.fixed.into(), most),
            };
            self.starts.pass(count);
            self.defined.pass(count);
            left -= count;
            let one = Amount { rows: 0, in_lists: u64::from(self.in_lists), repeated };
            match start {
                0 => window.begin_rows(count, one),
                _ => window.go_on(count, one),
            }
        }
        window.most
    }
}

/// The rows of a page, of which a batch has as many as these at most.
#[derive(Default)]
struct Window {
    rows: VecDeque<Amount>,
    sum: Amount,
    /// All rows that began, and the most that a batch has.
    most: Amount,
}

impl Window {
    /// Begins `count` rows, each with `one`.
    fn begin_rows(&mut self, count: u64, one: Amount) {
        // More that are equal would change nothing.
        for _ in 0..count.min(ROWS) {
            if self.rows.len() as u64 >= ROWS
                && let Some(first) = self.rows.pop_front()
            {
                self.sum = self.sum.without(first);
            }
            self.rows.push_back(one);
            self.sum = self.sum.with(one);
            self.most = self.most.most(self.sum);
        }
        self.most.rows = self.most.rows.saturating_add(count);
    }

    /// Goes on with the last row.
    fn go_on(&mut self, count: u64, one: Amount) {
        let more = Amount {
            rows: 0,
            in_lists: one.in_lists.saturating_mul(count),
            repeated: one.repeated.saturating_mul(count),
        };
        match self.rows.back_mut() {
            Some(last) => *last = last.with(more),
            // A row of the page before.
            None => self.rows.push_back(more),
        }
        self.sum = self.sum.with(more);
        self.most = self.most.most(self.sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(rows: u64, repeated: u64) -> Amount {
        Amount { rows, in_lists: 1, repeated }
    }

    #[test]
    fn pages_count_as_long_as_a_batch_can_have_rows_of_them() {
        let made = Made::with_at_most(100);
        assert_eq!(made.add(0, page(1000, 60)), Ok(60));
        assert_eq!(made.add(0, page(1000, 10)), Ok(70), "the next page");
        assert_eq!(made.add(0, page(23, 10)), Ok(80), "1,000 rows lie between");
        assert_eq!(made.add(0, page(5000, 10)), Ok(90), "1,023 rows");
        assert_eq!(made.add(0, page(1, 10)), Ok(20), "the last page and this one");
        // A row that goes on for many pages.
        for sum in [30, 40, 50] {
            assert_eq!(made.add(0, page(0, 10)), Ok(sum));
        }
        // Columns are read together, whichever page was first.
        assert_eq!(made.add(1, page(9, 50)), Ok(100));
        let e = made.add(2, page(9, 1)).unwrap_err();
        assert!(
            e.contains("1024 rows have 101 bytes of it, and at most 100 bytes are read"),
            "{e}"
        );
    }

    #[test]
    fn lists_have_a_bounded_number_of_values() {
        let made = Made::default();
        let lists = |in_lists| Amount { rows: 2000, in_lists, repeated: 0 };
        assert!(made.add(0, lists(MOST_IN_LISTS)).is_ok());
        assert!(made.add(0, lists(1)).unwrap_err().contains("makes lists of more than"));
        assert!(made.add(0, lists(1)).is_ok());
    }

    fn slots(count: u64, in_lists: bool) -> Slots<'static> {
        let (starts, defined) = (Runs::constant(0), Runs::constant(1));
        Slots { count, starts, defined, value_level: 1, in_lists, fixed: 0 }
    }

    #[test]
    fn the_most_that_rows_of_a_page_have_counts() {
        let shared = |lens: Vec<u64>| Values::Shared(lens.into_iter());
        let long = |at: std::ops::Range<usize>| {
            shared((0..5000).map(|i| if at.contains(&i) { 9 } else { 0 }).collect())
        };
        assert_eq!(
            slots(5000, false).amount(long(2000..2100), 0),
            Amount { rows: 5000, in_lists: 0, repeated: 900 }
        );
        assert_eq!(slots(5000, false).amount(long(100..3000), 0).repeated, 9 * ROWS);
        // Few bytes are not looked at.
        assert_eq!(slots(5000, false).amount(long(0..1), 9 * ROWS).repeated, 9 * ROWS);
        // Each row has one value of a list.
        let amount = slots(5000, true).amount(Values::Alone, 0);
        assert_eq!(amount, Amount { rows: 5000, in_lists: ROWS, repeated: 0 });
    }

    #[test]
    fn a_run_is_measured_and_not_gone_through() {
        let mut dictionary = Dictionary::of_texts(&[2, 0, 0, 0, b'a', b'b']);
        // 2^31 values in one row, all of them the one text.
        let places = [1, 0xfe, 0xff, 0xff, 0xff, 0xff, 0x7f, 0];
        let count = u64::from(u32::MAX >> 1);
        let goes_on = [0xfe, 0xff, 0xff, 0xff, 0x0f, 1];
        let starts = [[2, 0].as_slice(), &goes_on].concat();
        let slots = Slots {
            starts: Runs::of_levels(&starts, parquet::basic::Encoding::RLE, 1),
            ..slots(count, true)
        };
        let values = Values::Places(Runs::of_places(&places).unwrap(), &mut dictionary);
        let repeated = 2 * (count - 1);
        assert_eq!(slots.amount(values, 0), Amount { rows: 1, in_lists: count, repeated });
    }
}
