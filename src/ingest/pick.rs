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
use futures_util::{Stream, StreamExt, TryStreamExt};
use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;

/// The samples `wanted` that `index` knows, as they come; shards that were indexed last are asked first. Needs a tokio runtime.
///
/// # Errors
/// Outside of a runtime; a thread cannot start or panicked.
pub fn pick(
    list: &ShardList,
    plan: &StreamPlan,
    fetching: &FetchPlan,
    index: &Index,
    wanted: &HashSet<SampleId>,
) -> Result<impl Stream<Item = Result<RawSample>> + use<>> {
    let lanes = plan.lanes.max(1);
    let fetcher = Fetcher::new(&list.shards, fetching)?;
    let shared = Arc::new(Shared::new(fetcher, Arc::new(Progress::default()), plan, lanes));
    let mut shards = list.shards.to_vec();
    shards.sort_by_cached_key(|url| Reverse(index.time(url.name())));
    let (index, wanted) = (Arc::new(index.clone()), Arc::new(wanted.clone()));
    let shards = shards
        .into_iter()
        .map(move |url| samples_of(url, Arc::clone(&index), Arc::clone(&wanted), Arc::clone(&shared)));
    let found = futures_util::stream::iter(shards).buffer_unordered(lanes);
    Ok(found.map_ok(|samples| futures_util::stream::iter(samples).map(Ok)).try_flatten())
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
    let (mut offsets, stamp) = index.offsets(shard).ok().flatten()?;
    offsets.retain(|&offset| wanted.contains(&SampleId::of(shard, offset)));
    offsets.sort_unstable();
    (!offsets.is_empty()).then_some((offsets, stamp))
}
