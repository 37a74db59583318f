//! How far the consumer of batches has come: what a snapshot keeps of the stream.
//!
//! The stages left of the trainer run ahead of it. So each batch says what the stream comes to with it ([`BatchEnd`]),
//! and the consumer adds that up for the batches that it has really used ([`Standing`]): a stream that starts from there
//! goes on with the very next sample.

use super::seen::{Entry, Remembered};
use crate::config::FilterPlan;
use crate::ingest::Cursor;
use crate::shards::FilteredCounts;

/// What lies between the batch before and the end of this one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BatchEnd {
    /// The position in the stream after the last sample of the batch.
    pub cursor: Cursor,
    /// Samples that were passed over on purpose.
    pub filtered: FilteredCounts,
    /// Images that the rules on duplicates met for the first time.
    pub added: Vec<Entry>,
}

/// The stream up to the last batch used. The default is its beginning, where no duplicates are looked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// The position after it.
    pub cursor: Cursor,
    /// Samples passed over on purpose, since the beginning.
    pub filtered: FilteredCounts,
    /// Images that the rules on duplicates know.
    pub remembered: Remembered,
}

impl Standing {
    /// The beginning of the stream.
    pub fn new(plan: &FilterPlan) -> Self {
        Self { remembered: Remembered::new(plan.remember), ..Self::default() }
    }

    /// Goes on to the end of the next batch.
    pub fn advance(&mut self, end: BatchEnd) {
        self.cursor = end.cursor;
        for (filtered, count) in end.filtered {
            *self.filtered.entry(filtered).or_default() += count;
        }
        self.remembered.extend(end.added);
    }
}
