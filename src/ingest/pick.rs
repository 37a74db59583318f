//! Single samples of a list, found by way of its index: only what is wanted is read.
//!
//! In: a list, its index, and the ids of samples. Out: those of them that the index knows and that are still there. A shard that is
//! certain to be another one than was indexed gives nothing: whoever needs all of them reads the list. Memory: the images that are
//! found.

use super::lane::{Shared, fetch};
use super::{Progress, RawSample, SampleMeta};
use crate::config::{FetchPlan, StreamPlan};
use crate::error::Result;
use crate::shards::index::{Index, Stamp};
use crate::shards::source::Fetcher;
use crate::shards::{SampleId, ShardList, ShardUrl};
use futures_util::{StreamExt, TryStreamExt};
use std::collections::HashSet;
use std::sync::Arc;

/// The samples `wanted` that `index` knows, in the order of the list. Needs a tokio runtime.
///
/// # Errors
/// Outside of a runtime; a thread cannot start or panicked.
pub async fn pick(
    list: &ShardList,
    plan: &StreamPlan,
    fetching: &FetchPlan,
    index: &Index,
    wanted: &HashSet<SampleId>,
) -> Result<Vec<RawSample>> {
    let lanes = plan.lanes.max(1);
    let fetcher = Fetcher::new(&list.shards, fetching)?;
    let shared = Arc::new(Shared::new(fetcher, Arc::new(Progress::default()), plan, lanes));
    let (index, wanted) = (Arc::new(index.clone()), Arc::new(wanted.clone()));
    let shards = list
        .shards
        .iter()
        .map(|url| samples_of(url.clone(), Arc::clone(&index), Arc::clone(&wanted), Arc::clone(&shared)));
    let found: Vec<Vec<RawSample>> = futures_util::stream::iter(shards).buffered(lanes).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

async fn samples_of(
    url: ShardUrl,
    index: Arc<Index>,
    wanted: Arc<HashSet<SampleId>>,
    shared: Arc<Shared>,
) -> Result<Vec<RawSample>> {
    let name = Arc::clone(url.name());
    let of = Arc::clone(&name);
    let looked = tokio::task::spawn_blocking(move || places(&of, &index, &wanted)).await;
    let Some((offsets, stamp)) = looked.ok().flatten() else {
        return Ok(Vec::new());
    };
    let found = fetch(url, offsets, Some(stamp), shared).await?;
    let samples = found.into_values().filter_map(|sample| sample.ok()).map(|sample| {
        let (id, shard) = (SampleId::of(&name, sample.offset), Arc::clone(&name));
        let meta = SampleMeta { id, key: sample.key, shard, offset: sample.offset, pass: 0, class: sample.class };
        RawSample::new(meta, sample.image)
    });
    Ok(samples.collect())
}

/// Where the wanted samples of a shard begin, and in which version of it; none where there are none.
fn places(shard: &str, index: &Index, wanted: &HashSet<SampleId>) -> Option<(Vec<u64>, Stamp)> {
    // a file that is none of ours says nothing
    let known = index.shard(shard).ok().flatten()?;
    let offsets = known.rows.iter().map(|row| row.offset);
    let mut offsets: Vec<u64> = offsets.filter(|&offset| wanted.contains(&SampleId::of(shard, offset))).collect();
    offsets.sort_unstable();
    (!offsets.is_empty()).then_some((offsets, known.stamp))
}
