//! The bytes of one data file, on disk or in the binary, as a stream or as lines.

use std::{
    io::{BufRead, BufReader, Cursor, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use flate2::bufread::MultiGzDecoder;

use super::streamed::Streamed;
use crate::{
    data::wanted::check_wanted,
    error::{Code, Error, IoContext, Result},
    fs::{File, Place, open_file, without_mark},
    units::Bytes,
};

/// The longest line.
pub(super) const MOST_LINE_BYTES: u64 = 256 << 20;
/// The bytes at each end of a file that its fingerprint sums up.
const SUMMED: u64 = 1 << 16;

/// Where the bytes are.
#[derive(Debug, Clone)]
pub(super) enum FileLocation {
    Path(Place),
    /// On the hub, and here while its rows are read.
    Streamed(Arc<Streamed>),
    Embedded(&'static [u8]),
}

/// The bytes, ready to be read.
pub(super) enum Opened {
    File(File),
    Embedded(&'static [u8]),
}

/// How the bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// The compression that the end of a file's name says, and the name without it.
    pub(super) fn of(path: &Path) -> (Self, PathBuf) {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_lowercase();
        match extension.as_str() {
            "gz" | "gzip" => (Self::Gzip, path.with_extension("")),
            "zst" | "zstd" => (Self::Zstd, path.with_extension("")),
            _ => (Self::None, path.to_owned()),
        }
    }
}

/// A file's bytes and what messages call it; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct FileBytes(Arc<(String, FileLocation, Compression)>);

/// As many columns as a spreadsheet has.
const MOST_COLUMNS: usize = 1 << 14;

impl FileBytes {
    pub(super) fn new(name: String, place: FileLocation, packed: Compression) -> Self {
        Self(Arc::new((name, place, packed)))
    }

    /// Its name in messages.
    pub(super) fn name(&self) -> &str {
        &self.0.0
    }

    /// Where its bytes are.
    pub(super) fn place(&self) -> &FileLocation {
        &self.0.1
    }

    /// Opens it, once it was fetched if it must be.
    pub(super) fn open(&self) -> Result<Opened> {
        Ok(match self.place() {
            FileLocation::Path(place) => Opened::File(open_file(place)?),
            FileLocation::Streamed(streamed) => Opened::File(streamed.open()?),
            FileLocation::Embedded(bytes) => Opened::Embedded(bytes),
        })
    }

    /// Refuses more columns than anybody reads: each is looked for by its name among the others.
    pub(super) fn check_columns(&self, count: usize) -> Result<()> {
        match count > MOST_COLUMNS {
            true => Err(self.error(format!("it has more than {MOST_COLUMNS} columns"))),
            false => Ok(()),
        }
    }

    /// An error about this file.
    pub(super) fn error(&self, reason: impl std::fmt::Display) -> Error {
        Error::new(Code::Data, format!("{}: {reason}", self.name()))
    }

    /// Its bytes as a stream, unpacked and without a byte order mark.
    pub(super) fn stream(&self) -> Result<Box<dyn BufRead>> {
        let plain: Box<dyn BufRead> = match self.open()? {
            Opened::File(file) => Box::new(BufReader::with_capacity(1 << 20, file)),
            Opened::Embedded(bytes) => Box::new(Cursor::new(bytes)),
        };
        let read = |e| self.error(format!("cannot be read: {e}"));
        let mut stream: Box<dyn BufRead> = match self.0.2 {
            Compression::None => plain,
            Compression::Gzip => {
                Box::new(BufReader::with_capacity(1 << 20, MultiGzDecoder::new(plain)))
            }
            Compression::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(plain).map_err(read)?;
                Box::new(BufReader::with_capacity(1 << 20, decoder))
            }
        };
        let start = stream.fill_buf().map_err(read)?;
        let mark = start.len() - without_mark(start).len();
        stream.consume(mark);
        Ok(stream)
    }

    /// The size of the file and a sum over its first and last bytes.
    pub(super) fn fingerprint(&self) -> Result<String> {
        let place = match self.place() {
            FileLocation::Path(place) => place,
            FileLocation::Streamed(streamed) => {
                return Ok(format!("{}:{}", streamed.remote().size(), streamed.remote().hash()));
            }
            FileLocation::Embedded(bytes) => {
                return Ok(format!("{}:{:08x}", bytes.len(), crc32fast::hash(bytes)));
            }
        };
        let mut file = open_file(place)?;
        let len = file.metadata().at("read", place.path())?.len();
        let mut sum = crc32fast::Hasher::new();
        for from in [0, len.saturating_sub(SUMMED)] {
            let mut part = Vec::new();
            file.seek(SeekFrom::Start(from)).at("read", place.path())?;
            (&file).take(SUMMED).read_to_end(&mut part).at("read", place.path())?;
            sum.update(&part);
        }
        Ok(format!("{len}:{:08x}", sum.finalize()))
    }

    /// The fingerprint, with the file's number and times: no change of its content leaves all of them.
    pub(super) fn identity(&self) -> Result<String> {
        let fingerprint = self.fingerprint()?;
        let FileLocation::Path(place) = self.place() else { return Ok(fingerprint) };
        let metadata = open_file(place)?.metadata().at("read", place.path())?;
        let times =
            (metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec());
        let (device, inode) = (metadata.dev(), metadata.ino());
        Ok(format!("{fingerprint} {device}:{inode} {times:?} {:?}", self.0.2))
    }

    /// Its lines with their numbers, from 1; line ends are cut off.
    pub(super) fn lines(&self) -> Result<Lines> {
        Ok(Lines { stream: self.stream()?, file: self.clone(), number: 0, broken: false })
    }
}

/// The lines of a file as bytes.
pub(super) struct Lines {
    stream: Box<dyn BufRead>,
    file: FileBytes,
    number: u64,
    /// Whether the last line ended in a line break.
    broken: bool,
}

impl Lines {
    /// Whether the last line that was read ended in a line break.
    pub(super) fn ended_in_break(&self) -> bool {
        self.broken
    }
}

impl Iterator for Lines {
    type Item = Result<(u64, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Err(e) = check_wanted() {
            return Some(Err(e));
        }
        let mut line = Vec::new();
        match self.stream.by_ref().take(MOST_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(n) if n as u64 == MOST_LINE_BYTES => {
                let (number, most) = (self.number + 1, Bytes(MOST_LINE_BYTES));
                Some(Err(self.file.error(format!("line {number} is longer than {most}"))))
            }
            Ok(_) => {
                self.broken = line.ends_with(b"\n");
                if self.broken {
                    line.pop();
                }
                if line.ends_with(b"\r") {
                    line.pop();
                }
                self.number += 1;
                Some(Ok((self.number, line)))
            }
            Err(e) => Some(Err(e).at("read", Path::new(self.file.name()))),
        }
    }
}
