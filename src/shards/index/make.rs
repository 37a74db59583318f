//! Makes the indices of a list without training on it.
//!
//! In: a list, and what tells of a sample what it is. Out: an index for each shard that can be read completely, and one [`Made`] a
//! shard. A shard whose index is of the version that is there is opened, and not read.

use super::{Index, Row, ShardIndex, Stamp};
use crate::config::{FetchPlan, StreamPlan};
use crate::error::Result;
use crate::shards::archive::Archive;
use crate::shards::audit::{Job, in_list_order};
use crate::shards::list::ShardList;
use crate::shards::reading::Reading;
use crate::shards::reason::Trouble;
use crate::shards::sample::{Samples, ShardSample, Step};
use crate::shards::source::Fetcher;
use crate::shards::url::ShardUrl;
use futures_util::{Stream, StreamExt};
use std::sync::Arc;

/// Tells what a sample is.
pub type Look = dyn Fn(&ShardSample) -> Row + Send + Sync;

/// What became of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The shard's name.
    pub shard: Arc<str>,
    /// Samples in its index, or why there is none.
    pub samples: Result<u64, Trouble>,
    /// The index was there.
    pub was_there: bool,
}

/// Indexes every shard of a list, `plan.lanes` at once, in the order of the list.
///
/// # Errors
/// Outside of a tokio runtime; in the stream, where a reader panicked or the index cannot be written.
pub fn make(
    list: &ShardList,
    plan: &StreamPlan,
    fetch: &FetchPlan,
    index: &Index,
    look: Arc<Look>,
) -> Result<impl Stream<Item = Result<Made>> + Send + use<>> {
    let most = plan.max_member_mib as u64 * 1024 * 1024;
    let index = index.clone();
    let job: Arc<Job<Result<Made>>> =
        Arc::new(move |url, fetcher, reading| index_shard(url, fetcher, reading, most, &index, &*look));
    Ok(in_list_order(list, plan, fetch, job)?.map(|made| made.and_then(|made| made)))
}

fn index_shard(
    url: &ShardUrl,
    fetcher: &Arc<Fetcher>,
    reading: &Arc<Reading>,
    most: u64,
    index: &Index,
    look: &Look,
) -> Result<Made> {
    let shard = Arc::clone(url.name());
    let archive = match Archive::open(url, fetcher, reading) {
        Ok(archive) => archive,
        Err(trouble) => return Ok(Made { shard, samples: Err(trouble), was_there: false }),
    };
    let stamp = Stamp::of(url, &archive);
    // a file that is none of ours is written anew
    if let Ok(Some(known)) = index.summary(&shard)
        && known.stamp == stamp
    {
        return Ok(Made { shard, samples: Ok(known.samples), was_there: true });
    }
    let mut samples = Samples::new(archive, most).with_class(url.class());
    let (mut rows, mut given) = (Vec::new(), 0);
    loop {
        match samples.step() {
            Step::Sample(sample) => {
                given += 1;
                rows.push(look(&sample));
            }
            Step::Lost(lost) if lost.key.is_some() => rows.push(Row::lost_at(lost.offset, lost.trouble.reason)),
            Step::Lost(_) => {}
            Step::End(ending) => {
                if let Some(trouble) = ending.trouble {
                    return Ok(Made { shard, samples: Err(trouble), was_there: false });
                }
                index.write(&ShardIndex { shard: Arc::clone(&shard), stamp, samples: given, rows })?;
                return Ok(Made { shard, samples: Ok(given), was_there: false });
            }
        }
    }
}
