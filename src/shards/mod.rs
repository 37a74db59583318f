//! Which shards there are, and how their bytes become samples.
//!
//! In: the specs of `stream.shards` (paths, URLs, braces, globs, folders, `@lists`). Out: [`ShardSample`]s of one shard at a
//! time, in the order of the archive, and a [`Verdict`] on the shard. The floors, from the bottom up:
//!
//! * [`ShardList`] says which shards; [`ShardUrl`] keeps credentials out of everything that is shown or stored.
//! * [`source`] gives the bytes of one shard, from a file or over HTTP.
//! * [`archive`] takes gzip or zstd off, walks the tar and notices every kind of damage.
//! * [`sample`] groups members by WebDataset's rule.
//! * [`metadata`] knows licences and authors of YFCC100M's photographs.
//! * [`Ledger`] records what was lost and stops a run that loses too much.
//! * [`index`] keeps what each sample is, learnt on the way; [`replay`] tries again what was lost.
//!
//! [`audit`] and [`pack`] are what `shoal shards check` and `shoal shards pack` do.

mod reason;
mod url;
mod expand;
mod list;
mod images;
mod reading;
pub mod source;
mod input;
pub mod archive;
pub mod sample;
pub mod ledger;
pub mod audit;
pub mod replay;
pub mod index;
pub mod metadata;
pub mod pack;
#[cfg(test)]
pub(crate) mod testing;

pub use archive::{Ending, Verdict};
pub use ledger::{Ledger, Loss};
pub use list::ShardList;
pub(crate) use list::fingerprint;
pub use reading::{Activity, Reading};
pub use reason::{Filtered, FilteredCounts, Notice, Reason, Rejection, Trouble};
pub use sample::ShardSample;
pub use url::ShardUrl;

use serde::{Deserialize, Serialize};

/// A sample for good: a 64-bit hash of (shard URL without credentials, byte offset of its first member's header).
///
/// It names the sample in the bank, in labels, in the ledger and in exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SampleId(pub u64);

impl SampleId {
    /// The identity of the sample that begins at byte `offset` of the uncompressed shard of this name.
    pub fn of(shard: &str, offset: u64) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64_with_seed(shard.as_bytes(), offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_differ_by_shard_and_by_offset() {
        let ids = [SampleId::of("a.tar", 0), SampleId::of("a.tar", 512), SampleId::of("b.tar", 0)];
        assert!(ids[0] != ids[1] && ids[0] != ids[2] && ids[1] != ids[2], "{ids:?}");
    }
}
