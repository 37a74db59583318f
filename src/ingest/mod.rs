//! The endless stream of samples: shards interleaved, shuffled and repeated in an order that the seed fixes.
//!
//! In: a [`ShardList`](crate::shards::ShardList) and a [`Cursor`]. Out: [`RawSample`]s, each with the cursor *after* it.
//! `lanes` shards are open at once, each read by a thread of its own (`lane.rs`); they give one sample each in turn into a
//! shuffle buffer (`buffer.rs`), which a pass (`pass.rs`) fills and empties again, so that a pass is one permutation of
//! everything in the list. [`stream()`] strings passes together, mixes lists (`mix.rs`), and follows lists that grow
//! (`follow.rs`). Of several ranks each reads its [`Share`].
//!
//! The order depends on the seed, the list and the contents of the shards alone, never on threads or timing, unless
//! `stream.order = "arrival"` lets it. What cannot be read is lost, recorded in the ledger, and passed over; the stream ends with
//! an error only where the ledger says so.
//!
//! Memory: `stream.buffer_mib` for what is read ahead, `stream.shuffle_mib` for the shuffle buffer, and the largest member
//! that each open shard is at, whatever the number of shards and lists.

mod account;
mod buffer;
mod cursor;
mod follow;
mod lane;
mod mix;
mod names;
mod pass;
mod pick;
mod past;
mod progress;
mod redeal;
mod share;
mod shuffle;
mod stream;
mod trail;
#[cfg(test)]
mod tests;

pub use cursor::Cursor;
pub use past::Past;
pub use pick::pick;
pub use progress::{Progress, Waiting};
pub use redeal::redeal;
pub use share::Share;
pub use stream::{Opening, Passes, stream};

use crate::shards::{Loss, Reason, SampleId, Trouble};
use bytes::Bytes;
use std::sync::Arc;

/// One sample as it lies in its shard: a compressed image and what stands beside it.
#[derive(Clone, Debug)]
pub struct RawSample {
    /// Where it is from, and its name there.
    pub meta: SampleMeta,
    /// The image file, undecoded.
    pub image: Bytes,
    /// Why it could not be decoded before, if the index of this version of its shard says so.
    pub known: Option<Reason>,
    /// The position in the stream *after* this sample.
    pub cursor: Cursor,
}

impl RawSample {
    /// A sample of no stream, of which nothing is known.
    pub fn new(meta: SampleMeta, image: Bytes) -> Self {
        Self { meta, image, known: None, cursor: Cursor::default() }
    }
}

/// What is known of a sample without decoding it.
#[derive(Clone, Debug)]
pub struct SampleMeta {
    /// Its identity.
    pub id: SampleId,
    /// WebDataset key.
    pub key: String,
    /// Shard, without credentials.
    pub shard: Arc<str>,
    /// Byte offset of its first member's header in the uncompressed shard.
    pub offset: u64,
    /// Which pass over the list, from 0.
    pub pass: u64,
    /// The integer in its `.cls` member, if there is one.
    pub class: Option<i64>,
}

impl SampleMeta {
    /// The entry in the ledger for the loss of this sample.
    pub fn loss(&self, trouble: Trouble) -> Loss {
        Loss {
            pass: self.pass,
            shard: self.shard.to_string(),
            key: Some(self.key.clone()),
            offset: self.offset,
            reason: trouble.reason,
            detail: trouble.detail,
            encoding: None,
        }
    }
}
