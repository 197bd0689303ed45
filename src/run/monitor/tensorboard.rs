//! `tensorboard`: an event file with scalars, written without TensorFlow's libraries.
//!
//! The file is a sequence of TFRecords (TensorFlow's `record_writer.cc`): the length of the data as
//! a little-endian u64, its checksum, the data, its checksum. The checksum is a *masked* CRC-32C:
//! rotated right by 15 bits, plus a constant. The data is an `Event` of TensorFlow's `event.proto`
//! as protocol buffers encode it; of its fields these are used:
//!
//! ```text
//! Event          double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5
//! Summary        repeated Value value = 1
//! Summary.Value  string tag = 1; float simple_value = 2
//! ```

use std::{
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use super::event::Event;
use crate::{
    error::{IoContext, Result},
    fs::{File, Place, append_whole, create_dir_all},
};

/// The version that the first event of a file states.
const FILE_VERSION: &str = "brain.Event:2";

/// An open event file. Each process writes one of its own; TensorBoard shows those of a directory
/// as one.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Makes the directory and a new file in it, named as TensorFlow names them.
    pub(super) fn create(dir: impl Into<Place>) -> Result<Self> {
        let dir = dir.into();
        create_dir_all(&dir)?;
        let (now, process) = (since_epoch().as_secs(), std::process::id());
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy().replace('/', "_");
        let mut number = 0;
        let (path, file) = loop {
            let name = format!("events.out.tfevents.{now:010}.{host}.{process}.{number}");
            let place = dir.join(name);
            match place.create_file()? {
                None => number += 1,
                Some(file) => break (place.path().to_owned(), file),
            }
        };
        let mut events = Self { path, file };
        let mut version = Message::default();
        version.double(1, since_epoch().as_secs_f64()).bytes(3, FILE_VERSION.as_bytes());
        events.append(&record(&version.0))?;
        Ok(events)
    }

    /// Appends the events. They reach the system with one write, so that a killed process leaves
    /// no part of a record.
    pub(super) fn write(&mut self, events: &[Event]) -> Result<()> {
        let wall_time = since_epoch().as_secs_f64();
        let records: Vec<u8> =
            events.iter().flat_map(|event| record(&scalar(event, wall_time))).collect();
        self.append(&records)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        append_whole(&mut self.file, bytes).at("write", &self.path)
    }
}

fn since_epoch() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// An `Event` with one scalar.
fn scalar(event: &Event, wall_time: f64) -> Vec<u8> {
    let (mut value, mut summary, mut whole) =
        (Message::default(), Message::default(), Message::default());
    value.bytes(1, event.tag.as_bytes()).float(2, event.value as f32);
    summary.bytes(1, &value.0);
    whole.double(1, wall_time).int64(2, event.samples).bytes(5, &summary.0);
    whole.0
}

/// A protocol buffer message while it is written.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    // The wire types: how the length of a field is told.
    const VARINT: u64 = 0;
    const FIXED_64: u64 = 1;
    const LENGTH_DELIMITED: u64 = 2;
    const FIXED_32: u64 = 5;

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    /// Seven bits a byte, the lowest first; the high bit says that more follow.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn int64(&mut self, field: u64, value: u64) -> &mut Self {
        self.key(field, Self::VARINT);
        self.varint(value);
        self
    }

    fn double(&mut self, field: u64, value: f64) -> &mut Self {
        self.key(field, Self::FIXED_64);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn float(&mut self, field: u64, value: f32) -> &mut Self {
        self.key(field, Self::FIXED_32);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A string, or a message within this one.
    fn bytes(&mut self, field: u64, bytes: &[u8]) -> &mut Self {
        self.key(field, Self::LENGTH_DELIMITED);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }
}

/// `data` as a TFRecord.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let checksum = |bytes: &[u8]| masked_crc32c(bytes).to_le_bytes();
    [&length[..], &checksum(&length), data, &checksum(data)].concat()
}

fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the RecordWriter and the protocol buffers of TensorBoard 2.21 (Python) make of
    /// `Event(wall_time=1.5, step=300, summary=Summary(value=[Summary.Value(tag=.., simple_value=0.5)]))`.
    #[test]
    fn a_scalar_has_tensorboards_bytes() {
        let event = Event { tag: "Train/Samples/lr", value: 0.5, samples: 300 };
        let expected = "2700000000000000bbe1b14609000000000000f83f10ac022a190a170a10547261696e2f53\
                        616d706c65732f6c72150000003f859ceea1";
        let hex: String =
            record(&scalar(&event, 1.5)).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
    }

    #[test]
    fn each_process_has_a_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) =
            (EventFile::create(dir.path()).unwrap(), EventFile::create(dir.path()).unwrap());
        assert_ne!(a.path, b.path);
        let name = a.path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("events.out.tfevents."), "{name}");
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let path = PathBuf::from("/dev/full");
        let file = File::options().append(true).open(&path).unwrap();
        let event = Event { tag: "a", value: 0.0, samples: 1 };
        let e = EventFile { path, file }.write(&[event]).unwrap_err();
        assert_eq!(e.code(), crate::error::Code::DiskFull);
    }
}
