//! What happened since a checkpoint that the way behind it cannot do without: who gave each sample, of which version the
//! shards are that were begun, and how many samples those gave that ended.
//!
//! In the exact order the seed says who gives the next sample, and a trail stays empty. In the order of arrival chance says
//! it; the trail holds one mark for each sample that entered the shuffle buffer, the number of its portion, and one for each
//! that left. Cursors share both with the stream, each up to its own length, so that a cursor costs no copy.

use crate::shards::index::Stamp;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Stands for a sample that left.
const LEFT: u32 = u32::MAX;

/// Things since a checkpoint, up to some moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Vec<T>", into = "Vec<T>")]
#[serde(bound(serialize = "T: Clone + Serialize", deserialize = "T: Deserialize<'de>"))]
pub(super) struct Since<T> {
    things: Arc<Mutex<Vec<T>>>,
    length: usize,
}

/// Who gave each sample.
pub(super) type Trail = Since<u32>;
/// What became of shards.
pub(super) type Shards = Since<Event>;

/// What became of one shard, given by the number of its list and its own in that; or of a portion, by its own in the order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event {
    /// It gave its first sample, and is of this version.
    Began(usize, usize, Stamp),
    /// The portion ended after so many samples, those before the checkpoint included.
    Ended(usize, usize, u64),
}

impl Event {
    /// Whether both tell the same of one shard, whatever the numbers.
    fn is_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Began(list, shard, _), Self::Began(other_list, other_shard, _))
            | (Self::Ended(list, shard, _), Self::Ended(other_list, other_shard, _)) => {
                (list, shard) == (other_list, other_shard)
            }
            _ => false,
        }
    }
}

impl<T> Since<T> {
    /// Adds a thing. Only the stream does, to whose length all others have come.
    fn push(&mut self, thing: T) {
        self.lock().push(thing);
        self.length += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.things.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl<T> Default for Since<T> {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl<T> From<Vec<T>> for Since<T> {
    fn from(things: Vec<T>) -> Self {
        Self { length: things.len(), things: Arc::new(Mutex::new(things)) }
    }
}

impl<T: Clone> From<Since<T>> for Vec<T> {
    fn from(since: Since<T>) -> Self {
        since.lock().iter().take(since.length).cloned().collect()
    }
}

impl<T: Clone + PartialEq> PartialEq for Since<T> {
    fn eq(&self, other: &Self) -> bool {
        Vec::from(self.clone()) == Vec::from(other.clone())
    }
}

/// What a stream under way notes, and what is left of the trail that it goes over again.
#[derive(Debug, Default)]
pub(super) struct Log {
    trail: Trail,
    shards: Shards,
    before: VecDeque<u32>,
    /// Whether what leaves has left before the restart.
    is_again: bool,
}

impl Log {
    /// For a stream that goes on from a cursor with this trail, and to these shards.
    pub(super) fn going_over(trail: &Trail, shards: &Shards) -> Self {
        let shards = Vec::from(shards.clone()).into();
        Self { trail: Trail::default(), shards, before: Vec::from(trail.clone()).into(), is_again: true }
    }

    /// Notes what became of a shard, unless it is noted since before a restart.
    pub(super) fn note(&mut self, event: Event) {
        let is_known = self.shards.lock().iter().any(|known| known.is_of(&event));
        if !is_known {
            self.shards.push(event);
        }
    }

    /// What became of shards up to this moment.
    pub(super) fn shards(&self) -> Shards {
        self.shards.clone()
    }

    /// The trail up to this moment.
    pub(super) fn trail(&self) -> Trail {
        self.trail.clone()
    }

    /// Whether the way is still that of the cursor.
    pub(super) fn is_going_over(&self) -> bool {
        !self.before.is_empty()
    }

    /// Whether what leaves now has left before the restart, in any order.
    pub(super) fn is_again(&self) -> bool {
        self.is_again
    }

    /// What leaves from now on is new.
    pub(super) fn has_gone_over(&mut self) {
        self.is_again = false;
    }

    /// The portion that gave the next sample before one left, when the cursor's way was gone first.
    pub(super) fn entered_before(&mut self) -> Option<u32> {
        let mark = self.before.pop_front()?;
        self.trail.push(mark);
        (mark != LEFT).then_some(mark)
    }

    pub(super) fn entered(&mut self, portion: u32) {
        self.trail.push(portion);
    }

    pub(super) fn left(&mut self) {
        self.trail.push(LEFT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_keeps_its_length_while_the_stream_goes_on() {
        let mut log = Log::default();
        for portion in [4, 2] {
            log.entered(portion);
        }
        log.left();
        let early = log.trail();
        log.entered(7);
        assert_eq!(Vec::from(early.clone()), [4, 2, LEFT]);
        assert_ne!(early, log.trail());

        let mut again = Log::going_over(&early, &Shards::default());
        let mut entered = Vec::new();
        while let Some(portion) = again.entered_before() {
            entered.push(portion);
        }
        assert_eq!((entered, again.is_going_over()), (vec![4, 2], false));
        assert_eq!(again.trail(), early);
    }
}
