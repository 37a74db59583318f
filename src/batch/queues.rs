//! How full the channels around the decoders are, for whoever watches: each end counts what passes it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A bounded channel as its two ends count it.
#[derive(Debug)]
pub struct Queue {
    capacity: u64,
    put: AtomicU64,
    taken: AtomicU64,
}

impl Queue {
    /// An empty one with room for `capacity`.
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity as u64, put: AtomicU64::new(0), taken: AtomicU64::new(0) }
    }

    /// One more went in.
    pub fn count_put(&self) {
        self.put.fetch_add(1, Relaxed);
    }

    /// One more came out.
    pub fn count_taken(&self) {
        self.taken.fetch_add(1, Relaxed);
    }

    /// As many as fit in.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// All that went in so far.
    pub fn put(&self) -> u64 {
        self.put.load(Relaxed)
    }

    /// All that came out so far.
    pub fn taken(&self) -> u64 {
        self.taken.load(Relaxed)
    }

    /// How many are in it. An end counts when its call is over, so that two calls at once may be one apart.
    pub fn len(&self) -> u64 {
        self.put().saturating_sub(self.taken()).min(self.capacity)
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The channels on both sides of the decoders.
#[derive(Debug)]
pub struct Queues {
    /// Samples that wait to be decoded.
    pub samples: Queue,
    /// Batches that wait for the trainer.
    pub batches: Queue,
}

impl Queues {
    /// Empty ones with room for so many samples and batches.
    pub fn new(samples: usize, batches: usize) -> Self {
        Self { samples: Queue::new(samples), batches: Queue::new(batches) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_holds_what_went_in_and_did_not_come_out() {
        let queue = Queue::new(2);
        assert!(queue.is_empty());
        queue.count_taken(); // the taker may count before the giver does
        assert_eq!(queue.len(), 0);
        (0..3).for_each(|_| queue.count_put());
        assert_eq!((queue.put(), queue.taken(), queue.len()), (3, 1, 2));
        queue.count_put();
        assert_eq!(queue.len(), queue.capacity(), "one that waits for room is not in it");
    }
}
