//! Samples of a list by their ids: pictures need photographs, and a run keeps only ids.
//!
//! What an index of the list knows is gone to directly; for what is left the list is read until all is found.

use super::start_runtime;
use crate::config::{Plan, StreamPlan, ViewsPlan};
use crate::decode::Decoder;
use crate::error::{Error, Result};
use crate::ingest::{self, Opening, Passes, Progress, RawSample, SampleMeta};
use crate::observe::Photographs;
use crate::shards::index::Index;
use crate::shards::{Ledger, SampleId, ShardList};
use futures_util::StreamExt;
use image::RgbImage;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How far to go for photographs that no index knows.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    /// Bytes of the list read for them, about.
    pub bytes: u64,
    /// Time for all of it.
    pub time: Duration,
}

impl Reach {
    /// Through the whole list, however long it takes.
    pub const EVERYTHING: Self = Self { bytes: u64::MAX, time: Duration::MAX };
    /// What may be done beside training, time and again.
    pub const NEAR: Self = Self { bytes: 64 << 20, time: Duration::from_secs(20) };
}

/// The photographs of a run, for whoever draws beside it.
#[derive(Debug)]
pub struct Nearby {
    plan: Plan,
    list: ShardList,
    index: Index,
}

impl Nearby {
    /// Those of `list`, by way of the index in the folder of a run.
    pub fn of(plan: &Plan, list: ShardList, run: &Path) -> Self {
        Self { plan: plan.clone(), list, index: Index::new(run.join("index")) }
    }
}

impl Photographs for Nearby {
    fn find(&self, wanted: &HashSet<SampleId>, side: u32) -> Result<HashMap<SampleId, (String, RgbImage)>> {
        let list = if self.plan.stream.follow { self.list.reload()? } else { self.list.clone() };
        let found = thumbnails(&self.plan, list, &self.index, wanted, side, Reach::NEAR)?;
        Ok(found.into_iter().map(|(id, (sample, picture))| (id, (sample.key.to_string(), picture))).collect())
    }
}

/// Square thumbnails of `side` pixels (whole center views) of the samples `wanted`, by way of `index` or read in one go through
/// `list`, as far as `reach` goes; what is not found by then, is no longer there, or does not decode, is left out.
///
/// # Errors
/// Nothing in the list can be read.
pub fn thumbnails(
    plan: &Plan,
    list: ShardList,
    index: &Index,
    wanted: &HashSet<SampleId>,
    side: u32,
    reach: Reach,
) -> Result<HashMap<SampleId, (SampleMeta, RgbImage)>> {
    let views = ViewsPlan { size: side, resize: side, ..plan.views.clone() };
    let stream = StreamPlan { shuffle: 1, max_loss_rate: 1.0, ..plan.stream.clone() };
    let decoder = Decoder::new(&views, &stream);
    let ledger = Arc::new(Ledger::in_memory(&stream));
    let mut found = HashMap::new();
    let mut missing = wanted.clone();
    let started = Instant::now();
    let search = async {
        let mut take = |sample: &RawSample| {
            if !missing.remove(&sample.meta.id) {
                return Ok(missing.is_empty());
            }
            if let Some(image) = thumbnail(&decoder, sample, side)? {
                found.insert(sample.meta.id, (sample.meta.clone(), image));
            }
            Ok::<bool, Error>(missing.is_empty())
        };
        let mut is_complete = wanted.is_empty();
        {
            let mut known = std::pin::pin!(ingest::pick(&list, &stream, &plan.fetch, index, wanted)?);
            while let Some(sample) = known.next().await {
                is_complete = take(&sample?)?;
            }
        }
        let progress = Arc::new(Progress::default());
        let opening = Opening::new(list, &stream, &plan.fetch, Passes::Once, ledger);
        let samples = ingest::stream(Opening { progress: Arc::clone(&progress), ..opening });
        let mut samples = std::pin::pin!(samples);
        // a search that never has to wait is not ended from outside
        while !is_complete
            && progress.bytes() < reach.bytes
            && started.elapsed() < reach.time
            && let Some(sample) = samples.next().await
        {
            let sample = sample?;
            is_complete = take(&sample)?;
        }
        Ok(())
    };
    let runtime = start_runtime()?;
    // none: the time is over, and what was found by then is good
    let ended: Option<Result<()>> = runtime.block_on(async { tokio::time::timeout(reach.time, search).await.ok() });
    runtime.shutdown_background();
    ended.transpose()?;
    Ok(found)
}

/// None where the image does not decode.
fn thumbnail(decoder: &Decoder, sample: &RawSample, side: u32) -> Result<Option<RgbImage>> {
    let mut pixels = vec![0; side as usize * side as usize * 3];
    if decoder.decode_into(sample, Some(&mut pixels), None).is_err() {
        return Ok(None);
    }
    let image = RgbImage::from_raw(side, side, pixels);
    let key = &sample.meta.key;
    image.map(Some).ok_or_else(|| Error::data(format!("a thumbnail of {key} is not {side} pixels wide")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_index_knows_is_looked_for_as_far_as_the_reach_goes() -> Result<()> {
        let plan = Plan::default();
        let list = ShardList::parse(&["shards/photos-000000.tar".to_owned()])?;
        let nowhere = tempfile::tempdir().expect("a temporary folder");
        let index = Index::new(nowhere.path());
        let wanted: HashSet<SampleId> = ids_of(&plan, &list)?.into_iter().rev().take(3).collect();
        let find = |reach| thumbnails(&plan, list.clone(), &index, &wanted, 32, reach);
        let found = find(Reach::EVERYTHING)?;
        assert_eq!(found.keys().copied().collect::<HashSet<_>>(), wanted);
        assert!(found.values().all(|(_, picture)| picture.dimensions() == (32, 32)));
        assert!(find(Reach { bytes: 1 << 10, ..Reach::EVERYTHING })?.is_empty(), "they are at the end of the shard");
        assert!(find(Reach { time: Duration::ZERO, ..Reach::EVERYTHING })?.len() < wanted.len());
        Ok(())
    }

    /// Every sample of a list, in order.
    fn ids_of(plan: &Plan, list: &ShardList) -> Result<Vec<SampleId>> {
        let ledger = Arc::new(Ledger::in_memory(&plan.stream));
        start_runtime()?.block_on(async {
            let opening = Opening::new(list.clone(), &plan.stream, &plan.fetch, Passes::Once, ledger);
            let mut samples = std::pin::pin!(ingest::stream(opening));
            let mut ids = Vec::new();
            while let Some(sample) = samples.next().await {
                ids.push(sample?.meta.id);
            }
            Ok(ids)
        })
    }
}
