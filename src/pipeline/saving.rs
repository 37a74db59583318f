//! A snapshot that is being written beside training.
//!
//! What it holds is copied when it begins; compressing, hashing and syncing go on in a thread of its own. One is written at a
//! time. Whoever lets go of it waits for it: a snapshot that was begun is not left half-written by an orderly end.
//!
//! Of several ranks, rank 0 makes the folder, every rank writes its part into it and reports its files with their digests, and rank 0
//! gives the folder its name once all have. What can go wrong: the disk of any rank; then there is no snapshot, and the older ones stay.

use crate::error::{Error, Result};
use crate::ingest::Cursor;
use crate::snapshot::{self, FileEntry, SnapshotInfo, Store};
use crate::train::state::Saved;
use crate::world::World;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// Writes the snapshots of a run, or one rank's part of them.
#[derive(Debug)]
pub(super) struct Writer {
    world: World,
    /// Of rank 0.
    store: Option<Store>,
    folder: PathBuf,
    begun: AtomicU64,
}

impl Writer {
    /// Rank 0 has the store of the run in `folder`.
    pub(super) fn new(world: &World, store: Option<Store>, folder: &Path) -> Self {
        Self { world: world.clone(), store, folder: folder.to_path_buf(), begun: AtomicU64::new(0) }
    }

    /// The newest whole snapshot, on which all ranks agree; none where there is none.
    pub(super) fn newest(&self) -> Result<Option<PathBuf>> {
        let Some(store) = &self.store else {
            let name = self.world.await_post("newest")?;
            let name = String::from_utf8_lossy(&name).into_owned();
            return Ok((!name.is_empty()).then(|| self.folder.join(name)));
        };
        let found = store.latest()?.map(|snapshot| snapshot.path);
        let relative = found.as_ref().and_then(|path| path.strip_prefix(&self.folder).ok()).map(Path::to_string_lossy);
        self.world.post("newest", relative.unwrap_or_default().as_bytes())?;
        Ok(found)
    }

    /// The same, for rank 0 alone.
    pub(super) fn latest(&self) -> Option<PathBuf> {
        self.store.as_ref()?.latest().ok().flatten().map(|snapshot| snapshot.path)
    }

    /// Writes the snapshot that is the `number`-th of this process.
    fn write(&self, step: u64, number: u64, saved: Saved) -> Result<SnapshotInfo> {
        let key = |what: &str| format!("snapshot-{number}-{what}");
        let Some(store) = &self.store else { return self.write_part(step, key, saved) };
        let info = store.write(step, serde_json::Value::Null, |aside| {
            let name = aside.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
            self.world.post(&key("folder"), name.as_bytes())?;
            saved.write(aside)?;
            let mut parts = Vec::new();
            for rank in 1..self.world.size() {
                parts.extend(parse_part(rank, &self.world.await_post(&key(&format!("part-{rank}")))?)?);
            }
            Ok(parts)
        })?;
        self.world.post(&key("name"), info.relative.as_bytes())?;
        Ok(info)
    }

    fn write_part(&self, step: u64, key: impl Fn(&str) -> String, saved: Saved) -> Result<SnapshotInfo> {
        let started = Instant::now();
        let name = self.world.await_post(&key("folder"))?;
        let aside = self.folder.join(snapshot::FOLDER).join(String::from_utf8_lossy(&name).as_ref());
        let part = saved
            .write(&aside)
            .and_then(|files| files.iter().map(|file| FileEntry::of_synced(&aside.join(file))).collect());
        let told = match &part {
            Ok(files) => serde_json::json!({ "files": files }),
            Err(error) => serde_json::json!({ "error": error.to_string() }),
        };
        self.world.post(&key(&format!("part-{}", self.world.rank())), told.to_string().as_bytes())?;
        let files: Vec<FileEntry> = part?;
        let relative = String::from_utf8_lossy(&self.world.await_post(&key("name"))?).into_owned();
        let bytes = files.iter().map(|file| file.bytes).sum();
        Ok(SnapshotInfo { step, path: self.folder.join(&relative), relative, bytes, took: started.elapsed() })
    }
}

/// What a rank reports of its part.
fn parse_part(rank: usize, told: &[u8]) -> Result<Vec<FileEntry>> {
    let unclear = |error: serde_json::Error| {
        Error::device(format!("rank {rank} says nothing of its part of a snapshot: {error}"))
    };
    let told: serde_json::Value = serde_json::from_slice(told).map_err(unclear)?;
    match told["error"].as_str() {
        Some(what) => Err(Error::data(format!("rank {rank} could not write its part of a snapshot: {what}"))),
        None => serde_json::from_value(told["files"].clone()).map_err(unclear),
    }
}

/// A snapshot in progress.
#[derive(Debug)]
pub(super) struct Saving {
    thread: Option<JoinHandle<Result<SnapshotInfo>>>,
    /// The step that it is of.
    pub(super) step: u64,
    /// Where it stands in the stream.
    pub(super) cursor: Cursor,
    /// How long training stood still for it.
    pub(super) stood: Duration,
}

impl Saving {
    /// Begins to write `saved`.
    pub(super) fn begin(writer: &Arc<Writer>, step: u64, cursor: Cursor, saved: Saved) -> Result<Self> {
        let writer = Arc::clone(writer);
        let number = writer.begun.fetch_add(1, Ordering::Relaxed);
        let span = tracing::debug_span!("write", step);
        let write = move || {
            let _span = span.entered();
            writer.write(step, number, saved)
        };
        let thread = Builder::new().name("snapshot".into()).spawn(write);
        let thread =
            thread.map_err(|error| Error::device(format!("cannot start a thread to write a snapshot: {error}")))?;
        Ok(Self { thread: Some(thread), step, cursor, stood: Duration::ZERO })
    }

    /// Whether [`Saving::finish`] would not wait.
    pub(super) fn is_done(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until it is on disk.
    pub(super) fn finish(mut self) -> Result<SnapshotInfo> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) | None => Err(Error::device("writing a snapshot has crashed")),
        }
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            tracing::warn!("the snapshot of step {} is lost: {error}", self.step);
        }
    }
}
