//! Writing snapshots, one process a run.
//!
//! In: a step and a closure that fills a folder. Out: a snapshot under its name, `latest` pointing to it, and no more old
//! ones than the plan keeps. The order is what makes it safe: fill `.step-N.tmp-PID`, write the manifest, sync each file
//! and the folder, rename, sync the parent, then move `latest`. A kill between any two leaves the older snapshots as they
//! were, and a hidden folder that the next [`Store::open`] clears away. What can go wrong: the disk; when it is full, the
//! error says how much was needed, and what was begun is removed.

use super::lock::RunLock;
use super::manifest::{FileEntry, Manifest};
use super::verify::{Snapshot, newest};
use super::{FOLDER, LATEST, folder_name, list, retention, step_of};
use crate::config::SnapshotPlan;
use crate::error::{Error, Result};
use indicatif::HumanBytes;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Names of folders that are being written, were replaced, or are being deleted: `.step-000000500.tmp-4711`.
const WRITTEN: &str = "tmp";
const REPLACED: &str = "replaced";
const DELETED: &str = "deleted";

/// The snapshots of a run, held by the one process that trains it.
#[derive(Debug)]
pub struct Store {
    run_dir: PathBuf,
    plan: SnapshotPlan,
    /// When it was opened, in nanoseconds: ids of processes come again, in containers soon.
    opened: u128,
    _lock: RunLock,
}

/// A snapshot just written.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotInfo {
    /// Steps done.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    /// Its folder, relative to the run.
    pub relative: String,
    /// Size of its files.
    pub bytes: u64,
    /// Time it took to write.
    pub took: Duration,
}

impl Store {
    /// Takes the run in `run_dir`, which is made if missing, and clears away what killed processes have left.
    pub fn open(run_dir: &Path, plan: &SnapshotPlan) -> Result<Self> {
        let folder = run_dir.join(FOLDER);
        fs::create_dir_all(&folder).map_err(|e| Error::file("create", &folder, &e))?;
        let lock = RunLock::take(run_dir)?;
        clear_leftovers(&folder)?;
        sync(run_dir)?;
        let opened = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Ok(Self { run_dir: run_dir.to_owned(), plan: plan.clone(), opened, _lock: lock })
    }

    /// The newest whole snapshot, every byte checked; `latest` is made to point to it. Damaged ones are passed over with
    /// a warning; an error where there are snapshots and none is whole.
    pub fn latest(&self) -> Result<Option<Snapshot>> {
        let found = newest(&self.run_dir)?;
        if let Some(snapshot) = &found {
            self.point_latest_to(snapshot.step())?;
        }
        Ok(found)
    }

    /// Writes the snapshot of `step`: `fill` puts plain files into the folder that it is given, and names those that others have put
    /// there, synced and with their digests; `extra` goes into the manifest. A snapshot of the same step is replaced.
    pub fn write(
        &self,
        step: u64,
        extra: serde_json::Value,
        fill: impl FnOnce(&Path) -> Result<Vec<FileEntry>>,
    ) -> Result<SnapshotInfo> {
        let started = Instant::now();
        let aside = self.hidden(step, WRITTEN);
        let manifest = match self.fill(&aside, step, extra, fill) {
            Ok(manifest) => manifest,
            Err(error) => {
                let written = size_of(&aside);
                let free = free_bytes(&self.run_dir);
                remove(&aside)?;
                return Err(explain(error, &self.run_dir, written, self.expected_bytes(), free));
            }
        };
        let path = self.publish(step, &aside)?;
        self.point_latest_to(step)?;
        self.forget_old(step)?;
        let relative = format!("{FOLDER}/{}", folder_name(step));
        Ok(SnapshotInfo { step, path, relative, bytes: manifest.bytes(), took: started.elapsed() })
    }

    fn fill(
        &self,
        aside: &Path,
        step: u64,
        extra: serde_json::Value,
        fill: impl FnOnce(&Path) -> Result<Vec<FileEntry>>,
    ) -> Result<Manifest> {
        remove(aside)?;
        fs::create_dir(aside).map_err(|e| Error::file("create", aside, &e))?;
        let known = fill(aside)?;
        let mut manifest = Manifest::of(aside, known, step, extra)?;
        manifest.write(aside)?;
        for entry in fs::read_dir(aside).map_err(|e| Error::file("list", aside, &e))? {
            sync(&entry.map_err(|e| Error::file("list", aside, &e))?.path())?;
        }
        sync(aside)?;
        Ok(manifest)
    }

    /// Gives a filled folder its name.
    fn publish(&self, step: u64, aside: &Path) -> Result<PathBuf> {
        let path = self.run_dir.join(FOLDER).join(folder_name(step));
        let replaced = self.hidden(step, REPLACED);
        if path.exists() {
            // A folder cannot be renamed over a full one. A kill right here is mended by `clear_leftovers`.
            remove(&replaced)?;
            rename(&path, &replaced)?;
        }
        rename(aside, &path)?;
        sync(&self.run_dir.join(FOLDER))?;
        remove(&replaced)?;
        Ok(path)
    }

    /// Replaces the link in one rename, so that it always points somewhere.
    fn point_latest_to(&self, step: u64) -> Result<()> {
        let link = self.run_dir.join(LATEST);
        let target = Path::new(FOLDER).join(folder_name(step));
        if fs::read_link(&link).is_ok_and(|found| found == target) {
            return Ok(());
        }
        let aside = self.run_dir.join(format!(".{LATEST}.{WRITTEN}"));
        match fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::file("remove", &aside, &error)),
            _ => {}
        }
        std::os::unix::fs::symlink(&target, &aside).map_err(|e| Error::file("create", &aside, &e))?;
        rename(&aside, &link)?;
        sync(&self.run_dir)
    }

    fn forget_old(&self, newest: u64) -> Result<()> {
        let found = list(&self.run_dir).map_err(|e| Error::file("list the snapshots of", &self.run_dir, &e))?;
        let steps: Vec<u64> = found.iter().map(|(step, _)| *step).collect();
        for step in retention::expendable(&steps, newest, &self.plan) {
            let doomed = self.hidden(step, DELETED);
            remove(&doomed)?;
            rename(&self.run_dir.join(FOLDER).join(folder_name(step)), &doomed)?;
            remove(&doomed)?;
        }
        Ok(())
    }

    fn hidden(&self, step: u64, state: &str) -> PathBuf {
        self.run_dir.join(FOLDER).join(format!(".{}.{state}-{}-{}", folder_name(step), process::id(), self.opened))
    }

    /// The size of the newest snapshot, as a guess at the next one's; 0 before the first.
    fn expected_bytes(&self) -> u64 {
        let found = list(&self.run_dir).unwrap_or_default();
        found.last().map_or(0, |(_, path)| size_of(path))
    }
}

/// Removes the hidden folders of dead processes (the lock is ours, so all of them are dead), but puts back a replaced
/// snapshot whose replacement never got its name.
fn clear_leftovers(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::file("list", folder, &e))? {
        let path = entry.map_err(|e| Error::file("list", folder, &e))?.path();
        let Some((name, state)) = hidden_name(&path) else { continue };
        let visible = folder.join(name);
        if state.starts_with(REPLACED) && !visible.exists() {
            tracing::warn!("putting back {}, whose replacement was not finished", visible.display());
            rename(&path, &visible)?;
        } else {
            tracing::info!("removing {}, left by a process that was killed", path.display());
            remove(&path)?;
        }
    }
    sync(folder)
}

/// `.step-000000500.tmp-4711` is `step-000000500` and `tmp-4711`.
fn hidden_name(path: &Path) -> Option<(&str, &str)> {
    let (name, state) = path.file_name()?.to_str()?.strip_prefix('.')?.split_once('.')?;
    step_of(name)?;
    Some((name, state))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::file("rename", from, &e))
}

/// Removes a folder and all it holds; none is fine.
fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", folder, &error)),
        _ => Ok(()),
    }
}

/// Makes a file or folder outlive a power cut.
fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|e| Error::file("sync", path, &e))
}

/// Bytes of the files in a folder, as far as they can be read.
fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|found| found.len()).sum()
}

/// Bytes that this process may still write where `path` lies.
fn free_bytes(path: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(path).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

/// Says so where an error is most likely a full disk: less is free, beside what was written, than a snapshot takes.
fn explain(error: Error, run_dir: &Path, written: u64, expected: u64, free: Option<u64>) -> Error {
    const LEAST: u64 = 1 << 20;
    let missing = expected.saturating_sub(written).max(LEAST);
    match free {
        Some(free) if free < missing => Error::data(format!(
            "no space for a snapshot in {}: {} were written, at least {} more are needed, {} are free ({error})",
            run_dir.join(FOLDER).display(),
            HumanBytes(written),
            HumanBytes(missing),
            HumanBytes(free),
        ))
        .with_hint("older snapshots are untouched: free some space, or lower snapshot.keep_last, and start again"),
        _ => error,
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
