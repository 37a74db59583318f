//! Makes indices out of what a run learns anyway.
//!
//! In: the end of each shard, or of the part of it that was dealt to this rank, with the samples met in it (from the readers), and what
//! each sample turned out to be (from decoding, a shuffle buffer later). Out: the index of that shard or part as soon as the last of
//! its samples was heard of. What was read from its middle, after a restart, or not to its end is not indexed: the next pass does
//! that.
//!
//! Memory: about 100 bytes for each sample of the shards that are under way, and no more than [`MOST_ROWS`] of them: beyond that the
//! shard begun first is given up. Where the folder cannot be written, the index ends with a warning; the run goes on.

use super::{Index, Part, Row, ShardIndex, Stamp};
use crate::error::Result;
use crate::shards::ledger::{ShardEnd, ShardVerdict};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
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

/// A shard under way. Where a pass was dealt anew, or lists are mixed, several readings of it may be.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Which shard was begun first.
    order: u64,
    rows: BTreeMap<u64, Row>,
    /// Readings that have come to their end.
    ended: Vec<Ended>,
}

/// A reading of a shard, or of a part of it, of which not everything was heard yet.
#[derive(Debug)]
struct Ended {
    /// Where its samples begin, those that were lost included.
    offsets: BTreeSet<u64>,
    missing: HashSet<u64>,
    samples: u64,
    stamp: Stamp,
    part: Part,
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

    /// Takes in what a sample turned out to be, when it was decoded, or by being lost before.
    pub fn heard(&self, pass: u64, shard: &Arc<str>, row: Row) {
        let mut state = self.state();
        let key = (pass, Arc::clone(shard));
        let is_under_way = state.pending.contains_key(&key);
        if state.has_failed || !is_under_way && state.known(&self.index, shard).is_some() {
            return;
        }
        let offset = row.offset;
        let pending = state.begin(&key);
        pending.ended.iter_mut().for_each(|ended| _ = ended.missing.remove(&offset));
        if pending.rows.insert(offset, row).is_none() {
            state.rows += 1;
        }
        self.finish(&mut state, &key);
        state.bound();
    }

    /// Takes in the end of a shard or of a part of it, the `offsets` of its samples, and its version if this process read it from its
    /// first byte on.
    pub fn ended(&self, shard: &Arc<str>, end: &ShardEnd, offsets: BTreeSet<u64>, stamp: Option<&Stamp>, part: Part) {
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
            if known != *stamp && state.known_now(&self.index, shard).is_some_and(|known| known != *stamp) {
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
        let pending = state.begin(&key);
        let missing = offsets.iter().copied().filter(|offset| !pending.rows.contains_key(offset)).collect();
        pending.ended.push(Ended { offsets, missing, samples: end.samples, stamp: stamp.clone(), part });
        self.finish(&mut state, &key);
    }

    /// Writes the index of what has ended and of which everything is known.
    fn finish(&self, state: &mut State, key: &(u64, Arc<str>)) {
        let Some((ended, rows)) = state.take_whole(key) else { return };
        let Ended { samples, stamp, part, .. } = ended;
        let index = ShardIndex { shard: Arc::clone(&key.1), stamp, samples, rows };
        if state.try_to(|| self.index.write_part(&index, part)) == Some(true) {
            state.forget(key);
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
        match self.done.get(&hash(shard)) {
            Some(known) => Some(known.clone()),
            None => self.known_now(index, shard),
        }
    }

    /// The same, by its file: another rank may have made it anew.
    fn known_now(&mut self, index: &Index, shard: &Arc<str>) -> Option<Stamp> {
        // a file that is none of ours is written anew
        let known = index.summary(shard).ok().flatten()?.stamp;
        self.done.insert(hash(shard), known.clone());
        Some(known)
    }

    fn begin(&mut self, key: &(u64, Arc<str>)) -> &mut Pending {
        self.begun += 1;
        let order = self.begun;
        self.pending.entry(key.clone()).or_insert_with(|| Pending { order, ..Pending::default() })
    }

    /// A reading of which everything was heard, with its rows in order, which are forgotten.
    fn take_whole(&mut self, key: &(u64, Arc<str>)) -> Option<(Ended, Vec<Row>)> {
        let pending = self.pending.get_mut(key)?;
        let at = pending.ended.iter().position(|ended| ended.missing.is_empty())?;
        let ended = pending.ended.swap_remove(at);
        let rows: Vec<Row> = ended.offsets.iter().filter_map(|offset| pending.rows.remove(offset)).collect();
        self.rows -= rows.len();
        if pending.rows.is_empty() && pending.ended.is_empty() {
            self.pending.remove(key);
        }
        Some((ended, rows))
    }

    fn forget(&mut self, key: &(u64, Arc<str>)) {
        self.rows -= self.pending.remove(key).map_or(0, |pending| pending.rows.len());
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
