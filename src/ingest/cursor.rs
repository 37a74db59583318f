//! Positions in the stream.
//!
//! A [`Cursor`] is a [`Checkpoint`] that the stream takes of itself every thousand samples or so, and how many samples have
//! left since. A checkpoint holds where each lane stands, which samples wait in the shuffle buffer (as shard and byte offset, not as
//! bytes), and how far the order of the pass has been used up. Going on from a cursor reads the waiting samples again, opens each lane
//! where it stood, and lets `skip` samples pass unseen: so much is read again and no more.

use super::account::Account;
use crate::error::{Error, Result};
use crate::shards::{ShardList, ShardUrl};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;

/// A position in the stream, from which it goes on with the very next sample. The default is the beginning.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Cursor {
    pub(super) checkpoint: Option<Arc<Checkpoint>>,
    pub(super) skip: u64,
}

impl Cursor {
    /// The pass over the list that the next sample belongs to, unless it is the first of another.
    pub fn pass(&self) -> u64 {
        self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.pass)
    }
}

/// The whole state of the stream between two samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Checkpoint {
    /// Seed of the order.
    pub seed: u64,
    /// Pass over the list, from 0.
    pub pass: u64,
    /// [`ShardList::fingerprint`] of the list of this pass.
    pub fingerprint: String,
    /// Names of the shards of this pass, in the order of the list.
    #[serde(with = "names")]
    pub shards: Arc<[Arc<str>]>,
    /// Shards of the pass's order that lanes have taken.
    pub taken: usize,
    /// The open shards.
    pub lanes: Vec<Place>,
    /// The lane that gives the next sample.
    pub turn: usize,
    /// The samples that wait in the shuffle buffer, in its order.
    pub waiting: Vec<Place>,
    /// Samples that left in this pass.
    pub draws: u64,
    /// What each lane's shard has given; none in cursors of older versions.
    #[serde(default)]
    pub accounts: Vec<Account>,
}

/// A byte of a shard: its number in the list of the pass, and the offset in its uncompressed tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "(usize, u64)", into = "(usize, u64)")]
pub(super) struct Place {
    pub shard: usize,
    pub offset: u64,
}

impl From<(usize, u64)> for Place {
    fn from((shard, offset): (usize, u64)) -> Self {
        Self { shard, offset }
    }
}

impl From<Place> for (usize, u64) {
    fn from(place: Place) -> Self {
        (place.shard, place.offset)
    }
}

impl Checkpoint {
    /// The shards of the checkpoint's pass, found in the list as it is today.
    ///
    /// # Errors
    /// The seed is another, the list lacks a shard that the pass had, or the checkpoint contradicts itself.
    pub(super) fn shards_in(&self, list: &ShardList, seed: u64) -> Result<Vec<ShardUrl>> {
        if self.seed != seed {
            return Err(Error::usage(format!("stream.seed is {seed}, but the run was begun with {}", self.seed))
                .with_hint("put the seed back, or begin a new run"));
        }
        let by_name: HashMap<&str, &ShardUrl> = list.shards.iter().map(|shard| (&**shard.name(), shard)).collect();
        let mut shards = Vec::with_capacity(self.shards.len());
        let mut missing = Vec::new();
        for name in self.shards.iter() {
            match by_name.get(&**name) {
                Some(&shard) => shards.push(shard.clone()),
                None => missing.push(name),
            }
        }
        if let Some(first) = missing.first() {
            let (missing, all) = (missing.len(), self.shards.len());
            return Err(Error::data(format!(
                "the list of shards has changed: {missing} of the {all} shards that the run was reading are gone, for one {first}"
            ))
            .with_hint("put them back (a list may grow during a run, never shrink), or begin a new run"));
        }
        let count = shards.len();
        let fits = |place: &Place| place.shard < count;
        let is_sound = crate::shards::fingerprint(self.shards.iter().map(|name| &**name)) == self.fingerprint
            && self.taken <= count
            && self.lanes.iter().all(fits)
            && self.waiting.iter().all(fits)
            && (self.turn < self.lanes.len() || self.turn == 0);
        if !is_sound {
            return Err(Error::data("the stream's cursor contradicts itself").with_hint("go back to an older snapshot"));
        }
        Ok(shards)
    }
}

/// A cursor as it lies on disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    skip: u64,
    checkpoint: Option<Checkpoint>,
}

impl From<Stored> for Cursor {
    fn from(stored: Stored) -> Self {
        Self { checkpoint: stored.checkpoint.map(Arc::new), skip: stored.skip }
    }
}

impl From<Cursor> for Stored {
    fn from(cursor: Cursor) -> Self {
        Self { skip: cursor.skip, checkpoint: cursor.checkpoint.map(|checkpoint| (*checkpoint).clone()) }
    }
}

/// Names in a file are plain strings.
mod names {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::sync::Arc;

    pub(super) fn serialize<S: Serializer>(names: &Arc<[Arc<str>]>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(names.iter().map(|name| &**name))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[Arc<str>]>, D::Error> {
        Ok(Vec::<String>::deserialize(deserializer)?.into_iter().map(Arc::from).collect())
    }
}
