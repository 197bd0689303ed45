//! `csv_monitor`: a file for each value, in DeepSpeed's layout.
//!
//! `Train/Samples/lr` goes to `Train_Samples_lr.csv`: the header `step,lr`, then a row for each
//! optimizer step, whose `step` is the number of samples seen. A file that exists is gone on with;
//! DeepSpeed writes its header once more then, dsr does not.

use std::{
    collections::HashMap,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use super::event::{Event, GRAD_NORM, LR, TOKENS_PER_SECOND, TRAIN_LOSS};
use crate::{
    error::{Code, Error, IoContext, Result},
    fs::{File, Place, append_whole, create_dir_all, read_start},
};

/// The open files of one directory.
#[derive(Debug)]
pub(super) struct CsvMonitor {
    dir: Place,
    files: HashMap<&'static str, (PathBuf, File)>,
}

impl CsvMonitor {
    /// Makes the directory and the files that every step writes.
    pub(super) fn open(dir: impl Into<Place>) -> Result<Self> {
        let dir = dir.into();
        create_dir_all(&dir)?;
        let mut monitor = Self { dir, files: HashMap::new() };
        for tag in [TRAIN_LOSS, LR, GRAD_NORM, TOKENS_PER_SECOND] {
            monitor.file(tag)?;
        }
        Ok(monitor)
    }

    /// Appends a row for each event.
    pub(super) fn write(&mut self, events: &[Event]) -> Result<()> {
        for Event { tag, value, samples } in events {
            let (path, file) = self.file(tag)?;
            // One write, so that a killed process leaves no part of a row.
            append_whole(file, format!("{samples},{value:?}\n").as_bytes()).at("write", path)?;
        }
        Ok(())
    }

    fn file(&mut self, tag: &'static str) -> Result<&mut (PathBuf, File)> {
        if !self.files.contains_key(tag) {
            let place = self.dir.join(format!("{}.csv", tag.replace('/', "_")));
            let (mut file, path) = (place.append()?, place.path().to_owned());
            let header = format!("step,{}\n", tag.rsplit('/').next().unwrap_or(tag));
            check_header(&mut file, &header, &path)?;
            if cut_torn_row(&mut file).at("read", &path)? == 0 {
                append_whole(&mut file, header.as_bytes()).at("write", &path)?;
            }
            self.files.insert(tag, (path, file));
        }
        Ok(self.files.get_mut(tag).expect("it was just put there"))
    }
}

/// Refuses a file of somebody else: rows are added to its own kind only.
fn check_header(file: &mut File, header: &str, path: &Path) -> Result<()> {
    let begin = read_start(file, header.len()).at("read", path)?;
    if !header.as_bytes().starts_with(&begin) {
        let message = format!("{} does not begin with `{}`", path.display(), header.trim_end());
        return Err(Error::new(Code::Io, message).hint("give the logs another directory"));
    }
    Ok(())
}

/// Removes a last row that a full disk left without its end; returns the length that is left.
fn cut_torn_row(file: &mut File) -> std::io::Result<u64> {
    /// More than any row has.
    const TAIL: u64 = 256;
    let len = file.metadata()?.len();
    let from = len.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    Read::by_ref(file).take(TAIL).read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end as u64 + 1);
    let kept = if tail.is_empty() || whole == tail.len() as u64 { len } else { from + whole };
    if kept < len {
        file.set_len(kept)?;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;
    use crate::error::Code;

    fn lr(value: f64, samples: u64) -> Event {
        Event { tag: LR, value, samples }
    }

    #[test]
    fn a_file_that_exists_is_gone_on_with() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("logs/job");
        CsvMonitor::open(&dir).unwrap().write(&[lr(1e-5, 8), lr(0.5, 16)]).unwrap();
        let path = dir.join("Train_Samples_lr.csv");
        // A row that a full disk left torn.
        File::options().append(true).open(&path).unwrap().write_all(b"24,0.").unwrap();
        CsvMonitor::open(&dir).unwrap().write(&[lr(65536.0, 24)]).unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "step,lr\n8,1e-5\n16,0.5\n24,65536.0\n");
        let loss = dir.join("Train_Samples_train_loss.csv");
        assert_eq!(fs::read_to_string(&loss).unwrap(), "step,train_loss\n");
        // A file of somebody else stays as it is.
        fs::write(&loss, "my notes").unwrap();
        let e = CsvMonitor::open(&dir).unwrap_err();
        assert!(e.message().contains("does not begin with `step,train_loss`"), "{e}");
        assert_eq!(fs::read_to_string(&loss).unwrap(), "my notes");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let e = CsvMonitor::open(file.join("job")).unwrap_err();
        assert_eq!(e.code(), Code::Io);
        assert!(e.message().contains("file/job"), "{e}");

        let path = PathBuf::from("/dev/full");
        let full = File::options().append(true).open(&path).unwrap();
        let dir = root.path().to_path_buf();
        let mut monitor =
            CsvMonitor { dir: dir.into(), files: HashMap::from([(LR, (path, full))]) };
        let e = monitor.write(&[lr(0.1, 1)]).unwrap_err();
        assert_eq!(e.code(), Code::DiskFull);
        assert!(e.message().contains("/dev/full"), "{e}");
    }
}
