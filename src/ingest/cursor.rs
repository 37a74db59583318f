//! Positions in the stream.
//!
//! A [`Cursor`] is a [`Checkpoint`] that the stream takes of itself every thousand samples or so, how many samples have
//! left since, what became of [`Shards`], and, where samples come in the order of arrival, the [`Trail`] of who gave them. A
//! checkpoint holds, for each list, where each lane stands, which samples wait in the shuffle buffer (as shard and byte offset,
//! not as bytes), of which versions of their shards, and how far the order of the pass has been used up. Going on from a cursor
//! reads the waiting samples again, opens each lane where it stood,
//! and lets `skip` samples pass unseen: so much is read again and no more.
//!
//! A cursor is a few pointers: one comes with every sample. On disk the names of the shards are most of it; each is written
//! as what it does not share with the one before, which is some ten bytes.

use super::account::Account;
use super::names;
use super::share::{Portion, Share};
use super::trail::{Event, Shards, Trail};
use crate::error::{Error, Result};
use crate::shards::index::Stamp;
use crate::shards::{ShardList, ShardUrl};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// A position in the stream, from which it goes on with the very next sample. The default is the beginning.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Cursor {
    pub(super) checkpoint: Option<Arc<Checkpoint>>,
    pub(super) skip: u64,
    pub(super) trail: Trail,
    pub(super) since: Shards,
}

impl Cursor {
    /// Whether it stands in these lists, going by the names of their shards: one, unless several are mixed.
    pub fn is_of(&self, lists: &[ShardList]) -> bool {
        let Some(checkpoint) = &self.checkpoint else { return false };
        let prints = checkpoint.lists.iter().map(|point| point.fingerprint.as_str());
        prints.eq(lists.iter().map(ShardList::fingerprint))
    }

    /// Whether every list has been read to its end at least once.
    pub fn is_past_first_pass(&self) -> bool {
        self.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.lists.iter().all(|list| list.pass > 0))
    }
}

/// The whole state of the stream between two samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Checkpoint {
    /// Seed of the order.
    pub seed: u64,
    /// Whose part of the lists this is.
    pub share: Share,
    /// Samples that left, of all lists: the next one is of the list that this number draws.
    pub mixed: u64,
    /// Where each list stands: one, unless several are mixed.
    pub lists: Vec<Point>,
}

/// The state of one pass over one list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Point {
    /// Pass over the list, from 0.
    pub pass: u64,
    /// [`ShardList::fingerprint`] of the list of this pass.
    pub fingerprint: String,
    /// Names of the shards of this pass, in the order of the list.
    #[serde(with = "names")]
    pub shards: Arc<[Arc<str>]>,
    /// The portions of this pass in their order, where it is not the one that seed, pass and share give: the list grew within the
    /// pass, or the pass was dealt anew among other ranks.
    #[serde(default, with = "portions", skip_serializing_if = "Option::is_none")]
    pub order: Option<Arc<[Portion]>>,
    /// Portions of the pass's order that lanes have taken.
    pub taken: usize,
    /// What is left of the open portions.
    pub lanes: Vec<Spot>,
    /// What the shard of each of them has given.
    pub accounts: Vec<Account>,
    /// The lane that gives the next sample.
    pub turn: usize,
    /// The samples that wait in the shuffle buffer, in its order.
    pub waiting: Vec<Place>,
    /// The versions of the shards in which lanes stand, and of which samples wait, by their numbers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stamps: BTreeMap<usize, Stamp>,
    /// Samples that portions have given which ended behind the point, by their numbers: of a cursor, not of a checkpoint.
    #[serde(skip)]
    pub ended: BTreeMap<usize, u64>,
    /// Samples that left in this pass.
    pub draws: u64,
    /// Passes dealt anew that come before the next ordinary one.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub later: VecDeque<Point>,
}

/// A byte of a shard: its number in the list of the pass, and the offset in its uncompressed tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "(usize, u64)", into = "(usize, u64)")]
pub(super) struct Place {
    pub shard: usize,
    pub offset: u64,
}

/// How far a portion, by its number in the order of the pass, has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u64, u64)", into = "(u32, u64, u64)")]
pub(super) struct Spot {
    pub number: u32,
    /// Where the next sample begins.
    pub offset: u64,
    /// Samples of the shard before that.
    pub ordinal: u64,
}

/// No sample begins here.
const GAP: u64 = u64::MAX;

impl Place {
    /// Of a sample that is gone for good, in whose stead nothing is to come.
    pub(super) fn gap(shard: usize) -> Self {
        Self { shard, offset: GAP }
    }

    /// Whether it is that of a sample that is gone.
    pub(super) fn is_gap(self) -> bool {
        self.offset == GAP
    }
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

impl From<(u32, u64, u64)> for Spot {
    fn from((number, offset, ordinal): (u32, u64, u64)) -> Self {
        Self { number, offset, ordinal }
    }
}

impl From<Spot> for (u32, u64, u64) {
    fn from(spot: Spot) -> Self {
        (spot.number, spot.offset, spot.ordinal)
    }
}

impl Checkpoint {
    /// Whether a stream of this seed, share and number of lists can go on from here.
    ///
    /// # Errors
    /// Which of them is another.
    pub(super) fn check(&self, seed: u64, share: Share, lists: usize) -> Result<()> {
        if self.seed != seed {
            return Err(Error::usage(format!("stream.seed is {seed}, but the run was begun with {}", self.seed))
                .with_hint("put the seed back, or begin a new run"));
        }
        if self.share != share {
            let was = self.share;
            return Err(Error::usage(format!(
                "the cursor is of rank {} of {}, this is rank {} of {}",
                was.rank(),
                was.world(),
                share.rank(),
                share.world()
            ))
            .with_hint("deal the cursors of all ranks anew, or start as many ranks as there were"));
        }
        if self.lists.len() != lists {
            let was = self.lists.len();
            return Err(Error::usage(format!("the stream mixes {lists} lists, but the run was begun with {was}"))
                .with_hint("put stream.shards and stream.weights back, or begin a new run"));
        }
        Ok(())
    }
}

impl Point {
    /// With what became of the shards of this list since.
    pub(super) fn with_events(&self, list: usize, events: &Shards) -> Self {
        let mut point = self.clone();
        for event in Vec::from(events.clone()) {
            match event {
                Event::Began(of, shard, stamp) if of == list => _ = point.stamps.insert(shard, stamp),
                Event::Ended(of, portion, samples) if of == list => _ = point.ended.insert(portion, samples),
                Event::Began(..) | Event::Ended(..) => {}
            }
        }
        point
    }

    /// The shards of the pass, found in the list as it is today. A list that is followed may have lost some: those that are
    /// still to be read are then tried by their names, and counted as lost.
    ///
    /// # Errors
    /// The list lacks a shard that the pass had, or the point contradicts itself.
    pub(super) fn shards_in(&self, list: &ShardList, may_lack: bool) -> Result<Vec<ShardUrl>> {
        let by_name: HashMap<&str, &ShardUrl> = list.shards.iter().map(|shard| (&**shard.name(), shard)).collect();
        let mut shards = Vec::with_capacity(self.shards.len());
        let mut missing = Vec::new();
        for name in self.shards.iter() {
            match by_name.get(&**name) {
                Some(&shard) => shards.push(shard.clone()),
                None if may_lack && name.contains("://") => shards.push(ShardUrl::remote(name)),
                None if may_lack => shards.push(ShardUrl::local(&**name)),
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
        Ok(shards)
    }

    /// Whether the numbers of the point fit each other, and an order of so many portions.
    ///
    /// # Errors
    /// They do not.
    pub(super) fn check(&self, order: &[Portion]) -> Result<()> {
        let count = self.shards.len();
        let is_sound = crate::shards::fingerprint(self.shards.iter().map(|name| &**name)) == self.fingerprint
            && self.taken <= order.len()
            && order.iter().all(|portion| portion.shard < count && portion.member < portion.every)
            && self.lanes.iter().all(|spot| (spot.number as usize) < self.taken)
            && self.waiting.iter().all(|place| place.shard < count)
            && self.stamps.keys().all(|&shard| shard < count)
            && self.accounts.len() == self.lanes.len()
            && (self.turn < self.lanes.len() || self.turn == 0);
        match is_sound {
            true => Ok(()),
            false => Err(damaged()),
        }
    }
}

/// What is said of a cursor that cannot be one of ours.
pub(super) fn damaged() -> Error {
    Error::data("the stream's cursor contradicts itself").with_hint("go back to an older snapshot")
}

/// A cursor as it lies on disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    skip: u64,
    trail: Trail,
    #[serde(default, skip_serializing_if = "Shards::is_empty")]
    since: Shards,
    checkpoint: Option<Checkpoint>,
}

impl From<Stored> for Cursor {
    fn from(stored: Stored) -> Self {
        let Stored { skip, trail, since, checkpoint } = stored;
        Self { checkpoint: checkpoint.map(Arc::new), skip, trail, since }
    }
}

impl From<Cursor> for Stored {
    fn from(cursor: Cursor) -> Self {
        let checkpoint = cursor.checkpoint.map(|checkpoint| (*checkpoint).clone());
        Self { skip: cursor.skip, trail: cursor.trail, since: cursor.since, checkpoint }
    }
}

/// An order in a file is a plain list of portions.
mod portions {
    use super::Portion;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::sync::Arc;

    pub(super) fn serialize<S: Serializer>(order: &Option<Arc<[Portion]>>, serializer: S) -> Result<S::Ok, S::Error> {
        order.as_deref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Arc<[Portion]>>, D::Error> {
        Ok(Option::<Vec<Portion>>::deserialize(deserializer)?.map(Arc::from))
    }
}
