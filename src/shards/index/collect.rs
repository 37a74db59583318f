//! Makes indices out of what a run learns anyway.
//!
//! In: the end of each shard with its count of samples (from the readers), and what each sample turned out to be (from
//! decoding, a shuffle buffer later). Out: the index of a shard as soon as the last of its samples was heard of. A shard that was
//! read from its middle, after a restart, or not to its end is not indexed: the next pass does that.
//!
//! Memory: about 100 bytes for each sample of the shards that are under way, and no more than [`MOST_ROWS`] of them: beyond that the
//! shard begun first is given up. Where the folder cannot be written, the index ends with a warning; the run goes on.

use super::{Index, Row, ShardIndex, Stamp};
use crate::shards::ledger::{ShardEnd, ShardVerdict};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Samples that wait for the rest of their shards.
const MOST_ROWS: usize = 1 << 19;

/// Hears of every sample and every shard's end, from any thread.
#[derive(Debug)]
pub struct Collector {
    index: Index,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Shards under way, by pass and name.
    pub(super) pending: HashMap<(u64, Arc<str>), Pending>,
    rows: usize,
    begun: u64,
    /// What the index holds already, as far as this process has asked: a hash of the name, and the version.
    done: HashMap<u64, Option<Stamp>>,
    has_failed: bool,
}

/// A shard under way.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Which shard was begun first.
    order: u64,
    rows: BTreeMap<u64, Row>,
    /// Samples decoded, or lost then.
    heard: u64,
    /// Samples that the shard gave, once it has ended, and its version.
    expected: Option<(u64, Stamp)>,
}

impl Collector {
    /// Writes into a folder, beside what is there.
    pub fn new(index: Index) -> Self {
        Self { index, state: Mutex::default() }
    }

    /// Where it writes.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Takes in what a sample, given by its shard, turned out to be.
    pub fn heard(&self, pass: u64, shard: &Arc<str>, row: Row) {
        self.take(pass, shard, row, true);
    }

    /// Takes in a sample that was lost while the shard was read.
    pub fn lost(&self, pass: u64, shard: &Arc<str>, row: Row) {
        self.take(pass, shard, row, false);
    }

    /// Takes in the end of a shard, and its version if this process read it from its first byte on.
    pub fn ended(&self, shard: &Arc<str>, end: &ShardEnd, stamp: Option<&Stamp>) {
        let mut state = self.state();
        if state.has_failed {
            return;
        }
        let key = (end.pass, Arc::clone(shard));
        let Some(stamp) = stamp else {
            // what was not opened, or not from its beginning, says nothing of an index that is there
            state.forget(&key);
            return;
        };
        if let Some(known) = state.known(&self.index, shard) {
            if known != *stamp {
                // of another version: the next pass makes it anew
                state.done.insert(hash(shard), None);
                state.try_to(|| self.index.remove(shard));
            }
            return;
        }
        if end.verdict != ShardVerdict::Complete || end.from_byte > 0 || end.parts > 1 {
            state.forget(&key);
            return;
        }
        state.begun += 1;
        let order = state.begun;
        let pending = state.pending.entry(key.clone()).or_insert_with(|| Pending { order, ..Pending::default() });
        pending.expected = Some((end.samples, stamp.clone()));
        self.finish(&mut state, &key);
    }

    fn take(&self, pass: u64, shard: &Arc<str>, row: Row, given: bool) {
        let mut state = self.state();
        if state.has_failed || state.known(&self.index, shard).is_some() {
            return;
        }
        let key = (pass, Arc::clone(shard));
        state.begun += 1;
        let order = state.begun;
        let pending = state.pending.entry(key.clone()).or_insert_with(|| Pending { order, ..Pending::default() });
        if pending.rows.insert(row.offset, row).is_none() {
            pending.heard += u64::from(given);
            state.rows += 1;
        }
        self.finish(&mut state, &key);
        state.bound();
    }

    /// Writes the index of a shard of which everything is known.
    fn finish(&self, state: &mut State, key: &(u64, Arc<str>)) {
        let Some(Pending { heard, expected: Some((samples, _)), .. }) = state.pending.get(key) else {
            return;
        };
        if heard != samples {
            return;
        }
        let Some(Pending { rows, expected: Some((samples, stamp)), .. }) = state.forget(key) else {
            return;
        };
        state.done.insert(hash(&key.1), Some(stamp.clone()));
        let index = ShardIndex { shard: Arc::clone(&key.1), stamp, samples, rows: rows.into_values().collect() };
        state.try_to(|| self.index.write(&index));
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The version of a shard that the index holds.
    fn known(&mut self, index: &Index, shard: &Arc<str>) -> Option<Stamp> {
        let key = hash(shard);
        if let Some(known) = self.done.get(&key) {
            return known.clone();
        }
        // a file that is none of ours is written anew
        let known = index.summary(shard).ok().flatten().map(|summary| summary.stamp);
        self.done.insert(key, known.clone());
        known
    }

    fn forget(&mut self, key: &(u64, Arc<str>)) -> Option<Pending> {
        let pending = self.pending.remove(key)?;
        self.rows -= pending.rows.len();
        Some(pending)
    }

    /// Gives up the shards that were begun first, as long as there is too much.
    fn bound(&mut self) {
        while self.rows > MOST_ROWS {
            let Some(oldest) = self.pending.iter().min_by_key(|(_, pending)| pending.order) else {
                return;
            };
            let oldest = oldest.0.clone();
            self.forget(&oldest);
        }
    }

    fn try_to(&mut self, write: impl FnOnce() -> crate::error::Result<()>) {
        if self.has_failed {
            return;
        }
        if let Err(error) = write() {
            tracing::warn!(%error, "no more shards are indexed");
            self.has_failed = true;
            self.pending.clear();
            self.rows = 0;
        }
    }
}

fn hash(shard: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(shard.as_bytes())
}
