//! Makes indices out of what a run learns anyway.
//!
//! In: the end of each shard with its count of samples (from the readers), and what each sample turned out to be (from
//! decoding, a shuffle buffer later). Out: the index of a shard as soon as the last of its samples was heard of, or of the part of it
//! that was dealt to this rank. A shard that was read from its middle, after a restart, or not to its end is not indexed: the next
//! pass does that.
//!
//! Memory: about 100 bytes for each sample of the shards that are under way, and no more than [`MOST_ROWS`] of them: beyond that the
//! shard begun first is given up. Where the folder cannot be written, the index ends with a warning; the run goes on.

use super::{Index, Part, Row, ShardIndex, Stamp};
use crate::error::Result;
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
    /// What the index holds already, as far as this process knows: a hash of the name, and the version.
    done: HashMap<u64, Stamp>,
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
    /// Samples that the shard gave, once it has ended, its version, and the part of it that they are.
    expected: Option<(u64, Stamp, Part)>,
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

    /// Takes in the end of a shard or of a part of it, and its version if this process read it from its first byte on.
    pub fn ended(&self, shard: &Arc<str>, end: &ShardEnd, stamp: Option<&Stamp>, part: Part) {
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
            state.forget(&key);
            if known != *stamp {
                // of another version: the next pass makes it anew
                state.done.remove(&hash(shard));
                state.try_to(|| self.index.remove(shard));
            }
            return;
        }
        if end.verdict != ShardVerdict::Complete || end.from_byte > 0 {
            state.forget(&key);
            return;
        }
        state.begun += 1;
        let order = state.begun;
        let pending = state.pending.entry(key.clone()).or_insert_with(|| Pending { order, ..Pending::default() });
        pending.expected = Some((end.samples, stamp.clone(), part));
        self.finish(&mut state, &key);
    }

    fn take(&self, pass: u64, shard: &Arc<str>, row: Row, given: bool) {
        let mut state = self.state();
        let key = (pass, Arc::clone(shard));
        let is_under_way = state.pending.contains_key(&key);
        if state.has_failed || !is_under_way && state.known(&self.index, shard).is_some() {
            return;
        }
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
        let Some(Pending { heard, expected: Some((samples, ..)), .. }) = state.pending.get(key) else {
            return;
        };
        if heard != samples {
            return;
        }
        let Some(Pending { rows, expected: Some((samples, stamp, part)), .. }) = state.forget(key) else {
            return;
        };
        let index = ShardIndex { shard: Arc::clone(&key.1), stamp, samples, rows: rows.into_values().collect() };
        if state.try_to(|| self.index.write_part(&index, part)) == Some(true) {
            state.done.insert(hash(&key.1), index.stamp);
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The version of a shard that the index holds. The file of one that is not known is looked for each time, since another rank may
    /// have made it.
    fn known(&mut self, index: &Index, shard: &Arc<str>) -> Option<Stamp> {
        let key = hash(shard);
        if let Some(known) = self.done.get(&key) {
            return Some(known.clone());
        }
        // a file that is none of ours is written anew
        let known = index.summary(shard).ok().flatten()?.stamp;
        self.done.insert(key, known.clone());
        Some(known)
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

    /// What writing came to; nothing from the first failure on.
    fn try_to<T>(&mut self, write: impl FnOnce() -> Result<T>) -> Option<T> {
        if self.has_failed {
            return None;
        }
        let written = write();
        if let Err(error) = &written {
            tracing::warn!(%error, "no more shards are indexed");
            self.has_failed = true;
            self.pending.clear();
            self.rows = 0;
        }
        written.ok()
    }
}

fn hash(shard: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(shard.as_bytes())
}
