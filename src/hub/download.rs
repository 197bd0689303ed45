//! One content from the hub into the cache: resumed where it stopped, and checked before it counts.
//!
//! Bytes go to `<hash>.incomplete`. Only when their number and their hash are the announced ones is
//! the file renamed to `<hash>`. A connection that breaks is taken up again where it broke, by the
//! next attempt or by the next run.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::{
    ResponseExt,
    http::{StatusCode, Uri},
};

use super::{
    client::{Client, RequestError, network},
    refusal::RequestContext,
    tree::Blob,
};
use crate::error::{Code, Error, IoContext, Result};

const CHUNK: usize = 256 << 10;

/// Called with the bytes that are there.
pub(super) type OnBytes<'a> = &'a dyn Fn(u64);

/// Downloads `blob` from `url` to `target`, whose lock the caller holds.
pub(super) fn download(
    client: &Client,
    asked: &RequestContext<'_>,
    url: &str,
    blob: &Blob,
    target: &Path,
    on_bytes: OnBytes<'_>,
) -> Result<()> {
    let part = target.with_file_name(format!("{}.incomplete", blob.name()));
    let mut part = PartialFile::open(&part, blob)?;
    part.check_space()?;
    let (mut attempt, mut damaged) = (1, 0);
    loop {
        let before = part.done;
        on_bytes(before);
        let outcome = if before == blob.size { Ok(()) } else { part.fill(client, url, on_bytes) };
        match outcome {
            Ok(()) if part.is_right() => return part.publish(target),
            // The content is not the announced one: nothing of it can be used.
            Ok(()) => {
                part.restart()?;
                damaged += 1;
                if damaged >= client.attempts() {
                    return Err(asked.damaged());
                }
            }
            Err(DownloadError::Disk(e)) => return Err(e),
            Err(DownloadError::Request(fault)) => {
                // A long download may be cut often, as long as each attempt brings something.
                attempt = if part.done > before { 1 } else { attempt };
                if !fault.is_passing() || attempt >= client.attempts() {
                    part.discard_if_empty();
                    return Err(asked.stopped(fault, part.done, blob.size));
                }
                client.wait(attempt, None).map_err(|fault| asked.error(fault))?;
                attempt += 1;
            }
        }
    }
}

enum DownloadError {
    /// The server or the network: another attempt may help.
    Request(RequestError),
    /// This machine's disk.
    Disk(Error),
}

impl From<Error> for DownloadError {
    fn from(e: Error) -> Self {
        Self::Disk(e)
    }
}

/// The file that is being filled, with the hash of what is in it.
struct PartialFile<'a> {
    path: &'a Path,
    file: File,
    blob: &'a Blob,
    done: u64,
    hash: Hash,
}

impl<'a> PartialFile<'a> {
    fn open(path: &'a Path, blob: &'a Blob) -> Result<Self> {
        let open = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut part =
            Self { path, file: open.at("open", path)?, blob, done: 0, hash: Hash::new(blob) };
        let mut chunk = vec![0; CHUNK];
        loop {
            let n = part.file.read(&mut chunk).at("read", path)?;
            part.hash.update(&chunk[..n]);
            part.done += n as u64;
            if n == 0 {
                break;
            }
        }
        if part.done > blob.size {
            part.restart()?;
        }
        Ok(part)
    }

    fn check_space(&self) -> Result<()> {
        let (needed, free) = (
            self.blob.size - self.done,
            crate::fs::available_bytes(crate::fs::Place::unguarded(self.path))?,
        );
        if needed <= free {
            return Ok(());
        }
        let dir = self.path.parent().unwrap_or(self.path).display();
        let message = format!("the download needs {needed} bytes, {free} are free in {dir}");
        Err(Error::new(Code::DiskFull, message)
            .hint("free some space, or set HF_HUB_CACHE to a directory on a larger disk"))
    }

    fn fill(
        &mut self,
        client: &Client,
        url: &str,
        on_bytes: OnBytes<'_>,
    ) -> Result<(), DownloadError> {
        let reply = client.get(url, self.done).map_err(DownloadError::Request)?;
        if self.done > 0 && reply.status() != StatusCode::PARTIAL_CONTENT {
            self.restart()?;
        }
        let from = reply.get_uri().clone();
        let mut body = reply.into_body().into_reader();
        let mut chunk = vec![0; CHUNK];
        while self.done < self.blob.size {
            let read;
            (read, body, chunk) = client.patience().wait_for(move || {
                let read = body.read(&mut chunk);
                (read, body, chunk)
            })?;
            let n = match read {
                Ok(0) => return Err(cut(&from, "the connection closed early".to_owned())),
                Ok(n) => n.min((self.blob.size - self.done) as usize),
                Err(e) => return Err(cut(&from, e.to_string())),
            };
            self.file.write_all(&chunk[..n]).at("write", self.path)?;
            self.hash.update(&chunk[..n]);
            self.done += n as u64;
            on_bytes(self.done);
        }
        Ok(())
    }

    fn is_right(&self) -> bool {
        self.hash.clone().hex() == self.blob.name()
    }

    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).at("empty", self.path)?;
        self.file.seek(SeekFrom::Start(0)).at("empty", self.path)?;
        self.done = 0;
        self.hash = Hash::new(self.blob);
        Ok(())
    }

    fn discard_if_empty(&self) {
        if self.done == 0 {
            // The error to report is the download's, not that of tidying up.
            let _ = fs::remove_file(self.path);
        }
    }

    fn publish(self, target: &Path) -> Result<()> {
        self.file.sync_all().at("write", self.path)?;
        fs::rename(self.path, target).at("write", target)
    }
}

fn cut(from: &Uri, reason: String) -> DownloadError {
    DownloadError::Request(network(from, reason))
}

impl RequestContext<'_> {
    fn damaged(&self) -> Error {
        let file = self.file.unwrap_or("a file");
        let message = format!(
            "{file} of the {} arrived damaged: its hash is not the one in the list of files",
            self.repo
        );
        Error::new(Code::Hub, message).hint("try again later, or through another network or mirror")
    }

    fn stopped(&self, fault: RequestError, done: u64, size: u64) -> Error {
        let RequestError::Network { reason, .. } = &fault else { return self.error(fault) };
        if done == 0 {
            return self.error(fault);
        }
        let file = self.file.unwrap_or("a file");
        let message = format!(
            "the download of {file} of the {} stopped after {done} of {size} bytes ({reason})",
            self.repo
        );
        Error::new(Code::Hub, message).hint("run again: it goes on where it stopped")
    }
}

/// The two ways in which the hub names contents.
#[derive(Clone)]
enum Hash {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hash {
    fn new(blob: &Blob) -> Self {
        if blob.lfs_sha256.is_some() {
            return Self::Sha256(Sha256::new());
        }
        // Git hashes a file with its kind and length in front.
        Self::Git(Sha1::new_with_prefix(format!("blob {}\0", blob.size)))
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Git(hash) => hash.update(bytes),
        }
    }

    fn hex(self) -> String {
        let digits = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
        match self {
            Self::Sha256(hash) => digits(&hash.finalize()),
            Self::Git(hash) => digits(&hash.finalize()),
        }
    }
}
