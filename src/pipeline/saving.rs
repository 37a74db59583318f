//! A snapshot that is being written beside training.
//!
//! What it holds is copied when it begins; compressing, hashing and syncing go on in a thread of its own. One is written at a
//! time. Whoever lets go of it waits for it: a snapshot that was begun is not left half-written by an orderly end.

use crate::error::{Error, Result};
use crate::ingest::Cursor;
use crate::snapshot::{SnapshotInfo, Store};
use crate::train::state::Saved;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

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
    pub(super) fn begin(store: &Arc<Store>, step: u64, cursor: Cursor, saved: Saved) -> Result<Self> {
        let store = Arc::clone(store);
        let span = tracing::debug_span!("write", step);
        let write = move || {
            let _span = span.entered();
            store.write(step, serde_json::Value::Null, |folder| saved.write(folder))
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
