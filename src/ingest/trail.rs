//! Which shard gave each sample since a checkpoint: what makes an order of arrival one that can be gone over again.
//!
//! In the exact order the seed says who gives the next sample, and a trail stays empty. In the order of arrival chance says
//! it; the trail holds one mark for each sample that entered the shuffle buffer, the number of its portion, and one for each
//! that left. Cursors share the marks with the stream, each up to its own length, so that a cursor costs no copy.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Stands for a sample that left.
const LEFT: u32 = u32::MAX;

/// The marks since a checkpoint, up to some moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Vec<u32>", into = "Vec<u32>")]
pub(super) struct Trail {
    marks: Arc<Mutex<Vec<u32>>>,
    length: usize,
}

impl Trail {
    /// Adds a mark. Only the stream does, whose trail is as long as the marks.
    fn push(&mut self, mark: u32) {
        self.lock().push(mark);
        self.length += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u32>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Vec<u32>> for Trail {
    fn from(marks: Vec<u32>) -> Self {
        Self { length: marks.len(), marks: Arc::new(Mutex::new(marks)) }
    }
}

impl From<Trail> for Vec<u32> {
    fn from(trail: Trail) -> Self {
        trail.lock().iter().take(trail.length).copied().collect()
    }
}

impl PartialEq for Trail {
    fn eq(&self, other: &Self) -> bool {
        Vec::from(self.clone()) == Vec::from(other.clone())
    }
}

/// The trail of a stream under way, and what is left of the one it goes over again.
#[derive(Debug, Default)]
pub(super) struct Log {
    trail: Trail,
    before: VecDeque<u32>,
    /// Whether what leaves has left before the restart.
    is_again: bool,
}

impl Log {
    /// For a stream that goes on from a cursor with this trail.
    pub(super) fn going_over(trail: &Trail) -> Self {
        Self { trail: Trail::default(), before: Vec::from(trail.clone()).into(), is_again: true }
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

        let mut again = Log::going_over(&early);
        let mut entered = Vec::new();
        while let Some(portion) = again.entered_before() {
            entered.push(portion);
        }
        assert_eq!((entered, again.is_going_over()), (vec![4, 2], false));
        assert_eq!(again.trail(), early);
    }
}
