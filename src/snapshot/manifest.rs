//! What a snapshot holds: `manifest.json`.
//!
//! In: the files of a folder. Out: their sizes and SHA-256 digests, with step, time, version and what the caller adds.
//! The manifest carries a digest of its own text (with that digest's place filled with zeros), so that a flipped byte in
//! it shows as well. What can go wrong: the disk, a folder inside the folder, text that is not this format.

use super::MANIFEST;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Version of the layout on disk.
const FORMAT: u32 = 1;
/// Stands for the manifest's own digest while that is computed.
const NO_DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What a snapshot holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the layout.
    pub format: u32,
    /// Steps done.
    pub step: u64,
    /// When it was written, in seconds since 1970.
    pub created_unix_s: u64,
    /// The version of shoal that wrote it.
    pub shoal: String,
    /// Every file but the manifest, by name.
    pub files: Vec<FileEntry>,
    /// What the writer adds: digest of the pipeline, summary of the cursor.
    pub extra: serde_json::Value,
    /// SHA-256 of the manifest's text, with 64 zeros in place of this value.
    sha256: String,
}

/// One file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name in the folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its digest, in lower-case hexadecimal.
    pub sha256: String,
}

impl FileEntry {
    /// Describes a file.
    fn of(path: &Path) -> Result<Self> {
        let (bytes, sha256) = digest(path).map_err(|e| Error::file("read", path, &e))?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { name, bytes, sha256 })
    }

    /// Makes a file outlive a power cut, and describes it.
    pub fn of_synced(path: &Path) -> Result<Self> {
        File::open(path).and_then(|file| file.sync_all()).map_err(|e| Error::file("sync", path, &e))?;
        Self::of(path)
    }
}

impl Manifest {
    /// Describes the files in `folder`; those that are `known` already are not read again, but must be there.
    pub(super) fn of(folder: &Path, known: Vec<FileEntry>, step: u64, extra: serde_json::Value) -> Result<Self> {
        for file in &known {
            let path = folder.join(&file.name);
            let found = fs::metadata(&path).map_err(|e| Error::file("read", &path, &e))?;
            if found.len() != file.bytes {
                let (have, want) = (found.len(), file.bytes);
                return Err(Error::data(format!(
                    "{} has {have} bytes here, and {want} where it was written",
                    path.display()
                ))
                .with_hint("all ranks need one run folder, on storage that their machines share"));
            }
        }
        let mut files = known;
        let entries = fs::read_dir(folder).map_err(|e| Error::file("list", folder, &e))?;
        for entry in entries {
            let path = entry.map_err(|e| Error::file("list", folder, &e))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|_| path.is_file()) else {
                return Err(Error::data(format!("{} is not a plain file: a snapshot holds no other", path.display())));
            };
            if files.iter().any(|file| file.name == name) {
                continue;
            }
            files.push(FileEntry::of(&path)?);
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let created_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let shoal = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Self { format: FORMAT, step, created_unix_s, shoal, files, extra, sha256: NO_DIGEST.into() })
    }

    /// Writes `manifest.json` into `folder`, unsynced.
    pub(super) fn write(&mut self, folder: &Path) -> Result<()> {
        let path = folder.join(MANIFEST);
        self.sha256 = NO_DIGEST.into();
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::data(format!("cannot write {} as JSON: {e}", path.display())))?;
        self.sha256 = hex(&Sha256::digest(&text));
        // The digest's place is the last run of 64 zeros: it is the last field.
        let Some((before, after)) = text.rsplit_once(NO_DIGEST) else {
            return Err(Error::data(format!("{} has no place for its digest", path.display())));
        };
        fs::write(&path, format!("{before}{}{after}", self.sha256)).map_err(|e| Error::file("write", &path, &e))
    }

    /// Reads and checks `manifest.json`; the error is the damage in words.
    pub(super) fn read(folder: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(folder.join(MANIFEST)).map_err(|e| format!("{MANIFEST} cannot be read: {e}"))?;
        let manifest: Self = serde_json::from_str(&text).map_err(|e| format!("{MANIFEST} is damaged: {e}"))?;
        let unsigned = text.rsplit_once(&manifest.sha256).map(|(before, after)| format!("{before}{NO_DIGEST}{after}"));
        if unsigned.is_none_or(|text| hex(&Sha256::digest(text)) != manifest.sha256) {
            return Err(format!("{MANIFEST} is damaged: it does not match its own digest"));
        }
        if manifest.format != FORMAT {
            let (found, version) = (manifest.format, &manifest.shoal);
            return Err(format!("{MANIFEST} has format {found}, written by shoal {version}; this one reads {FORMAT}"));
        }
        Ok(manifest)
    }

    /// Size of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Size and SHA-256 of a file.
pub(super) fn digest(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((bytes, hex(&hasher.finalize())));
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_fips_180() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("abc");
        fs::write(&path, "abc")?;
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(&path)?, (3, expected.to_owned()));
        Ok(())
    }

    #[test]
    fn a_manifest_survives_its_file_and_no_byte_of_it_can_change() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("model.safetensors"), "weights").expect("a file");
        let extra = serde_json::json!({ "pass": 3, "digest": NO_DIGEST, "lr": 0.1 });
        let mut manifest = Manifest::of(folder.path(), Vec::new(), 500, extra)?;
        manifest.write(folder.path())?;
        assert_eq!(Manifest::read(folder.path()), Ok(manifest));

        let path = folder.path().join(MANIFEST);
        let whole = fs::read(&path).expect("the manifest");
        for position in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[position] ^= 1;
            fs::write(&path, &flipped).expect("the manifest is writable");
            assert!(Manifest::read(folder.path()).is_err(), "byte {position} flipped");
        }
        Ok(())
    }
}
