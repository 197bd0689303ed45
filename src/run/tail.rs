//! A log that others write, read from its end first, then from its beginning, and then what is appended.
//!
//! Each call reads for as long as it may, and then gives way: a long log costs as little at a time as a
//! short one. Nothing is written and nothing is locked. A log that became shorter, or another file, is
//! read anew: a run that goes on drops the steps that it will do again.

use std::{
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    time::{Duration, Instant},
};

use crate::{
    error::{IoContext, Result},
    fs::{File, Place, open_file},
};

/// The bytes at the end that are read first.
const TAIL: u64 = 256 << 10;

/// The bytes that are read at once. A line that is longer is none of a log's.
const PIECE: u64 = 64 << 10;

/// The bytes of a log, at its end, that are read at most: some million steps. A file with holes can be far
/// longer than what is in it.
const MOST: u64 = 1 << 30;

/// How far a log is read.
#[derive(Debug)]
pub(super) struct Tail {
    place: Place,
    /// The file that was read last.
    inode: Option<u64>,
    /// The beginning that is left to read.
    head: Range<u64>,
    /// The end of what is read.
    end: u64,
    /// The bytes at the end that are read at most.
    most: u64,
}

/// A piece that a look at a log gives.
#[derive(Debug, PartialEq)]
pub(super) enum Part<'a> {
    /// The log begins anew: what was read before counts no more.
    Anew,
    /// A whole line.
    Line(&'a [u8]),
}

impl Tail {
    pub(super) fn of(place: Place) -> Self {
        Self { place, inode: None, head: 0..0, end: 0, most: MOST }
    }

    /// The end of a log, and what is appended: what is further up than its last 256 KiB is never read.
    pub(super) fn end_of(place: Place) -> Self {
        Self { most: TAIL, ..Self::of(place) }
    }

    /// Whether the beginning is read too, as far as it is read at all.
    pub(super) fn is_whole(&self) -> bool {
        self.head.is_empty()
    }

    /// Reads for about as long as `patience`; returns whether there was something.
    pub(super) fn read(
        &mut self,
        patience: Duration,
        take: &mut impl FnMut(Part<'_>),
    ) -> Result<bool> {
        if !self.place.is_file() {
            return Ok(false);
        }
        let began = Instant::now();
        let file = open_file(&self.place)?;
        let metadata = file.metadata().at("read", self.place.path())?;
        let (inode, len) = (metadata.ino(), metadata.len());
        let is_other = self.inode != Some(inode) || len < self.end;
        if is_other || len - self.end > self.most {
            take(Part::Anew);
            self.inode = Some(inode);
            self.begin(&file, len, take)?;
            return Ok(true);
        }
        let mut found = false;
        while self.end < len && (!found || began.elapsed() < patience) {
            let read = self.piece(&file, self.end..len, take)?;
            if read == 0 {
                break;
            }
            self.end += read;
            found = true;
        }
        while !self.head.is_empty() && (!found || began.elapsed() < patience) {
            let read = self.piece(&file, self.head.clone(), take)?;
            // A file that became shorter meanwhile is read anew next time.
            self.head.start = if read == 0 { self.head.end } else { self.head.start + read };
            found = true;
        }
        Ok(found)
    }

    /// Reads the end of the log, from its first whole line on.
    fn begin(&mut self, file: &File, len: u64, take: &mut impl FnMut(Part<'_>)) -> Result<()> {
        let start = len.saturating_sub(TAIL);
        let text = self.bytes(file, start..len)?;
        let first = match start {
            0 => 0,
            _ => text.iter().position(|&b| b == b'\n').map_or(text.len(), |at| at + 1),
        };
        let whole = first + lines(&text[first..], take);
        let head = start + first as u64;
        self.head = self.from(file, len)?.min(head)..head;
        self.end = start + whole as u64;
        Ok(())
    }

    /// Where the first line begins that is read of a log of `len` bytes.
    fn from(&self, file: &File, len: u64) -> Result<u64> {
        let start = len.saturating_sub(self.most);
        if start == 0 {
            return Ok(0);
        }
        let text = self.bytes(file, start..len.min(start + TAIL))?;
        let line = text.iter().position(|&b| b == b'\n').map_or(text.len(), |at| at + 1);
        Ok(start + line as u64)
    }

    /// Hands on the whole lines at the start of `range`; returns their length.
    fn piece(
        &self,
        file: &File,
        range: Range<u64>,
        take: &mut impl FnMut(Part<'_>),
    ) -> Result<u64> {
        let end = range.end.min(range.start + PIECE);
        let text = self.bytes(file, range.start..end)?;
        match lines(&text, take) {
            0 if text.len() as u64 == PIECE => {
                take(Part::Line(&text));
                Ok(PIECE)
            }
            whole => Ok(whole as u64),
        }
    }

    fn bytes(&self, file: &File, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let mut len = 0;
        while len < bytes.len() {
            let at = range.start + len as u64;
            match file.read_at(&mut bytes[len..], at).at("read", self.place.path())? {
                0 => break,
                n => len += n,
            }
        }
        bytes.truncate(len);
        Ok(bytes)
    }
}

/// Hands the whole lines on; returns their length together.
fn lines(text: &[u8], take: &mut impl FnMut(Part<'_>)) -> usize {
    let whole = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    text[..whole].split_inclusive(|&b| b == b'\n').for_each(|line| take(Part::Line(line)));
    whole
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    /// Reads once with no time to spare; returns the numbers of the lines, -1 for a new beginning.
    fn read(tail: &mut Tail) -> Vec<i64> {
        let mut found = Vec::new();
        tail.read(Duration::ZERO, &mut |part| {
            found.push(match part {
                Part::Anew => -1,
                Part::Line(line) => {
                    let line = std::str::from_utf8(line).unwrap();
                    line.split_whitespace().next().unwrap().parse().unwrap()
                }
            });
        })
        .unwrap();
        found
    }

    /// A log of `count` lines of 100 bytes.
    fn log(count: usize) -> (tempfile::TempDir, Tail) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let text: String = (0..count).map(|i| format!("{i:<99}\n")).collect();
        fs::write(&path, text).unwrap();
        (dir, Tail::of(path.into()))
    }

    #[test]
    fn a_long_log_is_read_from_its_end_and_then_piece_by_piece() {
        let (_dir, mut tail) = log(10_000);
        let first = read(&mut tail);
        assert_eq!((first[0], first[first.len() - 1]), (-1, 9999));
        assert!(first.len() < 2700 && !tail.is_whole(), "{}", first.len());
        let mut all = first[1..].to_vec();
        while !tail.is_whole() {
            let piece = read(&mut tail);
            assert!((1..=656).contains(&piece.len()), "{}", piece.len());
            all.extend(piece);
        }
        all.sort_unstable();
        assert!(all.into_iter().eq(0..10_000), "each line is read once");
        assert!(read(&mut tail).is_empty());
    }

    #[test]
    fn of_a_log_with_holes_the_end_is_read_and_a_bounded_part_before() {
        let (dir, mut tail) = log(10_000);
        assert_eq!(tail.most, 1 << 30);
        tail.most = 2 * TAIL;
        let path = dir.path().join("log");
        let mut numbers = read(&mut tail);
        while !tail.is_whole() {
            numbers.extend(read(&mut tail));
        }
        assert_eq!(numbers.len(), 1 + 2 * TAIL as usize / 100);
        assert_eq!(numbers[1..].iter().min(), Some(&(10_000 - 2 * TAIL as i64 / 100)));

        let holes = fs::File::options().write(true).open(&path).unwrap();
        holes.set_len(1 << 42).unwrap();
        let mut pieces = 0;
        let mut count = |part: Part<'_>| pieces += usize::from(matches!(part, Part::Line(_)));
        tail.read(Duration::ZERO, &mut count).unwrap();
        while !tail.is_whole() {
            tail.read(Duration::ZERO, &mut count).unwrap();
        }
        assert!(pieces as u64 <= 2 * TAIL / PIECE, "{pieces}");
    }

    #[test]
    fn what_is_appended_is_read_when_its_line_is_whole() {
        let (dir, mut tail) = log(2);
        assert_eq!(read(&mut tail), [-1, 0, 1]);
        let mut file = fs::File::options().append(true).open(dir.path().join("log")).unwrap();
        file.write_all(b"2 to").unwrap();
        assert!(!tail.read(Duration::from_secs(9), &mut |_| ()).unwrap());
        file.write_all(b"rn\n3\n").unwrap();
        let mut found = Vec::new();
        tail.read(Duration::from_secs(9), &mut |part| found.push(format!("{part:?}"))).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn a_log_that_was_cut_or_replaced_is_read_anew() {
        let (dir, mut tail) = log(3);
        read(&mut tail);
        let path = dir.path().join("log");
        fs::write(&path, "7\n").unwrap();
        assert_eq!(read(&mut tail), [-1, 7]);
        fs::write(dir.path().join("new"), "8\n9\n").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!(read(&mut tail), [-1, 8, 9]);
        fs::remove_file(&path).unwrap();
        assert!(read(&mut tail).is_empty());
    }

    #[test]
    fn a_line_without_an_end_is_passed_over() {
        let (dir, mut tail) = log(0);
        read(&mut tail);
        let path = dir.path().join("log");
        fs::write(&path, format!("{}\n5\n", "x".repeat(3 * PIECE as usize))).unwrap();
        let mut last = Vec::new();
        while tail
            .read(Duration::from_secs(9), &mut |part| {
                if let Part::Line(line) = part {
                    last = line.to_vec();
                }
            })
            .unwrap()
        {}
        assert_eq!(last, b"5\n");
    }
}
