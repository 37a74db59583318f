//! How far the consumer of batches has come: what a snapshot keeps of the stream.
//!
//! The stages left of the trainer run ahead of it. So each batch says what the stream comes to with it ([`BatchEnd`]),
//! and the consumer adds that up for the batches that it has really used ([`Standing`]): a stream that starts from there
//! goes on with the very next sample.

use crate::ingest::Cursor;
use crate::shards::FilteredCounts;

/// What lies between the batch before and the end of this one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BatchEnd {
    /// The position in the stream after the last sample of the batch.
    pub cursor: Cursor,
    /// Samples that were passed over on purpose.
    pub filtered: FilteredCounts,
}

/// The stream up to the last batch used. The default is its beginning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// The position after it.
    pub cursor: Cursor,
    /// Samples passed over on purpose, since the beginning.
    pub filtered: FilteredCounts,
}

impl Standing {
    /// Goes on to the end of the next batch.
    pub fn advance(&mut self, end: BatchEnd) {
        self.cursor = end.cursor;
        for (filtered, count) in end.filtered {
            *self.filtered.entry(filtered).or_default() += count;
        }
    }
}
