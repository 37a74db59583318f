//! Opening a snapshot: nothing is taken for whole before every byte agrees with the manifest.

use super::manifest::{Manifest, digest};
use super::{MANIFEST, list};
use crate::error::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A whole snapshot on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Its folder.
    pub path: PathBuf,
    /// What it holds.
    pub manifest: Manifest,
}

impl Snapshot {
    /// Opens `path`: a snapshot, or a run, whose newest whole snapshot is taken. Reads every byte.
    pub fn open(path: &Path) -> Result<Self> {
        if path.join(super::FOLDER).is_dir() {
            return newest(path)?.ok_or_else(|| {
                Error::data(format!("{} has no snapshot yet", path.display()))
                    .with_hint("train until the first snapshot (snapshot.every_steps), or name another run")
            });
        }
        if !path.is_dir() {
            return Err(Error::data(format!("{} is no directory", path.display()))
                .with_hint("name a run, or a folder RUN/snapshots/step-..."));
        }
        check(path).map_err(|damage| {
            let hint = if path.join(MANIFEST).exists() {
                "use another snapshot of the run"
            } else {
                "name a run, or a folder RUN/snapshots/step-..."
            };
            Error::data(format!("{} is no whole snapshot: {damage}", path.display())).with_hint(hint)
        })
    }

    /// Steps done when it was written.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// The path of one of its files; an error where it holds no such file.
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        if self.manifest.files.iter().any(|file| file.name == name) {
            return Ok(self.path.join(name));
        }
        Err(Error::data(format!("{} holds no {name}", self.path.display())))
    }
}

/// The newest whole snapshot of a run; none where it has no snapshots at all.
///
/// Damaged ones are passed over, each with a warning that names the damage. That none is left whole is an error: a run
/// that silently began anew would be worse.
pub(super) fn newest(run_dir: &Path) -> Result<Option<Snapshot>> {
    let found = list(run_dir).map_err(|e| Error::file("list the snapshots of", run_dir, &e))?;
    if found.is_empty() {
        return Ok(None);
    }
    for (step, path) in found.into_iter().rev() {
        let damage = match check(&path) {
            Ok(snapshot) if snapshot.step() == step => return Ok(Some(snapshot)),
            Ok(snapshot) => format!("its manifest says step {}", snapshot.step()),
            Err(damage) => damage,
        };
        tracing::warn!("the snapshot {} is damaged and passed over: {damage}", path.display());
    }
    Err(Error::data(format!("no snapshot in {} is whole", run_dir.join(super::FOLDER).display())).with_hint(
        "the log names what is wrong with each; to begin anew, move that folder away or choose another --run",
    ))
}

/// Compares a folder with its manifest: sizes first, then digests. The error is the damage in words.
fn check(path: &Path) -> Result<Snapshot, String> {
    let manifest = Manifest::read(path)?;
    for file in &manifest.files {
        let found = fs::metadata(path.join(&file.name)).map_err(|e| format!("{} cannot be read: {e}", file.name))?;
        if found.len() != file.bytes {
            return Err(format!("{} has {} bytes instead of {}", file.name, found.len(), file.bytes));
        }
    }
    for file in &manifest.files {
        let (_, sha256) = digest(&path.join(&file.name)).map_err(|e| format!("{} cannot be read: {e}", file.name))?;
        if sha256 != file.sha256 {
            return Err(format!("{} does not match its SHA-256 digest", file.name));
        }
    }
    Ok(Snapshot { path: path.to_owned(), manifest })
}
