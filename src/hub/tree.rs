//! The list of a repository's files at a commit: sizes and content hashes by path.
//!
//! A commit never changes, so its list is kept for good in `trees/<commit>.json`, in the format
//! that `huggingface_hub` 2 writes and reads too.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::repo::{is_hex, is_relative_path};

/// The version of the format of `trees/<commit>.json`.
const FORMAT_VERSION: u64 = 1;

/// The files of a commit by path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tree {
    pub(super) files: BTreeMap<String, Blob>,
}

/// The content of a file: how long it is, and its hash, which is its name in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) size: u64,
    /// Git's object id: the SHA-1 of the content, or of the pointer to large content.
    pub(super) git_oid: String,
    /// The SHA-256 of large content.
    pub(super) lfs_sha256: Option<String>,
    /// Passed on to the cached list, for tools that download by chunks.
    xet_hash: Option<String>,
}

impl Blob {
    /// The name of the content in `blobs/`, which is also the server's ETag.
    pub(super) fn name(&self) -> &str {
        self.lfs_sha256.as_deref().unwrap_or(&self.git_oid)
    }
}

impl Tree {
    /// Adds one page of the API's answer; directories are passed over.
    ///
    /// `None` when the page is not what the hub sends, or names a path outside the repository.
    pub(super) fn add_page(&mut self, page: &Value) -> Option<()> {
        for item in page.as_array()? {
            if item["type"].as_str()? != "file" {
                continue;
            }
            let path = item["path"].as_str()?;
            let lfs = &item["lfs"];
            let blob = Blob {
                size: lfs["size"].as_u64().or_else(|| item["size"].as_u64())?,
                git_oid: hash(&item["oid"], 40)?,
                lfs_sha256: if lfs.is_null() { None } else { Some(hash(&lfs["oid"], 64)?) },
                xet_hash: item["xetHash"].as_str().map(str::to_owned),
            };
            self.insert(path, blob)?;
        }
        Some(())
    }

    /// The bytes of `trees/<commit>.json`.
    pub(super) fn to_json(&self) -> String {
        let mut files = serde_json::Map::new();
        for (path, blob) in &self.files {
            let mut info = json!({ "size": blob.size, "blob_id": blob.git_oid });
            if let Some(sha256) = &blob.lfs_sha256 {
                info["lfs_sha256"] = json!(sha256);
                info["lfs_size"] = json!(blob.size);
            }
            if let Some(hash) = &blob.xet_hash {
                info["xet_hash"] = json!(hash);
            }
            files.insert(path.clone(), info);
        }
        format!("{:#}", json!({ "format_version": FORMAT_VERSION, "files": files }))
    }

    /// Reads `trees/<commit>.json`; `None` when it is of another version or damaged, which is no
    /// loss: the hub is asked again.
    pub(super) fn from_json(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        if value["format_version"] != FORMAT_VERSION {
            return None;
        }
        let mut tree = Self::default();
        for (path, info) in value["files"].as_object()? {
            let sha256 = &info["lfs_sha256"];
            let blob = Blob {
                size: info["lfs_size"].as_u64().or_else(|| info["size"].as_u64())?,
                git_oid: hash(&info["blob_id"], 40)?,
                lfs_sha256: if sha256.is_null() { None } else { Some(hash(sha256, 64)?) },
                xet_hash: info["xet_hash"].as_str().map(str::to_owned),
            };
            tree.insert(path, blob)?;
        }
        Some(tree)
    }

    fn insert(&mut self, path: &str, blob: Blob) -> Option<()> {
        if !is_relative_path(path) {
            return None;
        }
        self.files.insert(path.to_owned(), blob);
        Some(())
    }
}

fn hash(value: &Value, digits: usize) -> Option<String> {
    value.as_str().filter(|h| h.len() == digits && is_hex(h)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Value {
        json!([
            { "type": "directory", "oid": "0".repeat(40), "size": 0, "path": "data" },
            { "type": "file", "oid": "1".repeat(40), "size": 7, "path": "README.md" },
            { "type": "file", "oid": "2".repeat(40), "size": 9, "path": "data/a.parquet",
              "lfs": { "oid": "a".repeat(64), "size": 9, "pointerSize": 130 } },
        ])
    }

    #[test]
    fn a_tree_survives_its_file() {
        let mut tree = Tree::default();
        tree.add_page(&page()).unwrap();
        assert_eq!(tree.files["README.md"].name(), "1".repeat(40));
        assert_eq!(tree.files["data/a.parquet"].name(), "a".repeat(64));
        assert_eq!(Tree::from_json(&tree.to_json()), Some(tree));
    }

    #[test]
    fn what_could_write_elsewhere_is_refused() {
        for (key, value) in [("path", json!("../x")), ("path", json!("/x")), ("oid", json!("../x"))]
        {
            let mut page = page();
            page[1][key] = value;
            assert_eq!(Tree::default().add_page(&page), None);
        }
        assert_eq!(Tree::from_json(r#"{"format_version": 2, "files": {}}"#), None);
    }
}
