//! The shuffle buffer: samples that wait until a draw lets them go.
//!
//! Bounded by count and by bytes. Both bounds look at the samples alone, never at time, so that the same samples enter and
//! leave in the same order always. The last sample that enters may exceed the bytes: the bound is kept but for one sample.

use super::cursor::Place;
use super::shuffle::{entering, leaver};
use crate::shards::ShardSample;

/// A sample that waits; or a gap, where it could not be read again after a restart.
#[derive(Debug)]
pub(super) struct Waiter {
    pub place: Place,
    pub sample: Option<ShardSample>,
}

/// The samples that wait.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    waiting: Vec<Waiter>,
    bytes: usize,
}

impl Waiter {
    /// In the place of a sample that is gone for good.
    pub(super) fn gap(shard: usize) -> Self {
        Self { place: Place::gap(shard), sample: None }
    }

    fn bytes(&self) -> usize {
        self.sample.as_ref().map_or(0, |sample| sample.image.len())
    }
}

impl Buffer {
    pub(super) fn push(&mut self, waiter: Waiter) {
        self.bytes += waiter.bytes();
        self.waiting.push(waiter);
    }

    /// The sample that the draw of this number lets go.
    pub(super) fn leave(&mut self, seed: u64, pass: u64, draw: u64) -> Option<Waiter> {
        if self.waiting.is_empty() {
            return None;
        }
        let waiter = self.waiting.swap_remove(leaver(seed, pass, draw, self.waiting.len()));
        self.bytes -= waiter.bytes();
        Some(waiter)
    }

    /// How many samples should enter before the next one leaves, where so many fit.
    pub(super) fn entering(&self, capacity: usize) -> usize {
        entering(self.waiting.len(), capacity)
    }

    /// Whether its bytes leave room for another sample.
    pub(super) fn has_room(&self, most_bytes: usize) -> bool {
        self.bytes < most_bytes || self.waiting.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes of the images that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The shard of each sample that waits.
    pub(super) fn shards(&self) -> impl Iterator<Item = usize> {
        self.waiting.iter().map(|waiter| waiter.place.shard)
    }

    pub(super) fn places(&self) -> Vec<Place> {
        self.waiting.iter().map(|waiter| waiter.place).collect()
    }
}

impl FromIterator<Waiter> for Buffer {
    fn from_iter<I: IntoIterator<Item = Waiter>>(waiters: I) -> Self {
        let mut buffer = Self::default();
        for waiter in waiters {
            buffer.push(waiter);
        }
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn waiter(number: usize, bytes: usize) -> Waiter {
        let image = Bytes::from(vec![0; bytes]);
        let sample =
            ShardSample { key: String::new(), offset: 0, end: 0, image, class: None, notices: Vec::new(), known: None };
        Waiter { place: Place { shard: number, offset: 0 }, sample: Some(sample) }
    }

    #[test]
    fn bytes_are_bounded_but_for_one_sample() {
        let mut buffer = Buffer::default();
        for (number, bytes) in [0, 900, 0, 300, 50, 50, 2_000, 1].into_iter().enumerate() {
            while !buffer.has_room(1_000) {
                buffer.leave(31, 0, number as u64);
            }
            buffer.push(waiter(number, bytes));
            assert!(buffer.bytes() < 1_000 + bytes);
            assert_eq!(buffer.bytes(), buffer.waiting.iter().map(Waiter::bytes).sum::<usize>());
        }
        while buffer.leave(31, 0, 0).is_some() {}
        assert_eq!((buffer.len(), buffer.bytes()), (0, 0));
        assert!(buffer.has_room(0), "one sample fits always");
    }
}
