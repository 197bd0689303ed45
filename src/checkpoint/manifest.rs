//! A checkpoint's list of files with their sizes and checksums: the means to detect damage.
//!
//! The checksums are CRC-32: they find truncated and altered files, as disks and copies make them,
//! at the speed of memory. They do not defend against someone who alters a file on purpose.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Component, Path},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Code, Error, IoContext, Result},
    fs::{Place, read_to_string, write_atomic},
};

/// The manifest's file name inside a checkpoint.
pub const FILE_NAME: &str = "manifest.json";

/// The version of the layout that this program writes and reads.
const FORMAT: u32 = 1;

/// The files of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the layout: 1.
    pub format: u32,
    /// The optimizer steps that were done when it was written.
    pub step: u64,
    /// Every file except the manifest, by its path inside the checkpoint, with `/` between parts.
    pub files: BTreeMap<String, FileRecord>,
}

/// The size and checksum of a file when it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its size.
    pub bytes: u64,
    /// Its CRC-32 (the one of zip and PNG) in eight hexadecimal digits.
    pub crc32: String,
}

impl Manifest {
    /// Lists the files that are in `dir` now.
    pub fn of(dir: impl Into<Place>, step: u64) -> Result<Self> {
        let mut files = BTreeMap::new();
        collect(&dir.into(), "", &mut files)?;
        Ok(Self { format: FORMAT, step, files })
    }

    /// The size of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }

    /// Puts the manifest into `dir`.
    pub fn write(&self, dir: &Place) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)
            .expect("a map of strings and numbers can always be written as JSON");
        text.push('\n');
        write_atomic(dir.join(FILE_NAME), text.as_bytes())
    }

    /// Reads the manifest of the checkpoint in `dir`.
    pub fn read(dir: impl Into<Place>) -> Result<Self> {
        let dir = dir.into();
        let path = dir.join(FILE_NAME);
        let damaged = |reason: &str| {
            Error::new(Code::Checkpoint, format!("checkpoint {} {reason}", dir.display()))
        };
        if !path.exists() {
            return Err(damaged("has no manifest.json: it was not written to its end by dsr"));
        }
        let text = read_to_string(&path).map_err(|e| damaged("is damaged").caused_by(e))?;
        let version: Version = serde_json::from_str(&text)
            .map_err(|e| damaged("is damaged: manifest.json cannot be understood").caused_by(e))?;
        if version.format != FORMAT {
            let found = version.format;
            return Err(damaged(&format!("has format {found}; this dsr reads format {FORMAT}"))
                .hint("read it with the version of dsr that wrote it"));
        }
        let manifest: Self = serde_json::from_str(&text)
            .map_err(|e| damaged("is damaged: manifest.json cannot be understood").caused_by(e))?;
        match manifest.files.keys().find(|name| !is_below(name)) {
            Some(name) => Err(damaged(&format!(
                "is damaged: manifest.json names {name:?}, no file of its own"
            ))),
            None => Ok(manifest),
        }
    }

    /// A file in `dir` that this list does not name, or that has another size or is missing.
    pub(super) fn foreign(&self, dir: &Place) -> Result<Option<String>> {
        let mut sizes = BTreeMap::new();
        list(dir, "", &mut |name, file| {
            sizes.insert(name, file.len()?);
            Ok(())
        })?;
        sizes.remove(FILE_NAME);
        let is_other = |name: &&String| {
            self.files.get(*name).map(|record| record.bytes) != sizes.get(*name).copied()
        };
        Ok(sizes.keys().chain(self.files.keys()).find(is_other).cloned())
    }

    /// Compares the files in `dir` with this list. Files that it does not name are not looked at.
    pub fn check(&self, dir: impl Into<Place>) -> Result<()> {
        let dir = dir.into();
        let place = dir.display();
        // Sizes first: they cost nothing, and checksums read every byte.
        for (name, record) in &self.files {
            let file = dir.join(name);
            if !file.is_file() {
                bail!(Code::Checkpoint, "checkpoint {place} is damaged: {name} is missing");
            }
            let (expected, found) = (record.bytes, file.len()?);
            if found != expected {
                bail!(
                    Code::Checkpoint,
                    "checkpoint {place} is damaged: {name} has {found} bytes, {expected} expected"
                );
            }
        }
        for (name, record) in &self.files {
            let found = crc32(&dir.join(name))?;
            if found != record.crc32 {
                bail!(
                    Code::Checkpoint,
                    "checkpoint {place} is damaged: {name} was altered (CRC-32 {found}, {} expected)",
                    record.crc32
                );
            }
        }
        Ok(())
    }
}

/// Read before the rest, which another format may lay out differently.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// Whether a name of a manifest is that of a file beneath its directory.
fn is_below(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let plain = parts.all(|part| matches!(part, Component::Normal(_)));
    plain && !name.is_empty() && !name.contains(char::is_control)
}

fn collect(dir: &Place, prefix: &str, files: &mut BTreeMap<String, FileRecord>) -> Result<()> {
    list(dir, prefix, &mut |name, file| {
        files.insert(name, FileRecord { bytes: file.len()?, crc32: crc32(file)? });
        Ok(())
    })
}

/// Gives each file in `dir` and below to `take`, with its name from there.
fn list(
    dir: &Place,
    prefix: &str,
    take: &mut dyn FnMut(String, &Place) -> Result<()>,
) -> Result<()> {
    for name in dir.list()? {
        let file = dir.join(&name);
        let Ok(name) = name.into_string() else {
            bail!(Code::Checkpoint, "the file name {} is not UTF-8", file.display());
        };
        let name = format!("{prefix}{name}");
        if file.is_link()? || !(file.is_dir() || file.is_file()) {
            bail!(
                Code::Checkpoint,
                "{} is neither a file nor a directory: a checkpoint holds only these",
                file.display()
            );
        }
        match file.is_dir() {
            true => list(&file, &format!("{name}/"), take)?,
            false => take(name, &file)?,
        }
    }
    Ok(())
}

fn crc32(file: &Place) -> Result<String> {
    checksum(file.open()?).at("read", file.path())
}

fn checksum(mut file: crate::fs::File) -> std::io::Result<String> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(format!("{:08x}", hasher.finalize()));
        }
        hasher.update(&buffer[..count]);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn lists_files_at_any_depth_with_the_usual_crc() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("optimizer")).unwrap();
        fs::write(dir.path().join("optimizer/m"), "123456789").unwrap();
        let manifest = Manifest::of(dir.path(), 7).unwrap();
        // The check value of CRC-32/ISO-HDLC.
        let record = FileRecord { bytes: 9, crc32: "cbf43926".into() };
        assert_eq!(manifest.files, BTreeMap::from([("optimizer/m".into(), record)]));
        manifest.write(&dir.path().into()).unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), manifest);
        manifest.check(dir.path()).unwrap();
    }

    #[test]
    fn a_link_does_not_belong_in_a_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("link")).unwrap();
        assert_eq!(Manifest::of(dir.path(), 0).unwrap_err().code(), Code::Checkpoint);
    }

    #[test]
    fn another_format_is_refused_by_its_number() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE_NAME), r#"{"format": 2, "shards": []}"#).unwrap();
        let e = Manifest::read(dir.path()).unwrap_err();
        assert!(e.message().contains("has format 2; this dsr reads format 1"), "{e}");
    }

    #[test]
    fn a_manifest_that_is_not_json_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE_NAME), r#"{"format": 1, "st"#).unwrap();
        let e = Manifest::read(dir.path()).unwrap_err();
        assert_eq!(e.code(), Code::Checkpoint);
        assert!(e.message().contains("manifest.json cannot be understood"), "{e}");
    }
}
