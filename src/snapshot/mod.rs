//! Snapshots: everything needed to go on, as a directory that is either whole or not there.
//!
//! In: a closure that writes files into a folder. Out: `RUN/snapshots/step-000000500/` with a [`Manifest`] of sizes and
//! SHA-256 digests, and `RUN/latest` pointing to the newest. The folder is written aside, its files and itself synced,
//! then renamed, so that neither `kill -9` nor a full disk leaves half a snapshot under a whole one's name. Reading
//! checks every byte against the manifest. What can go wrong: the disk; and a second process on the same run, which the
//! lock of [`Store`] refuses.

mod lock;
mod manifest;
mod retention;
mod store;
mod verify;

pub use manifest::{FileEntry, Manifest};
pub use store::{SnapshotInfo, Store};
pub use verify::Snapshot;

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// The folder of a run that holds its snapshots.
pub(crate) const FOLDER: &str = "snapshots";
/// The symbolic link of a run to its newest snapshot.
const LATEST: &str = "latest";
/// The manifest's file name.
const MANIFEST: &str = "manifest.json";

/// The folder name of a snapshot.
fn folder_name(step: u64) -> String {
    format!("step-{step:09}")
}

/// The step of a snapshot's folder name; none for other names.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (folder_name(step) == name).then_some(step)
}

/// The snapshot folders of a run by step, rising, whole or not; none where it has not written any.
pub fn folders(run_dir: &Path) -> Result<Vec<PathBuf>> {
    match list(run_dir) {
        Ok(found) => Ok(found.into_iter().map(|(_, path)| path).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::file("list the snapshots of", run_dir, &error)),
    }
}

/// The snapshots of a run by step, rising, whole or not.
fn list(run_dir: &Path) -> std::io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(run_dir.join(FOLDER))? {
        let entry = entry?;
        let Some(step) = entry.file_name().to_str().and_then(step_of) else { continue };
        found.push((step, entry.path()));
    }
    found.sort_unstable();
    Ok(found)
}
